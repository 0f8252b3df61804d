"""Order, micro-batches, random seeds, draws, folds, augmentation, and the batches that a net sees."""

import itertools
from dataclasses import replace

import pytest
import torch

from launch.data.augment import EpochRng, crop_and_flip
from launch.data.dataset import Split
from launch.data.feed import MemoryFeed, resized
from launch.data.images import Images
from launch.data.order import folds, micro_batch_bounds, micro_batch_seed, order, random_integers
from launch.errors import Refused

GOLDEN_ORDER = [3, 5, 2, 7, 0, 6, 1, 4]
GOLDEN_DRAWS = [2, 8, 3, 3, 0]
GOLDEN_OTHER_DRAWS = [6, 2, 4, 6, 6]
GOLDEN_FAR_DRAWS = [3, 7, 2, 7, 0]
GOLDEN_FOLDS = [[3, 4, 5, 6, 11], [0, 1, 2, 10, 12], [7, 8, 9, 13]]
GOLDEN_SEEDS = [6396520470166291297, 3903436636966207257, 3150992677718134148]


def test_order_is_a_permutation_of_its_own_for_each_seed_and_epoch():
    orders = [order(61, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(torch.equal(o.sort().values, torch.arange(61)) for o in orders)
    assert len({tuple(o.tolist()) for o in orders}) == 6


def test_order_never_changes():
    """Golden: the curve must not depend on the machine or the version of NumPy."""
    assert order(8, seed=1, epoch=0).tolist() == GOLDEN_ORDER
    assert [micro_batch_seed(1, step, index) for step, index in ((0, 0), (0, 1), (1, 0))] == GOLDEN_SEEDS


def test_order_mixes_well():
    """Neighbours in one epoch are not neighbours in the next, and every position is equally likely."""
    n = 1000
    first, second = (order(n, 0, epoch) for epoch in (0, 1))
    place = torch.empty(n, dtype=torch.int64).scatter_(0, second, torch.arange(n))
    gaps = (place[first[1:]] - place[first[:-1]]).abs()
    assert (gaps == 1).sum() < 10
    means = torch.stack([order(n, seed, 0).float() for seed in range(200)]).mean(0)
    assert (means - n / 2).abs().max() < 5 * n / (12 * 200) ** 0.5


@pytest.mark.parametrize("n", range(1, 20))
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 8])
def test_bounds_cover_everything_once_and_begin_with_the_longest(n, micro_batches):
    cuts = micro_batch_bounds(n, micro_batches)
    sizes = [after - before for before, after in itertools.pairwise(cuts)]
    assert cuts[0] == 0
    assert cuts[-1] == n
    assert len(sizes) == micro_batches
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_micro_batch_seeds_do_not_collide():
    seeds = {micro_batch_seed(seed, step, index) for seed in range(5) for step in range(200) for index in range(8)}
    assert len(seeds) == 5 * 200 * 8


def test_feed_normalises_as_the_document_does(images):
    feed = MemoryFeed(images.train, images, torch.device("cpu"))
    ids = torch.tensor([60, 0, 7])
    pixels, labels = feed.batch(ids)
    expected = (images.train.pixels[ids].float() / 255 - 0.25) / 0.2
    torch.testing.assert_close(pixels, expected)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == images.train.labels[ids].tolist()


def test_feed_keeps_channels_apart():
    pixels = torch.stack([torch.full((4, 5), value, dtype=torch.uint8) for value in (10, 20, 30)])[None]
    split = Split(pixels, torch.zeros(1, dtype=torch.int64))
    images = Images(split, split, ("a",), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "test", "")
    got, _ = MemoryFeed(split, images, torch.device("cpu")).batch(torch.tensor([0]))
    assert got.shape == (1, 3, 4, 5)
    assert got.is_contiguous(memory_format=torch.channels_last)
    for channel, (value, mean, std) in enumerate(zip((10, 20, 30), images.mean, images.std, strict=True)):
        torch.testing.assert_close(got[0, channel], torch.full((4, 5), (value / 255 - mean) / std))


def test_draws_depend_on_seed_epoch_sample_and_kind_alone():
    ids = torch.arange(10_000)
    first = random_integers(1, 0, ids, 0, 9)
    assert torch.equal(first[[7, 4]], random_integers(1, 0, torch.tensor([7, 4]), 0, 9))  # not on the position in a batch
    for key in ((2, 0, ids, 0), (1, 1, ids, 0), (1, 0, ids, 1)):
        other = random_integers(*key, 9)
        assert ((first == other).float().mean() - 1 / 9).abs() < 0.02  # as if independent
    counts = first.bincount(minlength=9).float()
    assert ((counts - 10_000 / 9).square() / (10_000 / 9)).sum() < 33  # chi-square with 8 degrees, p > 1e-4
    neighbours = (first[1:] == first[:-1]).float().mean()
    assert (neighbours - 1 / 9).abs() < 0.02
    assert random_integers(1, 0, ids[:5], 0, 9).tolist() == GOLDEN_DRAWS


