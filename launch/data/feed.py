"""Batches for a net: uint8 pixels become normalised float32 batches on the device."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .normalise import Normaliser

if TYPE_CHECKING:
    from .dataset import Split
    from .images import Images

# (pixels uint8 (n, H, W, C), ids int64 (n,)) -> pixels, the same. The first one of a DiskFeed maps sizes int64 (n, 2), height and
# width of the reduced images, to views int64 (n, 5), see resize.View
Augmented = Callable[[Tensor, Tensor], Tensor]


class Feed(Protocol):
    """Batches of a split, whose `labels` are int64 (N,): what `split.feed(images, device)` returns."""

    labels: Tensor
    drawn_on: torch.device  # where augmentations draw
    evaluation_batch: int  # images; a fixed number, so that the result does not depend on the number of processes
    uneven: tuple[int, ...]  # images by class, where some class has so many fewer than another that accuracy alone misleads
    threads: int  # that prepare images; 0: none are waited for
    waited: float  # seconds that `stream` has waited for images

    @property
    def resident(self) -> bool:
        """True if the pixels are where they are needed."""

    def order(self, ids: Tensor) -> Tensor:
        """`ids`, int64 (n,), on the device where `batch` wants them: moved once an epoch, not once a batch."""

    def batch(self, ids: Tensor, augments: Sequence[Augmented] = ()) -> tuple[Tensor, Tensor]:
        """The samples `ids`, int64 (n,): normalised images float32 (n, C, H, W), channels last in memory; labels int64 (n,)."""

    def stream(self, parts: Iterable[Tensor], augments: Sequence[Augmented] = ()) -> Iterator[tuple[Tensor, Tensor]]:
        """`batch` of each of `parts`, in turn; the next ones are prepared meanwhile."""

    def slow_augmentations(self) -> str:
        """The augmentations, if they took the threads more time than reading; "" if not."""


class MemoryFeed:
    """Batches of a Split: its pixels stay uint8, and each batch is normalised on the device.

    The pixels are on `device` if they take less than half of its free memory, else in main memory. An image is a row of (H, W, C)
    values, so that a batch is one `index_select` and comes out in channels-last layout, the fastest one for convolutions.
    """

    evaluation_batch = 500
    uneven: tuple[int, ...] = ()
    threads, waited = 0, 0.0

    def __init__(self, split: "Split", images: "Images", device: torch.device):
        channels, height, width = split.shape
        self.drawn_on = device
        self.shape = (-1, height, width, channels)
        self.device, self.size = device, images.size
        rows = split.pixels.permute(0, 2, 3, 1).reshape(len(split), -1)
        home = device if _fits(rows, device) else torch.device("cpu")
        self.rows, self.labels = rows.to(home), split.labels.to(home)
        self.normalise = Normaliser(images.mean, images.std, height * width, device)

    @property
    def resident(self) -> bool:
        return self.rows.device.type == self.device.type

    def order(self, ids: Tensor) -> Tensor:
        return ids.to(self.rows.device)

    def batch(self, ids: Tensor, augments: Sequence[Augmented] = ()) -> tuple[Tensor, Tensor]:
        """The samples `ids`, int64 (n,): normalised images float32 (n, C, H, W), channels last in memory; labels int64 (n,).

        Each of `augments` maps pixels uint8 (n, H, W, C) and ids to pixels, the same, before they are normalised and resized.
        """
        rows = self.rows.index_select(0, ids).to(self.device, non_blocking=True)
        labels = self.labels.index_select(0, ids).to(self.device, non_blocking=True)
        for augment in augments:
            rows = augment(rows.view(self.shape), ids.to(self.device)).flatten(1)
        pixels = self.normalise(rows).view(self.shape).permute(0, 3, 1, 2)
        return resized(pixels, self.size), labels

    def stream(self, parts: Iterable[Tensor], augments: Sequence[Augmented] = ()) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batch(ids, augments) for ids in parts)

    def slow_augmentations(self) -> str:
        return ""


def resized(images: Tensor, size: int) -> Tensor:
    """Images float (n, C, H, W) as (n, C, size, size): bilinear, antialiased where they shrink; unchanged if `size` is 0."""
    if size == 0 or images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=size < max(images.shape[-2:]))


def _fits(rows: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return rows.numel() < free // 2
