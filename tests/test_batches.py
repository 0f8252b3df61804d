"""The cut of a batch: every sample in one micro-batch, whatever the number of processes, and the images of that micro-batch."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_images
from training import fit

from launch.data.augment import crop_and_flip
from launch.data.mix import mixup
from launch.data.order import micro_batch_bounds
from launch.training.batches import TrainingFeed
from launch.training.step import Step
from launch.weights.tensors import weights

CPU = torch.device("cpu")


def feed_of(world: int, rank: int, micro_batches: int, **options) -> TrainingFeed:
    images = tiny_images()
    run = SimpleNamespace(seed=1, world=world, rank=rank, micro_batches=micro_batches)
    return TrainingFeed(run, images.train.feed(images, CPU), classes=3, **options)


@pytest.mark.parametrize(("samples", "micro_batches"), [(8, 4), (7, 4), (3, 4), (1, 4), (13, 8), (9, 1)])
def test_every_sample_is_in_one_micro_batch_on_one_process(samples, micro_batches):
    ids, bounds = torch.arange(40, 40 + samples), micro_batch_bounds(samples, micro_batches)
    for world in (count for count in (1, 2, 4, 8) if micro_batches % count == 0):
        cuts = [feed_of(world, rank, micro_batches).cut(ids) for rank in range(world)]
        parts = [part for blocks in cuts for block in blocks for part in block if part.weight]
        assert torch.cat([part.ids for part in parts]).tolist() == ids.tolist()
        assert sum(part.weight for part in parts) == pytest.approx(1)
        assert all(part.weight == len(part.ids) / samples for part in parts)
        assert all(part.ids[0] == ids[bounds[part.index]] for part in parts)
        for blocks in cuts:  # a process without samples joins the reduction with a gradient of 0
            assert all(part.weight or (len(blocks), len(blocks[0])) == (1, 1) for block in blocks for part in block)
        if world == 2:  # one process adds up what two would
            alone = feed_of(1, 0, micro_batches).cut(ids)
            busy = [blocks[0] for blocks in cuts if blocks[0][0].weight]
            assert [[part.index for part in block] for block in alone] == [[part.index for part in block] for block in busy]


@pytest.mark.parametrize("options", [{}, {"augments": [crop_and_flip]}, {"augments": [crop_and_flip], "mix": mixup()}])
def test_the_images_of_a_batch_are_those_of_its_micro_batches(options):
    """As if each were asked for by itself, also in the next epoch."""
    ids = torch.arange(61).roll(5).split(8)
    for epoch in (0, 3):
        for batch in feed_of(1, 0, 4, **options).batches(ids, epoch, 5):
            for part in itertools.chain(*batch.blocks):
                alone = feed_of(1, 0, 4, **options)
                alone.rng.begin(epoch)
                pixels, labels = next(batch.images)
                (expected,) = alone.stream([part])
                assert torch.equal(pixels, expected[0])
                assert torch.equal(labels, expected[1])
                assert torch.equal(part.ids[1:] if "mix" in options else part.ids, ids[batch.step - 5][part_of(part, batch)])


def part_of(part, batch) -> slice:
    bounds = micro_batch_bounds(len(batch.ids), 4)
    return slice(bounds[part.index], bounds[part.index + 1])


def test_a_whole_step_has_the_bits_of_its_pieces(start, images, monkeypatch):
    """What a CUDA graph captures is given ids alone, and makes its batch itself: augmented, mixed, of this epoch."""
    made, original = [], Step.__init__
    for whole in (False, True):

        def init(self, *args, whole=whole, **options):
            original(self, *args, **options)
            self.captured = self._whole if whole else None

        monkeypatch.setattr(Step, "__init__", init)
        torch.manual_seed(1)
        schedule = lambda epoch: 1 - epoch / 3  # noqa: E731 - of the learning rate
        made.append(weights(fit(start(out=f"whole-{whole}"), images, augment=crop_and_flip, mix=mixup(), schedule=schedule)))
    first, second = made
    assert all(torch.equal(first[name], second[name]) for name in first)
