"""zoo.py and transfer.py: which weights a net starts from, which are locked, and which learn at which rate."""

import pytest
import torch
from conftest import ROOT, result
from recipe_calls import CIFAR, FALLING, FASHION, IMAGENET, check, first_weights, same, sgd
from recipe_calls import given as given
from recipe_calls import one_run as one_run
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

from launch import sources
from launch.data.augment import crop_and_flip
from launch.errors import Refused
from launch.recipe import load
from launch.weights.tensors import weights_sha256
from nets.residual import CifarResNet
from nets.zoo import zoo


def test_zoo(given):
    (call,) = given("zoo")
    settings = {"epochs": 10, "batch": 128, "rates": FALLING, "optimizer": sgd(0.05, 0.9, 5e-4)}
    check(call, net="ResNet", parameters=11_173_962, images=64, classes=sources.CIFAR10_CLASSES, **settings, **CIFAR)
    assert same(call.before, first_weights(1, lambda: zoo("resnet18", stem="small")))
    (call,) = given("zoo", net="squeezenet1_1", dataset="fashion_mnist", stem="imagenet", size=20)
    check(call, net="SqueezeNet", size=20, classes=sources.FASHION_CLASSES, **settings, **FASHION)
    assert call.before["features.0.weight"].shape[1] == 1


@pytest.mark.parametrize("dataset", ["cifar10", "fashion_mnist"])
def test_pretrained_zoo(dataset, given, monkeypatch, tmp_path):
    """torchvision's weights want torchvision's scale; a grey kernel is the sum over R, G and B."""
    torch.manual_seed(3)
    state = resnet18().state_dict()
    torch.save(state, tmp_path / "published.pt")
    module = load(ROOT / "recipes/zoo.py")
    monkeypatch.setattr(module, "weights_url", {"resnet18": str(tmp_path / "published.pt")}.get)
    (call,) = given("zoo", module=module, dataset=dataset, stem="imagenet", pretrained=True, size=32)
    grey = {"mean": (pytest.approx(0.449),), "std": (pytest.approx(0.226),)}
    check(call, net="ResNet", images=64, size=32, **(IMAGENET if dataset == "cifar10" else grey), rates=FALLING)
    first = state["conv1.weight"] if dataset == "cifar10" else state["conv1.weight"].sum(1, keepdim=True)
    assert call.before["conv1.weight"].equal(first)
    assert call.before["layer4.1.conv2.weight"].equal(state["layer4.1.conv2.weight"])


def test_zoo_refuses_what_a_net_cannot_take(start):
    main = load(ROOT / "recipes/zoo.py").main
    too_small, no_stem = {"net": "alexnet", "stem": "imagenet"}, {"net": "squeezenet1_1"}
    for options, why in ((too_small, "63×63.*use --size N to resize"), (no_stem, "stem='small' is for resnet.*--stem imagenet")):
        with pytest.raises(Refused, match=why) as refused:
            main(start(limit=8), **options)
        assert refused.value.code == 2


