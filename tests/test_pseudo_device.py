"""The loop on a device that is not a CPU, and that any machine has: tests/pseudo_device.py.

The tests run in processes of their own, which have the device.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, Tiny, metrics, optimizer_for, result
from on_pseudo_device import begun, forked, there
from pseudo_device import MISSING
from tiny import tiny_images
from torch import nn
from training import MixesDevices, fit

from launch import Run, train
from launch.data.augment import crop_and_flip
from launch.errors import Refused
from launch.recipe import load
from launch.sources import synthetic
from launch.training.finite import POLL_STEPS
from nets.cifar2 import Net
from nets.residual import CifarResNet

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"building the device needs {', '.join(MISSING)}")
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "by_hand")  # which has a loop of its own
OPTIONS = {
    "custom": {"net": "Net", "mode": "scratch", "size": 32}, "model_selection": {"k": 2, "nets": ("LeNet5",)},
    "transfer": {"source_epochs": 1, "few": 8}, "zoo": {"net": "squeezenet1_1", "stem": "imagenet", "size": 64},
}  # fmt: skip
BROKEN = 10  # the step, from 1, whose loss or gradient is not finite


def recipes(place: Path) -> None:
    """Two steps of each training of each recipe."""
    synthetic.COUNTS.update(train=64, test=20)

    def few(run, model, images, optimizer, *args, **options):
        splits = {split: getattr(images, split).select(torch.arange(4)) for split in ("train", "test")}
        images = replace(images, **splits, size=min(images.size, 96))
        options |= {"epochs": 1, "batch": 2, "schedule": lambda _: 0.01, "plots": None}
        return train(run, model, images, optimizer, *args, **options)

    for name in RECIPES:
        module, options = load(ROOT / f"recipes/{name}.py"), OPTIONS.get(name, {})
        module.train = few
        run = Run(data="synthetic", out=place / name, wandb="disabled", threads=1, limit=64, log_every=1)
        run.start(name, options)
        module.main(run, **options)
        run.end()


def test_every_recipe_has_the_losses_of_a_cpu(tmp_path):
    """Two steps, and an evaluation, of each of its trainings."""
    lines = {}
    for device in ("pseudo", "cpu"):
        (tmp_path / device).mkdir()
        forked("test_pseudo_device.recipes", tmp_path / device, device)
        lines[device] = {
            str(file.parent.relative_to(tmp_path / device)): [(line["event"], line["loss"]) for line in metrics(file.parent)]
            for file in sorted((tmp_path / device).rglob("metrics.jsonl"))
        }
        assert {name.split("/")[0] for name in lines[device]} == {*RECIPES}
    for name, expected in lines["cpu"].items():
        first, second, *rest = [event for event, _ in expected]
        assert (first, second, {*rest}) == ("train", "train", {"eval"})
        assert [loss for _, loss in lines["pseudo"][name]] == pytest.approx([loss for _, loss in expected], rel=1e-4), name


def test_bf16_computes_in_bf16_and_keeps_float32(tmp_path):
    forked("test_pseudo_device.in_precision", tmp_path, ACCELERATE_MIXED_PRECISION="bf16")
    (tmp_path / "float32").mkdir()
    forked("test_pseudo_device.in_precision", tmp_path / "float32", ACCELERATE_MIXED_PRECISION="no")
    records = [metrics(place / "run") for place in (tmp_path, tmp_path / "float32")]
    loss, exact = (record[0]["loss"] for record in records)
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.02)


def in_precision(place: Path) -> None:
    model, seen = Tiny(), []
    # A single image is the probe that is recorded with the weights, in float32.
    model.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype) if len(output) > 1 else None)
    run = begun(place / "run")
    for net, classes in ((Net(), 2), (CifarResNet(8), 10)):
        for layer in (module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)):
            layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        logits = run.accelerator.prepare_model(net, evaluation_mode=True)(torch.zeros(4, 3, 32, 32, device="pseudo"))
        assert (logits.device.type, logits.shape, logits.dtype) == ("pseudo", (4, classes), torch.float32)
    fit(run, tiny_images(), model=model, epochs=1)
    expected = torch.bfloat16 if (name := run.config["precision"]) == "bf16" else torch.float32
    assert {*seen} == {expected}, (name, seen)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert result(place / "run")["precision"] == name


@there
def test_resume_is_exact(place):
    """A stop as after a SIGTERM, which is heard at the next poll or in the evaluation before it."""
    options = {"epochs": 5, "batch": 7, "augment": crop_and_flip}  # 9 steps an epoch
    for kind, stops in {"sgd": ((3, 9), (10, 17), (34, 36)), "adam": ((10, 17),)}.items():
        whole = fit(begun(place / f"whole-{kind}"), tiny_images(), kind, **options)
        assert {parameter.device.type for parameter in whole.parameters()} == {"pseudo"}
        for at, heard in stops:
            run = begun(place / f"{kind}-{at}")
            run.stop_when = lambda step, batch, at=at: step >= at
            with pytest.raises(Refused, match=f"stopped by SIGTERM at step {heard}"):
                fit(run, tiny_images(), kind, **options)
            fit(begun(run.folder), tiny_images(), kind, **options)
            assert metrics(run.folder) == metrics(place / f"whole-{kind}")
            assert result(run.folder)["weights_sha256"] == result(place / f"whole-{kind}")["weights_sha256"]


@there
def test_a_broken_loss_or_gradient_is_found_at_the_next_poll_and_never_applied(place):
    def loss(logits, labels):
        calls.append(1)
        value = F.cross_entropy(logits, labels)
        if len(calls) != BROKEN:
            return value
        before.extend(parameter.detach().clone() for parameter in model.parameters())
        return value * torch.nan if what == "loss" else value + (logits * 0).sum().sqrt()

    for what in ("loss", "gradient"):
        calls, before, model = [], [], Tiny()
        with pytest.raises(
            Refused, match=f"not finite at step {BROKEN}; the weights are those after step {BROKEN - 1}"
        ) as refused:
            train(begun(place / what), model, tiny_images(), optimizer_for(model), loss, epochs=1, batch=2)
        assert refused.value.code == 3
        assert len(calls) == POLL_STEPS + 1
        assert all(one.equal(other) for one, other in zip(model.parameters(), before, strict=True))


@there
def test_control_an_optimizer_that_is_not_fused_is_polled_at_every_step(place):
    def loss(logits, labels):
        calls.append(1)
        return F.cross_entropy(logits, labels) * (torch.nan if len(calls) == BROKEN else 1)

    calls, model = [], Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=False)
    with pytest.raises(Refused, match=f"not finite at step {BROKEN};"):
        train(begun(place / "run"), model, tiny_images(), optimizer, loss, epochs=1, batch=2)
    assert len(calls) == BROKEN


@there
def test_control_tensors_of_two_devices_do_not_mix(place):
    with pytest.raises(RuntimeError, match="to be on the same device"):
        fit(begun(place / "run"), tiny_images(), model=MixesDevices(), epochs=1)
