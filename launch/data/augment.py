"""Augmentations: functions of a batch of uint8 pixels, on the pixels' device. A recipe passes one to `train`.

To add one, write a function of type `Augment` here. Take its random numbers from its `Rng`, so that they depend only on
(seed, epoch, sample): then the same image looks the same in any batch, micro-batch or process.
"""

from collections.abc import Callable
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from .order import random_integers

FRACTIONS = 1 << 24  # values of Rng.uniform


class Kind(IntEnum):
    """Purpose of a random number: with a kind of its own, no augmentation changes what another one draws."""

    CROP_DOWN, CROP_RIGHT, CROP_FLIP = 0, 1, 2
    TRANSLATE_DOWN, TRANSLATE_RIGHT = 3, 4
    ALTERNATING_FLIP = 5
    VIEW_AREA, VIEW_SHAPE, VIEW_DOWN, VIEW_RIGHT, VIEW_FLIP = 6, 7, 8, 9, 10
    ERASE, ERASE_AREA, ERASE_SHAPE, ERASE_DOWN, ERASE_RIGHT = 11, 12, 13, 14, 15
    MIRROR = 16
    MIXUP = 20
    CUTMIX_AREA, CUTMIX_ROW, CUTMIX_COLUMN = 21, 22, 23
    EITHER = 24
    FEATURES = 25
    TRIVIAL_OPERATION, TRIVIAL_STRENGTH, TRIVIAL_SIGN = 30, 31, 32
    RAND_OPERATION, RAND_SIGN = 40, 41  # of the first operation; each further one has the next two


class Rng:
    """Random numbers for the images of a batch: functions of (seed, epoch, image, kind) alone."""

    def __init__(self, epoch: "EpochRng", ids: Tensor, device: torch.device | None = None):
        """For the samples `ids`, int64 (batch,); the numbers are on `device`, or on that of `epoch`."""
        self.epoch, self.ids, self.device = epoch, ids, device

    def integers(self, kind: int, n: int, by_turns: bool = False) -> Tensor:
        """An integer from 0 to `n` - 1 for each image, int64 (batch,).

        `by_turns`: drawn in the first epoch only; from then on each epoch has the next integer, and 0 after n - 1.
        """
        numbers = self.epoch.table(kind, n, by_turns).index_select(0, self.ids)
        return numbers if self.device is None else numbers.to(self.device, non_blocking=True)

    def uniform(self, kind: int) -> Tensor:
        """A number from 0 to 1, without 1, for each image: float64 (batch,)."""
        return self.integers(kind, FRACTIONS).double() / FRACTIONS

    def on(self, device: torch.device) -> "Rng":
        """Return the same numbers on another device."""
        return Rng(self.epoch, self.ids, device)


# (pixels uint8 (n, H, W, C), rng) -> pixels, the same; of a DiskSplit (sizes, rng) -> views, see random_resized_crop
Augment = Callable[[Tensor, Rng], Tensor]


class EpochRng:
    """The random numbers of all samples, computed once an epoch: a batch looks its own up.

    The tables keep their place in memory, so that a captured step reads the numbers of its epoch.
    """

    def __init__(self, seed: int, samples: int, device: torch.device):
        self.seed, self.epoch = seed, 0
        self.samples = torch.arange(samples, device=device)
        self.tables: dict[tuple[int, int, bool], Tensor] = {}

    def begin(self, epoch: int) -> None:
        """From now on the numbers are those of `epoch`, from 0."""
        if epoch != self.epoch:
            self.epoch = epoch
            for key, table in self.tables.items():
                table.copy_(self._numbers(*key))

    def of(self, ids: Tensor) -> Rng:
        """The numbers of the samples `ids`, int64 (batch,)."""
        return Rng(self, ids)

    def table(self, kind: int, n: int, by_turns: bool) -> Tensor:
        """Return Rng.integers of all samples."""
        key = kind, n, by_turns
        if key not in self.tables:
            self.tables[key] = self._numbers(*key)
        return self.tables[key]

    def _numbers(self, kind: int, n: int, by_turns: bool) -> Tensor:
        numbers = random_integers(self.seed, 0 if by_turns else self.epoch, self.samples, kind, n)
        return (numbers + self.epoch) % n if by_turns else numbers


