"""Promises, each tried on the runs of a `Trial`.

Two runs are the same if their records agree line by line, the clock's entries apart, and their weights have one sha256.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import Refused
from ..recipe import flag_names
from ..report.runs import recorded_json
from .records import beginnings_near, first_difference
from .trial import Trial


@dataclass
class Check:
    """One promise: what was compared, and the outcome."""

    what: str
    verdict: str  # pass, FAIL or skipped
    detail: str
    digests: dict[str, str] = field(default_factory=dict)  # sha256 of the weights, by run


def checks(trial: Trial) -> Iterator[Check]:
    """Each promise tried in turn. Raises Refused if the recipe does not even run."""
    if code := trial.first():
        raise Refused(f"the recipe does not run here: {trial.last_line('one')}", code if 0 < code < 6 else 1)
    if not trial.records("one"):
        raise Refused(f"{trial.recipe} wrote no metrics.jsonl: there is nothing to compare", 2)

    yield _same(trial, "1 process and 2", "one", "two", trial.run("two", processes=2))
    why = "batch norm or dropout: outputs depend on the batch or on randomness"
    try:
        batch_independent, draws = train_mode_traits(trial)
    except Refused as error:
        batch_independent, draws, why = False, False, str(error)
    if batch_independent:
        yield _near(trial, "a batch in 2 micro-batches and whole", "one", "whole", trial.run("whole", micro_batches=1))
    else:
        yield Check("a batch in 2 micro-batches and whole", "skipped", why)
    yield _resumed(trial, "killed and resumed", "one", "killed")
    yield _flipped(trial)
    yield _evaluated(trial)
    if count := _gpus():
        yield from on_gpus(trial, count, draws)
    else:
        yield Check("GPUs", "skipped", "no GPU here")


def on_gpus(trial: Trial, count: int, draws: bool) -> Iterator[Check]:
    """Checks for `count` GPUs, which need not repeat a CPU's bits, nor their own; `draws`: the net is random."""
    code, what = trial.run("gpu", gpus=True), "1 GPU and the CPU"
    if draws and not code:
        yield Check(what, "skipped", "the net draws random numbers (dropout), and a GPU draws others than a CPU")
    else:
        yield _near(trial, what, "one", "gpu", code)
    if code:
        return
    yield _resumed_on_gpu(trial, trial.run("again", gpus=True))
    if count > 1:
        yield _near(trial, "1 GPU and 2", "gpu", "gpus", trial.run("gpus", processes=2, gpus=True))


# --------------------------------------------------------------------------------------------------------------- each promise


def _same(trial: Trial, what: str, first: str, second: str, code: int) -> Check:
    """Check that two runs are the same, bit for bit; the second ended with the exit `code`."""
    digests = {name: trial.digest(name) for name in (first, second)}
    if code:
        return Check(what, "FAIL", f"exit code {code}: {trial.last_line(second)}", digests)
    if difference := first_difference(trial.records(first), trial.records(second)):
        return Check(what, "FAIL", difference, digests)
    if digests[first] != digests[second]:
        return Check(what, "FAIL", "the records agree, the weights differ", digests)
    lines = sum(map(len, trial.records(first).values()))
    return Check(what, "pass", f"the same bits: {lines} lines, weights {digests[first][:16]}", digests)


def _near(trial: Trial, what: str, first: str, second: str, code: int) -> Check:
    """Check that two runs differ by rounding only; the second ended with the exit `code`."""
    digests = {name: trial.digest(name) for name in (first, second)}
    if code:
        return Check(what, "FAIL", f"exit code {code}: {trial.last_line(second)}", digests)
    precision = recorded_json(trial.place / second / "config.json")["precision"]
    near, detail = beginnings_near(trial.records(first), trial.records(second), precision)
    return Check(what, "pass" if near else "FAIL", detail, digests)


