"""Mixing and operations: labels are worth what the pixels show, partners and places are what a reader of the papers expects."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F
from training import Answers

from launch.data import augment_ops
from launch.data.augment import EpochRng, mirror, random_erasing, random_resized_crop
from launch.data.augment_ops import rand_augment, trivial_augment
from launch.data.mix import cutmix, either, mixed, mixup

N = 4000
CPU = torch.device("cpu")


@pytest.fixture
def rng():
    return EpochRng(seed=3, samples=N, device=CPU).of(torch.arange(N))


def one_for_each(count, height=9, width=14):
    """Images (count, 1, H, W) of one value each: 0, 1, 2, …"""
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 1, height, width)


MIXES = {"mixup": mixup(0.4), "cutmix": cutmix(), "either": either(mixup(0.4), cutmix())}


@pytest.mark.parametrize("name", MIXES)
def test_labels_are_worth_what_the_pixels_show(name, rng):
    """Image k has the value k and the class k: what is seen of each class is its part of the label, exactly."""
    count = 200
    first = Answers(lambda *asked: rng.integers(*asked)[:count])
    images, targets = mixed(MIXES[name], one_for_each(count + 1), torch.arange(count + 1), first, count + 1)
    assert images.shape == (count, 1, 9, 14)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    seen = images.mean((1, 2, 3))
    torch.testing.assert_close(targets @ torch.arange(count + 1.0), seen, rtol=1e-4, atol=1e-3)
    for index in range(count):  # of its own class, and of the one before it, alone
        assert {*targets[index].nonzero().flatten().tolist()} <= {index, index + 1}
    assert (targets[torch.arange(count), torch.arange(count) + 1] > 0.5).float().mean() > 0.4  # control: shares do vary
    assert (targets[torch.arange(count), torch.arange(count) + 1] < 0.5).any()


@pytest.mark.parametrize(("height", "width"), [(9, 14), (14, 14)])
def test_cutmix_cuts_everywhere_and_rows_apart_from_columns(height, width, rng):
    images, _ = cutmix()(torch.zeros(N, 1, height, width), torch.ones(N, 1, height, width), rng)
    cut = images[:, 0] == 1
    often = cut.float().mean(0)
    assert often.min() > 0.1  # each pixel now and then
    assert often.max() < 0.55
    small = cut[(cut.flatten(1).sum(1) > 0) & (cut.flatten(1).sum(1) <= 4)]
    rows, columns = (small.any(3 - axis).float().argmax(1) for axis in (1, 2))
    middle = (rows / height - columns / width).abs()
    assert middle.max() > 0.6  # far from the diagonal, too
    assert {*range(height)} >= {*rows.tolist()} >= {*range(1, height - 1)}
    assert {*columns.tolist()} >= {*range(1, width - 1)}


def test_a_rectangle_is_as_wide_and_high_as_its_part(rng):
    """Where nothing of it lies outside, its area is 1 - share, and both sides are the same part of the image's."""
    size = 40
    images, share = cutmix()(torch.zeros(N, 1, size, size), torch.ones(N, 1, size, size), rng)
    cut = images[:, 0] == 1
    rows, columns = cut.any(2).sum(1), cut.any(1).sum(1)
    inside = ~(cut[:, 0].any(1) | cut[:, -1].any(1) | cut[:, :, 0].any(1) | cut[:, :, -1].any(1))
    assert inside.sum() > 200
    assert (rows - columns)[inside].abs().max() <= 1
    torch.testing.assert_close((rows * columns / size**2)[inside], 1 - share[inside])
    side, *centre = torch.rand(3, 20_000, generator=torch.Generator().manual_seed(0))  # the paper's, on no pixels
    edges = [(at + side.sqrt() / 2).clamp(max=1) - (at - side.sqrt() / 2).clamp(min=0) for at in centre]
    assert 1 - share.mean().item() == pytest.approx((edges[0] * edges[1]).mean().item(), abs=0.015)


def test_the_usual_strengths_of_mixing_are_those_that_are_documented(rng):
    """mixup: Beta(0.2, 0.2), mostly near 0 or 1. cutmix: Beta(1, 1)."""
    _, share = mixup()(torch.zeros(N, 1, 1, 1), torch.zeros(N, 1, 1, 1), rng)
    assert share.var().item() == pytest.approx(0.25 / 1.4, rel=0.05)


@pytest.mark.parametrize("count", [2, 3])
def test_either_takes_each_with_the_same_chance(count, rng):
    def constant(value):
        return lambda images, others, rng: (torch.full_like(images, value), torch.full((len(images),), value / 10))

    images, share = either(*(constant(number) for number in range(count)))(torch.zeros(N, 1, 2, 2), torch.zeros(N, 1, 2, 2), rng)
    which = images[:, 0, 0, 0]
    torch.testing.assert_close(share, which / 10)
    assert torch.bincount(which.long(), minlength=count).float().div(N).tolist() == pytest.approx([1 / count] * count, abs=0.04)


# ------------------------------------------------------------------------------------------------------------- operations


class Noted:
    """Operations that are only noted: by number of the image, in the order in which they are applied."""

    def __init__(self, monkeypatch, count):
        self.of = [[] for _ in range(count)]
        monkeypatch.setattr(augment_ops, "_operate", self.operate)

    def operate(self, name, images, by):
        for image in images:
            self.of[int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])].append((name, by))
        return images


