"""cifar10.py and depth.py train as the ResNet and DenseNet papers say, and measure published weights as they are."""

import json
from dataclasses import replace

import pytest
from conftest import ROOT, result
from recipe_calls import CIFAR, IMAGENET, check, first_weights, flags, same, sgd
from recipe_calls import given as given
from recipe_calls import one_run as one_run
from safetensors.torch import save_file

from launch import evaluate, sources
from launch.data.augment import crop_and_flip
from launch.errors import Refused
from launch.recipe import load
from launch.weights.tensors import weights_sha256, write_tensors
from nets.residual import CifarResNet, DenseNetBC

STEPS = [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]  # a tenth at 1/2, a hundredth at 3/4
ALL_OF_CIFAR = {"images": 64, "classes": sources.CIFAR10_CLASSES, "augment": crop_and_flip, **CIFAR}
PAPER = ALL_OF_CIFAR | {"epochs": 164, "batch": 128, "rates": STEPS, "optimizer": sgd(0.1, 0.9, 1e-4)}


@pytest.mark.parametrize(("net", "kind"), [("ResNet", (True, False)), ("Plain", (False, False)), ("PreActResNet", (True, True))])
def test_the_papers_settings(net, kind, given):
    (call,) = given("cifar10", net=net, depth=8)
    check(call, net="CifarResNet", **PAPER)
    assert flags(call) == [kind]


def test_resnet_20_is_the_default(given):
    (call,) = given("cifar10")
    check(call, net="CifarResNet", parameters=269_722, **PAPER)
    assert flags(call) == [(True, False)]
    assert same(call.before, first_weights(1, CifarResNet))


def test_110_layers_are_warmed_up(given):
    """One epoch at a tenth of the rate: the paper's, for 110 layers only."""
    schedule = given("cifar10", depth=110)[0].schedule
    assert [schedule(epoch) for epoch in (0, 0.99, 1, 81, 82, 123)] == pytest.approx([0.1, 0.1, 1, 1, 0.1, 0.01])
    schedule = given("cifar10", depth=104)[0].schedule
    assert schedule(0) == 1


def test_densenet_takes_nesterovs_momentum(given):
    (call,) = given("cifar10", net="DenseNetBC", depth=10)
    check(call, net="DenseNetBC", **PAPER | {"optimizer": sgd(0.1, 0.9, 1e-4, nesterov=True)})
    (call,) = given("cifar10", net="DenseNetBC", depth=10, momentum=0.0)
    assert not call.groups[0]["nesterov"]  # torch has none without momentum
    assert same(call.before, first_weights(1, lambda: DenseNetBC(10)))


def test_weights_for_other_classes_are_not_measured(start, tmp_path):
    state = first_weights(5, lambda: CifarResNet(20))
    about = {"classes": [f"class {number}" for number in range(10)], "weights_sha256": weights_sha256(state)}
    write_tensors(tmp_path / "w.safetensors", state, {"oneloop": json.dumps(about)})
    with pytest.raises(Refused, match="--weights tell other classes apart: class 0, class 1") as refused:
        load(ROOT / "recipes/cifar10.py").main(start(limit=64), weights=str(tmp_path / "w.safetensors"), epochs=0)
    assert refused.value.code == 4


def test_published_weights_are_begun_with_or_measured(given, start, tmp_path):
    weights_file = tmp_path / "resnet.safetensors"
    state = first_weights(5, lambda: CifarResNet(8))
    save_file(state, weights_file)
    (call,) = given("cifar10", depth=8, weights=str(weights_file), imagenet_scale=True, weight_decay=0.5)
    check(call, net="CifarResNet", **PAPER | IMAGENET | {"optimizer": sgd(0.1, 0.9, 0.5)})
    assert same(call.before, state)
    options = {"net": "ResNet", "depth": 8}
    run = start(out="measured", options=options, limit=64)
    given_none = load(ROOT / "recipes/cifar10.py")
    given_none.main(run, weights=str(weights_file), imagenet_scale=True, epochs=0, **options)
    net = CifarResNet(8)
    net.load_state_dict(state)
    images = replace(sources.cifar10("synthetic", limit=64), **IMAGENET)
    measured = result(tmp_path / "measured")
    assert measured["test"] == evaluate(run, net, images)
    assert measured["test"]["count"] == 500
    assert measured["summary"].startswith(f"ResNet-8 as it is: test accuracy {measured['test']['accuracy']:.4f}")
    assert not list((tmp_path / "measured").glob("*.safetensors"))


def test_weights_keep_the_scale_of_cifar(given, tmp_path):
    """A run's own weights were trained on CIFAR's: ImageNet's must be asked for."""
    save_file(first_weights(5, lambda: CifarResNet(8)), tmp_path / "own.safetensors")
    (call,) = given("cifar10", depth=8, weights=str(tmp_path / "own.safetensors"))
    check(call, net="CifarResNet", **PAPER)


def test_depth_of_no_resnet_is_refused(start):
    with pytest.raises(Refused, match="--depth: depth must be 6 n") as refused:
        load(ROOT / "recipes/cifar10.py").main(start(limit=8), depth=21)
    assert refused.value.code == 2


def test_degradation(given, monkeypatch, tmp_path):
    """Plain and residual nets of 20 and 56 layers in turn, from the same seed; their training losses in one image."""
    module = load(ROOT / "recipes/depth.py")
    drawn, real = [], module.curves
    monkeypatch.setattr(module, "curves", lambda *args: drawn.append(args) or real(*args))
    calls = given("depth", module=module)
    names = ["plain-20", "plain-56", "residual-20", "residual-56"]
    assert [call.stage for call in calls] == names
    for call, count in zip(calls, (269_722, 853_018) * 2, strict=True):
        rates = [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]
        optimizer = sgd(0.1, 0.9, 1e-4)
        check(call, parameters=count, stage=call.stage, rates=rates, epochs=30, batch=128, optimizer=optimizer, **ALL_OF_CIFAR)
        assert flags(call) == [(call.stage.startswith("residual"), False)]
        assert same(call.before, first_weights(1, lambda depth=int(call.stage[-2:]): CifarResNet(depth)))
    trained = {name: json.loads((tmp_path / "run" / name / "result.json").read_text()) for name in names}
    whole = result(tmp_path / "run")
    assert whole["stages"] == trained
    accuracies = ", ".join(f"{name} {stage['test']['accuracy']:.4f}" for name, stage in trained.items())
    assert whole["summary"] == f"test accuracy: {accuracies}"
    ((path, losses, what),) = drawn
    assert (path, what) == (tmp_path / "run/depth.png", "training loss")
    lines = {name: (tmp_path / "run" / name / "metrics.jsonl").read_text().splitlines() for name in names}
    first = {name: next(line["loss"] for line in map(json.loads, lines[name]) if line["event"] == "train") for name in names}
    assert losses == {name: [[first[name]]] for name in names}
