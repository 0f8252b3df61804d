"""`oneloop verify`: the promises, tried on the user's own machine, net and data.

Real processes of the recipe, a few steps each, in a temporary folder. Two runs are the same if their records agree line by line
(the clock's entries apart) and their weights have one sha256.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from ..errors import Refused, printable
from ..record.runs import read_json, read_metrics
from .sweep import signals_noted

# Training and test images: primes, so that no batch, slice or process divides them; the most with which a run is short. Of 503
# test images an evaluation on two processes makes a batch each.
SIZES = ((251, 503), (61, 127), (23, 29))
EPOCHS = 3
SHORT_SECONDS = 30  # that the first run may train; with the last of SIZES, as long as it takes
FIRST_SECONDS = 3600  # for the first run with its data, which may have to be fetched
# How far two devices, or two orders of summation, may be apart, relatively: loss and gradient's norm of the first step, with the
# same weights and images, and the second step's loss. Later steps are no measure: a residual net's loss is 2e-2 away at step 3,
# from rounding alone. Measured on nets of 5 to 56 layers: fp32 in another order 9e-7, 2e-4, 1e-3; TF32, in which GPUs convolve,
# emulated 7e-5, 9e-3, 2e-3; bf16 against fp32 6e-4, 1e-2, 2e-3. fp16 has TF32's mantissa; its gradients' norm is not recorded.
NEAR = {"no": (5e-4, 5e-2, 1e-2), "fp16": (5e-4, 5e-2, 1e-2), "bf16": (3e-3, 1e-1, 2e-2)}
CLOCK = ("seconds", "images_per_second")


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "oneloop verify",
        usage="oneloop verify RECIPE [the recipe's own flags] [--out FILE]",
        description="Prove on this machine, with this net and these data: the same curve on 1 and 2 processes, exact resume\n"
        "after a kill, evaluation of every image, checkpoints that verify or are not used. A few minutes.",
        epilog="example: oneloop verify recipes/cifar2.py --net NetDropout\n\n"
        f"{SIZES[0][0]} training images, fewer for a large net, and {EPOCHS} epochs, unless --limit and --epochs say otherwise;\n"
        f"at most {SIZES[0][1]} test images; exit 0: all hold, 4: one does not",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="the file of a recipe")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("receipt.json"), help="default: receipt.json")
    chosen, flags = parser.parse_known_args(args)
    _understood(chosen.recipe, flags)
    if chosen.out.is_dir() or not os.access(chosen.out if chosen.out.exists() else chosen.out.resolve().parent, os.W_OK):
        raise Refused(f"cannot write {chosen.out}; --out names another file")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="oneloop-verify-") as place, signals_noted() as signals:
        trial = Trial(chosen.recipe.resolve(), flags, Path(place), signals=signals)
        checks = list(_checks(trial))
        trial.stop_if_told()
        environment = read_json(trial.place / "one/config.json")
    receipt = {
        "recipe": str(chosen.recipe),
        "flags": trial.flags,
        "test_images": trial.tests,
        "passed": all(check.verdict != "FAIL" for check in checks),
        "checks": [asdict(check) for check in checks],
        **{key: environment[key] for key in ("git", "versions", "device", "threads")},
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "seconds": round(time.monotonic() - began),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    _print(receipt, chosen.out)
    try:
        chosen.out.write_text(json.dumps(receipt, indent=1))
    except OSError as error:
        raise Refused(f"cannot write {chosen.out}: {error.strerror}") from error
    if failed := [check.what for check in checks if check.verdict == "FAIL"]:
        raise Refused(f"does not hold here: {'; '.join(failed)}", 4)


@dataclass
class Check:
    """One promise: what was compared, and what came out."""

    what: str
    verdict: str  # pass, FAIL or skipped
    detail: str
    digests: dict[str, str] = field(default_factory=dict)  # sha256 of the weights, by run


@dataclass
class Trial:
    """The recipe, its flags, the folder of its runs, and what is known of how long one may take."""

    recipe: Path
    flags: list[str]
    place: Path
    tests: int = SIZES[0][1]  # test images, at most
    seconds: float = FIRST_SECONDS  # for a run
    signals: list[int] = field(default_factory=list)  # to stop, as they arrive

    def begin(self, name: str, processes: int = 1, shards: int = 2, gpus: bool = False) -> subprocess.Popen:
        """Start the run in the folder `name`, or go on with it; its output is appended to `name`.log."""
        # The current folder is no place of modules: this package is the installed one, as for this process.
        environment = os.environ | {"WANDB_MODE": "disabled", "PYTHONSAFEPATH": "1"}
        environment |= {} if gpus else {"ACCELERATE_USE_CPU": "true"}
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        recipe = ["-m", "launch.trial", str(self.tests), str(self.recipe), *self.flags]
        fixed = ["--shards", str(shards), "--threads", "1", "--log-every", "1", "--save-every", "1"]
        command = [sys.executable, *launcher, *recipe, *fixed, "--out", str(self.place / name)]
        with open(self.place / f"{name}.log", "a") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def first(self) -> int:
        """Bring the run `one` to its end, with the first of SIZES with which it is short; its exit code.

        Sets `flags` and `tests`, and by what this run has taken the `seconds` for one of the others. Raises Refused.
        """
        flags = _short(self.flags)
        opened = self.place / "one/config.json"

        def too_long() -> bool:
            return opened.exists() and time.time() - opened.stat().st_mtime > SHORT_SECONDS

        sizes = SIZES[:1] if "--limit" in _names(flags) else SIZES
        for limit, tests in sizes:
            shutil.rmtree(self.place / "one", ignore_errors=True)
            self.flags = flags if len(sizes) == 1 else [*flags, "--limit", str(limit)]
            self.tests, began = tests, time.monotonic()
            last = (limit, tests) == sizes[-1]
            code = self._until("one", (lambda: False) if last else too_long)
            if code is not None and (code != 2 or last):  # 2: the net cannot have this number of images, as 1 left over
                break
        self.seconds = 10 * (time.monotonic() - began) + 60
        return code

    def run(self, name: str, **options) -> int:
        """Bring the run to its end; its exit code. Raises Refused after `seconds`."""
        return self._until(name, lambda: False, **options)

    def killed(self, name: str, when: Callable[[], bool], **options) -> None:
        """Start the run and kill it `when` it is so, unless it ends before."""
        self._until(name, when, **options)

    def _until(self, name: str, over: Callable[[], bool], **options) -> int | None:
        """Start the run and wait for its end; its exit code, None if it was `over` before and has been killed."""
        process, deadline = self.begin(name, **options), time.monotonic() + self.seconds
        try:
            while (code := process.poll()) is None and not over():
                self.stop_if_told()
                if time.monotonic() > deadline:
                    raise Refused(f"a run took more than {self.seconds:.0f} s; a smaller --limit makes it shorter")
                time.sleep(0.005)
            return code
        finally:
            _kill(process)

    def stop_if_told(self) -> None:
        """Raise Refused (130, 143) after a signal."""
        if self.signals:
            raise Refused(f"stopped by {signal.Signals(self.signals[0]).name}; nothing is left", 128 + self.signals[0])

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text()

    def records(self, name: str) -> dict[str, list[dict]]:
        """The lines of every metrics.jsonl of the run, without the clock's entries; stages in the order in which they ended."""
        files = sorted((self.place / name).rglob("metrics.jsonl"), key=lambda file: file.stat().st_mtime_ns)
        return {
            str(file.parent.relative_to(self.place / name)): [
                {key: value for key, value in line.items() if key not in CLOCK} for line in read_metrics(file)
            ]
            for file in files
        }

    def digest(self, name: str) -> str:
        """The sha256 of the run's last weights; "" without any."""
        results = [read_json(file) for file in sorted((self.place / name).rglob("result.json"))]
        return " ".join(result["weights_sha256"] for result in results if "weights_sha256" in result)