def numbered(count):
    pixels = torch.zeros(count, 2, 2, 1, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = torch.arange(count) % 256, torch.arange(count) // 256
    return pixels


def test_operations_of_rand_augment_are_drawn_apart(rng, monkeypatch):
    noted = Noted(monkeypatch, N)
    rand_augment()(numbered(N), rng)
    assert {len(each) for each in noted.of} == {2}
    same = sum(first[0] == second[0] for first, second in noted.of) / N
    assert same == pytest.approx(1 / 14, abs=0.02)
    signed = {"shear_x", "shear_y", "rotate", "brightness", "color", "contrast", "sharpness"}
    signs = [(one > 0, two > 0) for (first, one), (second, two) in noted.of if {first, second} <= signed]
    assert sum(one == two for one, two in signs) / len(signs) == pytest.approx(0.5, abs=0.05)
    rotations = {round(abs(by), 3) for each in noted.of for name, by in each if name == "rotate"}
    assert rotations == {9.0}  # strength 9 of 30, of up to 30 degrees


def test_operation_strength_and_sign_of_trivial_augment_are_drawn_apart(rng, monkeypatch):
    noted = Noted(monkeypatch, N)
    trivial_augment(numbered(N), rng)
    assert {len(each) for each in noted.of} == {1}
    rotations = torch.tensor([by for ((name, by),) in noted.of if name == "rotate"])
    assert len(rotations.abs().unique()) > 25
    assert rotations.abs().min() < 10  # all strengths of the one operation …
    assert rotations.abs().max() > 125
    for half in (rotations[rotations.abs() < 67], rotations[rotations.abs() > 67]):
        assert (half > 0).float().mean().item() == pytest.approx(0.5, abs=0.15)  # … and both signs of each
    counts = torch.tensor([sum(name == each for ((name, _),) in noted.of) for each in augment_ops.NAMES])
    assert (counts / N - 1 / 14).abs().max() < 0.02


AUGMENTS = {"trivial": trivial_augment, "rand": rand_augment(), "erasing": random_erasing, "mirror": mirror}


@pytest.mark.parametrize("name", AUGMENTS)
def test_what_is_given_is_left_as_it_was(name, rng):
    augment = AUGMENTS[name]
    pixels = torch.randint(0, 256, (200, 12, 12, 3), dtype=torch.uint8)
    before = pixels.clone()
    assert not torch.equal(augment(pixels, Answers(lambda *asked: rng.integers(*asked)[:200])), before)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(("name", "by", "moved"), [("translate_x", 7.9, (0, 7)), ("translate_y", -7.9, (-7, 0))])
def test_images_move_by_whole_pixels_over_black(name, by, moved):
    pixels = torch.randint(1, 256, (1, 3, 20, 20), dtype=torch.uint8)
    down, right = moved
    expected = F.affine(pixels, angle=0, translate=[right, down], scale=1, shear=[0.0, 0.0])
    assert torch.equal(augment_ops._operate(name, pixels, by), expected)
    assert (expected == 0).any()


# ------------------------------------------------------------------------------------------------------------------- crops


def related(one, other) -> float:
    """The largest share of a fifth of `one` that has the same fifth of `other`: 0.2 if the two are independent."""
    fifths = [(each.argsort().argsort() * 5 // len(each)) for each in (one, other)]
    table = torch.bincount(fifths[0] * 5 + fifths[1], minlength=25).view(5, 5).float()
    return (table / table.sum(1, keepdim=True)).max().item()


def test_place_size_and_shape_of_a_crop_are_drawn_apart(rng):
    views = random_resized_crop(torch.tensor([[1000, 1000]]).expand(N, 2), rng).double()
    top, left, height, width, mirrored = views.unbind(1)
    down, right = top / (1001 - height), left / (1001 - width)
    small = height * width < 500_000  # larger ones are cut
    area, shape = height * width, height / width
    for one, other in ((down, right), (area, shape), (down, area), (right, area), (down, shape)):
        assert related(one[small], other[small]) < 0.35
    for value in (down, right, area, shape):
        lower = value < value.median()
        assert mirrored[lower].mean().item() == pytest.approx(0.5, abs=0.06)
    assert related(down, down + 0.01 * right) > 0.9  # control
    assert (area / 1e6).min() < 0.1
    logs = shape[small].log()
    assert logs.mean().abs() < 0.03  # as often upright as across
    assert logs.max().item() == pytest.approx(torch.tensor(4 / 3).log().item(), abs=0.02)


def test_place_of_what_is_erased_is_drawn_apart(rng):
    before = torch.full((N, 64, 64, 1), 7, dtype=torch.uint8)
    erased = random_erasing(before, rng, part=1.0)[..., 0] != 7
    rows, columns = erased.any(2), erased.any(1)
    heights, widths = rows.sum(1), columns.sum(1)
    down, right = rows.float().argmax(1) / (65 - heights), columns.float().argmax(1) / (65 - widths)
    noise = torch.rand(N, generator=torch.Generator().manual_seed(0)) * 1e-3  # whole pixels are often equal
    assert related(down + noise, right + noise.flip(0)) < 0.35
    assert related((heights * widths) + noise, (heights / widths) + noise.flip(0)) < 0.5