def crop_and_flip(pixels: Tensor, rng: Rng, pad: int = 4) -> Tensor:
    """Random crop of images padded with `pad` black pixels, and a horizontal flip of half of them: uint8 (n, H, W, C) -> same.

    Source: He et al., Deep Residual Learning for Image Recognition (2015), section 4.2.
    """
    n, height, width, _ = pixels.shape
    down, right = (rng.integers(kind, 2 * pad + 1) for kind in (Kind.CROP_DOWN, Kind.CROP_RIGHT))
    mirrored = rng.integers(Kind.CROP_FLIP, 2)
    rows = torch.arange(height, device=pixels.device) + down[:, None]  # (n, H)
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(mirrored[:, None] == 1, width - 1 - columns, columns) + right[:, None]  # (n, W)
    padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
    return padded[torch.arange(n, device=pixels.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def translate(pixels: Tensor, rng: Rng, pad: int = 2) -> Tensor:
    """Images moved by up to `pad` pixels in each direction, their edges reflected: uint8 (n, H, W, C) -> same."""
    down, right = (rng.integers(kind, 2 * pad + 1)[:, None] - pad for kind in (Kind.TRANSLATE_DOWN, Kind.TRANSLATE_RIGHT))
    rows, columns = (_reflected(moved, size) for moved, size in ((down, pixels.shape[1]), (right, pixels.shape[2])))
    images = torch.arange(len(pixels), device=pixels.device)
    return pixels[images[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(moved: Tensor, size: int) -> Tensor:
    """Positions 0 to size - 1 moved by `moved`, int64 (n, 1), reflected at both ends: int64 (n, size)."""
    position = (torch.arange(size, device=moved.device) + moved).abs()
    return size - 1 - (size - 1 - position).abs()


def alternating_flip(pixels: Tensor, rng: Rng) -> Tensor:
    """Images mirrored every other epoch, half of them in the first one: uint8 (n, H, W, C) -> same.

    So an image is never seen mirrored twice in a row. Source: Jordan (arXiv:2404.00498), section 3.6.
    """
    return torch.where(rng.integers(Kind.ALTERNATING_FLIP, 2, by_turns=True)[:, None, None, None] == 1, pixels.flip(2), pixels)


def mirror(pixels: Tensor, rng: Rng) -> Tensor:
    """Half of the images mirrored: uint8 (n, H, W, C) -> same."""
    return torch.where(rng.integers(Kind.MIRROR, 2)[:, None, None, None] == 1, pixels.flip(2), pixels)


def random_erasing(pixels: Tensor, rng: Rng, part: float = 0.25, area: tuple[float, float] = (0.02, 1 / 3)) -> Tensor:
    """A rectangle of this `part` of the images in one colour, ImageNet's mean: uint8 (n, H, W, C) -> same.

    Its part of the area is uniform in `area`, its height over width log-uniform from 0.3 to 3.3, cut to what the image has.
    Source: Zhong et al., Random Erasing (arXiv:1708.04896); torchvision's RandomErasing after normalisation, without its repeats.
    """
    _, height, width, channels = pixels.shape
    kinds = Kind.ERASE, Kind.ERASE_AREA, Kind.ERASE_SHAPE, Kind.ERASE_DOWN, Kind.ERASE_RIGHT
    chosen, share, shape, down, right = (rng.uniform(kind) for kind in kinds)
    erased = (area[0] + (area[1] - area[0]) * share) * height * width
    tall = 3.3 ** (2 * shape - 1)
    h, w = ((erased * tall).sqrt().round().clamp(1, height), (erased / tall).sqrt().round().clamp(1, width))
    top, left = ((height - h + 1) * down).floor(), ((width - w + 1) * right).floor()
    rows, columns = (torch.arange(size, device=pixels.device) for size in (height, width))
    inside = ((rows >= top[:, None]) & (rows < (top + h)[:, None]))[:, :, None]
    inside = inside & ((columns >= left[:, None]) & (columns < (left + w)[:, None]))[:, None, :] & (chosen < part)[:, None, None]
    mean = (124, 116, 104) if channels == 3 else (128,)
    colour = torch.stack([pixels.new_full((), value) for value in mean])  # made on the device
    return torch.where(inside[..., None], colour, pixels)


def random_resized_crop(sizes: Tensor, rng: Rng, area: tuple[float, float] = (0.08, 1.0), ratio: float = 4 / 3) -> Tensor:
    """A random part of each image, half of them mirrored, for a DiskSplit: views int64 (n, 5).

    `sizes` int64 (n, 2) are the images' heights and widths; a view is (top, left, height, width, mirrored). Its part of the
    area is uniform in `area`, its width over height log-uniform from 1 / `ratio` to `ratio`, cut to what the image has.
    Source: Szegedy et al., Going Deeper with Convolutions (arXiv:1409.4842), section 6; torchvision's RandomResizedCrop, which
    draws up to ten times instead of cutting.
    """
    kinds = Kind.VIEW_AREA, Kind.VIEW_SHAPE, Kind.VIEW_DOWN, Kind.VIEW_RIGHT
    part, shape, down, right = (rng.uniform(kind) for kind in kinds)
    height, width = sizes.double().unbind(1)
    cropped = (area[0] + (area[1] - area[0]) * part) * height * width
    across = ratio ** (2 * shape - 1)
    h = (cropped / across).sqrt().round().clamp(min=1).minimum(height)
    w = (cropped * across).sqrt().round().clamp(min=1).minimum(width)
    top, left = ((height - h + 1) * down).floor(), ((width - w + 1) * right).floor()
    return torch.stack((top, left, h, w, rng.integers(Kind.VIEW_FLIP, 2).double()), dim=1).long()