def _checks(trial: Trial) -> Iterator[Check]:
    """Each promise tried, in turn. Raises Refused if the recipe does not even run."""
    if code := trial.first():
        raise Refused(f"the recipe does not run here: {_last_line(trial.log('one'))}", code if 0 < code < 6 else 1)
    if not trial.records("one"):
        raise Refused(f"{trial.recipe} left no metrics.jsonl: there is nothing to compare", 2)

    yield _same(trial, "1 process and 2", "one", "two", trial.run("two", processes=2))
    why = "by its make (batch norm, dropout) the net judges an image with its batch or by chance"
    try:
        alone, draws = judges(trial)
    except Refused as error:
        alone, draws, why = False, False, str(error)
    if alone:
        yield _near(trial, "a batch in 2 slices and whole", "one", "whole", trial.run("whole", shards=1))
    else:
        yield Check("a batch in 2 slices and whole", "skipped", why)
    yield _killed(trial, "killed, then the same command", "one", "killed")
    yield _flipped(trial)
    yield _evaluated(trial)
    if count := _gpus():
        yield from on_gpus(trial, count, draws)
    else:
        yield Check("GPUs", "skipped", "none here")


def on_gpus(trial: Trial, count: int, draws: bool) -> Iterator[Check]:
    """What can be asked of a GPU, which need not repeat the bits of a CPU, nor its own."""
    code, what = trial.run("gpu", gpus=True), "1 GPU and the CPU"
    if draws and not code:
        yield Check(what, "skipped", "the net draws random numbers (dropout): a GPU draws others than a CPU")
    else:
        yield _near(trial, what, "one", "gpu", code)
    if code:
        return
    yield _killed_on_gpu(trial, trial.run("again", gpus=True))
    if count > 1:
        yield _near(trial, "1 GPU and 2", "gpu", "gpus", trial.run("gpus", processes=2, gpus=True))


