"""From JPEG files to normalised batches, cropped at random and mirrored: ours beside other loaders.

    make bench-images
    python benchmarks/images.py --photos photos/ --against CHECKOUT
    python benchmarks/images.py --ways first store timm trained

Distinct JPEG files are made first: parts of the photographs at --photos, or of noise that looks like some. An epoch in batches of
64 is timed, the start of workers and threads included; each way has a process of its own, in turns, and the ratios are medians of
those of a round. On a busy machine, compare the time of the cores. The other checkout's own benchmark measures its ways.
Without --ways, each kind of files has the ways that the ratios at TARGETS need, and torchcodec's.

    new         ours, nothing known of the files: checked and stored, then an epoch
    first       ours, checked before, nothing stored: each is decoded, used and stored
    store       ours, from the store
    files       ours, decoded on the way each time
    imagefolder torchvision's ImageFolder and DataLoader, with a worker for each core
    torchcodec  the same with torchcodec's decoder and transforms.v2; pip install torchcodec
    timm        timm's create_dataset and create_loader, likewise; pip install timm
    dali        NVIDIA DALI's CPU operators, a thread for each core; pip install nvidia-dali-cuda130
    trained     of 500x375: ResNet-18 trains at 128 and at 224 pixels, from the store and on random images in memory, in turns
"""

import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from json import dumps
from pathlib import Path
from typing import NamedTuple

import image_loaders
import numpy as np
import speed
import tyro
from PIL import Image

OURS = ("new", "first", "store", "files")
OTHERS = ("imagefolder", "torchcodec", "timm", "dali")


class Kind(NamedTuple):
    """Files of one size: their width, the size for the net, their share of --count, and the ways if nobody says."""

    width: int
    size: int
    share: float
    ways: tuple[str, ...]


KINDS = {
    "500x375": Kind(500, 224, 1, ("new", "first", "store", "imagefolder", "torchcodec", "dali")),
    "2000x1500": Kind(2000, 224, 1 / 8, ("first", "dali")),
    "32x32": Kind(32, 32, 1, ("first", "store", "imagefolder")),
}
# What is aimed at: the least ratio of images per second, and whose. The other checkout is oneloop at ea9305d.
TARGETS = {
    "500x375": {
        ("first", "dali"): 1.35,
        ("first", "first there"): 1.65,
        ("new", "new there"): 1.5,
        ("store", "store there"): 2.2,
    },
    "2000x1500": {("first", "first there"): 2.0},
    "32x32": {("first", "imagefolder"): 1.5, ("store", "imagefolder"): 3.0},
}


