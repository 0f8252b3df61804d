"""Measurements that need a GPU, in one command: tests, verify, speed. Writes benchmarks/results/<card>.json and prints a table.

    make gpu                                             some minutes on one card
    python benchmarks/gpu.py --only steps epochs         a part of it
    python benchmarks/gpu.py --data PATH                 CIFAR-10 from there instead of drawings

    tests    pytest -m gpu
    verify   oneloop verify recipes/cifar2.py, on the CPU and on the GPU
    steps    images per second of a step: ours, ours launched kernel by kernel, and a bare loop over one batch; how long the GPU
             itself computes, and how many kernels that takes
    others   benchmarks/speed.py: against the plain loop and accelerate's idiom
    epochs   a whole run of recipes/cifar2.py: 100 epochs, with an evaluation and a checkpoint each

A part that fails is reported and the next one runs; the exit code is then 1.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import accelerate
import speed
import torch
import torch.nn.functional as F
import tyro
from torch import nn

from launch import Run
from launch.data.augment import Augment, crop_and_flip
from launch.data.dataset import Split
from launch.data.feed import MemoryFeed
from launch.data.images import Images
from launch.data.order import order
from launch.training.batches import TrainingFeed
from launch.training.state import Meter
from launch.training.step import Step
from nets.cifar2 import Net
from nets.residual import CifarResNet
from nets.zoo import zoo

ROOT = Path(__file__).parents[1]
PARTS = ("tests", "verify", "steps", "epochs", "others")
# net, its images, how many of them, classes, batch, augmentation
WORK: dict[str, tuple[Callable[[], nn.Module], int, int, int, int, Augment | None]] = {
    "Net, 32×32, batch 64": (Net, 32, 10_000, 2, 64, None),
    "ResNet-20, 32×32, batch 128, crop and flip": (lambda: CifarResNet(20), 32, 50_000, 10, 128, crop_and_flip),
    "ResNet-18, 32×32, batch 128, crop and flip": (lambda: zoo("resnet18", stem="small"), 32, 50_000, 10, 128, crop_and_flip),
    "ResNet-50, 224×224, batch 128": (lambda: zoo("resnet50", stem="imagenet"), 224, 1_000, 10, 128, None),
}


def main(only: tuple[Literal[PARTS], ...] = PARTS, rounds: int = 9, data: str = "synthetic", out: Path | None = None) -> None:
    """Run the parts and write what they found.

    Args:
        only: the parts to run.
        rounds: turns of each way in `steps` and `others`.
        data: same as the recipe's --data, for verify and epochs.
        out: the JSON file.
    """
    out = out or ROOT / "benchmarks/results" / f"{speed.machine()}.json"
    facts = {"machine": speed.machine(), "torch": torch.__version__, "cuda": torch.version.cuda}
    facts |= {"cudnn": torch.backends.cudnn.version(), "accelerate": accelerate.__version__}
    found, failed = json.loads(out.read_text()) if out.exists() else {}, []
    found |= facts
    for part in only:
        began = time.perf_counter()
        try:
            found[part] = globals()[part](rounds, data)
        except Exception as error:
            failed.append(part)
            print(f"{part}: {type(error).__name__}: {error}")
        print(f"{part}: {time.perf_counter() - began:.0f} s\n", flush=True)
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(out)
    sys.exit(1 if failed else 0)


def run(command: Sequence[str], **environment: str) -> tuple[int, str]:
    """Exit code and output, which is shown, too."""
    shown = os.environ | {"WANDB_MODE": "disabled"} | environment
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=shown)
    assert process.stdout
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), "".join(lines)


def tests(rounds: int, data: str) -> dict:
    """`passed`, `failed` … of the tests marked gpu."""
    shown = ["-q", "--no-header", "--tb=short", "-p", "no:benchmark"]
    code, text = run([sys.executable, "-m", "pytest", "-m", "gpu", "-n", "4", *shown])
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|error)", text.splitlines()[-1])}
    if code:
        raise RuntimeError(f"{counts}")
    return counts


def verify(rounds: int, data: str) -> dict:
    """Outcome of `oneloop verify` for a recipe on this card, by check."""
    checks = {}
    for flags in ([], ["--deterministic"]):
        command = [
            sys.executable,
            "-c",
            "from launch.commands import main; main()",
            "verify",
            "recipes/cifar2.py",
            "--data",
            data,
            *flags,
        ]
        began = time.perf_counter()
        code, text = run(command)
        name = " ".join(["cifar2", *flags])
        checks[name] = {"exit": code, "seconds": round(time.perf_counter() - began), "lines": text.splitlines()}
    return checks


def noise(size: int, count: int, classes: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.randint(0, classes, (count,), generator=generator))
    return Images(split, split, tuple(map(str, range(classes))), (0.5,) * 3, (0.25,) * 3, "noise", "")


def ours(run: Run, build: Callable[[], nn.Module], images: Images, batch: int, augment: Augment | None) -> Callable[[], None]:
    device = run.accelerator.device
    net = build().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)
    feed, meter = TrainingFeed(run, MemoryFeed(images.train, images, device), [augment] if augment else []), Meter(device)
    step = Step(run, net, feed, optimizer, F.cross_entropy)
    full = len(images.train) // batch * batch
    steps = full // batch  # of an epoch
    batches = speed.forever(lambda epoch: feed.batches(feed.feed.order(order(full, 1, epoch)).split(batch), epoch, epoch * steps))

    def one() -> None:
        due = next(batches)
        mean, _ = step(due, False)
        meter.add(mean, len(due.ids))

    return one


def bare(run: Run, build: Callable[[], nn.Module], images: Images, batch: int) -> Callable[[], None]:
    device = run.accelerator.device
    net = run.accelerator.prepare_model(build().to(device, memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)
    pixels, labels = MemoryFeed(images.train, images, device).batch(torch.arange(batch).to(device))

    def one() -> None:
        loss = F.cross_entropy(net(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return one


def kernels(one: Callable[[], None], times: int = 20) -> tuple[float, float]:
    """Kernels of a step, and their seconds on the GPU."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(times):
            one()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(events) / times, sum(event.device_time for event in events) / times / 1e6


