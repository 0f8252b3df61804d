"""Features in place of pixels: what a locked net has computed of each image, as batches for the layer that is trained on them.

Which row of the table an epoch sees of an image depends on (seed, epoch, image) alone, as with augmentations.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# (views int64 (n,), ids int64 (n,)) -> which view of each image, int64 (n,): see `by_turns`
Chosen = Callable[[Tensor, Tensor], Tensor]


class Features(NamedTuple):
    """`table` float32 (R, width), mapped from the disk; `rows` int64 (N, views): where each view of each image is in it."""

    table: Tensor
    rows: Tensor

    def select(self, ids: Tensor) -> "Features":
        """Those of the images `ids`, int64 (n,), alone."""
        return Features(self.table, self.rows[ids])


def by_turns(views: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    """The view of each image in this epoch, int64 (n,): all `views` in turn, from one drawn for the image on. An Augment."""
    count = int(views[0])
    return draw(25, count, by_turns=True)


class FeatureFeed:
    """Batches of features, as MemoryFeed makes them of pixels; evaluation sees the first view of each image."""

    batches = 500
    resident = False

    def __init__(self, labels: Tensor, features: Features, uneven: tuple[int, ...], device: torch.device):
        self.device, self.drawn_on, self.uneven = device, torch.device("cpu"), uneven
        self.labels, self.features = labels, features
        self.views = features.rows.shape[1]

    def order(self, ids: Tensor) -> Tensor:
        return ids

    def expect(self, micro_batches: Sequence[Tensor]) -> None:
        """As DiskFeed.expect. Nothing needs to be prepared here."""

    def batch(self, ids: Tensor, augments: Sequence[Chosen] = ()) -> tuple[Tensor, Tensor]:
        """The features of the images `ids`, int64 (n,): float32 (n, width); labels int64 (n,).

        The first of `augments`, which is the only one, says which view of each; without any, the first view.
        """
        table, rows = self.features
        view = augments[0](torch.full_like(ids, self.views), ids) if augments else torch.zeros_like(ids)
        found = table[rows[ids, view]]
        labels = self.labels[ids]
        return found.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
