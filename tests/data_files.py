"""Data sets as a user has them in files: an image folder, parquet, idx, npz; and what must be read from them."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from launch import sources
from launch.data.images import Images

COUNTS = {"train": 40, "test": 20}
GOLDEN = "38b048f8926a919f76c178cb053f00208ed264fa2cf5a0515bedf65fd783b1b3"


def image(number: int, size: int = 32) -> np.ndarray:
    """The image with this number: noise, uint8 (size, size, 3)."""
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def label(number: int) -> int:
    return number % 10


def write_image_folder(folder: Path) -> Path:
    """train/<class>/<number>.png, test/<class>/<number>.png, with CIFAR-10's classes."""
    for split, count in COUNTS.items():
        for number in range(count):
            place = folder / split / sources.CIFAR10_CLASSES[label(number)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image(number)).save(place / f"{number:03}.png")
    return folder


def write_parquet(
    folder: Path, images: str = "img", labels: str = "label", broken: int = -1, null: int = -1, unlabelled: int = -1
) -> Path:
    """The hub's layout, one parquet file for each split; `broken`, `null`, `unlabelled` are numbers of images to spoil."""
    import datasets

    features = datasets.Features({images: datasets.Image(), labels: datasets.ClassLabel(names=list(sources.CIFAR10_CLASSES))})
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            file = BytesIO()
            Image.fromarray(image(number)).save(file, "PNG")
            raw = file.getvalue() if number != broken else b"no picture"
            cell = None if number == null else {"bytes": raw, "path": None}
            rows.append({images: cell, labels: None if number == unlabelled else label(number)})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def check(images: Images) -> None:
    """`images` are exactly those of airplane and bird, each with its own pixels and label."""
    assert images.classes == ("airplane", "bird")
    for name, count in COUNTS.items():
        split = getattr(images, name)
        numbers = [number for number in range(count) if label(number) in (0, 2)]
        assert sorted(split.labels.tolist()) == sorted(label(number) // 2 for number in numbers)
        got = {pixels.permute(1, 2, 0).numpy().tobytes(): int(target) for pixels, target in zip(*split, strict=True)}
        assert got == {image(number).tobytes(): label(number) // 2 for number in numbers}


def cifar2(data, **options) -> Images:
    """The airplanes and birds of `data`."""
    return sources.cifar10(str(data), keep=("airplane", "bird"), **options)


def write_golden_folder(place: Path) -> Path:
    """An image folder whose fingerprint is GOLDEN: computed pixels, one image for each class and split."""
    for number, name in enumerate(sources.CIFAR10_CLASSES):
        for split in COUNTS:
            (place / split / name).mkdir(parents=True)
            pixels = np.arange(32 * 32 * 3, dtype=np.int64).reshape(32, 32, 3) * (number + 3) + (split == "test")
            Image.fromarray((pixels % 256).astype(np.uint8)).save(place / split / name / "1.png")
    return place


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images uint8 (count, 28, 28), and their labels."""
    random = np.random.default_rng(count)
    return random.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)


def idx(magic: int, *shape: int, data: bytes) -> bytes:
    """An idx file: a header, whether true or not, and data."""
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + data


def write_idx(folder: Path, joint: str = "-", pack=lambda raw: raw, end: str = "") -> Path:
    """The four idx files of `digits`."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", 40), ("t10k", 20)):
        pixels, labels = digits(count)
        images, targets = idx(2051, count, 28, 28, data=pixels.tobytes()), idx(2049, count, data=labels.tobytes())
        (folder / f"{stem}-images{joint}idx3-ubyte{end}").write_bytes(pack(images))
        (folder / f"{stem}-labels{joint}idx1-ubyte{end}").write_bytes(pack(targets))
    return folder


def check_digits(images: Images) -> None:
    for split, count in ((images.train, 40), (images.test, 20)):
        pixels, labels = digits(count)
        assert np.array_equal(split.pixels[:, 0].numpy(), pixels)
        assert split.labels.tolist() == labels.tolist()


def good_npz(**changed) -> dict[str, np.ndarray]:
    """The arrays of an npz file of `digits`, some of them `changed`."""
    (x, y), (x_test, y_test) = digits(40), digits(20)
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test} | changed