def steps(rounds: int, data: str) -> dict:
    found = {}
    title = f"{'images per second':<46}{'precision':>10}{'ours':>10}{'eager':>10}{'bare':>10}"
    print(title + "   ours against eager, bare;  µs a step, on the GPU, kernels")
    for name, (build, size, count, classes, batch, augment) in WORK.items():
        images = noise(size, count, classes)
        for precision in ("no", "bf16"):
            accelerate.state.AcceleratorState._reset_state(True)
            run = speed.started(precision)
            torch.cuda.reset_peak_memory_stats()
            ways = {"ours": ours(run, build, images, batch, augment)}
            run.captured = False
            ways |= {"eager": ours(run, build, images, batch, augment), "bare": bare(run, build, images, batch)}
            speeds: dict[str, list[float]] = {way: [] for way in ways}
            times = {}
            for way, one in ways.items():
                timed(one, 10)
                times[way] = max(10, min(500, round(0.2 / timed(one, 10))))
            for number in range(rounds):
                for way in list(ways) if number % 2 else list(ways)[::-1]:
                    speeds[way].append(batch / timed(ways[way], times[way]))
            ratios = {
                way: statistics.median(a / b for a, b in zip(speeds["ours"], speeds[way], strict=True))
                for way in ("eager", "bare")
            }
            launched, busy = kernels(ways["ours"])
            median = {way: statistics.median(values) for way, values in speeds.items()}
            found[f"{name}, {precision}"] = {
                "images_per_second": median, "ours_against": ratios, "seconds_a_step": batch / median["ours"],
                "gpu_seconds_a_step": busy, "kernels_a_step": launched, "peak_bytes": torch.cuda.max_memory_allocated(),
            }  # fmt: skip
            cells = "".join(f"{value:>10,.0f}" for value in median.values())
            detail = f"{ratios['eager']:>8.2f}{ratios['bare']:>8.2f}{1e6 * batch / median['ours']:>10,.0f}{1e6 * busy:>8,.0f}"
            print(f"{name:<46}{precision:>10}{cells}{detail}{launched:>8.0f}", flush=True)
            del ways
            run.end()
    return found


def timed(one: Callable[[], None], times: int) -> float:
    """Seconds of a call."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        one()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def epochs(rounds: int, data: str) -> dict:
    """Net × 100 epochs, as a user runs it: seconds in the loop, and of the whole command with its imports and its report."""
    found = {}
    for precision in ("no", "bf16"):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "run"
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml"]
            command = [*launch, "--mixed_precision", precision, "recipes/cifar2.py", "--data", data, "--out", str(folder)]
            began = time.perf_counter()
            code, text = run(command)
            whole = time.perf_counter() - began
            if code:
                raise RuntimeError(f"exit {code}: {text[-500:]}")
            result = json.loads((folder / "result.json").read_text())
            found[precision] = {"command_seconds": whole} | result
            print(f"Net × 100 epochs, {precision}: {result['seconds']:.1f} s in the loop, {whole:.1f} s for the command")
    return found


def others(rounds: int, data: str) -> dict:
    """The table of benchmarks/speed.py."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "speed.json"
        speed.main(rounds=rounds, seconds=0.2, out=out)
        return json.loads(out.read_text())["results"]


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
