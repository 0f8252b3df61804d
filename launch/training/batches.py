"""The batches of a training: cut into micro-batches, and the images of those that this process computes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..data.augment import Augment, EpochRng
from ..data.feed import Feed
from ..data.mix import Mix, mixed
from ..data.order import micro_batch_bounds, with_neighbour
from ..run import Run


@dataclass(frozen=True)
class MicroBatch:
    """A contiguous part of a global batch."""

    index: int  # in the global batch
    ids: Tensor  # int64 (n,), its samples; led by the one before them if images are mixed
    weight: float  # its part of the global batch


@dataclass(frozen=True)
class Batch:
    """A global batch, and what of it this process computes."""

    ids: Tensor  # int64 (n,), of all processes
    step: int  # from 0
    blocks: list[list[MicroBatch]]  # of this process; their gradients are summed up block by block
    images: Iterator[tuple[Tensor, Tensor]]  # of these micro-batches in turn: the next one is prepared meanwhile


class TrainingFeed:
    """Batches of the training images: cut, augmented and mixed."""

    def __init__(self, run: Run, feed: Feed, augments: Sequence[Augment] = (), mix: Mix | None = None, classes: int = 0):
        """`classes` is needed to `mix`."""
        self.run, self.feed, self.mix, self.classes = run, feed, mix, classes
        self.rng = EpochRng(run.seed, len(feed.labels), feed.drawn_on)
        self.augments = [partial(self._augmented, augment) for augment in augments]

    def batches(self, global_batches: Sequence[Tensor], epoch: int, step: int) -> Iterator[Batch]:
        """These batches of the `epoch`, int64 (n,) each; the first is that of `step`. Both count from 0."""
        self.rng.begin(epoch)
        cuts = [self.cut(ids) for ids in global_batches]
        images = self.stream(micro_batch for blocks in cuts for block in blocks for micro_batch in block)
        for number, (ids, blocks) in enumerate(zip(global_batches, cuts, strict=True), start=step):
            yield Batch(ids, number, blocks, images)

    def cut(self, ids: Tensor) -> list[list[MicroBatch]]:
        """This process's micro-batches of the global batch `ids`, int64 (n,), in blocks: one at least, each with samples."""
        micro_batches, rank, world = self.run.micro_batches, self.run.rank, self.run.world
        mine = range(rank * micro_batches // world, (rank + 1) * micro_batches // world)
        # Two processes sum up their halves of the micro-batches and then add the two sums. One does so too, to round the same.
        half = len(mine) // 2 if world == 1 and micro_batches % 2 == 0 else 0
        bounds, blocks = micro_batch_bounds(len(ids), micro_batches), []
        for indices in (mine[:half], mine[half:]):
            spans = [(index, bounds[index], bounds[index + 1]) for index in indices if bounds[index] < bounds[index + 1]]
            block = [MicroBatch(index, self._part(ids, start, end), (end - start) / len(ids)) for index, start, end in spans]
            blocks += [block] if block else []
        # With fewer samples than micro-batches a process without any joins the reduction with a gradient of 0.
        return blocks or [[MicroBatch(mine[0], self._part(ids, 0, 2), 0.0)]]

    def whole(self, ids: Tensor) -> MicroBatch:
        """The global batch `ids`, int64 (n,), as one micro-batch."""
        return MicroBatch(0, self._part(ids, 0, len(ids)), 1.0)

    def stream(self, micro_batches: Iterable[MicroBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of each, float32 (n, C, H, W), and labels, int64 (n,); float (n, classes) if images are mixed."""
        if not self.mix:
            return self.feed.stream((micro_batch.ids for micro_batch in micro_batches), self.augments)
        return self._mixed(self.mix, [micro_batch.ids for micro_batch in micro_batches])

    def alone(self, micro_batches: Iterable[MicroBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples of each, int64 (n,), and their images as in `stream`, but not mixed."""
        ids = [micro_batch.ids[1:] if self.mix else micro_batch.ids for micro_batch in micro_batches]
        return zip(ids, (images for images, _ in self.feed.stream(ids, self.augments)), strict=True)

    def _mixed(self, mix: Mix, parts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for ids, (images, labels) in zip(parts, self.feed.stream(parts, self.augments), strict=True):
            yield mixed(mix, images, labels, self.rng.of(ids[1:]), self.classes)

    def _augmented(self, augment: Augment, pixels: Tensor, ids: Tensor) -> Tensor:
        return augment(pixels, self.rng.of(ids))

    def _part(self, ids: Tensor, start: int, end: int) -> Tensor:
        return with_neighbour(ids, start, end) if self.mix else ids[start:end]
