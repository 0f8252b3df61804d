"""Where images come from: what a recipe calls, as in `sources.cifar10(run.data)`, and what reads each kind of files.

Loads no torch before an image is read, so that `oneloop data` answers at once (PEP 562).

named       cifar10, mnist, fashion_mnist; custom: images of one's own; others: images that a trained net is measured on
folder, table, idx, npz, hub_named, synthetic, decoded     where the named ones come from, and their cache
listing, walk, path_table, image_table, parquet, hub_images     where one's own come from
doubt, labels, check, index, split, survey, page     are they what they seem; each file opened once; splits; `oneloop data`
hub         the Hugging Face hub
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .custom import pictures
    from .named import CIFAR10_CLASSES, FASHION_CLASSES, cifar10, fashion_mnist, mnist

__all__ = ["CIFAR10_CLASSES", "FASHION_CLASSES", "cifar10", "fashion_mnist", "mnist", "pictures"]
HOMES = dict.fromkeys(__all__, "named") | {"pictures": "custom"}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
