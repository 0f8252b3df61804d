"""Muon and parameter groups against plain code of a few lines, step by step."""

import math

import pytest
import torch
from torch import nn

from launch.training.optimizers import Muon, groups, orthogonalised


def plain(weight, average, gradient, *, lr, momentum, steps, decay=0.0, normalised=False):
    """One step of Jordan's Muon with Nesterov momentum, on a weight of any shape: the new weight and momentum."""
    average = momentum * average + gradient
    if normalised:
        weight = weight * math.sqrt(weight.shape[0]) / weight.norm()
    update = (gradient + momentum * average).flatten(1)
    x = update / (update.norm() + 1e-12)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x * max(1.0, update.shape[0] / update.shape[1]) ** 0.5
    return weight * (1 - lr * decay) - lr * x.view_as(weight), average


def gradient(shape, number):
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 3, 3, 3), (40, 2, 3, 3)])
@pytest.mark.parametrize("options", [{}, {"normalised": True}, {"weight_decay": 0.1}, {"ns_steps": 3}, {"muon_momentum": 0.6}])
def test_steps_are_those_of_plain_code(shape, options):
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    weight = nn.Parameter(gradient(shape, 9).contiguous(memory_format=layout))
    expected, average = weight.detach().clone().contiguous(), torch.zeros(shape)
    optimizer = Muon([{"params": weight, "muon": True} | options], lr=0.1, momentum=0.9, nesterov=True)
    how = {"momentum": options.get("muon_momentum", 0.95), "steps": options.get("ns_steps", 5)}
    how |= {"decay": options.get("weight_decay", 0.0), "normalised": options.get("normalised", False)}
    for number in range(3):
        weight.grad = gradient(shape, number)
        optimizer.step()
        expected, average = plain(expected, average, gradient(shape, number), lr=0.1, **how)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-3, atol=1e-4)


def test_a_step_leaves_the_gradients_as_they_were():
    """Their norm is logged afterwards."""
    weight, bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(4))
    optimizer = Muon([{"params": weight, "muon": True}, {"params": bias}], lr=0.1)
    weight.grad, bias.grad = gradient((4, 5), 1), gradient((4,), 2)
    optimizer.step()
    assert torch.equal(weight.grad, gradient((4, 5), 1))
    assert torch.equal(bias.grad, gradient((4,), 2))


def test_a_gradient_of_zeros_moves_nothing_and_is_no_nan():
    """A filter behind a dead unit has such a gradient."""
    weight = nn.Parameter(torch.ones(3, 4))
    optimizer = Muon([{"params": weight, "muon": True}], lr=0.1)
    weight.grad = torch.zeros(3, 4)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3, 4))
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_a_weight_without_a_gradient_stays():
    """A parameter in a part that is locked, or that this step did not use."""
    used, unused = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    optimizer = Muon([{"params": [used, unused], "muon": True}], lr=0.1)
    used.grad = gradient((3, 4), 1)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(3, 4))
    assert not torch.equal(used.detach(), torch.ones(3, 4))


def named(net, found):
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(each)]: (group["lr"], group["weight_decay"]) for group in found for each in group["params"]}


class Twins(nn.Module):
    """Two layers, of which the name of one begins with that of the other; norms and a vector that is no bias."""

    def __init__(self):
        super().__init__()
        self.fc, self.fc2, self.norm = nn.Linear(4, 3), nn.Linear(3, 4), nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(3))


def test_groups_know_the_new_layer_by_its_whole_name():
    net = Twins()
    assert named(net, groups(net, 1.0, 0.1, others=0.1, last="fc")) == {
        "fc.weight": (1.0, 0.1), "fc.bias": (1.0, 0.0), "fc2.weight": (0.1, 0.1), "fc2.bias": (0.1, 0.0),
        "norm.weight": (0.1, 0.0), "norm.bias": (0.1, 0.0), "scale": (0.1, 0.0),
    }  # fmt: skip
    assert {lr for lr, _ in named(net, groups(net, 1.0, 0.1)).values()} == {1.0}


def test_groups_leave_out_what_is_locked():
    net = Twins()
    net.fc2.requires_grad_(False)
    assert named(net, groups(net, 1.0, 0.1)).keys() == {"fc.weight", "fc.bias", "norm.weight", "norm.bias", "scale"}
