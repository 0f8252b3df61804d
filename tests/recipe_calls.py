"""Arguments that a recipe gives to `train`, call by call: the fixture `given`, and a call compared with its source."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from launch import Run, train
from launch.data.dataset import Split
from launch.recipe import load
from launch.weights.tensors import weights

CIFAR = {"mean": (0.4915, 0.4823, 0.4468), "std": (0.2470, 0.2435, 0.2616)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
AS_THEY_ARE = {"mean": (0.0,), "std": (1.0,)}
MNIST = {"mean": (0.1307,), "std": (0.3081,)}
FASHION = {"mean": (0.2860,), "std": (0.3530,)}
PLAIN = {"shuffle": True, "augment": (), "measured_in": "eval", "rates": None, "stage": "", "size": 0}  # if nothing is said
MOMENTS = (0, 0.249, 0.25, 0.499, 0.5, 0.749, 0.75, 0.999)  # of a training, where its rate is looked at
FALLING = [1 - moment for moment in MOMENTS]


STAGED = ("cifar10_fast", "depth", "transfer", "model_selection")


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """For the recipes of one training, which here do not come to take a run folder: half a second less for each."""
    run = Run(data="synthetic", out=tmp_path_factory.mktemp("one") / "run", wandb="disabled", threads=1)
    run.start("test", {})
    yield run
    run.end()


@pytest.fixture
def given(start, one_run, monkeypatch):
    """given(recipe, **options) -> its calls of `train`.

    A recipe of one training does nothing after it, so that nothing is trained. One of several goes on with what comes out: it
    trains for real, one epoch on 4 small images, at a rate at which nothing can burst.
    """

    def given(name, limit=64, module=None, **options):
        module, calls = module or load(ROOT / f"recipes/{name}.py"), []

        def recorded(*args, **more):
            asked = inspect.signature(train).bind(*args, **more)
            asked.apply_defaults()
            calls.append(call := SimpleNamespace(**asked.arguments))
            call.groups = [dict(group) for group in call.optimizer.param_groups]
            call.before = {name: tensor.detach().clone() for name, tensor in weights(call.model).items()}
            call.learning = {name for name, parameter in call.model.named_parameters() if parameter.requires_grad}
            optimised = {id(parameter) for group in call.groups for parameter in group["params"]}
            call.optimised = {name for name, parameter in call.model.named_parameters() if id(parameter) in optimised}
            if name not in STAGED:
                return None
            few = {split: Split(*(part[:4] for part in getattr(call.images, split))) for split in ("train", "test")}
            images = replace(call.images, **few, size=32 if call.images.size else 0)
            return train(**asked.arguments | {"images": images, "epochs": 1, "schedule": lambda _: 0.01})

        monkeypatch.setattr(module, "train", recorded)
        run = start(limit=limit) if name in STAGED else replace(one_run, limit=limit)
        run.accelerator, run.micro_batches = run.accelerator or one_run.accelerator, 1
        torch.manual_seed(run.seed)
        module.main(run, **options)
        return calls

    return given


def facts(call, optimizer: bool = True) -> dict:
    """The arguments that the sources have numbers for; those of an optimizer of theirs only."""
    images, rates = call.images, call.schedule and [call.schedule(moment * call.epochs) for moment in MOMENTS]
    return {
        "net": type(call.model).__name__,
        "parameters": sum(p.numel() for p in call.model.parameters()),
        "images": len(images.train),
        "classes": images.classes,
        "mean": images.mean,
        "std": images.std,
        "size": images.size,
        "epochs": call.epochs,
        "batch": call.batch,
        "shuffle": call.shuffle,
        "augment": call.augment,
        "measured_in": call.measured_in,
        "rates": rates and pytest.approx(rates),
        "stage": call.stage,
        "optimizer": [optimizer_of(call.optimizer, group) for group in call.groups] if optimizer else None,
    }


def optimizer_of(optimizer, group) -> tuple:
    if isinstance(optimizer, torch.optim.Adam):
        return "Adam", group["lr"], group["betas"], group["weight_decay"]
    assert type(optimizer) is torch.optim.SGD
    assert group["dampening"] == 0
    return "SGD", group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]


def sgd(lr, momentum=0, weight_decay=0, nesterov=False) -> list[tuple]:
    return [("SGD", lr, momentum, weight_decay, nesterov)]


def check(call, **expected) -> None:
    """The call's facts are the expected ones, and every parameter that learns is the optimizer's."""
    found, expected = facts(call), PLAIN | expected
    assert {name: found[name] for name in expected} == expected
    assert call.optimised >= call.learning


def flags(call) -> list[tuple]:
    """Shortcut and pre-activation of each block of a ResNet."""
    blocks = (block for stage in (call.model.layer1, call.model.layer2, call.model.layer3) for block in stage)
    return sorted({(block.has_shortcut, block.preact) for block in blocks})


def first_weights(seed, build) -> dict:
    torch.manual_seed(seed)
    return weights(build())


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())
