"""A data set as a source reads it and the cache keeps it, before a recipe selects from it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import Refused
from .feed import MemoryFeed

if TYPE_CHECKING:
    from .images import Images

Shape = tuple[int, int, int]  # of an image: channels (1 grey, 3 RGB), height, width
DIGITS = tuple("0123456789")  # the class names in files that have only numbers
SPLIT_NAMES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}  # the first one present is used


class Split(NamedTuple):
    """One split of a data set: `pixels` uint8 (N, C, H, W), `labels` int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def shape(self) -> Shape:
        """Of an image: (C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def select(self, ids: Tensor) -> "Split":
        """The images `ids`, int64 (n,), alone."""
        return Split(self.pixels[ids], self.labels[ids])

    def some(self, ids: Tensor) -> "Split":
        """The same, as DiskSplit.some."""
        return self.select(ids)

    def feed(self, images: "Images", device: torch.device) -> MemoryFeed:
        """Its batches on `device`, normalised and resized as `images` says."""
        return MemoryFeed(self, images, device)


@dataclass(frozen=True)
class DataSet:
    """Everything that a source has. `source` is its name in messages and records: "synthetic", a name on the hub, a path."""

    source: str
    classes: tuple[str, ...]
    train: Split
    test: Split

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the class names, shapes, pixels and labels of both splits. The cache and run folders record it."""
        shapes = [list(split.pixels.shape) for split in (self.train, self.test)]
        digest = hashlib.sha256(json.dumps([self.classes, shapes]).encode())
        for split in (self.train, self.test):
            digest.update(split.pixels.contiguous().numpy().data)
            digest.update(split.labels.numpy().data)
        return digest.hexdigest()


def split_name(split: str, names: Iterable[str], source: str) -> str:
    """Which of `names` is the `split` ("train", "test") of a data set. Raises Refused (4) if none is."""
    for name in SPLIT_NAMES[split]:
        if name in names:
            return name
    has = ", ".join(sorted(names))
    raise Refused(f"{source}: no {split} split, only {has}; an image folder has train/<class>/… and test/<class>/…", 4)
