"""Speed of the loop: the same work four ways, in alternation.

    make bench                              on this machine's device; writes benchmarks/results/<machine>.json
    python benchmarks/speed.py --rounds 50  more rounds

The work: `Net` on 32×32 colour images in batches of 64, and a net of the MNIST notes' shape on 28×28 grey ones in batches of 100;
10,000 uint8 images in memory, SGD. The four ways:

    ours        the step and the sums of the loop
    accelerate  the idiom of accelerate's documentation: datasets' with_transform for each sample, DataLoader, prepare;
                started as `accelerate launch` starts it, on a CPU with OMP_NUM_THREADS=1
    plain       the chapter's loop over a list of float tensors with a DataLoader
    bare        one batch over and over, no data: the ceiling. Layout, optimizer, threads and memory as ours

and on a GPU a fifth: ours with --deterministic, whose price is the ratio of ours against it.

Each way has a process of its own, started once; they alternate, so that a noisy machine disturbs all alike.
A ratio is the median over rounds of the ratio within a round.
"""

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import accelerate
import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from torch import nn

from launch import Run
from launch.data.dataset import Split
from launch.data.feed import MemoryFeed
from launch.data.images import Images
from launch.data.order import order
from launch.stop import Stop
from launch.training.batches import TrainingFeed
from launch.training.state import Meter
from launch.training.step import Step
from nets.cifar2 import Net

WAYS = ("ours", "accelerate", "plain", "bare", *(["deterministic"] if torch.cuda.is_available() else []))
WORK = {"cifar2": (Net, (3, 32, 32), 2, 64), "mnist": (None, (1, 28, 28), 10, 100)}  # net, image, classes, batch
N = 10_000  # images


