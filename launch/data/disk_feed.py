"""Images of any size, more than memory holds, as batches: threads prepare those of the coming batches.

What an image looks like in a batch depends on (seed, epoch, image) alone, never on threads, micro-batches or processes.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .dataset import Split
from .features import FeatureFeed, Features
from .feed import Augmented, Feed
from .normalise import Normaliser
from .resize import ResizeRule, View, centre, centred, viewed
from .store import Store, StoredImage

if TYPE_CHECKING:
    import numpy as np

    from .images import Images

UNEVEN = 1.5  # from this ratio of the largest class to the smallest on
AHEAD, AHEAD_BYTES = 3, 64 << 20  # micro-batches that are prepared while one is computed, and bytes of them; one at least
JOBS = 4  # of a thread for a micro-batch: with one for each image, threads wait for Python's lock
TOGETHER = 1 << 18  # bytes of images that are decoded, then resized in one call: what a core's cache holds
SMALL = 100**2  # pixels: with fewer of them in an image, two threads, which wait for Python's lock, are slower than one


@dataclass(frozen=True)
class DiskSplit:
    """One split of a data set of images: `labels` int64 (N,). Images come from `store`."""

    labels: Tensor
    images: Sequence[StoredImage]
    store: Store
    rule: ResizeRule
    features: Features | None = None  # computed before, in place of the pixels: see launch/features

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) as the net sees them."""
        return 3, self.rule.size, self.rule.size

    def select(self, ids: Tensor) -> "DiskSplit":
        """The images `ids`, int64 (n,), alone."""
        images = [self.images[index] for index in ids.tolist()]
        return replace(self, labels=self.labels[ids], images=images, features=self.features and self.features.select(ids))

    def some(self, ids: Tensor) -> Split:
        """The images `ids`, int64 (n,), in memory, as evaluation sees them. Raises Refused (4) for one that has changed."""
        reader = DiskReader(self)
        pixels = torch.stack([reader.centred(index) for index in ids.tolist()]).permute(0, 3, 1, 2).contiguous()
        return Split(pixels, self.labels[ids])

    def feed(self, images: "Images", device: torch.device) -> Feed:
        """Its batches on `device`: its features if it has them, else its images, normalised as `images` says."""
        if self.features:
            return FeatureFeed(self.labels, self.features, uneven(self.labels), device)
        return DiskFeed(self, images.mean, images.std, device)


class DiskReader:
    """Reads the images of a split, from any thread. Raises Refused (4) for one that has changed."""

    def __init__(self, split: DiskSplit):
        self.split = split

    def reduced(self, index: int) -> "np.ndarray":
        """uint8 (h, w, 3), not to be written to."""
        return self.split.store.read(self.split.images[index])

    def centred(self, index: int) -> Tensor:
        """uint8 (size, size, 3): see launch/data/resize.py."""
        return torch.from_numpy(centred(self.reduced(index), self.split.rule))


class Prepared(NamedTuple):
    """A micro-batch that threads are preparing: `pixels` (n, size, size, 3), float32 normalised; for another device uint8."""

    ids: Tensor
    pixels: Tensor
    jobs: list[Future]