def test_crop_and_flip_moves_over_black_and_mirrors():
    pixels = torch.arange(1, 8 * 8 + 1, dtype=torch.uint8).view(1, 8, 8, 1).expand(500, 8, 8, 1)
    ids = torch.arange(500)
    moved = crop_and_flip(pixels, EpochRng(1, 500, torch.device("cpu")).of(ids), pad=2)
    down, right, mirrored = (random_integers(1, 0, ids, kind, span) for kind, span in enumerate((5, 5, 2)))
    assert moved.dtype == torch.uint8
    for index in range(500):
        black = torch.zeros(12, 12, dtype=torch.uint8)
        black[2:10, 2:10] = pixels[0, :, :, 0]
        expected = black[down[index] : down[index] + 8, right[index] : right[index] + 8]
        assert torch.equal(moved[index, :, :, 0], expected.flip(1) if mirrored[index] else expected)


@pytest.mark.parametrize("k", [2, 5])
def test_folds_are_disjoint_complete_and_stratified(k, images):
    parts = folds(images.train.labels, k, seed=3)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(61))
    for label in range(3):
        counts = [(images.train.labels[part] == label).sum().item() for part in parts]
        assert max(counts) - min(counts) <= 1
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert not all(torch.equal(a, b) for a, b in zip(parts, folds(images.train.labels, k, seed=4), strict=True))


def test_feed_resizes_on_the_device(images):
    feed = MemoryFeed(images.train, replace(images, size=12), torch.device("cpu"))
    pixels, _ = feed.batch(torch.arange(3))
    plain, _ = MemoryFeed(images.train, images, torch.device("cpu")).batch(torch.arange(3))
    assert pixels.shape == (3, 1, 12, 12)
    torch.testing.assert_close(pixels, torch.nn.functional.interpolate(plain, (12, 12), mode="bilinear"))


def test_folds_never_change_and_each_class_has_an_order_of_its_own():
    """Golden: the scores of model_selection depend on it. No class has another one's order."""
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, 0, 2, 1, 2, 1, 0, 1])
    assert [part.tolist() for part in folds(labels, 3, seed=5)] == GOLDEN_FOLDS
    parts = torch.zeros(400, dtype=torch.int64)
    for number, part in enumerate(folds(torch.arange(400) % 2, 5, seed=1)):
        parts[part] = number
        assert part.dtype == torch.int64
        assert part.tolist() == sorted(part.tolist())
    assert (parts[0::2] == parts[1::2]).float().mean() < 0.4  # 0.2 by chance


def test_folds_of_few_and_of_one_class_differ_by_one_at_most():
    for labels, k in ((torch.zeros(7), 3), (torch.arange(7), 3), (torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]), 2)):
        parts = folds(labels.long(), k, seed=0)
        sizes = [len(part) for part in parts]
        assert sum(sizes) == len(labels)
        assert max(sizes) - min(sizes) <= 1


def test_order_takes_any_seed_and_the_epoch_is_not_the_seed():
    assert order(6, seed=2**64 + 1, epoch=0).tolist() == order(6, seed=1, epoch=0).tolist()
    assert len({tuple(order(61, seed, 0).tolist()) for seed in (-1, -2, -3, 2**63 - 1, 2**63 - 2, 2**63 + 1)}) == 6
    assert order(61, seed=0, epoch=1).tolist() != order(61, seed=1, epoch=0).tolist()
    assert order(61, seed=1, epoch=2).dtype == torch.int64
    assert micro_batch_seed(0, 1, 2) != micro_batch_seed(1, 0, 2) != micro_batch_seed(1, 2, 0)
    assert all(0 <= micro_batch_seed(seed, step, 0) < 2**63 for seed in range(8) for step in range(8))  # as torch.Generator takes


def test_draws_never_change():
    """Golden, also for ids beyond 32 bits."""
    assert random_integers(1, 2, torch.arange(5), 1, 9).tolist() == GOLDEN_OTHER_DRAWS
    assert random_integers(2, 1, torch.arange(5) + 2**40, 0, 9).tolist() == GOLDEN_FAR_DRAWS


