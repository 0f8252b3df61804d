"""Normalised images from uint8 ones, for both feeds."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normaliser:
    """Maps rows of `pixels` pixels, uint8 (..., pixels × C) on `device`, to float32, the same: (value / 255 - mean) / std.

    `scale` and `shift` are one factor and one shift for each value of a row, float32 (pixels × C,): broadcasting over channels is
    four times slower.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], pixels: int, device: torch.device):
        mean_, std_ = torch.tensor(mean), torch.tensor(std)
        self.scale = (1 / (255 * std_)).repeat(pixels).to(device)
        self.shift = (-mean_ / std_).repeat(pixels).to(device)

    def __call__(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Into `out`, if it is there."""
        return torch.mul(rows, self.scale, out=out).add_(self.shift)  # torch's default dtype, float32