class DiskFeed:
    """Batches of a DiskSplit, as `MemoryFeed` makes them of a Split. Its threads end with it.

    Views are drawn on the CPU, whatever the device; pixels reach a GPU from pinned memory while it computes, and are normalised
    there.

    `reading` are the seconds that the threads took to decode and crop images, `changing` those for the augmentations after that,
    whose names are `changes`.
    """

    resident = False

    def __init__(self, split: DiskSplit, mean: Sequence[float], std: Sequence[float], device: torch.device):
        self.device, self.drawn_on, self.labels = device, torch.device("cpu"), split.labels
        self.reader, self.rule = DiskReader(split), split.rule
        self.evaluation_batch = max(1, 500 * 64**2 // split.rule.size**2)  # 500 small ones, 40 of 224 × 224
        self.uneven = uneven(split.labels)
        sizes = [(image.height, image.width) for image in split.images]
        self.sizes = torch.tensor(sizes, dtype=torch.int32).reshape(-1, 2)
        self.normalise = Normaliser(mean, std, split.rule.size, device)
        self.waited = self.reading = self.changing = 0.0
        self.changes: list[str] = []
        area = self.sizes.double().prod(dim=1).mean().item() if sizes else 0.0
        self.threads = 1 if area < SMALL else torch.get_num_threads()
        self.together = max(1, int(TOGETHER // (3 * area))) if area else 1
        # One thread of torch's own in each of them: more would be in each other's way.
        self.pool = ThreadPoolExecutor(self.threads, "images", torch.set_num_threads, (1,))

    def order(self, ids: Tensor) -> Tensor:
        return ids

    def batch(self, ids: Tensor, augments: Sequence[Augmented] = ()) -> tuple[Tensor, Tensor]:
        """The images `ids`, int64 (n,): normalised, float32 (n, 3, size, size), channels last in memory; labels int64 (n,).

        The first of `augments` says which part of each; without any, the central square. The others change the pixels of one
        image at a time, in the threads. Raises Refused (4), naming an image that has changed.
        """
        return next(self.stream([ids], augments))

    def stream(self, parts: Iterable[Tensor], augments: Sequence[Augmented] = ()) -> Iterator[tuple[Tensor, Tensor]]:
        """`batch` of each of `parts`, in turn: while one is used, threads prepare up to AHEAD after it."""
        coming: deque[Prepared] = deque()
        try:
            for ids in parts:
                coming.append(self._prepare(ids, augments))
                if len(coming) > max(1, min(AHEAD, AHEAD_BYTES // coming[0].pixels.nbytes)):
                    yield self._ready(coming.popleft())
            while coming:
                images = self._ready(coming.popleft())
                if not coming:
                    self.reader.split.store.flush()
                yield images
        finally:  # also where nobody asks for the rest
            for prepared in coming:
                for job in prepared.jobs:
                    job.cancel()

    def _ready(self, ready: Prepared) -> tuple[Tensor, Tensor]:
        """Wait for a micro-batch."""
        began = perf_counter()
        wait(ready.jobs)
        self.waited += perf_counter() - began
        for job in ready.jobs:
            reading, changing = job.result()  # raises what went wrong
            self.reading, self.changing = self.reading + reading, self.changing + changing
        pixels = ready.pixels.to(self.device, non_blocking=True)
        labels = self.labels[ready.ids].to(self.device, non_blocking=True)
        images = pixels if pixels.is_floating_point() else self._normalised(pixels)
        return images.permute(0, 3, 1, 2), labels

    def slow_augmentations(self) -> str:
        return " and ".join(self.changes) if self.changing > self.reading else ""

    def _normalised(self, pixels: Tensor) -> Tensor:
        """float32 (..., H, W, C), from uint8 of the same shape."""
        return self.normalise(pixels.flatten(-2)).view(pixels.shape)

    def _prepare(self, ids: Tensor, augments: Sequence[Augmented]) -> Prepared:
        size, indices, on_cpu = self.rule.size, ids.tolist(), self.device.type == "cpu"
        # A GPU takes bytes, and normalises them itself.
        dtype, pinned = torch.float32 if on_cpu else torch.uint8, self.device.type == "cuda"
        pixels = torch.empty(len(ids), size, size, 3, dtype=dtype, pin_memory=pinned)
        chosen: list[View] = augments[0](self.sizes[ids].long(), ids).tolist() if augments else []
        self.changes = [_name(augment) for augment in augments[1:]] or self.changes

        def fill(rows: range) -> tuple[float, float]:
            """Returns the seconds for reading and for changing."""
            began, changing = perf_counter(), 0.0
            for first in rows[:: self.together]:
                some = slice(first, min(first + self.together, rows.stop))
                images = [self.reader.reduced(index) for index in indices[some]]
                views = chosen[some] if chosen else [centre(image, self.rule.crop) for image in images]
                if not augments[1:]:
                    normalise = self.normalise if on_cpu else None
                    viewed(images, views, pixels[some].numpy(), normalise, self.rule.interpolation)
                    continue
                seen = torch.empty(len(images), size, size, 3, dtype=torch.uint8)
                viewed(images, views, seen.numpy(), interpolation=self.rule.interpolation)
                read = perf_counter()
                for row, image in enumerate(seen.split(1), first):
                    for augment in augments[1:]:
                        image = augment(image, ids[row : row + 1])
                    pixels[row] = self._normalised(image[0]) if on_cpu else image[0]
                changing += perf_counter() - read
            return perf_counter() - began - changing, changing

        rows = range(len(ids))
        share = max(1, len(ids) // (JOBS * self.threads))
        return Prepared(ids, pixels, [self.pool.submit(fill, rows[first : first + share]) for first in rows[::share]])


def uneven(labels: Tensor) -> tuple[int, ...]:
    """The numbers of `labels` by class, if some class has so many fewer than another that accuracy alone misleads, else ()."""
    if labels.ndim > 1:  # of several labels
        return ()
    counts = labels.bincount().tolist()
    there = [count for count in counts if count]
    return tuple(counts) if max(there) > UNEVEN * min(there) else ()


def _name(augment: Augmented) -> str:
    """What people call an augmentation: TrivialAugment for trivial_augment, RandAugment for what rand_augment() returned."""
    inner = augment.args[0] if isinstance(augment, partial) and augment.args else augment
    return getattr(inner, "__qualname__", type(inner).__name__).partition(".")[0].title().replace("_", "")
