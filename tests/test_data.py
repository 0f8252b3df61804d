"""Order, slices, seeds and normalisation are functions, the same wherever they are asked."""

import itertools
from dataclasses import replace

import pytest
import torch

from launch.data import Feed, Images, Split, bounds, crop_and_flip, draws, folds, order, slice_seed

GOLDEN_ORDER = [3, 5, 2, 7, 0, 6, 1, 4]
GOLDEN_DRAWS = [2, 8, 3, 3, 0]
GOLDEN_SEEDS = [6396520470166291297, 3903436636966207257, 3150992677718134148]


def test_order_is_a_permutation_of_its_own_for_each_seed_and_epoch():
    orders = [order(61, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(torch.equal(o.sort().values, torch.arange(61)) for o in orders)
    assert len({tuple(o.tolist()) for o in orders}) == 6


def test_order_never_changes():
    """Golden: another NumPy or machine must give the same curve."""
    assert order(8, seed=1, epoch=0).tolist() == GOLDEN_ORDER
    assert [slice_seed(1, step, index) for step, index in ((0, 0), (0, 1), (1, 0))] == GOLDEN_SEEDS


def test_order_mixes_well():
    """Neighbours in one epoch are no neighbours in the next, and every place is as likely."""
    n = 1000
    first, second = (order(n, 0, epoch) for epoch in (0, 1))
    place = torch.empty(n, dtype=torch.int64).scatter_(0, second, torch.arange(n))
    gaps = (place[first[1:]] - place[first[:-1]]).abs()
    assert (gaps == 1).sum() < 10
    means = torch.stack([order(n, seed, 0).float() for seed in range(200)]).mean(0)
    assert (means - n / 2).abs().max() < 5 * n / (12 * 200) ** 0.5


@pytest.mark.parametrize("n", range(1, 20))
@pytest.mark.parametrize("shards", [1, 2, 3, 4, 8])
def test_bounds_cover_everything_once_and_begin_with_the_longest(n, shards):
    cuts = bounds(n, shards)
    sizes = [after - before for before, after in itertools.pairwise(cuts)]
    assert cuts[0] == 0
    assert cuts[-1] == n
    assert len(sizes) == shards
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_slice_seeds_do_not_meet():
    seeds = {slice_seed(seed, step, index) for seed in range(5) for step in range(200) for index in range(8)}
    assert len(seeds) == 5 * 200 * 8


def test_feed_normalises_as_the_document_does(images):
    feed = Feed(images.train, images, torch.device("cpu"))
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
    got, _ = Feed(split, images, torch.device("cpu")).batch(torch.tensor([0]))
    assert got.shape == (1, 3, 4, 5)
    for channel, (value, mean, std) in enumerate(zip((10, 20, 30), images.mean, images.std, strict=True)):
        torch.testing.assert_close(got[0, channel], torch.full((4, 5), (value / 255 - mean) / std))


def test_draws_depend_on_seed_epoch_sample_and_kind_alone():
    ids = torch.arange(10_000)
    first = draws(1, 0, ids, 0, 9)
    assert torch.equal(first[torch.tensor([7, 4])], draws(1, 0, torch.tensor([7, 4]), 0, 9))  # not on the place in a batch
    for other in (draws(2, 0, ids, 0, 9), draws(1, 1, ids, 0, 9), draws(1, 0, ids, 1, 9)):
        assert ((first == other).float().mean() - 1 / 9).abs() < 0.02  # as if drawn anew
    counts = first.bincount(minlength=9).float()
    assert ((counts - 10_000 / 9).square() / (10_000 / 9)).sum() < 33  # chi-square with 8 degrees, p > 1e-4
    neighbours = (first[1:] == first[:-1]).float().mean()
    assert (neighbours - 1 / 9).abs() < 0.02
    assert draws(1, 0, ids[:5], 0, 9).tolist() == GOLDEN_DRAWS


def test_crop_and_flip_moves_over_black_and_mirrors():
    pixels = torch.arange(1, 8 * 8 + 1, dtype=torch.uint8).view(1, 8, 8, 1).expand(500, 8, 8, 1)
    ids = torch.arange(500)
    moved = crop_and_flip(pixels, ids, seed=1, epoch=0, pad=2)
    down, right, mirrored = (draws(1, 0, ids, kind, span) for kind, span in enumerate((5, 5, 2)))
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


def test_feed_resizes_on_the_way(images):
    feed = Feed(images.train, replace(images, size=12), torch.device("cpu"))
    pixels, _ = feed.batch(torch.arange(3))
    plain, _ = Feed(images.train, images, torch.device("cpu")).batch(torch.arange(3))
    assert pixels.shape == (3, 1, 12, 12)
    torch.testing.assert_close(pixels, torch.nn.functional.interpolate(plain, (12, 12), mode="bilinear"))