BODY = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.")
TASK_A = ("automobile", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TASK_B = {"classes": ("airplane", "bird"), "images": 500, "augment": crop_and_flip, "batch": 50, **CIFAR}
SOURCE = {"classes": TASK_A, "images": 64, "augment": crop_and_flip, "batch": 128, "rates": FALLING}
LEARN = sgd(0.05, 0.9, 1e-4)


def begins_with_source(call, folder) -> bool:
    """All but the last layer is the source's, which is not what it began with."""
    source = load_file(folder / "source/model.safetensors")
    return all(tensor.equal(source[name]) for name, tensor in call.before.items() if not name.startswith("linear."))


def learn_only_their_own(call) -> bool:
    """The locked do not learn, and the optimizer has what does."""
    return call.learning == call.optimised


@pytest.mark.parametrize("mode", ["scratch", "finetune", "frozen", "gradual"])
def test_transfer(mode, given, tmp_path):
    """Few images of task B, after all of task A where nothing else is said; what is locked, and what learns at which rate."""
    calls = given("transfer", mode=mode, limit=64)
    *sources_, first = calls[: 1 if mode == "scratch" else 2]
    for call in sources_:
        check(call, parameters=269_722 - 2 * 65, epochs=10, stage="source", optimizer=sgd(0.1, 0.9, 1e-4), **SOURCE)
        assert len(call.learning) == len(call.before) - 3 * 19  # all but statistics
    assert all(map(learn_only_their_own, calls))
    epochs, stage = (10, "frozen") if mode == "gradual" else (20, mode)
    check(first, parameters=269_202, epochs=epochs, stage=stage, optimizer=LEARN, **TASK_B)
    fresh = first_weights(1, lambda: CifarResNet(20, num_classes=2))
    assert same(first.before, fresh) == (mode == "scratch")
    assert first.before["linear.weight"].equal(fresh["linear.weight"])  # of a layer for other classes
    assert mode == "scratch" or begins_with_source(first, tmp_path / "run")
    head = {"linear.weight", "linear.bias"}
    assert first.learning == (head if mode in ("frozen", "gradual") else {name for name, _ in first.model.named_parameters()})
    if mode == "gradual":
        second = calls[2]
        check(second, parameters=269_202, epochs=10, stage="unlocked", optimizer=LEARN + sgd(0.005, 0.9, 1e-4), **TASK_B)
        last = {name for name in second.before if name.startswith("layer3.2.") and name.endswith(("weight", "bias"))}
        assert second.learning == head | last
        assert [id(p) for p in second.optimizer.param_groups[0]["params"]] == [id(p) for p in first.model.linear.parameters()]
    assert len(calls) == {"scratch": 1, "gradual": 3}.get(mode, 2)
    whole = result(tmp_path / "run")
    learning = sum(parameter.numel() for name, parameter in calls[-1].model.named_parameters() if name in calls[-1].learning)
    accuracy = result(tmp_path / "run" / calls[-1].stage)["test"]["accuracy"]
    assert whole["summary"] == f"{mode}: test accuracy {accuracy:.4f} from 500 images, {learning:,} trainable parameters"
    assert [stage["trainable"] for stage in whole["stages"]] == [
        sum(calls[0].model.get_parameter(name).numel() for name in call.learning if "linear" not in name)
        + sum(call.model.get_parameter(name).numel() for name in call.learning if "linear" in name)
        for call in calls[len(sources_) :]
    ]


def test_transfer_from_a_source_that_is_there(given, tmp_path):
    """A file of weights takes task A's place; `few`, `unlocked_lr`, `size` and an odd number of epochs are as said."""
    state = first_weights(5, lambda: CifarResNet(20, num_classes=8))
    save_file(state, tmp_path / "source.safetensors")
    options = {"few": 100, "unlocked_lr": 0.125, "size": 24, "epochs": 5, "batch": 7, "lr": 0.25}
    first, second = given("transfer", mode="gradual", source=str(tmp_path / "source.safetensors"), **options)
    said = TASK_B | {"images": 100, "batch": 7, "size": 24}
    check(first, epochs=2, stage="frozen", optimizer=sgd(0.25, 0.9, 1e-4), **said)
    check(second, epochs=3, stage="unlocked", optimizer=sgd(0.25, 0.9, 1e-4) + sgd(0.125, 0.9, 1e-4), **said)
    assert all(tensor.equal(state[name]) for name, tensor in first.before.items() if name.startswith(BODY))


@pytest.mark.parametrize("mode", ["frozen", "scratch"])
def test_transfer_from_torchvision(mode, given, monkeypatch, tmp_path):
    """MyNetPretrained's images are ImageNet's in size and scale; its locked half is torchvision's, but from scratch."""
    torch.manual_seed(3)
    state = resnet18().state_dict()
    torch.save(state, tmp_path / "published.pt")
    module = load(ROOT / "recipes/transfer.py")
    monkeypatch.setattr(module, "weights_url", {"resnet18": str(tmp_path / "published.pt")}.get)
    (call,) = given("transfer", module=module, net="MyNetPretrained", mode=mode)
    scale = IMAGENET | {"size": 224}
    check(call, parameters=11_177_538, stage=mode, epochs=20, optimizer=LEARN, **TASK_B | scale)
    assert call.before["pretrained.0.weight"].equal(state["conv1.weight"]) == (mode != "scratch")
    locked = {name for name in call.before if name.startswith("pretrained.")} if mode == "frozen" else set()
    assert call.learning == {name for name, _ in call.model.named_parameters()} - locked
    assert learn_only_their_own(call)


def test_a_shallower_resnet_is_no_source(start, tmp_path):
    """All that it has fits, and blocks of the net would begin at random."""
    save_file(first_weights(5, lambda: CifarResNet(14)), tmp_path / "source.safetensors")
    with pytest.raises(Refused, match=r"not a ResNet-20: it lacks layer1\.2"):
        load(ROOT / "recipes/transfer.py").main(start(), few=8, epochs=1, source=str(tmp_path / "source.safetensors"))


def test_locked_tensors_are_told(given, capsys, tmp_path):
    """Their digest is over parameters without gradient and the statistics beside them: all but the last layer's."""
    given("transfer", mode="frozen")
    trained = load_file(tmp_path / "run/frozen/model.safetensors")
    digest = weights_sha256({name: tensor for name, tensor in trained.items() if not name.startswith("linear.")})
    assert result(tmp_path / "run")["locked_sha256"] == digest
    assert f"locked tensors unchanged, sha256 {digest[:16]}" in capsys.readouterr().out


@pytest.mark.parametrize(("mode", "epochs"), [("frozen", 0), ("gradual", 1)])
def test_transfer_needs_an_epoch_for_each_training(mode, epochs, start):
    with pytest.raises(Refused, match="at least 1, and at least 2 for --mode gradual") as refused:
        load(ROOT / "recipes/transfer.py").main(start(), mode=mode, epochs=epochs)
    assert refused.value.code == 2
