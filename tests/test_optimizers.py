"""Muon, parameter groups and schedules are the field's: compared with torch's own where it has them."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from training import TwoConvolutions

from launch.training.optimizers import Muon, groups, orthogonalised
from launch.training.schedules import cosine, linear, one_cycle, step, warm_up


def gradients(weights, number):
    generator = torch.Generator().manual_seed(number)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
def test_muon_is_torchs_on_matrices(shape):
    """Which orthogonalises in bf16."""
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    mine = Muon([{"params": [ours], "muon": True}], lr=0.1, muon_momentum=0.9, weight_decay=0.1)
    torchs = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.1)
    for number in range(5):
        for weight, optimizer in ((ours, mine), (theirs, torchs)):
            gradients([weight], number)
            optimizer.step()
    moved = (theirs - 1).norm()
    assert (ours - theirs).norm() < 0.02 * moved
    torchs.param_groups[0]["momentum"] = 0.0  # control
    gradients([theirs], 5)
    torchs.step()
    gradients([ours], 5)
    mine.step()
    assert (ours - theirs).norm() > 0.02 * moved


def test_singular_values_of_a_muon_step_are_near_one():
    values = torch.linalg.svdvals(orthogonalised(torch.randn(20, 90, generator=torch.Generator().manual_seed(1))))
    assert 0.6 < values.min() < values.max() < 1.3


def test_muon_does_to_the_other_groups_what_sgd_does():
    torch.manual_seed(0)
    nets = [TwoConvolutions() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    muon = Muon([{"params": nets[0].conv2.weight, "muon": True}, {"params": nets[0].fc.parameters(), "lr": 0.5}], 0.1, **options)
    sgd = torch.optim.SGD(nets[1].fc.parameters(), 0.5, **options)
    for number in range(3):
        for net, optimizer in zip(nets, (muon, sgd), strict=True):
            gradients([net.fc.weight, net.fc.bias, net.conv2.weight], number)
            optimizer.step()
    assert torch.equal(nets[0].fc.weight, nets[1].fc.weight)
    assert not torch.equal(nets[0].conv2.weight, nets[1].conv2.weight)
    gradient = nets[0].conv2.weight.grad
    gradients([nets[1].conv2.weight], 2)
    assert gradient is not None
    assert gradient.shape == (4, 4, 3, 3)


def test_normalised_weights_have_rows_of_norm_one():
    weight = nn.Parameter(torch.randn(8, 3, 3, 3))
    optimizer = Muon([{"params": weight, "muon": True, "normalised": True}], lr=0.0)
    gradients([weight], 0)
    optimizer.step()
    assert weight.flatten(1).norm(dim=1).square().mean().item() == pytest.approx(1)


def test_norms_and_biases_have_no_decay_and_trained_layers_a_smaller_rate():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    net[1].bias.requires_grad_(False)
    found = {}
    for group in groups(net, 0.5, 0.1, others=0.1, last="3"):
        for name, parameter in net.named_parameters():
            if any(parameter is each for each in group["params"]):
                found[name] = group["lr"], group["weight_decay"]
    assert found == {
        "0.weight": (0.05, 0.1), "0.bias": (0.05, 0.0), "1.weight": (0.05, 0.0), "3.weight": (0.5, 0.1), "3.bias": (0.5, 0.0),
    }  # fmt: skip
    assert {group["lr"] for group in groups(net, 0.5, 0.1)} == {0.5}


EPOCHS, STEPS = 6, 10


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (linear(EPOCHS, end=0.1), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, EPOCHS * STEPS)),
        (cosine(EPOCHS), lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS)),
        (cosine(EPOCHS, end=0.2), lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS, eta_min=0.2)),
        (step(2), lambda o: lr_scheduler.StepLR(o, 2 * STEPS)),
        (
            one_cycle(EPOCHS),  # torch counts steps, from 1
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, EPOCHS * STEPS + 1, pct_start=19 / 61, cycle_momentum=False),
        ),
        (
            warm_up(1, cosine(5), start=0.1),
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.LinearLR(o, 0.1, 1.0, STEPS), lr_scheduler.CosineAnnealingLR(o, 5 * STEPS)], [STEPS]
            ),
        ),
    ],
    ids=["linear", "cosine", "cosine to 0.2", "step", "one cycle", "warm-up"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # that torch's chained schedulers are stepped in their own way
def test_schedules_are_torchs(ours, theirs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = theirs(optimizer)
    for number in range(EPOCHS * STEPS):
        assert ours(number / STEPS) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6), number
        optimizer.step()
        scheduler.step()