def main(
    count: int = 1600,
    rounds: int = 5,
    photos: Path | None = None,
    against: Path | None = None,
    kinds: tuple[str, ...] = tuple(KINDS),
    ways: tuple[str, ...] = (),
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Time the ways.

    Args:
        count: JPEG files.
        rounds: turns of each way.
        photos: a folder of photographs that the files are cut from.
        against: another checkout of oneloop, timed in the same turns.
        kinds: sizes of the files.
        ways: what is timed; without, what TARGETS need.
        json: print JSON in place of a table.
        out: the JSON file.
    """
    cores = os.cpu_count() or 1
    result: dict = {"machine": speed.machine(), "torch": speed.torch.__version__, "rounds": rounds}
    for kind in kinds:
        width, size, share, usual = KINDS[kind]
        timed_here = ways or usual
        with tempfile.TemporaryDirectory() as place:
            write(Path(place) / "photos", files := int(count * share), width, photos)
            ours = [way for way in timed_here if way in OURS]
            runs = [Run(way, way, None) for way in ours]
            there = [way for way in ours if against and (ways or (way, f"{way} there") in TARGETS[kind])]
            runs += [Run(f"{way} there", way, against) for way in there]
            runs += [Run(way, f"{way} {cores}", None) for way in timed_here if way in OTHERS]
            result[kind] = timed(place, files, size, runs, rounds)
            if kind == "500x375" and "trained" in timed_here:
                result[kind] |= end_to_end(place)
        if not json:
            show(kind, result[kind])
    out = out or Path(__file__).parent / "results" / f"images-{speed.machine()}.json"
    out.write_text(dumps(result, indent=1) + "\n")
    print(out.read_text() if json else out)


class Run(NamedTuple):
    """One way, timed by this checkout or by the one at `against`."""

    name: str
    way: str
    against: Path | None

    def time(self, place: str, size: int) -> list[float]:
        """The seconds of an epoch, MiB of the process and seconds of all cores, 0 if a checkout does not say. RuntimeError."""
        cache = Path(place) / self.name
        if self.way != "store":
            shutil.rmtree(cache, ignore_errors=True)
        root = self.against or Path(__file__).parents[1]
        script = next(path for name in ("images", "pictures") if (path := root / f"benchmarks/{name}.py").exists())
        environment = os.environ | {"ONELOOP_CACHE": str(cache), "PYTHONPATH": str(root)}
        environment |= {"ONELOOP_STORED_GIB": "0"} if self.way == "files" else {}
        os.sync()  # what an earlier way has left to write is not this one's
        command = [sys.executable, str(script), "--worker", self.way, f"{place}/photos", *([str(size)] if size != 224 else [])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if self.way != "store":
            shutil.rmtree(cache, ignore_errors=True)  # a gigabyte less in the system's cache of files
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["it says nothing"])[-1])
        return [float(word) for word in (*done.stdout.split(), "0", "0")[:3]]


def timed(place: str, count: int, size: int, runs: list[Run], rounds: int) -> dict:
    """Images per second, memory and time of the cores of each run; ours against the others."""
    times: dict[str, list[list[float]]] = {}
    skipped: dict[str, str] = {}
    for number in range(rounds):
        for run in runs if number % 2 else runs[::-1]:
            try:
                if run.name not in skipped:
                    times.setdefault(run.name, []).append(run.time(place, size))
            except RuntimeError as error:
                skipped[run.name] = str(error)
    speeds = {name: [count / seconds for seconds, _, _ in found] for name, found in times.items() if name not in skipped}
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    pairs = [(way, other) for way in OURS for other in (*OTHERS, f"{way} there") if way in medians and other in medians]
    ratios = {pair: statistics.median(a / b for a, b in zip(*(speeds[name] for name in pair), strict=True)) for pair in pairs}
    middle = {name: [statistics.median(values) for values in zip(*times[name], strict=True)] for name in medians}
    return {
        "files": count,
        "images_per_second": {name: round(value) for name, value in medians.items()},
        "memory_mib": {name: round(memory) for name, (_, memory, _) in middle.items()},
        "core_ms_per_image": {name: round(1000 * cores / count, 3) for name, (_, _, cores) in middle.items()},
        "ratios": {f"{way} against {other}": round(ratio, 2) for (way, other), ratio in ratios.items()},
        "ratios_of_core_time": {
            f"{way} against {other}": round(middle[other][2] / middle[way][2], 2) for way, other in pairs if middle[other][2]
        },
        "skipped": skipped,
    }


def show(kind: str, result: dict) -> None:
    print(f"{result['files']:,} files of {kind}: images/s, most MiB of the main process, ms of a core for an image")
    for name, value in result["images_per_second"].items():
        print(f"  {name:<30}{value:>8,}{result['memory_mib'][name]:>8,}{result['core_ms_per_image'][name]:>10.3f}")
    print("  ratios of images/s, and of the cores' time")
    aims = {f"{way} against {other}": aim for (way, other), aim in TARGETS[kind].items()}
    for name, ratio in result["ratios"].items():
        aim = f"  {'met' if ratio >= aims[name] else 'missed'}: {aims[name]:.2f}" if name in aims else ""
        print(f"  {name:<36}{ratio:>6.2f}{result['ratios_of_core_time'].get(name, math.nan):>8.2f}{aim}")
    for name in aims.keys() - result["ratios"].keys():
        print(f"  {name:<36}   not measured: {aims[name]:.2f} is aimed at")
    for name, reason in result["skipped"].items():
        print(f"  {name}: skipped: {reason}", flush=True)


def end_to_end(place: str) -> dict:
    """The ratios of `trained`."""
    found = {}
    for size in (128, 224):
        command = [sys.executable, __file__, "--worker", f"trained {size}", f"{place}/photos"]
        environment = os.environ | {"ONELOOP_CACHE": f"{place}/store"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found[f"resnet18 at {size}, from files against memory"] = round(float(done.stdout), 3)
    return found


def write(folder: Path, count: int, across: int, photos: Path | None) -> None:
    """`count` JPEG files, `across` pixels wide and three quarters of it high (32: square), no two the same, in two classes."""
    random = np.random.default_rng(0)
    sources = [path for path in sorted(photos.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")] if photos else []
    for number in range(count):
        if sources:
            with Image.open(sources[number % len(sources)]) as opened:
                whole = opened.convert("RGB")
            whole.thumbnail((2 * across, 2 * across))
        else:
            whole = Image.new("RGB", (900, 700))
            for cells in (4, 30, 200):  # coarse shapes, finer ones, texture
                grid = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
                whole = Image.blend(whole, grid.resize((900, 700), Image.BICUBIC), 0.5 if cells == 4 else 0.25)
        width, height = whole.size
        part = random.uniform(0.6, 1.0)
        left, top = (random.uniform(0, side * (1 - part)) for side in (width, height))
        box = left, top, left + part * width, top + part * height
        image = whole.resize((across, across if across == 32 else across * 3 // 4), Image.BILINEAR, box=box)
        path = folder / ("even", "odd")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)


def worker(way: str, folder: str, size: str = "224") -> None:
    """Print of one epoch the seconds, the most memory of this process in MiB, and the seconds of all cores together.

    Of `trained`, the ratio of two speeds.
    """
    kind, _, workers = way.partition(" ")
    if kind == "trained":
        print(trained(folder, int(workers)))
        return
    other = getattr(image_loaders, kind, None)
    spent = other(folder, int(size), int(workers)) if other else ours(folder, int(size), kind)
    print(spent.clock, image_loaders.most_memory(), spent.cores)


def ours(folder: str, size: int, kind: str) -> image_loaders.Spent:
    import torch

    from launch import sources
    from launch.data import native
    from launch.data.augment import EpochRng, random_resized_crop
    from launch.data.order import order
    from launch.data.resize import rule_for
    from launch.data.store import clear
    from launch.processes import keep_freed_memory
    from launch.sources.dataset_report import dataset_report  # noqa: F401 - imported before the clock starts
    from launch.sources.options import DataOptions

    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()  # as every run does
    native.library()  # compiled once for all runs
    options = DataOptions(test=0.0, split=split_of(folder))

    def one() -> int:
        images = sources.custom(folder, rule_for(size), options, main=False)
        feed, rng = images.train.feed(images, torch.device("cpu")), EpochRng(1, len(images.train), torch.device("cpu"))
        parts = order(len(images.train), 1, 0).split(image_loaders.BATCH)
        for _ in feed.stream(parts, [lambda sizes, ids: random_resized_crop(sizes, rng.of(ids))]):
            pass
        return len(images.train)

    if kind == "store":
        for _ in range(3):  # a slow disk may not take all of them at once
            one()
    elif kind != "new":
        sources.custom(folder, rule_for(size), options, main=False)  # checked
        clear(Path(folder).resolve())
    image_loaders.settle()
    began = image_loaders.clock()
    count = one()
    return image_loaders.Spent(*(seconds * count_of(folder) / count for seconds in image_loaders.since(began)))


def trained(folder: str, size: int, steps: int = 6, batch: int = 16) -> float:
    """The speed of ResNet-18's training steps from the store, over that on images in memory: median of turns."""
    import torch
    import torch.nn.functional as F
    from torchvision.models import resnet18

    from launch import sources
    from launch.data.augment import EpochRng, random_resized_crop
    from launch.data.resize import rule_for
    from launch.processes import keep_freed_memory
    from launch.sources.options import DataOptions

    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()
    images = sources.custom(folder, rule_for(size), DataOptions(test=0.0, split=split_of(folder)), limit=2 * steps * batch)
    feed, rng = images.train.feed(images, torch.device("cpu")), EpochRng(1, len(images.train), torch.device("cpu"))
    net = resnet18(num_classes=2).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    random = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)

    def turn(stored: bool) -> float:
        parts = torch.arange(steps * batch).split(batch)
        stream = feed.stream(parts, [lambda sizes, ids: random_resized_crop(sizes, rng.of(ids))])
        began = time.perf_counter()
        for ids in parts:
            pixels, labels = random, ids % 2
            if stored:
                pixels, labels = next(stream)
            optimizer.zero_grad()
            F.cross_entropy(net(pixels), labels).backward()
            optimizer.step()
        return time.perf_counter() - began

    turn(stored=True)  # stores them
    turn(stored=False)
    return statistics.median(turn(stored=False) / turn(stored=True) for _ in range(5))


def split_of(folder: str) -> str:
    """A split file with all but one image of each class to train on."""
    path = Path(folder).parent / "split.csv"
    if not path.exists():
        lines = ["path,split"]
        for place in sorted(Path(folder).iterdir()):
            for number, file in enumerate(sorted(place.iterdir())):
                lines.append(f"{place.name}/{file.name},{'train' if number else 'test'}")
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def count_of(folder: str) -> int:
    return sum(len(list(place.iterdir())) for place in Path(folder).iterdir())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        tyro.cli(main, description=__doc__)
