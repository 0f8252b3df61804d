"""Augmentation and mixing: each operation is torchvision's, each draw has the chances that its source says."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from training import Answers

from launch.data import augment_ops
from launch.data.augment import EpochRng, mirror, random_erasing
from launch.data.augment_ops import rand_augment, trivial_augment  # fmt: skip
from launch.data.mix import cutmix, either, mixed, mixup

N = 3000


@pytest.fixture
def rng():
    return EpochRng(seed=1, samples=N, device=torch.device("cpu")).of(torch.arange(N))


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (40, 20, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Scripted:
    """torch's random integers and floats as torchvision asks for them, from a list."""

    def __init__(self, monkeypatch, answers):
        answers = iter(answers)
        monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(next(answers)))
        monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.0 if next(answers) else 1.0))


SPACE = v2.TrivialAugmentWide._AUGMENTATION_SPACE


@pytest.mark.parametrize("name", augment_ops.NAMES)
@pytest.mark.parametrize("level", [0, 7, 30])
@pytest.mark.parametrize("negative", [0, 1])
def test_an_operation_is_torchvisions(name, level, negative, pixels, monkeypatch):
    """The operations equal TrivialAugmentWide's and RandAugment's."""
    number = augment_ops.NAMES.index(name)
    magnitudes, signed = list(SPACE.values())[number]
    plain = magnitudes(31, 20, 24) is None
    answers = [number, *([] if plain else [level]), *([negative] if signed else [])]

    rng = Answers(lambda kind, n: torch.full((40,), {len(SPACE): number, 31: level, 2: negative}[n]))
    ours = {"trivial": trivial_augment(pixels, rng), "rand": rand_augment(1, level)(pixels, rng)}
    Scripted(monkeypatch, answers)
    theirs = {"trivial": v2.TrivialAugmentWide()(pixels.permute(0, 3, 1, 2))}
    Scripted(monkeypatch, [number, *([negative] if signed else [])])
    theirs["rand"] = v2.RandAugment(1, level)(pixels.permute(0, 3, 1, 2))
    for kind, expected in theirs.items():
        assert torch.equal(ours[kind], expected.permute(0, 2, 3, 1)), kind


def test_each_image_has_an_operation_of_its_own(pixels, rng):
    """Each image is augmented as if it were a batch by itself."""
    some = pixels[torch.arange(N) % 40][:200]
    first = Answers(lambda kind, n: rng.integers(kind, n)[:200])
    whole = trivial_augment(some, first)
    for index in range(0, 200, 9):
        one = Answers(lambda kind, n, index=index: rng.integers(kind, n)[index : index + 1])
        assert torch.equal(trivial_augment(some[index : index + 1], one)[0], whole[index])
    assert len(first.integers(30, 14).unique()) == 14


def test_grey_images_are_augmented_too(rng):
    grey = torch.randint(0, 256, (N, 8, 8, 1), dtype=torch.uint8)
    for augment in (trivial_augment, rand_augment(2), random_erasing, mirror):
        assert augment(grey, rng).shape == grey.shape


def test_half_of_the_images_are_mirrored(rng):
    pixels = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1).expand(N, 1, 4, 1)
    mirrored = mirror(pixels, rng)[:, 0, 0, 0] == 3
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_a_quarter_of_the_images_has_a_rectangle_erased(rng):
    before = torch.full((N, 40, 30, 3), 7, dtype=torch.uint8)
    after = random_erasing(before, rng)
    erased = (after != before).any(-1)
    assert erased.flatten(1).any(1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    area = erased.flatten(1).float().mean(1)
    some = area[area > 0]
    assert some.min() > 0.01
    assert some.max() < 0.36
    assert some.mean().item() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    for index in (area > 0).nonzero().flatten()[:50].tolist():
        rows, columns = erased[index].any(1), erased[index].any(0)
        assert torch.equal(erased[index], rows[:, None] & columns)  # a rectangle
        top, left = rows.nonzero()[0].item(), columns.nonzero()[0].item()
        height, width, colour = int(rows.sum()), int(columns.sum()), torch.tensor([124, 116, 104], dtype=torch.uint8)
        expected = F.erase(before[index].permute(2, 0, 1), top, left, height, width, colour[:, None, None])
        assert torch.equal(after[index], expected.permute(1, 2, 0))


def test_mixup_is_the_papers(rng):
    images = torch.randn(N, 1, 2, 2)
    result, share = mixup(0.4)(images, images.roll(1, 0), rng)
    torch.testing.assert_close(result, share.view(-1, 1, 1, 1) * images + (1 - share.view(-1, 1, 1, 1)) * images.roll(1, 0))
    beta = torch.distributions.Beta(0.4, 0.4)
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.var().item() == pytest.approx(beta.variance.item(), rel=0.06)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_have_betas_distribution(alpha, rng):
    stats = pytest.importorskip("scipy.stats")
    _, share = mixup(alpha)(torch.zeros(N, 1, 1, 1), torch.zeros(N, 1, 1, 1), rng)
    assert stats.kstest(share.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert stats.kstest(share.numpy(), stats.beta(alpha * 1.5, alpha * 1.5).cdf).pvalue < 0.01  # control


def test_cutmix_is_the_papers(rng):
    ones, zeros = torch.ones(N, 1, 16, 12), torch.zeros(N, 1, 16, 12)
    result, share = cutmix()(ones, zeros, rng)
    torch.testing.assert_close(result.mean((1, 2, 3)), share)
    for image in result[:100, 0]:
        cut = image == 0
        assert torch.equal(cut, cut.any(1)[:, None] & cut.any(0))
    assert 0.5 < share.mean() < 0.75  # uniform, and what lies outside of the image is not cut


def test_either_takes_one_for_each_image(rng):
    images, others = torch.randn(N, 1, 4, 4), torch.randn(N, 1, 4, 4)
    one, two = mixup()(images, others, rng), cutmix()(images, others, rng)
    result, share = either(mixup(), cutmix())(images, others, rng)
    is_one = (result == one[0]).flatten(1).all(1) & (share == one[1])
    is_two = (result == two[0]).flatten(1).all(1) & (share == two[1])
    assert (is_one | is_two).all()
    assert is_one.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_labels_become_shares():
    images, labels = torch.randn(4, 1, 2, 2), torch.tensor([2, 0, 2, 2])

    def mix(images, others, rng):
        return images, torch.tensor([0.25, 0.5, 0.75])

    _, targets = mixed(mix, images, labels, Answers(lambda kind, n: torch.zeros(3)), classes=3)
    expected = torch.tensor([[0.25, 0, 0.75], [0.5, 0, 0.5], [0, 0, 1.0]])
    torch.testing.assert_close(targets, expected)
