"""Features in place of pixels: what a locked net has computed of each image, as batches for the layer that is trained on them.

Which row of the table an epoch sees of an image depends on (seed, epoch, image) alone, as with augmentations.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .augment import Kind, Rng
from .feed import Augmented


class Features(NamedTuple):
    """`table` float32 (R, width), mapped from the disk; `rows` int64 (N, views): where each view of each image is in it."""

    table: Tensor
    rows: Tensor

    def select(self, ids: Tensor) -> "Features":
        """Those of the images `ids`, int64 (n,), alone."""
        return Features(self.table, self.rows[ids])


def by_turns(views: Tensor, rng: Rng) -> Tensor:
    """The view of each image in this epoch: from one drawn for the image on, all in turn. An Augment of a FeatureFeed.

    `views` int64 (n,) are their numbers of views, which are the same; int64 (n,).
    """
    return rng.integers(Kind.FEATURES, int(views[0]), by_turns=True)


class FeatureFeed:
    """Batches of features, as MemoryFeed makes them of pixels; evaluation sees the first view of each image."""

    evaluation_batch = 500
    resident = False
    threads, waited = 0, 0.0

    def __init__(self, labels: Tensor, features: Features, uneven: tuple[int, ...], device: torch.device):
        self.device, self.drawn_on, self.uneven = device, torch.device("cpu"), uneven
        self.labels, self.features = labels, features
        self.views = features.rows.shape[1]

    def order(self, ids: Tensor) -> Tensor:
        return ids

    def batch(self, ids: Tensor, augments: Sequence[Augmented] = ()) -> tuple[Tensor, Tensor]:
        """The features of the images `ids`, int64 (n,): float32 (n, width); labels int64 (n,).

        The only one of `augments` maps the numbers of views, int64 (n,), to which view of each; without it, the first view.
        """
        table, rows = self.features
        view = augments[0](torch.full_like(ids, self.views), ids) if augments else torch.zeros_like(ids)
        features = table[rows[ids, view]].to(self.device, non_blocking=True)
        return features, self.labels[ids].to(self.device, non_blocking=True)

    def stream(self, parts: Iterable[Tensor], augments: Sequence[Augmented] = ()) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batch(ids, augments) for ids in parts)

    def slow_augmentations(self) -> str:
        return ""
