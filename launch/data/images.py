"""A data set in memory, and its way to a net: rows of uint8 pixels become normalised batches on the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refused

SIZE_LIMIT = 4096  # pixels: a side that images may be resized to


class Split(NamedTuple):
    """One split of a data set: `pixels` uint8 (N, C, H, W), `labels` int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True)
class Images:
    """A data set in memory, as `launch.sources` returns it.

    `mean` and `std` are per channel, for pixels scaled to 0..1; `source` says where the pixels come from and `fingerprint` is
    the sha256 of all of them, before any limit. Raises Refused (2) for a `size` that no batch could have.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    fingerprint: str
    size: int = 0  # height and width that the net sees, resized on the device in batch; 0: as they are

    def __post_init__(self):
        if not 0 <= self.size <= SIZE_LIMIT:
            raise Refused(f"--size {self.size}: images are resized to 1 to {SIZE_LIMIT} pixels a side, or with 0 not at all", 2)


class Feed:
    """A split on the way to a net: rows of uint8 pixels, normalised on the device in batch.

    The rows lie on `device` if they take at most half of its free memory, else in main memory. Pixels are kept as rows of
    (H, W, C), so that a batch is one `index_select` and comes out in the channels-last layout that convolutions are fastest in.
    """

    def __init__(self, split: Split, images: Images, device: torch.device):
        _, channels, height, width = split.pixels.shape
        self.shape = (-1, height, width, channels)
        self.device, self.size = device, images.size
        rows = split.pixels.permute(0, 2, 3, 1).reshape(len(split), -1)
        home = device if _fits(rows, device) else torch.device("cpu")
        self.rows, self.labels = rows.to(home), split.labels.to(home)
        # One multiplication and one addition a pixel, laid out as the rows are: broadcasting over channels is four times slower.
        mean, std = torch.tensor(images.mean), torch.tensor(images.std)
        self.scale = (1 / (255 * std)).repeat(height * width).to(device)
        self.shift = (-mean / std).repeat(height * width).to(device)

    def order(self, ids: Tensor) -> Tensor:
        """`ids` where the rows are, so that taking a batch needs no transfer of its own."""
        return ids.to(self.rows.device)

    def batch(self, ids: Tensor, augment: Callable[[Tensor, Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The samples `ids` (n,): images float32 (n, C, H, W), normalised, channels last; labels int64 (n,).

        `augment` maps pixels uint8 (n, H, W, C) and ids to pixels of the same shape, before all else.
        """
        rows = self.rows.index_select(0, ids).to(self.device, non_blocking=True)
        labels = self.labels.index_select(0, ids).to(self.device, non_blocking=True)
        if augment:
            rows = augment(rows.view(self.shape), ids.to(self.device)).flatten(1)
        pixels = rows.float().mul_(self.scale).add_(self.shift).view(self.shape).permute(0, 3, 1, 2)
        return resized(pixels, self.size), labels


def resized(images: Tensor, size: int) -> Tensor:
    """Images float (n, C, H, W) as (n, C, size, size), smoothed where they get smaller; as they are if `size` is 0."""
    if size == 0 or images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=size < max(images.shape[-2:]))


def _fits(rows: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return rows.numel() < free // 2
