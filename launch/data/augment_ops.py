"""TrivialAugment and RandAugment: torchvision's operations, with our draws, which depend on (seed, epoch, image) alone.

An operation takes one strength for all the images that it is given, so a batch is cut by operation and strength. On a GPU the
host reads which ones there are, which costs a host-device sync a step.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .augment import Augment, Kind, Rng

BINS = 31  # strengths
NAMES = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness",
    "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
WITHOUT_STRENGTH = {"identity", "autocontrast", "equalize"}
SIGNED = {*NAMES[NAMES.index("shear_x") : NAMES.index("posterize")]}  # half of their strengths are negative


def _operate(name: str, images: Tensor, by: float) -> Tensor:
    """The operation on images uint8 (n, C, H, W), at one strength."""
    from torchvision.transforms.v2 import functional as F  # a second to import

    def affine(**moved: Any) -> Tensor:
        return F.affine(images, **({"angle": 0, "translate": [0, 0], "scale": 1, "shear": [0.0, 0.0]} | moved))

    degrees = math.degrees(math.atan(by))
    operations: dict[str, Callable[[], Tensor]] = {
        "identity": lambda: images,
        "shear_x": lambda: affine(shear=[degrees, 0.0], center=[0, 0]),
        "shear_y": lambda: affine(shear=[0.0, degrees], center=[0, 0]),
        "translate_x": lambda: affine(translate=[int(by), 0]),
        "translate_y": lambda: affine(translate=[0, int(by)]),
        "rotate": lambda: F.rotate(images, by),
        "brightness": lambda: F.adjust_brightness(images, 1 + by),
        "color": lambda: F.adjust_saturation(images, 1 + by),
        "contrast": lambda: F.adjust_contrast(images, 1 + by),
        "sharpness": lambda: F.adjust_sharpness(images, 1 + by),
        "posterize": lambda: F.posterize(images, int(by)),
        "solarize": lambda: F.solarize(images, 255 * by),
        "autocontrast": lambda: F.autocontrast(images),
        "equalize": lambda: F.equalize(images),
    }
    return operations[name]()


def _strengths(name: str, most: Mapping[str, float], others: float, bits: int) -> Tensor:
    """The strengths of an operation, float (BINS,): up to its entry of `most`, else `others`; posterize drops up to `bits`."""
    if name == "posterize":
        return (8 - torch.arange(BINS) / ((BINS - 1) / bits)).round()
    if name == "solarize":
        return torch.linspace(1, 0, BINS)
    return torch.linspace(0, most.get(name, others), BINS)


def _wide(name: str, _size: tuple[int, int]) -> Tensor:
    """TrivialAugment's strengths, the "wide" ones."""
    return _strengths(name, {"translate_x": 32.0, "translate_y": 32.0, "rotate": 135.0}, 0.99, bits=6)


def _narrow(name: str, size: tuple[int, int]) -> Tensor:
    """RandAugment's strengths, for images of this (height, width)."""
    down, across = (150 / 331 * side for side in size)
    most = {"shear_x": 0.3, "shear_y": 0.3, "translate_x": across, "translate_y": down, "rotate": 30.0}
    return _strengths(name, most, 0.9, bits=4)


def trivial_augment(pixels: Tensor, rng: Rng) -> Tensor:
    """One operation at a random strength for each image: uint8 (n, H, W, C) -> same; what comes into the image is black.

    Source: Müller and Hutter, TrivialAugment (arXiv:2103.10158); torchvision's TrivialAugmentWide.
    """
    operation, strength = rng.integers(Kind.TRIVIAL_OPERATION, len(NAMES)), rng.integers(Kind.TRIVIAL_STRENGTH, BINS)
    return _operated(pixels, operation, strength, rng.integers(Kind.TRIVIAL_SIGN, 2), _wide)


def rand_augment(operations: int = 2, strength: int = 9) -> Augment:
    """This many `operations` after one another, all at a `strength` of 0 to 30: an augmentation.

    Source: Cubuk et al., RandAugment (arXiv:1909.13719); torchvision's RandAugment.
    """

    def augment(pixels: Tensor, rng: Rng) -> Tensor:
        for number in range(operations):
            operation = rng.integers(Kind.RAND_OPERATION + 2 * number, len(NAMES))
            negative = rng.integers(Kind.RAND_SIGN + 2 * number, 2)
            pixels = _operated(pixels, operation, torch.full_like(operation, strength), negative, _narrow)
        return pixels

    return augment


def _operated(pixels: Tensor, operation: Tensor, level: Tensor, negative: Tensor, strengths: Callable) -> Tensor:
    """Apply to each image its `operation`, at its `level`: all three int64 (n,)."""
    images, size = pixels.permute(0, 3, 1, 2), (pixels.shape[1], pixels.shape[2])
    keys = torch.stack((operation, level, negative), dim=1).cpu()  # host-device sync
    groups: dict[tuple[str, int, int], list[int]] = {}
    for index, (number, bin_, sign) in enumerate(keys.tolist()):
        name = NAMES[number]
        key = name, 0 if name in WITHOUT_STRENGTH else bin_, sign if name in SIGNED else 0
        groups.setdefault(key, []).append(index)
    out = images.clone()
    for (name, bin_, sign), members in groups.items():
        by = strengths(name, size)[bin_].item()
        where = torch.tensor(members, device=pixels.device)
        out[where] = _operate(name, images[where], -by if sign else by)
    return out.permute(0, 2, 3, 1)
