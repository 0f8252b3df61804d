"""Where images come from: what a recipe calls, as in `sources.cifar10(run.data)`, and what reads each kind of files.

Loads no torch before an image is read, so that `oneloop data` answers at once.

named       cifar10, mnist, fashion_mnist; custom: your own images; others: images that a trained net is measured on
listing     what is listed, before a file is opened; folder, table, image_table, parquet, hub read it, each its kind
in_memory, idx, npz, synthetic, decoded     the named ones: images of one size in memory, and their cache
doubt, labels, check, index, split     are the classes what they seem; each file opened once; splits
dataset_report, page     what `oneloop data` shows
"""

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .custom_images import custom
    from .named import CIFAR10_CLASSES, FASHION_CLASSES, cifar10, fashion_mnist, mnist

__all__ = ["CIFAR10_CLASSES", "FASHION_CLASSES", "cifar10", "custom", "fashion_mnist", "mnist"]
_LAZY = {"named": "CIFAR10_CLASSES FASHION_CLASSES cifar10 fashion_mnist mnist", "custom_images": "custom"}
__getattr__ = lazily(__name__, _LAZY)