def _killed_on_gpu(trial: Trial, code: int) -> Check:
    """Exact resume, where the GPU repeats itself at all: in the runs `gpu` and `again`, the latter with the exit `code`."""
    what = "killed on the GPU, then the same command"
    repeated = _same(trial, what, "gpu", "again", code)
    if repeated.verdict == "FAIL":
        if not code:
            repeated.verdict = "skipped"
            repeated.detail = f"two whole runs differ on this GPU, whose kernels do not repeat themselves: {repeated.detail}"
        return repeated
    return _killed(trial, what, "gpu", "gpu-killed", gpus=True)


def _same(trial: Trial, what: str, first: str, second: str, code: int) -> Check:
    """Whether two runs are the same, bit for bit."""
    digests = {name: trial.digest(name) for name in (first, second)}
    if code:
        return Check(what, "FAIL", f"exit code {code}: {_last_line(trial.log(second))}", digests)
    if difference := _first_difference(trial.records(first), trial.records(second)):
        return Check(what, "FAIL", difference, digests)
    if digests[first] != digests[second]:
        return Check(what, "FAIL", "the records agree, the weights do not", digests)
    lines = sum(map(len, trial.records(first).values()))
    return Check(what, "pass", f"the same bits: {lines} lines, weights {digests[first][:16]}", digests)


def _near(trial: Trial, what: str, first: str, second: str, code: int) -> Check:
    """Whether the losses of two runs differ by rounding only."""
    digests = {name: trial.digest(name) for name in (first, second)}
    if code:
        return Check(what, "FAIL", f"exit code {code}: {_last_line(trial.log(second))}", digests)
    precision = read_json(trial.place / second / "config.json")["precision"]
    near, detail = beginnings_near(trial.records(first), trial.records(second), precision)
    return Check(what, "pass" if near else "FAIL", detail, digests)