class MnistShaped(nn.Module):
    """(N, 1, 28, 28) -> (N, 10): the layers of the MNIST notes' net, without dropout; 21,840 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def images_of(shape: tuple[int, int, int], classes: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (N, *shape), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.randint(0, classes, (N,), generator=generator))
    channels = shape[0]
    return Images(split, split, tuple(map(str, range(classes))), (0.5,) * channels, (0.25,) * channels, "noise", "")


def forever(epoch: Callable[[int], Iterator]) -> Iterator:
    number = 0
    while True:
        yield from epoch(number)
        number += 1


def ours(work: str, precision: str, deterministic: bool = False) -> Callable[[], object]:
    net, shape, classes, batch = WORK[work]
    images = images_of(shape, classes)
    run = started(precision, deterministic)
    model = (net or MnistShaped)().to(run.accelerator.device, memory_format=torch.channels_last)
    feed = TrainingFeed(run, MemoryFeed(images.train, images, run.accelerator.device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    step, meter, stop = Step(run, model, feed, optimizer, F.cross_entropy), Meter(run.accelerator.device), Stop()
    of_epoch = -(-N // batch)  # steps
    batches = forever(lambda epoch: feed.batches(feed.feed.order(order(N, 1, epoch)).split(batch), 0, epoch * of_epoch))

    def one():
        due = next(batches)
        mean, _ = step(due, stop.requested(due.step))
        meter.add(mean, len(due.ids))

    return one


def bare(work: str, precision: str) -> Callable[[], object]:
    net, shape, classes, batch = WORK[work]
    images = images_of(shape, classes)
    run = started(precision)
    model = (net or MnistShaped)().to(run.accelerator.device, memory_format=torch.channels_last)
    model = run.accelerator.prepare_model(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    device = run.accelerator.device
    pixels, labels = MemoryFeed(images.train, images, device).batch(torch.arange(batch).to(device))

    def one():
        loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return one


def plain(work: str, precision: str) -> Callable[[], object]:
    net, shape, classes, batch = WORK[work]
    images = images_of(shape, classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples = [((p.float() / 255 - 0.5) / 0.25, int(y)) for p, y in zip(*images.train, strict=True)]
    loader = torch.utils.data.DataLoader(samples, batch_size=batch, shuffle=True)
    model = (net or MnistShaped)().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = forever(lambda _: iter(loader))

    def one():
        imgs, labels = next(batches)
        loss = F.cross_entropy(model(imgs.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return one


def accelerate_idiom(work: str, precision: str) -> Callable[[], object]:
    import datasets
    import numpy as np
    from torchvision.transforms import v2

    net, shape, classes, batch = WORK[work]
    images = images_of(shape, classes)
    arrays = [np.ascontiguousarray(p.permute(1, 2, 0).squeeze(-1).numpy()) for p in images.train.pixels]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": arrays, "label": images.train.labels.tolist()}, features=features)
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * shape[0], [0.25] * shape[0])]
    )

    def transformed(rows):
        return {"image": [transform(image) for image in rows["image"]], "label": rows["label"]}

    loader = torch.utils.data.DataLoader(table.with_transform(transformed), batch_size=batch, shuffle=True)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=precision)
    model = (net or MnistShaped)()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    batches = forever(lambda _: iter(loader))

    def one():
        rows = next(batches)
        loss = F.cross_entropy(model(rows["image"]), rows["label"])
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        return loss.item()

    return one


def started(precision: str, deterministic: bool = False) -> Run:
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    run = Run(data="synthetic", out=Path(tempfile.mkdtemp()) / "run", wandb="disabled", deterministic=deterministic)
    run.start("speed", {})
    return run


def worker(way: str, work: str, precision: str) -> None:
    """Answer each line "<steps>" on standard input with the images per second over that many steps."""
    ways = {"ours": ours, "accelerate": accelerate_idiom, "plain": plain, "bare": bare}
    ways["deterministic"] = functools.partial(ours, deterministic=True)
    one = ways[way](work, precision)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for line in sys.stdin:
        steps = int(line)
        wait()
        began = time.perf_counter()
        for _ in range(steps):
            one()
        wait()
        print(steps * WORK[work][3] / (time.perf_counter() - began), flush=True)


def compare(work: str, precision: str, rounds: int, seconds: float) -> dict:
    """The four ways in turns: images per second of each (median) and ours against each other one."""
    plainly = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    ways = {}
    for way in WAYS:
        # The plain loop knows no mixed precision: it is the fp32 that bf16 is measured against.
        command = [sys.executable, __file__, "--worker", way, work, precision if way != "plain" else "no"]
        launched = {"OMP_NUM_THREADS": "1"} if way == "accelerate" else {}  # what `accelerate launch` sets on a CPU
        ways[way] = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=plainly | launched)

    def ask(way: str, steps: int) -> float:
        ways[way].stdin.write(f"{steps}\n")
        ways[way].stdin.flush()
        return float(ways[way].stdout.readline())

    batch = WORK[work][3]
    steps = {}
    for way in WAYS:
        ask(way, 20)
        steps[way] = max(10, round(ask(way, 40) / batch * seconds))
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS if number % 2 else WAYS[::-1]:
            speeds[way].append(ask(way, steps[way]))
    for process in ways.values():
        process.stdin.close()
        process.wait()
    ratios = {
        way: statistics.median(a / b for a, b in zip(speeds["ours"], speeds[way], strict=True)) for way in WAYS if way != "ours"
    }
    return {"images_per_second": {way: statistics.median(values) for way, values in speeds.items()}, "ours_against": ratios}


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "-")
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    model = next((line.split(":")[1] for line in lines if "model name" in line), platform.processor())
    return f"{model.strip().replace(' ', '-')}-{os.cpu_count()}-cores"


def main(rounds: int = 25, seconds: float = 0.4, out: Path | None = None) -> None:
    """rounds of turns; seconds of each turn; out: the JSON file."""
    results = {}
    against = ["bare", "plain", "accelerate", *WAYS[4:]]
    print(f"{'':<14}{'':>10}" + "".join(f"{way:>12}" for way in WAYS) + f"    ours against {', '.join(against)}")
    for work in WORK:
        for precision in ("no", "bf16"):
            result = results[f"{work} {precision}"] = compare(work, precision, rounds, seconds)
            cells = "".join(f"{result['images_per_second'][way]:>12,.0f}" for way in WAYS)
            ratios = "".join(f"{result['ours_against'][way]:>8.2f}" for way in against)
            print(f"{work:<14}{precision:>10}{cells}    {ratios}", flush=True)
    facts = {
        "machine": machine(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "rounds": rounds,
        "seconds": seconds,
    }
    out = out or Path(__file__).parent / "results" / f"{machine()}.json"
    out.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        tyro.cli(main, description=__doc__)
