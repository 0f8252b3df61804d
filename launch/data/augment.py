"""Augmentation of a batch of uint8 pixels, on their device: each image's draw depends on (seed, epoch, sample) alone.

A new one is a function here, of the type `Augment`, that a recipe gives to `train`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .order import draws

# (pixels uint8 (n, H, W, C), ids int64 (n,), seed, epoch) -> pixels uint8 (n, H, W, C)
Augment = Callable[[Tensor, Tensor, int, int], Tensor]


def crop_and_flip(pixels: Tensor, ids: Tensor, seed: int, epoch: int, pad: int = 4) -> Tensor:
    """The ResNet paper's augmentation: (n, H, W, C) uint8 -> the same, moved by up to `pad` pixels over black, half mirrored.

    Each image's draw depends on (seed, epoch, sample), not on its place in a batch, a slice or a process.
    """
    n, height, width, _ = pixels.shape
    down, right, mirrored = (draws(seed, epoch, ids, kind, span) for kind, span in enumerate((2 * pad + 1, 2 * pad + 1, 2)))
    rows = torch.arange(height, device=pixels.device) + down[:, None]  # (n, H)
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(mirrored[:, None] == 1, width - 1 - columns, columns) + right[:, None]  # (n, W)
    padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
    return padded[torch.arange(n, device=pixels.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
