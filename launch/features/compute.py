"""The features of a data set: those that are kept are used, the others are computed, on any number of processes and jobs at once.

Nobody waits for anybody: each process looks before each block of images whether another one has done it, begins with a share of
its own, and takes the others in an order of its own. What a kill interrupts goes on with the next block.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..data.augment import Augment
from ..data.disk_feed import Augmented, DiskSplit
from ..data.features import Features
from ..data.images import Images
from ..data.order import draws, order
from .backbone import Backbone
from .store import FeatureStore

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
    """`images`, those of `sides` with their features, and how many were computed now. A training image has 1 + `views.count`.

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
    computed = sum(_fill(store, net, split, needed, augments, work) for split, needed, augments in jobs)
    table = store.table()
    found = {name: torch.tensor([[store.rows[key] for key in view] for view in keys[name]]).T for name in names}
    return replace(images, **{name: replace(splits[name], features=Features(table, found[name])) for name in names}), computed


def _keys(split: DiskSplit, views: Views, view: int | None, tried: str) -> list[bytes]:
    """What each image's features in this view are kept under; None: not augmented."""
    seen = "" if view is None else f" {views.name} {views.seed} {view} {tried}"
    return [hashlib.sha256(f"{image.sha256}{seen}".encode()).digest() for image in split.images]


def _augmented(views: Views, view: int, split: DiskSplit | None) -> list[Augmented]:
    """The augmentations of a view, of the images of `split`, None: of drawings."""
    contents = [image.sha256 for image in split.images] if split else ["0", "1"]
    numbers = torch.tensor([int(sha256[:15], 16) for sha256 in contents])

    def apply(augment: Augment, pixels: Tensor, ids: Tensor) -> Tensor:
        return augment(pixels, lambda kind, n, by_turns=False: draws(views.seed, view, numbers[ids], kind, n))

    return [partial(apply, augment) for augment in views.augments]


def _fill(
    store: FeatureStore, net: Backbone, split: DiskSplit, keys: Sequence[bytes], augments: Sequence[Augmented], work: Work
) -> int:
    """Compute what `store` lacks of the images of `split`, until it has all of them. Returns how many this process computed."""
    ids = {key: index for index, key in enumerate(keys) if key not in store.rows}  # each content once
    blocks = torch.tensor([*ids.values()], dtype=torch.int64).split(BLOCK) if ids else ()
    feed, computed = net.feed(split), 0
    pending: deque[tuple[Tensor, int, Future]] = deque()
    done: list[tuple[int, Tensor]] = []

    def collect(most: int) -> None:
        """Wait until at most so many batches are being computed; keep what is finished, a block at a time."""
        nonlocal computed
        while len(pending) > most:
            batch, real, features = pending.popleft()
            done.extend(zip(batch[:real].tolist(), features.result(), strict=False))
            if len(done) >= BLOCK or not pending:
                store.add([keys[index] for index, _ in done], torch.stack([row for _, row in done]))
                work.tick(len(done))
                computed += len(done)
                done.clear()

    for block in _in_turn(blocks, work):
        work.stop()
        store.refresh()
        left = torch.tensor([index for index in block.tolist() if keys[index] not in store.rows], dtype=torch.int64)
        batches = [_padded(part, net.batch) for part in left.split(net.batch)] if len(left) else []
        feed.expect(batches)
        for number, batch in enumerate(batches):
            real = min(net.batch, len(left) - number * net.batch)
            pending.append((batch, real, net.submit(feed.batch(batch, augments)[0])))
            collect(2 * torch.get_num_threads())
    collect(0)
    return computed


def _padded(ids: Tensor, batch: int) -> Tensor:
    """`ids` and as many times the first of them as a whole batch takes."""
    return torch.cat((ids, ids[:1].expand(batch - len(ids))))


def _in_turn(blocks: Sequence[Tensor], work: Work) -> Iterator[Tensor]:
    """This process's share, then the others'. Each in an order that other jobs do not have, so that these share the work, too."""
    for share in range(work.world):
        of = (work.rank + share) % work.world
        mine = blocks[of :: work.world]
        for index in order(len(mine), os.getpid(), share).tolist():
            yield mine[index]
