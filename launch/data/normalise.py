"""Normalised images from uint8 ones, for both feeds."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def normaliser(mean: Sequence[float], std: Sequence[float], pixels: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Maps rows of `pixels` pixels, uint8 (..., pixels × C) on `device`, to float32, the same: (value / 255 - mean) / std."""
    mean_, std_ = torch.tensor(mean), torch.tensor(std)
    # One factor and one shift for each value of a row: broadcasting over channels is four times slower.
    scale = (1 / (255 * std_)).repeat(pixels).to(device)
    shift = (-mean_ / std_).repeat(pixels).to(device)
    return lambda rows: rows.to(scale.dtype).mul_(scale).add_(shift)  # torch's default dtype, float32
