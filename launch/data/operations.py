"""TrivialAugment and RandAugment: torchvision's operations, with our draws, which depend on (seed, epoch, image) alone.

An operation takes one strength for all the images that it is given, so a batch is cut by operation and strength. On a GPU the
host reads which ones there are, which costs a host-device sync a step.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from .augment import Augment, Draw

BINS = 31  # strengths

Operation = Callable[[Tensor, float], Tensor]  # images uint8 (n, C, H, W), a strength -> images, the same


def _affine(
    images: Tensor, across: float = 0, down: float = 0, shear: tuple[float, float] = (0, 0), centre: list[float] | None = None
) -> Tensor:
    degrees = [math.degrees(math.atan(each)) for each in shear]
    return F.affine(images, angle=0, translate=[int(across), int(down)], scale=1, shear=degrees, center=centre)


# Name: the operation, and whether half of its strengths are negative.
OPERATIONS: dict[str, tuple[Operation, bool]] = {
    "identity": (lambda images, _: images, False),
    "shear_x": (lambda images, by: _affine(images, shear=(by, 0), centre=[0, 0]), True),
    "shear_y": (lambda images, by: _affine(images, shear=(0, by), centre=[0, 0]), True),
    "translate_x": (lambda images, by: _affine(images, across=by), True),
    "translate_y": (lambda images, by: _affine(images, down=by), True),
    "rotate": (lambda images, by: F.rotate(images, by), True),
    "brightness": (lambda images, by: F.adjust_brightness(images, 1 + by), True),
    "color": (lambda images, by: F.adjust_saturation(images, 1 + by), True),
    "contrast": (lambda images, by: F.adjust_contrast(images, 1 + by), True),
    "sharpness": (lambda images, by: F.adjust_sharpness(images, 1 + by), True),
    "posterize": (lambda images, bits: F.posterize(images, int(bits)), False),
    "solarize": (lambda images, above: F.solarize(images, 255 * above), False),
    "autocontrast": (lambda images, _: F.autocontrast(images), False),
    "equalize": (lambda images, _: F.equalize(images), False),
}
NAMES = tuple(OPERATIONS)
WITHOUT_STRENGTH = {NAMES.index(name) for name in ("identity", "autocontrast", "equalize")}


def _wide(name: str, _size: tuple[int, int]) -> Tensor:
    """TrivialAugment's strengths, the "wide" ones: float (BINS,)."""
    if name == "posterize":
        return (8 - torch.arange(BINS) / ((BINS - 1) / 6)).round()
    if name == "solarize":
        return torch.linspace(1, 0, BINS)
    return torch.linspace(0, {"translate_x": 32.0, "translate_y": 32.0, "rotate": 135.0}.get(name, 0.99), BINS)


def _narrow(name: str, size: tuple[int, int]) -> Tensor:
    """RandAugment's strengths, for images of this (height, width): float (BINS,)."""
    if name == "posterize":
        return (8 - torch.arange(BINS) / ((BINS - 1) / 4)).round()
    if name == "solarize":
        return torch.linspace(1, 0, BINS)
    most = {
        "shear_x": 0.3,
        "shear_y": 0.3,
        "translate_x": 150 / 331 * size[1],
        "translate_y": 150 / 331 * size[0],
        "rotate": 30.0,
    }
    return torch.linspace(0, most.get(name, 0.9), BINS)


def trivial_augment(pixels: Tensor, draw: Draw) -> Tensor:
    """One operation at a random strength for each image: uint8 (n, H, W, C) -> same; what comes into the image is black.

    Source: Müller and Hutter, TrivialAugment (arXiv:2103.10158); torchvision's TrivialAugmentWide.
    """
    return _operated(pixels, draw(30, len(NAMES)), draw(31, BINS), draw(32, 2), _wide)


def rand_augment(operations: int = 2, strength: int = 9) -> Augment:
    """This many `operations` after one another, all at a `strength` of 0 to 30: an augmentation.

    Source: Cubuk et al., RandAugment (arXiv:1909.13719); torchvision's RandAugment.
    """

    def augment(pixels: Tensor, draw: Draw) -> Tensor:
        for number in range(operations):
            chosen = draw(40 + 2 * number, len(NAMES))
            pixels = _operated(pixels, chosen, torch.full_like(chosen, strength), draw(41 + 2 * number, 2), _narrow)
        return pixels

    return augment


def _operated(pixels: Tensor, chosen: Tensor, level: Tensor, negative: Tensor, strengths: Callable) -> Tensor:
    """To each image the operation `chosen`, at a `level`: all three int64 (n,)."""
    images, size = pixels.permute(0, 3, 1, 2), (pixels.shape[1], pixels.shape[2])
    keys = torch.stack((chosen, level, negative), dim=1).cpu()  # host-device sync
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, (operation, bin_, sign) in enumerate(keys.tolist()):
        plain = operation in WITHOUT_STRENGTH
        signed = OPERATIONS[NAMES[operation]][1]
        groups.setdefault((operation, 0 if plain else bin_, sign if signed else 0), []).append(index)
    out = images.clone()
    for (operation, bin_, sign), members in groups.items():
        name = NAMES[operation]
        by = strengths(name, size)[bin_].item()
        where = torch.tensor(members, device=pixels.device)
        out[where] = OPERATIONS[name][0](images[where], -by if sign else by)
    return out.permute(0, 2, 3, 1)
