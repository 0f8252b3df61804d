"""Where images come from: what a recipe calls, as in `sources.cifar10(run.data)`, and what reads each kind of files.

Loads no torch before an image is read, so that `oneloop data` answers at once.

named       cifar10, mnist, fashion_mnist; custom: images of one's own; others: images that a trained net is measured on
folder, table, idx, npz, hub_named, synthetic, decoded     where the named ones come from, and their cache
listing, walk, path_table, image_table, parquet, hub_images     where one's own come from
doubt, labels, check, index, split, survey, page     are they what they seem; each file opened once; splits; `oneloop data`
hub         the Hugging Face hub
"""

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .custom_images import custom
    from .named import CIFAR10_CLASSES, FASHION_CLASSES, cifar10, fashion_mnist, mnist

__all__ = ["CIFAR10_CLASSES", "FASHION_CLASSES", "cifar10", "custom", "fashion_mnist", "mnist"]
_LAZY = {"named": "CIFAR10_CLASSES FASHION_CLASSES cifar10 fashion_mnist mnist", "custom_images": "custom"}
__getattr__ = lazily(__name__, _LAZY)