def beginnings_near(ours: dict[str, list[dict]], theirs: dict[str, list[dict]], precision: str) -> tuple[bool, str]:
    """Whether the first two steps of two records, as `Trial.records` has them, are apart by rounding only; and that in words."""
    loss, norm, later = NEAR[precision]
    said = []
    (stage, ours), (other, theirs) = (next(iter(record.items())) for record in (ours, theirs))
    if stage != other:
        return False, f"the first stage is {stage} in one record and {other} in the other"
    for step, key, bound in ((1, "loss", loss), (1, "gradient_norm", norm), (2, "loss", later)):
        values = [
            next((line.get(key) for line in lines if line["event"] == "train" and line["step"] == step), None)
            for lines in (ours, theirs)
        ]
        if values == [None, None] and (step, key) != (1, "loss"):  # one step only, or fp16
            continue
        if None in values:
            return False, f"step {step}: no {key} in one record"
        away = abs(values[0] - values[1]) / max(abs(values[0]), 1e-3)
        if not away <= bound:
            return False, f"step {step}: {key} {values[0]:.9g} and {values[1]:.9g}, apart by {away:.1e}; rounding is {bound:.0e}"
        said.append(f"{key.replace('_', ' ')} of step {step} {away:.1e}")
    return True, f"equal up to rounding ({precision}): {', '.join(said)}"


def _killed(trial: Trial, what: str, whole: str, name: str, **options) -> Check:
    """SIGKILL at a random step, then the same command; what the kill left is copied, for `_flipped`."""
    last = _reached(trial.records(whole))
    for _ in range(5):
        shutil.rmtree(trial.place / name, ignore_errors=True)
        aim = random.randint(2, max(2, last - 2))
        trial.killed(name, lambda aim=aim: _reached(trial.records(name)) >= aim, **options)
        if not (trial.place / name / "result.json").exists():
            break
    else:
        return Check(what, "skipped", "the run was over before it could be killed; a larger --limit makes it longer")
    step = _reached(trial.records(name))
    shutil.copytree(trial.place / name, trial.place / f"{name}-as-left")
    check = _same(trial, what, whole, name, trial.run(name, **options))
    check.detail = f"SIGKILL after step {step}; {check.detail}"
    return check


def _reached(records: dict[str, list[dict]]) -> int:
    """The last step of any stage."""
    return max((lines[-1]["step"] for lines in records.values() if lines), default=0)


