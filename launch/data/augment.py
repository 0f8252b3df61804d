"""Augmentations: functions of a batch of uint8 pixels, on the pixels' device. A recipe passes one to `train`.

To add one, write a function of type `Augment` here. Take its random numbers from `draws`, so that they depend only on
(seed, epoch, sample): then the same image looks the same in any batch, slice or process.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .order import draws

# (pixels uint8 (n, H, W, C), ids int64 (n,), seed, epoch) -> pixels uint8 (n, H, W, C)
Augment = Callable[[Tensor, Tensor, int, int], Tensor]


def crop_and_flip(pixels: Tensor, ids: Tensor, seed: int, epoch: int, pad: int = 4) -> Tensor:
    """Random crop of images padded with `pad` black pixels, and a horizontal flip of half of them: uint8 (n, H, W, C) -> same.

    Source: He et al., Deep Residual Learning for Image Recognition (2015), section 4.2.
    """
    n, height, width, _ = pixels.shape
    down, right, mirrored = (draws(seed, epoch, ids, kind, span) for kind, span in enumerate((2 * pad + 1, 2 * pad + 1, 2)))
    rows = torch.arange(height, device=pixels.device) + down[:, None]  # (n, H)
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(mirrored[:, None] == 1, width - 1 - columns, columns) + right[:, None]  # (n, W)
    padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
    return padded[torch.arange(n, device=pixels.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
