"""`oneloop verify`: the promises, tried on the user's own machine, net and data.

Real processes of the recipe, a few steps each, in a temporary folder. Two runs are the same if their records agree line by line
(the clock's entries apart) and their weights have one sha256.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import Refused
from ..runs import read_json, read_metrics

LIMIT, EPOCHS = 251, 3  # images: a prime, so that no batch, slice or process divides them
SECONDS = 300  # for one run
ROUNDING = 2e-3  # relative: how far sums in another order may move a loss in so few steps
CLOCK = ("seconds", "images_per_second")


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "oneloop verify",
        usage="oneloop verify RECIPE [the recipe's own flags] [--out FILE]",
        description="Prove on this machine, with this net and these data: the same curve on 1 and 2 processes, exact resume\n"
        "after a kill, evaluation of every image, checkpoints that verify or are not used. A minute or two.",
        epilog="example: oneloop verify recipes/cifar2.py --net NetDropout\n\n"
        f"{LIMIT} images and {EPOCHS} epochs, unless --limit and --epochs say otherwise; exit 0: all hold, 4: one does not",
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
    with tempfile.TemporaryDirectory(prefix="oneloop-verify-") as place:
        trial = Trial(chosen.recipe.resolve(), _short(chosen.recipe, flags), Path(place))
        checks = list(_checks(trial))
        environment = read_json(trial.place / "one/config.json")
    receipt = {
        "recipe": str(chosen.recipe),
        "flags": trial.flags,
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


@dataclass(frozen=True)
class Trial:
    """The recipe, its flags, and the folder of its runs."""

    recipe: Path
    flags: list[str]
    place: Path

    def begin(self, name: str, processes: int = 1, shards: int = 2, gpus: bool = False) -> subprocess.Popen:
        """Start the run in the folder `name`, or go on with it; its output is appended to `name`.log."""
        environment = os.environ | {"WANDB_MODE": "disabled"} | ({} if gpus else {"ACCELERATE_USE_CPU": "true"})
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        fixed = ["--shards", str(shards), "--threads", "1", "--log-every", "1", "--save-every", "1"]
        command = [sys.executable, *launcher, str(self.recipe), *self.flags, *fixed, "--out", str(self.place / name)]
        with open(self.place / f"{name}.log", "a") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def run(self, name: str, **options) -> int:
        """Bring the run to its end; its exit code. Raises Refused after SECONDS."""
        process = self.begin(name, **options)
        try:
            return process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise Refused(f"a run took more than {SECONDS} s; a smaller --limit makes it shorter") from None
        finally:
            _kill(process)

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text()

    def records(self, name: str) -> dict[str, list[dict]]:
        """The lines of every metrics.jsonl of the run, without the clock's entries; a recipe may have stages."""
        files = sorted((self.place / name).rglob("metrics.jsonl"))
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
    if code := trial.run("one"):
        raise Refused(f"the recipe does not run here: {_last_line(trial.log('one'))}", code if 0 < code < 6 else 1)
    if not trial.records("one"):
        raise Refused(f"{trial.recipe} left no metrics.jsonl: there is nothing to compare", 2)

    yield _same(trial, "1 process and 2", "one", "two", trial.run("two", processes=2))
    yield _same_function(trial)
    yield _killed(trial)
    yield _flipped(trial)
    yield _evaluated(trial)
    if count := _gpus():
        yield _near(trial, "1 GPU and the CPU", "one", "gpu", trial.run("gpu", gpus=True))
        if count > 1:
            yield _near(trial, "1 GPU and 2", "gpu", "gpus", trial.run("gpus", processes=2, gpus=True))
    else:
        yield Check("GPUs", "skipped", "none here")


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
    worst, where = 0.0, ""
    for stage, ours, theirs in _pairs(trial.records(first), trial.records(second)):
        if ours is None or theirs is None:
            return Check(what, "FAIL", f"{stage}: one has more lines than the other", digests)
        away = abs(ours["loss"] - theirs["loss"]) / max(abs(ours["loss"]), 1e-3)
        if away > worst or math.isnan(away):
            worst, where = away, f"step {ours['step']}: loss {ours['loss']:.9g} and {theirs['loss']:.9g}"
    if worst <= ROUNDING:
        return Check(what, "pass", f"equal up to rounding: losses differ by {worst:.1e} at most", digests)
    return Check(what, "FAIL", f"losses differ by {worst:.1e}, {where}", digests)


