"""A loss, gradient or weight that is not finite ends the run before it is applied or saved, and is named."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import optimizer_for
from training import Linear, batch_of, fit, step_of

from launch import train
from launch.errors import Refused
from launch.training import checkpoint
from launch.training.step import Step
from launch.weights.tensors import weights


@pytest.mark.parametrize("fused", [True, False])
def test_broken_loss_stops_before_the_update(fused, start, images, tmp_path):
    calls, before = [], {}
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)

    def loss(logits, labels):
        calls.append(1)
        if len(calls) == 12:
            before.update({name: tensor.detach().clone() for name, tensor in weights(model).items()})
        return F.cross_entropy(logits, labels) * (float("nan") if len(calls) == 12 else 1)

    with pytest.raises(Refused, match="not finite at step 12") as refused:
        train(start(), model, images, optimizer, loss, epochs=2, batch=8)
    assert refused.value.code == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    found, _ = checkpoint.latest(tmp_path / "run/checkpoints")
    assert found["state"]["step"] == 8
    assert not (tmp_path / "run/result.json").exists()


def test_fused_optimizer_skips_a_broken_update_on_the_device(start, images):
    """On a GPU, the host looks at every 16th step only: the weights stay those before the first broken step."""
    model = Linear()
    step = step_of(start(), model, images)
    step.finite.poll = 4
    step(batch_of(step, torch.arange(8), 1), False)
    before = model.fc.weight.detach().clone()
    step.loss = lambda logits, labels: F.cross_entropy(logits, labels) * float("inf")
    step(batch_of(step, torch.arange(8), 2), False)
    step.loss = F.cross_entropy
    step(batch_of(step, torch.arange(8), 3), False)  # broken stays broken
    with pytest.raises(Refused, match="not finite at step 3;"):
        step(batch_of(step, torch.arange(8), 4), False)
    assert torch.equal(model.fc.weight, before)


def test_broken_loss_between_polls_is_neither_saved_nor_finished(start, images, tmp_path, monkeypatch):
    """On a GPU: the loss breaks in step 3 of 8, and the host would look at step 16."""
    original = Step.__init__

    def seldom(self, *args, **options):
        original(self, *args, **options)
        self.finite.poll = 16

    monkeypatch.setattr(Step, "__init__", seldom)
    calls = []

    def loss(logits, labels):
        calls.append(1)
        return F.cross_entropy(logits, labels) * (float("nan") if len(calls) == 3 else 1)

    model = Linear()
    with pytest.raises(Refused, match="not finite at step 3;"):
        train(start(save_every=5), model, images, optimizer_for(model), loss, epochs=1, batch=8)
    assert not (tmp_path / "run/checkpoints").exists()
    assert not (tmp_path / "run/result.json").exists()


def test_broken_gradient_under_a_finite_loss_is_not_applied(start, images, tmp_path):
    model, before = Linear(), {}
    calls = itertools.count(1)

    def broken(gradient):
        if next(calls) != 5:
            return gradient
        before.update({name: tensor.detach().clone() for name, tensor in weights(model).items()})
        return gradient * float("inf")

    model.fc.weight.register_hook(broken)
    with pytest.raises(Refused, match=r"the gradient of fc\.weight is not finite at step 5; .* those after step 4") as refused:
        fit(start(save_every=1), images, model=model)
    assert refused.value.code == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    found, _ = checkpoint.latest(tmp_path / "run/checkpoints")
    assert found["state"]["step"] == 4
    assert not (tmp_path / "run/best.safetensors").exists()


def test_broken_weights_are_not_saved(start, images, tmp_path):
    """Loss and gradients are finite, the update of step 7 overflows: only the next loss would tell."""
    model = Linear()
    options = {"epochs": 1, "batch": 8, "schedule": lambda epoch: 1e42 if epoch == 6 / 8 else 1}
    with pytest.raises(Refused, match=r"fc\.\w+ is not finite after step 7, and was not saved") as refused:
        train(start(save_every=7), model, images, optimizer_for(model), **options)
    assert refused.value.code == 3
    assert not list(tmp_path.rglob("step-*"))
