"""Mixing: each image of a batch with the one before it in the global batch. A recipe passes a `Mix` to `train`.

The order of a batch is random, so its neighbours are as good as random partners; and they are the same for any number of
micro-batches and processes, each of which needs one image more than its own. The labels become shares of two classes.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .augment import Kind, Rng
from .task import UNKNOWN

# (images float (n, C, H, W), the ones before them, rng) -> the mixed images, and each image's own share in 0..1, float (n,).
Mix = Callable[[Tensor, Tensor, Rng], tuple[Tensor, Tensor]]

STEPS = 1 << 16  # of a weight's distribution
KNOTS = 4096


def mixup(alpha: float = 0.2) -> Mix:
    """Weighted means of two images, the weight from Beta(`alpha`, `alpha`). Source: Zhang et al., mixup (arXiv:1710.09412)."""

    def mix(images: Tensor, others: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        share = _beta(alpha, images.device).index_select(0, rng.integers(Kind.MIXUP, STEPS))
        return torch.lerp(others, images, share[:, None, None, None]), share

    return mix


def cutmix(alpha: float = 1.0) -> Mix:
    """A rectangle of the other image; its part of the area is 1 minus a draw from Beta(`alpha`, `alpha`), less what lies outside.

    Source: Yun et al., CutMix (arXiv:1905.04899).
    """

    def mix(images: Tensor, others: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        side = (1 - _beta(alpha, images.device).index_select(0, rng.integers(Kind.CUTMIX_AREA, STEPS))).sqrt()
        rows = _span(rng.integers(Kind.CUTMIX_ROW, height), side, height)
        columns = _span(rng.integers(Kind.CUTMIX_COLUMN, width), side, width)
        inside = rows[:, None, :, None] & columns[:, None, None, :]  # (n, 1, H, W)
        return torch.where(inside, others, images), 1 - inside.float().mean((1, 2, 3))

    return mix


def either(*mixes: Mix) -> Mix:
    """For each image one of `mixes`, by chance."""

    def mix(images: Tensor, others: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        chosen = rng.integers(Kind.EITHER, len(mixes))
        mixed, share = mixes[0](images, others, rng)
        for number, other in enumerate(mixes[1:], start=1):
            pixels, other_share = other(images, others, rng)
            mixed = torch.where((chosen == number)[:, None, None, None], pixels, mixed)
            share = torch.where(chosen == number, other_share, share)
        return mixed, share

    return mix


def mixed(mix: Mix, pixels: Tensor, labels: Tensor, rng: Rng, classes: int) -> tuple[Tensor, Tensor]:
    """All but the first of `pixels` float (n + 1, C, H, W), each mixed with the one before it; labels float (n, classes).

    `rng` is that of the n, on any device.
    """
    images, share = mix(pixels[1:], pixels[:-1], rng.on(pixels.device))
    return images, soft_labels(labels[1:], labels[:-1], share, classes)


def soft_labels(labels: Tensor, before: Tensor, share: Tensor, classes: int) -> Tensor:
    """Labels of one or several for each image, and those of the images before, with each image's own share (n,).

    float (n, classes). A label that is unknown in one of the two is unknown.
    """
    if labels.ndim > 1:
        known = (labels <= 1) & (before <= 1)
        return torch.lerp(before.float(), labels.float(), share[:, None]).where(known, UNKNOWN)
    names = torch.arange(classes, device=labels.device)
    one_hot, one_hot_before = ((of[:, None] == names).float() for of in (labels, before))
    return torch.lerp(one_hot_before, one_hot, share[:, None])


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
