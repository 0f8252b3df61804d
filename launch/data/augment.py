"""Augmentations: functions of a batch of uint8 pixels, on the pixels' device. A recipe passes one to `train`.

To add one, write a function of type `Augment` here. Take its random numbers from `draw`, so that they depend only on
(seed, epoch, sample): then the same image looks the same in any batch, slice or process.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .order import draws

# (kind, n) -> for each image of the batch a random integer below n, int64 (batch,); `kind` numbers the draws of an augmentation
Draw = Callable[[int, int], Tensor]
# (pixels uint8 (n, H, W, C), draw) -> pixels uint8 (n, H, W, C)
Augment = Callable[[Tensor, Draw], Tensor]


class EpochDraws:
    """What augmentations draw: `launch.data.draws` of all samples, computed once an epoch; a batch looks its own up.

    The tables keep their place in memory, so that a captured step reads the numbers of its epoch.
    """

    def __init__(self, seed: int, samples: int, device: torch.device):
        self.seed, self.epoch = seed, 0
        self.samples = torch.arange(samples, device=device)
        self.tables: dict[tuple[int, int], Tensor] = {}

    def begin(self, epoch: int) -> None:
        """From now on the draws are those of `epoch`, from 0."""
        if epoch != self.epoch:
            self.epoch = epoch
            for (kind, n), table in self.tables.items():
                table.copy_(draws(self.seed, epoch, self.samples, kind, n))

    def of(self, ids: Tensor) -> Draw:
        """The draws of the samples `ids`, int64 (batch,)."""

        def draw(kind: int, n: int) -> Tensor:
            if (kind, n) not in self.tables:
                self.tables[kind, n] = draws(self.seed, self.epoch, self.samples, kind, n)
            return self.tables[kind, n].index_select(0, ids)

        return draw


def crop_and_flip(pixels: Tensor, draw: Draw, pad: int = 4) -> Tensor:
    """Random crop of images padded with `pad` black pixels, and a horizontal flip of half of them: uint8 (n, H, W, C) -> same.

    Source: He et al., Deep Residual Learning for Image Recognition (2015), section 4.2.
    """
    n, height, width, _ = pixels.shape
    down, right, mirrored = (draw(kind, span) for kind, span in enumerate((2 * pad + 1, 2 * pad + 1, 2)))
    rows = torch.arange(height, device=pixels.device) + down[:, None]  # (n, H)
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(mirrored[:, None] == 1, width - 1 - columns, columns) + right[:, None]  # (n, W)
    padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
    return padded[torch.arange(n, device=pixels.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
