"""Mixing: each image of a batch with the one before it in the global batch. A recipe passes a `Mix` to `train`.

The order of a batch is random, so its neighbours are as good as random partners; and they are the same for any number of
micro-batches and processes, each of which needs one image more than its own. The labels become shares of two classes.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .augment import Draw

# (images float (n, C, H, W), the ones before them, draw) -> the mixed images, and each image's own share in 0..1, float (n,).
# Their draws have kinds 20 to 29, see launch/data/augment.py.
Mix = Callable[[Tensor, Tensor, Draw], tuple[Tensor, Tensor]]

STEPS = 1 << 16  # of a draw
KNOTS = 4096


def mixup(alpha: float = 0.2) -> Mix:
    """Weighted means of two images, the weight from Beta(`alpha`, `alpha`). Source: Zhang et al., mixup (arXiv:1710.09412)."""

    def mix(images: Tensor, others: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        share = _beta(alpha, images.device).index_select(0, draw(20, STEPS))
        return torch.lerp(others, images, share[:, None, None, None]), share

    return mix


def cutmix(alpha: float = 1.0) -> Mix:
    """A rectangle of the other image; its part of the area is 1 minus a draw from Beta(`alpha`, `alpha`), less what lies outside.

    Source: Yun et al., CutMix (arXiv:1905.04899).
    """

    def mix(images: Tensor, others: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        side = (1 - _beta(alpha, images.device).index_select(0, draw(21, STEPS))).sqrt()
        rows, columns = _span(draw(22, height), side, height), _span(draw(23, width), side, width)
        inside = rows[:, None, :, None] & columns[:, None, None, :]  # (n, 1, H, W)
        return torch.where(inside, others, images), 1 - inside.float().mean((1, 2, 3))

    return mix


def either(*mixes: Mix) -> Mix:
    """For each image one of `mixes`, by chance."""

    def mix(images: Tensor, others: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        chosen = draw(24, len(mixes))
        mixed, share = mixes[0](images, others, draw)
        for number, other in enumerate(mixes[1:], start=1):
            pixels, its = other(images, others, draw)
            mixed = torch.where((chosen == number)[:, None, None, None], pixels, mixed)
            share = torch.where(chosen == number, its, share)
        return mixed, share

    return mix


def mixed(mix: Mix, pixels: Tensor, labels: Tensor, draw: Draw, classes: int) -> tuple[Tensor, Tensor]:
    """All but the first of `pixels` float (n + 1, C, H, W), each mixed with the one before it; labels float (n, classes).

    `draw` is that of the n, on any device.
    """
    images, share = mix(pixels[1:], pixels[:-1], lambda *drawn: draw(*drawn).to(pixels.device, non_blocking=True))
    return images, soft_labels(labels[1:], labels[:-1], share, classes)


def soft_labels(labels: Tensor, before: Tensor, share: Tensor, classes: int) -> Tensor:
    """Labels int64 (n,) and those of the images before, with each image's own share (n,): float (n, classes)."""
    names = torch.arange(classes, device=labels.device)
    own, others = ((of[:, None] == names).float() for of in (labels, before))
    return torch.lerp(others, own, share[:, None])


def _span(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """The positions within side · size / 2 of a centre: bool (n, size)."""
    half = (side * size / 2)[:, None]
    position = torch.arange(size, device=centre.device)
    return (position >= centre[:, None] - half) & (position < centre[:, None] + half)


@cache  # a step that is captured cannot copy it to its GPU
def _beta(alpha: float, device: torch.device) -> Tensor:
    """The quantiles of Beta(`alpha`, `alpha`) at (0.5, 1.5, …) / STEPS: float (STEPS,).

    The density up to 1/2 is integrated over t = x ** power, in which it has no pole.
    """
    power = min(alpha, 1.0)
    t = torch.linspace(0, 0.5**power, KNOTS, dtype=torch.float64)
    half = torch.cumulative_trapezoid(t ** (alpha / power - 1) * (1 - t ** (1 / power)) ** (alpha - 1), t)
    known = torch.cat((torch.zeros(1, dtype=torch.float64), half / (2 * half[-1])))  # the distribution function at t
    asked = (torch.arange(STEPS // 2, dtype=torch.float64) + 0.5) / STEPS
    above = torch.searchsorted(known, asked).clamp(1, KNOTS - 1)
    part = (asked - known[above - 1]) / (known[above] - known[above - 1])
    lower = (t[above - 1] + part * (t[above] - t[above - 1])) ** (1 / power)
    return torch.cat((lower, 1 - lower.flip(0))).float().to(device)
