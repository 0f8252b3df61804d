"""Augmentations: functions of a batch of uint8 pixels, on the pixels' device. A recipe passes one to `train`.

To add one, write a function of type `Augment` here. Take its random numbers from `draw`, so that they depend only on
(seed, epoch, sample): then the same image looks the same in any batch, micro-batch or process.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .order import draws

# draw(kind, n) -> for each image of the batch a random integer below n, int64 (batch,). Each draw of an augmentation has a `kind`
# of its own, so that one augmentation does not change what another one draws: 0 to 2 crop_and_flip, 3 and 4 translate,
# 5 alternating_flip, 6 to 10 random_resized_crop, 11 to 15 random_erasing, 16 mirror, 20 to 24 mixing, 30 to 32 trivial_augment,
# from 40 on rand_augment.
Draw = Callable[..., Tensor]
# (pixels uint8 (n, H, W, C), draw) -> pixels, the same; of a DiskSplit (sizes, draw) -> views, see random_resized_crop
Augment = Callable[[Tensor, Draw], Tensor]


class EpochDraws:
    """What augmentations draw: `launch.data.draws` of all samples, computed once an epoch; a batch looks its own up.

    The tables keep their place in memory, so that a captured step reads the numbers of its epoch.
    """

    def __init__(self, seed: int, samples: int, device: torch.device):
        self.seed, self.epoch = seed, 0
        self.samples = torch.arange(samples, device=device)
        self.tables: dict[tuple[int, int, bool], Tensor] = {}

    def begin(self, epoch: int) -> None:
        """From now on the draws are those of `epoch`, from 0."""
        if epoch != self.epoch:
            self.epoch = epoch
            for key, table in self.tables.items():
                table.copy_(self._table(*key))

    def of(self, ids: Tensor) -> Draw:
        """The draws of the samples `ids`, int64 (batch,)."""

        def draw(kind: int, n: int, by_turns: bool = False) -> Tensor:
            """`by_turns`: drawn in the first epoch only; from then on each epoch has the next integer, and 0 after n - 1."""
            key = kind, n, by_turns
            if key not in self.tables:
                self.tables[key] = self._table(*key)
            return self.tables[key].index_select(0, ids)

        return draw

    def _table(self, kind: int, n: int, by_turns: bool) -> Tensor:
        drawn = draws(self.seed, 0 if by_turns else self.epoch, self.samples, kind, n)
        return (drawn + self.epoch) % n if by_turns else drawn


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


def translate(pixels: Tensor, draw: Draw, pad: int = 2) -> Tensor:
    """Images moved by up to `pad` pixels in each direction, their edges reflected: uint8 (n, H, W, C) -> same."""
    down, right = (draw(kind, 2 * pad + 1)[:, None] - pad for kind in (3, 4))
    rows, columns = (_reflected(moved, size) for moved, size in ((down, pixels.shape[1]), (right, pixels.shape[2])))
    images = torch.arange(len(pixels), device=pixels.device)
    return pixels[images[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(moved: Tensor, size: int) -> Tensor:
    """Positions 0 to size - 1 moved by `moved`, int64 (n, 1), reflected at both ends: int64 (n, size)."""
    position = (torch.arange(size, device=moved.device) + moved).abs()
    return size - 1 - (size - 1 - position).abs()


def alternating_flip(pixels: Tensor, draw: Draw) -> Tensor:
    """Images mirrored every other epoch, half of them in the first one: uint8 (n, H, W, C) -> same.

    So an image is never seen mirrored twice in a row. Source: Jordan (arXiv:2404.00498), section 3.6.
    """
    return torch.where(draw(5, 2, by_turns=True)[:, None, None, None] == 1, pixels.flip(2), pixels)


def mirror(pixels: Tensor, draw: Draw) -> Tensor:
    """Half of the images mirrored: uint8 (n, H, W, C) -> same."""
    return torch.where(draw(16, 2)[:, None, None, None] == 1, pixels.flip(2), pixels)


def random_erasing(pixels: Tensor, draw: Draw, part: float = 0.25, area: tuple[float, float] = (0.02, 1 / 3)) -> Tensor:
    """A rectangle of this `part` of the images in one colour, ImageNet's mean: uint8 (n, H, W, C) -> same.

    Its part of the area is uniform in `area`, its height over width log-uniform from 0.3 to 3.3, cut to what the image has.
    Source: Zhong et al., Random Erasing (arXiv:1708.04896); torchvision's RandomErasing after normalisation, without its repeats.
    """
    _, height, width, channels = pixels.shape
    steps = 1 << 24
    chosen, share, shape, down, right = (draw(kind, steps).double() / steps for kind in range(11, 16))
    wanted = (area[0] + (area[1] - area[0]) * share) * height * width
    tall = 3.3 ** (2 * shape - 1)
    h, w = ((wanted * tall).sqrt().round().clamp(1, height), (wanted / tall).sqrt().round().clamp(1, width))
    top, left = ((height - h + 1) * down).floor(), ((width - w + 1) * right).floor()
    rows, columns = (torch.arange(size, device=pixels.device) for size in (height, width))
    inside = ((rows >= top[:, None]) & (rows < (top + h)[:, None]))[:, :, None]
    inside = inside & ((columns >= left[:, None]) & (columns < (left + w)[:, None]))[:, None, :] & (chosen < part)[:, None, None]
    mean = (124, 116, 104) if channels == 3 else (128,)
    colour = torch.stack([pixels.new_full((), value) for value in mean])  # made on the device
    return torch.where(inside[..., None], colour, pixels)


def random_resized_crop(sizes: Tensor, draw: Draw, area: tuple[float, float] = (0.08, 1.0), ratio: float = 4 / 3) -> Tensor:
    """A random part of each image, half of them mirrored, for a DiskSplit: views int64 (n, 5).

    `sizes` int64 (n, 2) are the images' heights and widths; a view is (top, left, height, width, mirrored). Its part of the
    area is uniform in `area`, its width over height log-uniform from 1 / `ratio` to `ratio`, cut to what the image has.
    Source: Szegedy et al., Going Deeper with Convolutions (arXiv:1409.4842), section 6; torchvision's RandomResizedCrop, which
    draws up to ten times instead of cutting.
    """
    steps = 1 << 24
    part, shape, down, right = (draw(kind, steps).double() / steps for kind in (6, 7, 8, 9))
    height, width = sizes.double().unbind(1)
    wanted = (area[0] + (area[1] - area[0]) * part) * height * width
    across = ratio ** (2 * shape - 1)
    h = (wanted / across).sqrt().round().clamp(min=1).minimum(height)
    w = (wanted * across).sqrt().round().clamp(min=1).minimum(width)
    top, left = ((height - h + 1) * down).floor(), ((width - w + 1) * right).floor()
    return torch.stack((top, left, h, w, draw(10, 2).double()), dim=1).long()
