"""cifar10_fast.py trains as airbench94 says: its net, whitening, augmentations, rates, and the six views of an image."""

import pytest
import torch
import torch.nn.functional as F
from recipe_calls import CIFAR
from recipe_calls import facts as facts_of
from recipe_calls import given as given
from recipe_calls import one_run as one_run

from launch import sources
from launch.data.augment import EpochRng, alternating_flip, translate
from nets.fast import FastNet, SixViews


def rng_of(samples, epoch=0):
    made = EpochRng(seed=1, samples=samples, device=torch.device("cpu"))
    made.begin(epoch)
    return made.of(torch.arange(samples))


def test_net_has_the_papers_parameters_and_the_whitening_is_frozen():
    net = FastNet()
    assert sum(p.numel() for p in net.parameters()) == 1_972_792
    logits = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    frozen = {name for name, p in net.named_parameters() if p.grad is None}
    assert frozen == {"whitening.weight", *(f"groups.{group}.norm{number}.weight" for group in range(3) for number in (1, 2))}


def test_convolutions_begin_by_handing_on_their_channels():
    net, x = FastNet(), torch.randn(1, 64, 8, 8)
    torch.testing.assert_close(net.groups[1].conv1(x)[:, :64], x)


def test_whitened_patches_are_uncorrelated():
    torch.manual_seed(0)
    images, net = 10 * F.avg_pool2d(torch.randn(50, 3, 36, 36), 3, stride=1), FastNet()
    images[:, 1] += images[:, 0]
    net.whiten(images)
    outputs = net.whitening(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(outputs[:12] @ outputs[:12].T / outputs.shape[1], torch.eye(12), atol=0.02, rtol=0)
    torch.testing.assert_close(outputs[12:], -outputs[:12])
    before = torch.nn.functional.unfold(images, 2).transpose(0, 1).flatten(1)
    assert (torch.corrcoef(before) - torch.eye(12)).abs().max() > 0.3  # control


def test_six_views_are_those_of_the_paper():
    net, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5)), torch.randn(2, 3, 8, 8)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    views = [x, padded[..., :8, :8], padded[..., 2:, 2:]]
    expected = sum(weight * (net(view) + net(view.flip(-1))) for weight, view in zip((0.25, 0.125, 0.125), views, strict=True))
    torch.testing.assert_close(SixViews(net)(x), expected)


def test_translation_moves_by_two_at_most_and_reflects():
    pixels = torch.randint(0, 256, (500, 7, 9, 3), dtype=torch.uint8)
    rng = rng_of(500)
    moved = translate(pixels, rng)
    padded = F.pad(pixels.permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="reflect").permute(0, 2, 3, 1).to(torch.uint8)
    for index, (down, right) in enumerate(zip(rng.integers(3, 5).tolist(), rng.integers(4, 5).tolist(), strict=True)):
        assert torch.equal(moved[index], padded[index, down : down + 7, right : right + 9])
    assert len({*zip(rng.integers(3, 5).tolist(), rng.integers(4, 5).tolist(), strict=True)}) == 25


def test_an_image_is_mirrored_every_other_epoch():
    pixels = torch.arange(2000 * 4).remainder(251).to(torch.uint8).view(2000, 1, 4, 1)
    first, second, third = (alternating_flip(pixels, rng_of(2000, epoch)) for epoch in (0, 1, 2))
    assert torch.equal(first, third)
    assert torch.equal(first.flip(2), second)
    as_it_is = (first == pixels).flatten(1).all(1)
    assert as_it_is.float().mean().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.usefixtures("few_synthetic")
def test_settings_are_those_of_airbenchs_muon(given):
    (call,) = given("cifar10_fast")
    found = facts_of(call, optimizer=False)
    assert found["images"] == 64
    assert (found["classes"], found["mean"], found["std"]) == (sources.CIFAR10_CLASSES, CIFAR["mean"], CIFAR["std"])
    assert (call.epochs, call.batch, call.stage, call.loss.keywords) == (9, 2000, "trained", {"label_smoothing": 0.2})
    assert call.augment == [alternating_flip, translate]
    filters, biases, head = call.groups
    assert (filters["muon"], filters["normalised"], filters["lr"]) == (True, True, 0.24)
    assert (filters["muon_momentum"], filters["ns_steps"], filters["momentum"]) == (0.6, 3, 0)
    assert [len(group["params"]) for group in call.groups] == [6, 7, 1]
    # airbench sums a batch's losses where ours are means.
    for group, rate in ((biases, 0.053 * 2000), (head, 0.67 * 2000)):
        assert group["lr"] == pytest.approx(rate)
        assert group["lr"] * group["weight_decay"] == pytest.approx(2e-6 * 2000)
        assert (group["momentum"], group["nesterov"], group["muon"]) == (0.85, True, False)
    assert call.optimised == call.learning
    assert [call.schedule(part * call.epochs) for part in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


@pytest.mark.usefixtures("few_synthetic")
def test_decay_of_an_image_does_not_depend_on_the_batch(given):
    (call,) = given("cifar10_fast", batch=500)
    assert call.groups[1]["lr"] * call.groups[1]["weight_decay"] == pytest.approx(2e-6 * 500)
