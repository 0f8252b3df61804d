"""From JPEG files to normalised batches of 224×224, cropped at random and mirrored: ours beside torchvision's and timm's.

    make bench-images
    python benchmarks/images.py --photos photos/      from real photographs

Distinct JPEG files are made first: parts of the photographs at --photos, or of noise that looks like some; of 500×375 pixels,
and an eighth as many of 2000×1500. Each way has a process of its own, in turns; what is timed is an epoch of batches of 64,
start-up of its workers and threads included.

    new         ours, nothing known of the files: examined, then as `first`
    first       ours, examined before: each is decoded, used and stored
    store       ours, from the store
    files       ours, decoded on the way each time
    imagefolder torchvision's ImageFolder and DataLoader, with each number of workers; the best one counts
    timm        timm's create_dataset and create_loader, likewise; pip install timm

Then ResNet-18 trains at 128 and at 224 pixels, from the store and on random images in memory, in turns in one process.
"""

import gc
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import speed
import tyro
from PIL import Image

SIZE, BATCH = 224, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(count: int = 4000, rounds: int = 3, photos: Path | None = None, out: Path | None = None) -> None:
    """Time the ways.

    Args:
        count: JPEG files.
        rounds: turns of each way.
        photos: a folder of photographs that the files are cut from.
        out: the JSON file.
    """
    workers = sorted({1, 2, os.cpu_count() or 1, 2 * (os.cpu_count() or 1)})
    ways = ["new", "first", "store", "files", *(f"{other} {n}" for other in ("imagefolder", "timm") for n in workers)]
    found: dict[str, dict] = {}
    for width, files in ((500, count), (2000, count // 8)):
        with tempfile.TemporaryDirectory() as place:
            write(Path(place) / "photos", files, width, photos)
            found[f"{width}x{width * 3 // 4}"] = timed(place, files, ways, rounds) | ({} if width > 500 else end_to_end(place))
    out = out or Path(__file__).parent / "results" / f"images-{speed.machine()}.json"
    facts = {"machine": speed.machine(), "torch": speed.torch.__version__, "rounds": rounds}
    out.write_text(json.dumps(facts | found, indent=1) + "\n")
    print(out)


def timed(place: str, count: int, ways: list[str], rounds: int) -> dict:
    """Images per second of each way, and ours against the others' best numbers of workers."""
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 else ways[::-1]:
            cache = Path(place) / way
            if way != "store":
                shutil.rmtree(cache, ignore_errors=True)
            environment = os.environ | {"ONELOOP_CACHE": str(cache)}
            environment |= {"ONELOOP_STORED_GIB": "0"} if way == "files" else {}
            os.sync()  # what an earlier way has left to write is not this one's
            command = [sys.executable, __file__, "--worker", way, f"{place}/photos"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                print(f"{way}: {done.stderr.strip().splitlines()[-1]}")
            else:
                speeds[way].append(count / float(done.stdout))
    medians = {way: statistics.median(values) for way, values in speeds.items() if values}
    others = ("imagefolder", "timm")
    best = [max((way for way in medians if way.startswith(other)), key=medians.get, default="") for other in others]
    for way, value in medians.items():
        print(f"{way:<16}{value:>8,.0f} images/s")
    ratios = {
        f"{way} against {other}": statistics.median(a / b for a, b in zip(speeds[way], speeds[other], strict=True))
        for other in filter(None, best)
        for way in ("new", "first", "store", "files")
    }
    for name, ratio in ratios.items():
        print(f"{name:<32}{ratio:>6.2f}")
    rounded = {way: round(value) for way, value in medians.items()}
    return {"files": count, "images_per_second": rounded, "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()}}


def end_to_end(place: str) -> dict:
    """The ratios of `trained`."""
    found = {}
    for size in (128, 224):
        command = [sys.executable, __file__, "--worker", f"trained {size}", f"{place}/photos"]
        done = subprocess.run(command, env=os.environ | {"ONELOOP_CACHE": f"{place}/store"}, capture_output=True, text=True)
        found[f"resnet18 at {size}, from files against memory"] = round(float(done.stdout), 3)
    print(found)
    return found


def write(folder: Path, count: int, across: int, photos: Path | None) -> None:
    """`count` JPEG files, `across` pixels wide and three quarters of it high, no two the same, in two classes."""
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
        image = whole.resize((across, across * 3 // 4), Image.BILINEAR, box=box)
        path = folder / ("even", "odd")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)


def worker(way: str, folder: str) -> None:
    """Print the seconds of one epoch; of `trained`, the ratio of two speeds."""
    kind, _, workers = way.partition(" ")
    others = {"imagefolder": imagefolder, "timm": timm}
    if kind == "trained":
        print(trained(folder, int(workers)))
    else:
        print(others[kind](folder, int(workers)) if kind in others else ours(folder, kind))


def ours(folder: str, kind: str) -> float:
    import torch

    from launch import sources
    from launch.data.augment import EpochRng, random_resized_crop
    from launch.data.order import order
    from launch.data.resize import rule_for
    from launch.processes import keep_freed_memory
    from launch.sources.dataset_report import dataset_report  # noqa: F401 - imported before the clock starts
    from launch.sources.options import DataOptions

    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()  # as every run does

    def one() -> int:
        images = sources.custom(folder, rule_for(SIZE), DataOptions(test=0.0, split=split_of(folder)))
        feed, rng = images.train.feed(images, torch.device("cpu")), EpochRng(1, len(images.train), torch.device("cpu"))
        parts = order(len(images.train), 1, 0).split(BATCH)
        for _ in feed.stream(parts, [lambda sizes, ids: random_resized_crop(sizes, rng.of(ids))]):
            pass
        return len(images.train)

    if kind == "store":
        for _ in range(3):  # a slow disk may not take all of them at once
            one()
    elif kind != "new":
        sources.custom(folder, rule_for(SIZE), DataOptions(test=0.0, split=split_of(folder)))  # examined
    settle()
    began = time.perf_counter()
    count = one()
    return (time.perf_counter() - began) * count_of(folder) / count


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


def imagefolder(folder: str, workers: int) -> float:
    import torch
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data = datasets.ImageFolder(folder, transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    return epoch(torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers))


def timm(folder: str, workers: int) -> float:
    from timm.data import create_dataset, create_loader

    data = create_dataset("", folder, split="", is_training=True)
    loader = create_loader(
        data, (3, SIZE, SIZE), BATCH, is_training=True, use_prefetcher=False, scale=(0.08, 1.0), interpolation="bilinear",
        color_jitter=None, mean=MEAN, std=STD, num_workers=workers, persistent_workers=False,
    )  # fmt: skip
    return epoch(loader)


def settle() -> None:
    """Before the clock starts, what may cost any way a lot and is nobody's."""
    gc.collect()  # of what was imported: 0.1 s
    with mmap.mmap(-1, 3 << 30) as memory:  # a virtual machine may have to ask its host for memory: 3 s for a GiB
        np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1


def epoch(loader) -> float:
    settle()
    began = time.perf_counter()
    for images, _ in loader:
        assert images.shape[1:] == (3, SIZE, SIZE)
    return time.perf_counter() - began


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        tyro.cli(main, description=__doc__)