def _same_function(trial: Trial) -> Check:
    what = "a batch in 2 slices and whole"
    try:
        if not _judges_alone(trial):
            return Check(what, "skipped", "by its make (batch norm, dropout) the net judges an image with its batch or by chance")
    except Refused as error:
        return Check(what, "skipped", str(error))
    return _near(trial, what, "one", "whole", trial.run("whole", shards=1))


def _killed(trial: Trial) -> Check:
    """SIGKILL at a random step, then the same command; what the kill left is copied for `_flipped`."""
    what = "killed, then the same command"
    last = max(lines[-1]["step"] for lines in trial.records("one").values())
    for _ in range(5):
        shutil.rmtree(trial.place / "killed", ignore_errors=True)
        process = trial.begin("killed")
        aim, deadline = random.randint(2, max(2, last - 2)), time.monotonic() + SECONDS
        try:
            while process.poll() is None and time.monotonic() < deadline:
                if any(lines and lines[-1]["step"] >= aim for lines in trial.records("killed").values()):
                    break
                time.sleep(0.002)
        finally:
            _kill(process)
        if not (trial.place / "killed/result.json").exists():
            break
    else:
        return Check(what, "skipped", "the run was over before it could be killed; a larger --limit makes it longer")
    step = max((lines[-1]["step"] for lines in trial.records("killed").values() if lines), default=0)
    shutil.copytree(trial.place / "killed", trial.place / "flipped")
    check = _same(trial, what, "one", "killed", trial.run("killed"))
    check.detail = f"SIGKILL after step {step}; {check.detail}"
    return check


def _flipped(trial: Trial) -> Check:
    """One bit of the newest checkpoint turned: the one before is taken, the broken one named, the bits are the same."""
    what = "a broken checkpoint"
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
    from ..cli import parse
    from ..rebuild import load

    parse(load(recipe).main, flags, prog=f"oneloop verify {recipe}")


def _short(recipe: Path, flags: Sequence[str]) -> list[str]:
    """The flags with a short run's --limit and --epochs where they are not given."""
    given = {flag.partition("=")[0] for flag in flags}
    if fixed := given & {"--shards", "--threads", "--log-every", "--save-every", "--fresh"}:
        raise Refused(f"{', '.join(sorted(fixed))} cannot be chosen here: oneloop verify sets it", 2)
    short = {"--limit": str(LIMIT), "--epochs": str(EPOCHS)}
    return [*flags, *(part for name, value in short.items() if name not in given for part in (name, value))]


def _judges_alone(trial: Trial) -> bool:
    """Whether the net, in train mode, says of an image the same in any batch: then slices do not change the function."""
    import torch

    from ..data import Feed
    from ..rebuild import load
    from .describe import build

    flags = trial.flags if any(flag.startswith("--data") for flag in trial.flags) else ["--data", "hub", *trial.flags]
    net, images = build(load(trial.recipe), flags, prog="oneloop verify")
    ids = torch.arange(min(8, len(images.train)))
    pixels, _ = Feed(images.train, images, torch.device("cpu")).batch(ids)
    net.cpu().train()
    with torch.no_grad():
        torch.manual_seed(1)
        whole = net(pixels)
        torch.manual_seed(2)
        halves = torch.cat([net(half) for half in pixels.chunk(2)])
    return torch.allclose(whole, halves, rtol=1e-3, atol=1e-4)


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
    """End the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: str) -> str:
    """What a recipe said last of itself; a launcher's report follows it."""
    own = [line for line in log.splitlines() if line.strip() and not line.startswith(("W1", "E1", "W0", "E0", " ", "===", "---"))]
    return own[-1] if own else "no word"


def _print(receipt: dict, file: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{receipt['recipe']} {' '.join(receipt['flags'])}", title_justify="left")
    for column in ("compared", "verdict", "what came out"):
        table.add_column(column)
    colours = {"pass": "green", "FAIL": "bold red", "skipped": "dim"}
    for check in receipt["checks"]:
        table.add_row(check["what"], f"[{colours[check['verdict']]}]{check['verdict']}", check["detail"])
    versions = ", ".join(f"{name} {receipt['versions'][name]}" for name in ("oneloop", "torch", "accelerate", "python"))
    console = Console()
    console.print(table)
    console.print(f"{versions}; {receipt['device']}, {receipt['machine']}; {receipt['seconds']} s", highlight=False)
    console.print(str(file), highlight=False)