def _resumed(trial: Trial, what: str, whole: str, name: str, **options: Any) -> Check:
    """Check a resume after SIGKILL at a random step. The folder as the kill left it is copied, for `_flipped`."""
    last = _last_step(trial.records(whole))

    def reached(step: int) -> Callable[[], bool]:
        return lambda: _last_step(trial.records(name)) >= step

    for _ in range(5):
        shutil.rmtree(trial.place / name, ignore_errors=True)
        trial.kill_when(reached(random.randint(2, max(2, last - 2))), name, **options)
        if not (trial.place / name / "result.json").exists():
            break
    else:
        return Check(what, "skipped", "the run finished before it could be killed; a larger --limit makes it longer")
    step = _last_step(trial.records(name))
    shutil.copytree(trial.place / name, trial.place / f"{name}-as-left")
    check = _same(trial, what, whole, name, trial.run(name, **options))
    check.detail = f"SIGKILL after step {step}; {check.detail}"
    return check


def _last_step(records: dict[str, list[dict]]) -> int:
    """The last step of any stage."""
    return max((lines[-1]["step"] for lines in records.values() if lines), default=0)


def _resumed_on_gpu(trial: Trial, code: int) -> Check:
    """Exact resume, if the GPU repeats itself at all: as in the runs `gpu` and `again`, the latter with the exit `code`."""
    what = "killed and resumed on the GPU"
    repeated = _same(trial, what, "gpu", "again", code)
    if repeated.verdict == "FAIL":
        if not code:
            repeated.verdict = "skipped"
            repeated.detail = f"two whole runs differ on this GPU, whose kernels are not deterministic: {repeated.detail}"
        return repeated
    return _resumed(trial, what, "gpu", "gpu-killed", gpus=True)


def _flipped(trial: Trial) -> Check:
    """One bit of the newest checkpoint flipped: it is named, the one before is used, and the bits are the same."""
    what = "a damaged checkpoint"
    if (trial.place / "killed-as-left").exists():
        (trial.place / "killed-as-left").rename(trial.place / "flipped")
    found = sorted((trial.place / "flipped").rglob("step-*/model.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        return Check(what, "skipped", "the run was killed before its first checkpoint")
    content = bytearray(found[-1].read_bytes())
    content[-1] ^= 1
    found[-1].write_bytes(content)
    check = _same(trial, what, "one", "flipped", trial.run("flipped"))
    step = found[-1].parent.name
    if check.verdict == "pass" and f"{step} is not used" not in trial.log("flipped").replace("\n", ""):
        return Check(what, "FAIL", f"{step} has a flipped bit, and nothing was said about it", check.digests)
    check.detail = f"{step}, one bit flipped, was named and not used; {check.detail}"
    return check


def _evaluated(trial: Trial) -> Check:
    """Every image once on any number of processes, which do not divide the number of images."""
    what = "evaluation, every image once"
    data = recorded_json(trial.place / "one/config.json")["data"]
    counts = set()
    for name in ("one", "two"):
        for line in (line for lines in trial.records(name).values() for line in lines if line["event"] == "eval"):
            counts.add((line["split"], line["count"]))
            if "accuracy" not in line:  # images with several labels are not counted as right or wrong
                continue
            correct = line["accuracy"] * line["count"]
            if abs(correct - round(correct)) > 1e-6:
                return Check(what, "FAIL", f"{name}, step {line['step']}: {correct} of {line['count']} correct")
    staged = len(trial.records("one")) > 1 or "." not in trial.records("one")
    there = {(split, data[split]) for split in ("train", "validation", "test") if split in data}
    there.add(("ema", data.get("validation", data["test"])))  # the average of the weights, on the images that choose
    if not staged and (wrong := counts - there):
        return Check(what, "FAIL", f"evaluated {sorted(wrong)}, there are {data['train']} and {data['test']} images")
    return Check(what, "pass", ", ".join(f"{split} {count}" for split, count in sorted(counts)))


# -------------------------------------------------------------------------------------------------------- what can be compared


def train_mode_traits(trial: Trial) -> tuple[bool, bool]:
    """Traits of the recipe's (first) net in train mode: whether its output for an image is the same in any batch, so that cuts do
    not change the function, and whether it draws random numbers."""
    import torch

    from ..recipe import build, load

    flags = trial.flags if "--data" in flag_names(trial.flags) else ["--data", "hub", *trial.flags]
    net, images, _ = build(load(trial.recipe), flags, prog="oneloop verify")
    ids = torch.arange(min(8, len(images.train)))
    pixels, _ = images.train.feed(images, torch.device("cpu")).batch(ids)
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
