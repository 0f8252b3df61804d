"""The four idx files in which MNIST and Fashion-MNIST are published; names with dashes or dots, gzipped or not.

An idx file is a magic number (0x800 and the number of dimensions), the size of each dimension, and then the bytes; all numbers
are 32 bits, big-endian.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from ..data.dataset import DIGITS, DataSet, Split
from ..errors import Refused

LIMIT = 1 << 30  # bytes of an array


def matches(folder: Path) -> bool:
    return any(folder.glob("train-images*idx3-ubyte*"))


def read(folder: Path) -> DataSet:
    """Images (1, H, W), classes "0" to "9". Raises Refused (4) for a missing file and for one that contradicts its header."""
    splits = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels = _array(_file(folder, f"{stem}-images", "idx3-ubyte"), dimensions=3)
        labels = _array(_file(folder, f"{stem}-labels", "idx1-ubyte"), dimensions=1)
        if len(pixels) != len(labels):
            raise Refused(f"{folder}: {len(pixels)} {split} images, but {len(labels)} labels", 4)
        if labels.size and labels.max() > 9:
            raise Refused(f"{folder}: {split} has label {labels.max()}; labels are 0 to 9", 4)
        splits[split] = Split(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels).long())
    return DataSet(str(folder), DIGITS, **splits)


def _file(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{joint}{kind}{end}" for joint in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise Refused(f"{folder}: has none of {', '.join(names)}", 4)


def _array(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file, uint8, in the shape that its header gives."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 * (1 + dimensions))
            if len(header) < 4 * (1 + dimensions):
                raise Refused(f"{path}: too short for an idx file", 4)
            magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
            if magic != 0x800 + dimensions:
                raise Refused(f"{path}: magic number is {magic}, expected {0x800 + dimensions}", 4)
            size = math.prod(shape)
            if size > LIMIT:
                raise Refused(f"{path}: header says {size:,} bytes; the limit is {LIMIT:,}", 4)
            content = file.read(size + 1)  # at most one byte more than the header says, however much a gzip file unpacks to
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"{path}: cannot be read: {error}", 4) from error
    if len(content) != size:
        has = "has more" if len(content) > size else f"has {len(content):,}"
        raise Refused(f"{path}: header says {size:,} bytes, but the file {has}", 4)
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()