def _flipped(trial: Trial) -> Check:
    """One bit of the newest checkpoint turned: the one before is taken, the broken one named, the bits are the same."""
    what = "a broken checkpoint"
    if (trial.place / "killed-as-left").exists():
        (trial.place / "killed-as-left").rename(trial.place / "flipped")
    found = sorted((trial.place / "flipped").rglob("step-*/model.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        return Check(what, "skipped", "no checkpoint had been written when the run was killed")
    content = bytearray(found[-1].read_bytes())
    content[-1] ^= 1
    found[-1].write_bytes(content)
    check = _same(trial, what, "one", "flipped", trial.run("flipped"))
    step = found[-1].parent.name
    if check.verdict == "pass" and f"{step} is not used" not in trial.log("flipped").replace("\n", ""):
        return Check(what, "FAIL", f"{step} has a turned bit, and nothing was said of it", check.digests)
    check.detail = f"{step}, one bit turned, named and left aside; {check.detail}"
    return check


def _evaluated(trial: Trial) -> Check:
    """Every image once, on any number of processes, of a training set that nothing divides."""
    what = "evaluation, every image once"
    data = read_json(trial.place / "one/config.json")["data"]
    counts = set()
    for name in ("one", "two"):
        for line in (line for lines in trial.records(name).values() for line in lines if line["event"] == "eval"):
            counts.add((line["split"], line["count"]))
            correct = line["accuracy"] * line["count"]
            if abs(correct - round(correct)) > 1e-6:
                return Check(what, "FAIL", f"{name}, step {line['step']}: {correct} of {line['count']} correct")
    staged = len(trial.records("one")) > 1 or "." not in trial.records("one")
    if not staged and (wrong := counts - {(split, data[split]) for split in ("train", "test")}):
        return Check(what, "FAIL", f"counted {sorted(wrong)}, there are {data['train']} and {data['test']} images")
    return Check(what, "pass", ", ".join(f"{split} {count}" for split, count in sorted(counts)))


# --------------------------------------------------------------------------------------------------------------------- parts


def _understood(recipe: Path, flags: Sequence[str]) -> None:
    """Whether the recipe takes the flags. Raises Refused (2) or exits with 2, having said why."""
    from ..command_line import parse
    from ..rebuild import load

    parse(load(recipe).main, flags, prog=f"oneloop verify {recipe}")


def _short(flags: Sequence[str]) -> list[str]:
    """The flags with a short run's --epochs where they are not given. Raises Refused (2) for those that are not to be chosen."""
    if fixed := _names(flags) & {"--shards", "--threads", "--log-every", "--save-every", "--fresh"}:
        raise Refused(f"{', '.join(sorted(fixed))} cannot be chosen here: oneloop verify sets it", 2)
    return [*flags, *(() if "--epochs" in _names(flags) else ("--epochs", str(EPOCHS)))]


def _names(flags: Sequence[str]) -> set[str]:
    return {flag.partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}


def judges(trial: Trial) -> tuple[bool, bool]:
    """Of the net in train mode: whether it says of an image the same in any batch, then slices do not change the function; and
    whether it draws random numbers. Where recipes have several nets, of the first."""
    import torch

    from ..data import Feed
    from ..rebuild import load
    from .describe import build

    flags = trial.flags if "--data" in _names(trial.flags) else ["--data", "hub", *trial.flags]
    net, images = build(load(trial.recipe), flags, prog="oneloop verify")
    ids = torch.arange(min(8, len(images.train)))
    pixels, _ = Feed(images.train, images, torch.device("cpu")).batch(ids)
    net.cpu().train()
    with torch.no_grad():
        torch.manual_seed(1)
        whole = net(pixels)
        torch.manual_seed(2)
        again = net(pixels)
        halves = torch.cat([net(half) for half in pixels.chunk(2)])
    alike = [torch.allclose(whole, other, rtol=1e-3, atol=1e-4) for other in (halves, again)]
    return alike[0], not alike[1]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _pairs(ours: dict, theirs: dict) -> Iterator[tuple[str, dict | None, dict | None]]:
    """The lines of two records side by side, as (stage, ours, theirs); None where one is shorter."""
    for stage in sorted(ours.keys() | theirs.keys()):
        left, right = ours.get(stage, []), theirs.get(stage, [])
        for number in range(max(len(left), len(right))):
            yield stage, *(lines[number] if number < len(lines) else None for lines in (left, right))


def _first_difference(ours: dict, theirs: dict) -> str:
    """Where two records part, in words; "" if nowhere."""
    for stage, left, right in _pairs(ours, theirs):
        if left != right:
            if left is None or right is None:
                return f"step {(left or right)['step']} is in one record only"
            key = next(key for key in {**left, **right} if left.get(key) != right.get(key))
            place = "" if stage == "." else f"{stage}, "
            return f"first at {place}step {left['step']}: {key} {left.get(key)} and {right.get(key)}"
    return ""


def _kill(process: subprocess.Popen) -> None:
    """End the process and all that it started, also what has a session of its own, as the processes of torch's launcher have."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGSTOP)  # it starts no more
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def _last_line(log: str) -> str:
    """What a recipe said last of itself; a launcher's report follows it."""
    own = [line for line in log.splitlines() if line.strip() and not line.startswith(("W1", "E1", "W0", "E0", " ", "===", "---"))]
    return own[-1] if own else "no word"


def _print(receipt: dict, file: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{receipt['recipe']} {' '.join(receipt['flags'])}, at most {receipt['test_images']} test images"
    table = Table(title=escape(printable(title)), title_justify="left")
    for column in ("compared", "verdict", "what came out"):
        table.add_column(column)
    colours = {"pass": "green", "FAIL": "bold red", "skipped": "dim"}
    for check in receipt["checks"]:
        table.add_row(check["what"], f"[{colours[check['verdict']]}]{check['verdict']}", escape(printable(check["detail"])))
    versions = ", ".join(f"{name} {receipt['versions'][name]}" for name in ("oneloop", "torch", "accelerate", "python"))
    console = Console()
    console.print(table)
    console.print(f"{versions}; {receipt['device']}, {receipt['machine']}; {receipt['seconds']} s", highlight=False)
    console.print(str(file), highlight=False)
