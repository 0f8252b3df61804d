"""Pixels on their way to a net: what a batch is made of (images, order, augment), and where images come from (sources)."""

from . import sources
from .augment import Augment, crop_and_flip
from .images import Feed, Images, Split, resized
from .order import bounds, draws, folds, order, slice_seed

__all__ = [
    "Augment", "Feed", "Images", "Split", "bounds", "crop_and_flip", "draws", "folds", "order", "resized", "slice_seed",
    "sources",
]  # fmt: skip
