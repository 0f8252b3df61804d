"""From pixels in memory to normalised batches: everything a batch depends on is a function of (seed, epoch, position).

Nothing here has a state: no sampler, no worker, no generator. Whoever knows the step knows the batch, so there is nothing to
save, to restore or to keep in step between processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import Refused

# (pixels uint8 (n, H, W, C), ids int64 (n,), seed, epoch) -> pixels uint8 (n, H, W, C)
Augment = Callable[[Tensor, Tensor, int, int], Tensor]

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


def order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which `n` samples are seen in `epoch` (from 0): a permutation, int64 (n,), the same on every machine.

    Sorts NumPy's raw Philox stream: NumPy promises that stream for good, and neither its own nor torch's permutation.
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)  # a list of numbers beyond 63 bits would be rounded
    draws = np.random.Philox(key=key).random_raw(n)
    return torch.from_numpy(np.argsort(draws, kind="stable"))


def slice_seed(seed: int, step: int, index: int) -> int:
    """The seed for what a net draws (dropout) in slice `index` of `step`: 63 bits, by the mixer of splitmix64."""
    mixed = 0
    for number in (seed, step, index):
        mixed = (mixed ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


def draws(seed: int, epoch: int, ids: Tensor, kind: int, n: int) -> Tensor:
    """An integer below `n` for each sample: int64, as `ids` (int64), a function of (seed, epoch, sample, kind) alone.

    The mixer of splitmix64 in int64 tensors, so the same on every device; >> is made logical by masking the sign's copies.
    """

    def mix(x: Tensor) -> Tensor:
        x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as a signed number
        x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
        return x ^ (x >> 31 & (1 << 33) - 1)

    key = slice_seed(seed, epoch, kind)
    return (mix(mix(ids + key)) & (1 << 31) - 1) % n


def crop_and_flip(pixels: Tensor, ids: Tensor, seed: int, epoch: int, pad: int = 4) -> Tensor:
    """The ResNet paper's augmentation: (n, H, W, C) uint8 -> the same, moved by up to `pad` pixels over black, half mirrored.

    Each image's draw depends on (seed, epoch, sample), not on its place in a batch, a slice or a process.
    """
    n, height, width, _ = pixels.shape
    down, right, mirrored = (draws(seed, epoch, ids, kind, span) for kind, span in enumerate((2 * pad + 1, 2 * pad + 1, 2)))
    rows = torch.arange(height, device=pixels.device) + down[:, None]  # (n, H)
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(mirrored[:, None] == 1, width - 1 - columns, columns) + right[:, None]  # (n, W)
    padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
    return padded[torch.arange(n, device=pixels.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def folds(labels: Tensor, k: int, seed: int) -> list[Tensor]:
    """`k` disjoint stratified folds of the samples with `labels` (N,): sorted ids, int64; class counts differ by one at most."""
    fold = torch.empty(len(labels), dtype=torch.int64)
    dealt = 0
    for label in labels.unique():
        (members,) = (labels == label).nonzero(as_tuple=True)
        shuffled = members[order(len(members), seed, int(label))]
        fold[shuffled] = (torch.arange(len(members)) + dealt) % k  # go on dealing where the last class ended
        dealt += len(members)
    return [(fold == index).nonzero().flatten() for index in range(k)]


def bounds(n: int, shards: int) -> list[int]:
    """Where `n` samples are cut into `shards` contiguous slices, the first ones longer by one: `shards + 1` positions."""
    short, longer = divmod(n, shards)
    return [index * short + min(index, longer) for index in range(shards + 1)]


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