def test_crop_and_flip_moves_by_four_in_every_direction_and_mirrors_half():
    """The paper's numbers; the draws of an image are independent."""
    ids = torch.arange(4000)
    pixels = torch.zeros(4000, 9, 11, 3, dtype=torch.uint8)
    pixels[:, 4, 5], pixels[:, 4, 4] = (100 + ids % 100).to(torch.uint8)[:, None], 7  # a dot, and what is to its left
    rng = EpochRng(seed=1, samples=4000, device=torch.device("cpu"))
    moved = crop_and_flip(pixels, rng.of(ids))
    assert moved.shape == pixels.shape
    assert all(torch.equal(moved[..., channel], moved[..., 0]) for channel in (1, 2))
    found, rows, columns = (moved[..., 0] >= 100).nonzero().T
    assert torch.equal(found, ids)
    assert torch.equal(moved[ids, rows, columns, 0], 100 + ids % 100)  # each in its own image
    assert rows.bincount().tolist() == pytest.approx([4000 / 9] * 9, rel=0.2)
    assert columns.bincount(minlength=11)[1:10].tolist() == pytest.approx([4000 / 9] * 9, rel=0.2)
    mirrored = moved[ids, rows, columns + 1, 0] == 7
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)
    across = torch.where(mirrored, 10 - columns, columns)  # before it was mirrored
    together = torch.stack([rows.float(), across.float(), mirrored.float()])
    assert (torch.corrcoef(together) - torch.eye(3)).abs().max() < 0.06
    some = torch.tensor([3999, 5, 17])
    assert torch.equal(crop_and_flip(pixels[some], rng.of(some)), moved[some])  # in any batch
    rng.begin(1)
    again = crop_and_flip(pixels, rng.of(ids))
    assert (again == moved).flatten(1).all(1).float().mean() < 0.1


def test_draws_of_an_epoch_are_those_of_its_samples():
    """The draws do not depend on what was asked for first, only on the epoch."""
    rng, ids = EpochRng(seed=3, samples=61, device=torch.device("cpu")), torch.tensor([60, 0, 7])
    for epoch in (0, 0, 1, 5):
        rng.begin(epoch)
        for kind, n in ((0, 9), (1, 9), (0, 2)):
            assert rng.of(ids).integers(kind, n).tolist() == random_integers(3, epoch, ids, kind, n).tolist()


def test_feed_gives_the_augmented_pixels_of_the_samples_asked_for(images):
    seen = []

    def darken(pixels, ids):
        seen.append((pixels, ids))
        return pixels // 2

    feed = MemoryFeed(images.train, images, torch.device("cpu"))
    ids = feed.order(torch.tensor([5, 60, 5]))
    pixels, labels = feed.batch(ids, [darken])
    ((before, numbers),) = seen
    assert before.dtype == torch.uint8
    assert torch.equal(before, images.train.pixels[ids].permute(0, 2, 3, 1))
    assert torch.equal(numbers, ids)
    torch.testing.assert_close(pixels, ((images.train.pixels[ids] // 2).float() / 255 - 0.25) / 0.2)
    assert torch.equal(labels, images.train.labels[ids])
    assert pixels.dtype == torch.float32


def test_feed_leaves_the_pixels_as_they_are(images):
    before = images.train.pixels.clone()
    feed = MemoryFeed(images.train, images, torch.device("cpu"))
    first, _ = feed.batch(torch.arange(61))
    again, _ = feed.batch(torch.arange(61), [lambda pixels, ids: pixels.mul_(0)])
    third, _ = feed.batch(torch.arange(61))
    assert torch.equal(first, third)
    assert not torch.equal(first, again)
    assert torch.equal(images.train.pixels, before)


@pytest.mark.parametrize("shape", [(6, 12), (12, 6), (48, 12), (12, 48), (48, 48), (6, 48), (6, 6), (12, 12)])
def test_resized_in_both_directions(shape):
    """A horizontal and a vertical ramp stay ramps, and each pixel counts."""
    height, width = shape
    across = torch.linspace(0, 1, width).expand(1, 1, height, width)
    down = torch.linspace(0, 1, height)[:, None].expand(1, 1, height, width)
    wide, tall = resized(across, 12), resized(down, 12)
    assert wide.shape == tall.shape == (1, 1, 12, 12)
    assert (wide[0, 0].diff(dim=1) > 0).all()
    assert (tall[0, 0].diff(dim=0) > 0).all()
    torch.testing.assert_close(wide[0, 0], wide[0, 0, :1].expand(12, 12))
    torch.testing.assert_close(tall[0, 0], tall[0, 0, :, :1].expand(12, 12))
    assert torch.equal(resized(across, 0), across)
    pixels = torch.ones(1, 1, height, width, requires_grad=True)
    resized(pixels, 12).sum().backward()
    assert pixels.grad.min() > 0.5 * 144 / (height * width)


@pytest.mark.parametrize("size", [-3, 4097, 100_000])
def test_a_size_out_of_range_is_refused(size, images):
    with pytest.raises(Refused, match=rf"--size {size} is out of range; it takes 1 to 4096 pixels") as refused:
        replace(images, size=size)
    assert refused.value.code == 2
    assert replace(images, size=4096).size == 4096  # control
