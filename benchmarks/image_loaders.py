"""Other loaders' epochs of random crops, mirrored or not, normalised, in batches of BATCH: for benchmarks/images.py.

Each takes a folder of class folders of JPEG files, the size for the net, and the number of workers or threads.
"""

import gc
import mmap
import resource
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PEAK = Path("/proc/self/clear_refs")  # where Linux takes the order to begin anew with a process's most memory


class Spent(NamedTuple):
    """Seconds on the clock, and of all cores together, those of ended worker processes included."""

    clock: float
    cores: float


def clock() -> Spent:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(time.perf_counter(), time.process_time() + ended.ru_utime + ended.ru_stime)


def since(began: Spent) -> Spent:
    return Spent(*(now - then for now, then in zip(clock(), began, strict=True)))


def imagefolder(folder: str, size: int, workers: int) -> Spent:
    import torch
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data = datasets.ImageFolder(folder, transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    return epoch(torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers), size)


def torchcodec(folder: str, size: int, workers: int) -> Spent:
    import torch
    from torchcodec.decoders import decode_jpeg
    from torchvision import datasets
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(size, antialias=True)
    steps = [crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    data = datasets.DatasetFolder(folder, lambda path: decode_jpeg(path), (".jpg",), v2.Compose(steps))
    return epoch(torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers), size)


def timm(folder: str, size: int, workers: int) -> Spent:
    from timm.data import create_dataset, create_loader

    data = create_dataset("", folder, split="", is_training=True)
    loader = create_loader(
        data, (3, size, size), BATCH, is_training=True, use_prefetcher=False, scale=(0.08, 1.0), interpolation="bilinear",
        color_jitter=None, mean=MEAN, std=STD, num_workers=workers, persistent_workers=False,
    )  # fmt: skip
    return epoch(loader, size)


def dali(folder: str, size: int, threads: int) -> Spent:
    import nvidia.dali.fn as fn
    from nvidia.dali import pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None)
    def pipeline():
        content, labels = fn.readers.file(file_root=folder, random_shuffle=True, name="files")
        images = fn.decoders.image_random_crop(content, random_area=(0.08, 1.0), random_aspect_ratio=(3 / 4, 4 / 3))
        images = fn.resize(images, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
        mean, std = ([255 * value for value in values] for values in (MEAN, STD))
        mirrored = fn.random.coin_flip()
        pixels = fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std, mirror=mirrored)
        return pixels, labels

    settle()
    began = clock()
    loader = pipeline()
    loader.build()
    for _ in range(-(-loader.epoch_size("files") // BATCH)):
        images, _ = loader.run()
        assert images.as_tensor().shape()[1:] == [3, size, size]
    return since(began)


def settle() -> None:
    """Before the clock starts, what may cost any way a lot and is nobody's."""
    gc.collect()  # of what was imported: 0.1 s
    with mmap.mmap(-1, 3 << 30) as memory:  # a virtual machine may have to ask its host for memory: 3 s for a GiB
        np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1
    if PEAK.exists():
        PEAK.write_text("5")  # forget that peak


def most_memory() -> float:
    """Of this process since `settle`, in MiB; 0 where nobody counts it."""
    lines = Path("/proc/self/status").read_text().splitlines() if PEAK.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def epoch(loader, size: int) -> Spent:
    settle()
    began = clock()
    for images, _ in loader:
        assert images.shape[1:] == (3, size, size)
    return since(began)
