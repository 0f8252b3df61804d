"""The features of a data set: those that are kept are used, the others are computed, on any number of processes and jobs at once.

Nobody waits for anybody: each process looks before each block of images whether another one has done it, begins with a share of
its own, and takes the others in an order of its own. What a kill interrupts goes on with the next block.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..data.augment import Augment, EpochRng
from ..data.disk_feed import DiskSplit
from ..data.features import Features
from ..data.feed import Augmented
from ..data.images import Images
from ..data.order import order
from .backbone import Backbone
from .store import FeatureStore, key_of

SIDES = ("train", "validation", "test")
BLOCK = 64  # images that are written at a time, and the most that a kill loses of each process


@dataclass(frozen=True)
class Views:
    """Augmented views 0 to `count` - 1 of each training image: `augments` as `train` takes them, called `name`.

    What they draw is a function of (seed, view, content of the image).
    """

    augments: Sequence[Augment] = ()
    name: str = ""
    seed: int = 0
    count: int = 0


@dataclass(frozen=True)
class Work:
    """How the work is shared, and who is told: `tick(n)` that n images are done; `stop` says whether to end before the next."""

    rank: int = 0
    world: int = 1
    begin: Callable[[int], None] = lambda total: None
    tick: Callable[[int], None] = lambda done: None
    stop: Callable[[], None] = lambda: None


def with_features(
    images: Images, net: Backbone, views: Views | None = None, work: Work | None = None, sides: Sequence[str] = SIDES
) -> tuple[Images, int]:
    """`images`, those of `sides` with their features, and how many of them were missing. A training image has 1 + `views.count`.

    Raises Refused: 1 if the cache cannot be read or written, or its allowance is too small; 4 for an image that has changed.
    """
    views, work = views or Views(), work or Work()
    store = FeatureStore(Path(images.source), net.about, net.width)
    names = [name for name in sides if getattr(images, name) is not None]
    splits = {name: getattr(images, name) for name in names}
    keys: dict[str, list[list[bytes]]] = {}  # of each image, by split and view
    jobs = []
    for name, split in splits.items():
        seen = [None, *range(views.count)] if name == "train" else [None]
        augmented = [_augmented(views, view, split) if view is not None else () for view in seen]
        tried = net.tried_view(_augmented(views, 0, None)) if len(seen) > 1 else ""
        keys[name] = [_keys(split, views, view, tried) for view in seen]
        jobs += [(split, *job) for job in zip(keys[name], augmented, strict=True)]
    missing = {key for _, needed, _ in jobs for key in needed} - store.rows.keys()
    store.reserve(len(missing))
    work.begin(len(missing))
    for split, needed, augments in jobs:
        _fill(store, net, split, needed, augments, work)
    table = store.table()
    found = {name: torch.tensor([[store.rows[key] for key in view] for view in keys[name]]).T for name in names}
    return replace(images, **{name: replace(splits[name], features=Features(table, found[name])) for name in names}), len(missing)


def _keys(split: DiskSplit, views: Views, view: int | None, tried: str) -> list[bytes]:
    """What each image's features in this view are kept under; None: not augmented."""
    seen = "" if view is None else f" {views.name} {views.seed} {view} {tried}"
    return [key_of(image.sha256, seen) for image in split.images]


def _augmented(views: Views, view: int, split: DiskSplit | None) -> list[Augmented]:
    """The augmentations of a view, of the images of `split`, None: of drawings."""
    contents = [image.sha256 for image in split.images] if split else ["0", "1"]
    numbers = EpochRng(views.seed, len(contents), torch.device("cpu"))
    numbers.samples = torch.tensor([int(sha256[:15], 16) for sha256 in contents])  # in place of where they are in the split
    numbers.begin(view)

    def apply(augment: Augment, pixels: Tensor, ids: Tensor) -> Tensor:
        return augment(pixels, numbers.of(ids))

    return [partial(apply, augment) for augment in views.augments]


def _fill(
    store: FeatureStore, net: Backbone, split: DiskSplit, keys: Sequence[bytes], augments: Sequence[Augmented], work: Work
) -> None:
    """Compute what `store` lacks of the images of `split`, until it has all of them."""
    ids = {key: index for index, key in enumerate(keys) if key not in store.rows}  # each content once
    blocks = torch.tensor([*ids.values()], dtype=torch.int64).split(BLOCK) if ids else ()
    asked = deque[Tensor]()
    pending: deque[tuple[Tensor, Future]] = deque()
    rows: dict[int, Tensor] = {}

    def batches() -> Iterator[Tensor]:
        """What is missing, int64 (batch,): looked up again before each block, as others compute, too."""
        for block in _in_turn(blocks, work):
            work.stop()
            store.refresh()
            left = torch.tensor([index for index in block.tolist() if keys[index] not in store.rows], dtype=torch.int64)
            for part in left.split(net.batch) if len(left) else ():
                asked.append(part)
                yield torch.cat((part, part[:1].expand(net.batch - len(part))))  # always a whole batch

    def collect(most: int) -> None:
        """Wait until at most so many batches are being computed; keep what is finished, a block at a time."""
        while len(pending) > most:
            part, features = pending.popleft()
            rows.update(zip(part.tolist(), features.result(), strict=False))
            if len(rows) >= BLOCK or not pending:
                store.add([keys[index] for index in rows], torch.stack([*rows.values()]))
                work.tick(len(rows))
                rows.clear()

    for pixels, _ in net.feed(split).stream(batches(), augments):
        pending.append((asked.popleft(), net.submit(pixels)))
        collect(2 * torch.get_num_threads())
    collect(0)


def _in_turn(blocks: Sequence[Tensor], work: Work) -> Iterator[Tensor]:
    """This process's share, then the others'. Each in an order that other jobs do not have, so that these share the work, too."""
    for share in range(work.world):
        blocks_of = blocks[(work.rank + share) % work.world :: work.world]
        for index in order(len(blocks_of), os.getpid(), share).tolist():
            yield blocks_of[index]
