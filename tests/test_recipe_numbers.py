"""A recipe's numbers and order are its content: what each one gives to `train`, call by call, against its documents."""

import functools
import inspect
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, result
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

from launch import Run, evaluate, sources, train
from launch.checkpoint import weights, weights_sha256
from launch.data import Split, crop_and_flip, slice_seed
from launch.errors import Refused
from launch.rebuild import load
from nets.mnist import LeNet5, MnistNet
from nets.nin import NinNet
from nets.residual import CifarResNet, DenseNetBC
from nets.zoo import zoo

CIFAR = {"mean": (0.4915, 0.4823, 0.4468), "std": (0.2470, 0.2435, 0.2616)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
AS_THEY_ARE = {"mean": (0.0,), "std": (1.0,)}
MNIST = {"mean": (0.1307,), "std": (0.3081,)}
FASHION = {"mean": (0.2860,), "std": (0.3530,)}
PLAIN = {"shuffle": True, "augment": None, "measured_in": "eval", "rates": None, "stage": "", "size": 0}  # if nothing is said
MOMENTS = (0, 0.249, 0.25, 0.499, 0.5, 0.749, 0.75, 0.999)  # of a training, where its rate is looked at
FALLING = [1 - moment for moment in MOMENTS]


STAGED = ("depth", "transfer", "model_selection")


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """The synthetic images, which nothing changes, are drawn once and not for each call of a recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "synthetic", functools.cache(sources.synthetic))
        yield


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
        run.accelerator, run.shards = run.accelerator or one_run.accelerator, 1
        torch.manual_seed(run.seed)
        module.main(run, **options)
        return calls

    return given


def facts(call) -> dict:
    """What the documents have numbers for."""
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
        "optimizer": [optimizer_of(call.optimizer, group) for group in call.groups],
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


# ---------------------------------------------------------------------------------------------------- document 000: cifar2

CHAPTER = {"images": 64, "classes": ("airplane", "bird"), "epochs": 100, "batch": 64, "optimizer": sgd(0.01), **CIFAR}
DESIGNS = {
    "Net": 18_090, "NetWidth": 38_386, "NetDropout": 38_386, "NetBatchNorm": 38_482, "NetDepth": 16_130, "NetRes": 16_130,
    "FullyConnected512": 1_574_402, "FullyConnected1024": 3_737_474,
}  # fmt: skip


@pytest.mark.parametrize("book", [False, True])
@pytest.mark.parametrize("net", DESIGNS)
def test_chapter(net, book, given):
    """--book shuffles for the baseline only, and measures in train mode."""
    (call,) = given("cifar2", net=net, book=book)
    name = "Sequential" if net.startswith("Fully") else net
    as_book = {"shuffle": net == "Net", "measured_in": "train"} if book else {}
    check(call, net=name, parameters=DESIGNS[net], **CHAPTER | as_book)
    assert call.loss(torch.zeros(2, 2), torch.tensor([0, 1])).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("book", [False, True])
def test_penalised_net(book, given):
    """0.001 times the squares of all parameters; it is not the baseline: as the book did it, not shuffled."""
    (call,) = given("cifar2", l2=0.001, book=book)
    check(call, net="Net", **CHAPTER | ({"shuffle": False, "measured_in": "train"} if book else {}))
    squares = sum(parameter.detach().square().sum() for parameter in call.model.parameters())
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(call.loss(logits, labels).detach(), F.cross_entropy(logits, labels) + 0.001 * squares)


@pytest.mark.parametrize(("book", "parameters"), [(False, 2 * 9_280 + 66_530), (True, 75_810)])
def test_residual_design_shares_its_block_in_book_mode(book, parameters, given):
    (call,) = given("cifar2", net="NetResDeep", n_blocks=2, book=book)
    as_book = {"shuffle": False, "measured_in": "train"} if book else {}
    check(call, net="NetResDeep", parameters=parameters, **CHAPTER | as_book)
    assert len(call.model.resblocks) == 2


def test_options_reach_the_training(given):
    """Of every recipe of one training: what is said on the command line is what is trained."""
    said = {"epochs": 3, "batch": 2, "lr": 0.25}
    for name in ("cifar2", "convolutions", "mnist", "fashion_small", "cifar10", "zoo", "fashion_nin"):
        (call,) = given(name, limit=9, **said)
        assert (call.epochs, call.batch, call.groups[0]["lr"], len(call.images.train)) == (3, 2, 0.25, 9)
    for name in ("mnist", "fashion_small", "cifar10"):
        (call,) = given(name, limit=9, momentum=0.125)
        assert call.groups[0]["momentum"] == 0.125


def test_pictures_of_the_chapter(given, monkeypatch, tmp_path):
    """The first bird of the test images, through the kernels of sections 2 to 2.2 and through Net's own, trained."""
    module = load(ROOT / "recipes/convolutions.py")
    (call,) = given("convolutions", module=module)
    check(call, net="Net", **CHAPTER | {"epochs": 10})
    drawn = {}

    def maps(path, columns, columns_per_row=4):
        drawn[path.name] = dict(columns)
        return real(path, columns, columns_per_row)

    real = module.maps
    monkeypatch.setattr(module, "maps", maps)
    torch.nn.init.normal_(call.model.conv1.weight)  # in place of a training
    call.draw(tmp_path)
    assert (tmp_path / "filters.png").exists()
    assert (tmp_path / "features.png").exists()
    images = sources.cifar10("synthetic", keep=("airplane", "bird"))
    bird = next(pixels for pixels, label in zip(*images.test, strict=True) if label == 1).float() / 255
    normal = ((bird - torch.tensor(CIFAR["mean"])[:, None, None]) / torch.tensor(CIFAR["std"])[:, None, None])[None]
    filters, features = drawn["filters.png"], drawn["features.png"]
    for pictures in drawn.values():
        torch.testing.assert_close(pictures.pop("image"), bird)
    ones, edge = torch.ones(1, 3, 3, 3), torch.tensor([-1.0, 0, 1]).repeat(1, 3, 3, 1)
    kernels = {
        "random": call.before["conv1.weight"][:1],
        "1/9: three times the mean": ones / 9,
        "1/27: the mean": ones / 27,
        "vertical edges": edge,
    }
    assert list(filters) == list(kernels)
    for name, kernel in kernels.items():
        torch.testing.assert_close(filters[name], F.conv2d(normal, kernel, padding=1)[0, 0])
    trained = torch.tanh(F.conv2d(normal, call.model.conv1.weight, call.model.conv1.bias, padding=1))[0].detach()
    assert list(features) == [f"map {number}" for number in range(16)]
    torch.testing.assert_close(torch.stack(list(features.values())), trained)


# -------------------------------------------------------------------------------------------- documents 002, 003 and 001: grey


@pytest.mark.parametrize(("net", "parameters"), [("MnistNet", 21_840), ("MnistNet60", 25_150), ("MnistNetWide", 155_606)])
def test_document_002(net, parameters, given):
    """x / 255, images in their order, SGD 0.01 with momentum 0.5, batches of 100."""
    (call,) = given("mnist", net=net)
    digits = {"images": 64, "classes": tuple("0123456789"), **AS_THEY_ARE}
    check(call, net="MnistNet", parameters=parameters, epochs=5, batch=100, optimizer=sgd(0.01, 0.5), shuffle=False, **digits)


@pytest.mark.parametrize("net", ["LectureNet", "InceptionNet", "ResidualNet", "LeNet5"])
def test_document_004(net, given):
    """Normalised and shuffled."""
    (call,) = given("mnist", net=net)
    check(call, net=net, epochs=5, batch=100, optimizer=sgd(0.01, 0.5), shuffle=True, **MNIST)


@pytest.mark.parametrize("final_relu", [True, False])
def test_document_003(final_relu, given):
    """Adam 0.001, batches of 16, 3 epochs, at 224 × 224; with its ReLU on the logits, or without."""
    (call,) = given("fashion_nin", final_relu=final_relu)
    adam = [("Adam", 0.001, (0.9, 0.999), 0)]
    check(call, net="NinNet", images=64, epochs=3, batch=16, optimizer=adam, size=224, **AS_THEY_ARE)
    assert call.images.classes == sources.FASHION_CLASSES
    assert same(call.before, first_weights(1, NinNet))
    torch.nn.init.constant_(call.model.conv[-1][4].bias, -100)
    with torch.no_grad():
        assert (call.model(torch.zeros(1, 1, 64, 64)) < 0).any() != final_relu


@pytest.mark.parametrize(("net", "size"), [("MyNet1", 32), ("MyNet2", 0)])
def test_small_nets(net, size, given):
    (call,) = given("fashion_small", net=net)
    settings = {"epochs": 10, "batch": 128, "optimizer": sgd(0.05, 0.9), "rates": FALLING}
    check(call, net=net, images=64, classes=sources.FASHION_CLASSES, size=size, **settings, **FASHION)


def test_defaults_of_the_grey_recipes(given):
    assert facts(given("mnist")[0])["parameters"] == 21_840
    assert facts(given("fashion_small")[0])["net"] == "MyNet2"
    with torch.no_grad():
        assert given("fashion_nin")[0].model(torch.randn(1, 1, 64, 64)).min() == 0  # its ReLU on the logits


# ------------------------------------------------------------------------------------------------------ He et al.: CIFAR-10

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
    """Plain and residual nets of 20 and 56 layers in turn, from the same seed; their training losses in one picture."""
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


# ------------------------------------------------------------------------------------------- document 001: zoo and transfer


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


# --------------------------------------------------------------------------------------------- document 001: model selection


def test_trials(given):
    """Nets × seeds × folds, each from weights, order and dropout of its own, on k - 1 folds; normalised by these alone."""
    calls = given("model_selection", nets=("MnistNet", "LeNet5"), k=3, seeds=2, limit=60)
    plan = [(net, seed, fold) for net in ("MnistNet", "LeNet5") for seed in range(2) for fold in range(3)]
    assert [call.stage for call in calls] == [f"{net}/seed{seed}-fold{fold}" for net, seed, fold in plan]
    whole = sources.fashion_mnist("synthetic", limit=60).train
    validated = []
    for call, (net, seed, fold) in zip(calls, plan, strict=True):
        pixels = call.images.train.pixels.double() / 255
        scale = {"mean": (pytest.approx(pixels.mean().item()),), "std": (pytest.approx(pixels.std().item()),)}
        settings = {"epochs": 2, "batch": 100, "optimizer": sgd(0.05, 0.9), "stage": call.stage}
        check(call, net=net, images=40, classes=sources.FASHION_CLASSES, **settings, **scale)
        assert call.run.seed == slice_seed(1, seed, fold)
        assert (call.run.world, call.run.shards) == (1, 1)
        assert same(call.before, first_weights(call.run.seed, {"MnistNet": MnistNet, "LeNet5": LeNet5}[net]))
        rows = [row.flatten().tolist() for row in call.images.test.pixels]
        assert not {*map(tuple, rows)} & {tuple(row.flatten().tolist()) for row in call.images.train.pixels}
        validated += [rows] if (net, seed) == ("LeNet5", 1) else []
    assert len({call.run.seed for call in calls}) == 6
    once = sorted(tuple(row) for rows in validated for row in rows)
    assert once == sorted(tuple(row.flatten().tolist()) for row in whole.pixels)  # each image judges each net once


def test_resnet18_is_a_candidate():
    """Document 001's first advice; grey, and with the stem for small images."""
    resnet = load(ROOT / "recipes/model_selection.py").NETS["ResNet18"]()
    assert sum(parameter.numel() for parameter in resnet.parameters()) == 11_172_810
    assert resnet.conv1.stride == (1, 1)


def test_defaults_of_the_selection():
    main = load(ROOT / "recipes/model_selection.py").main
    defaults = {name: parameter.default for name, parameter in inspect.signature(main).parameters.items() if name != "run"}
    nets = ("LeNet5", "ResidualNet", "MyNet2")
    assert defaults == {"nets": nets, "k": 5, "seeds": 1, "epochs": 2, "batch": 100, "lr": 0.05, "momentum": 0.9}


def trial(folder, accuracies, train_accuracy, seconds, parameters=7) -> None:
    """The record of a trial with these validation accuracies by epoch."""
    folder.mkdir(parents=True)
    head = {"event": "eval", "images": 0, "loss": 1.0}
    steps = [{"epoch": epoch, "step": epoch, "accuracy": accuracy} for epoch, accuracy in enumerate(accuracies, 1)]
    lines = [head | {"split": "test"} | step for step in steps]
    lines += [head | {"split": "train", "accuracy": train_accuracy, "epoch": len(lines), "step": len(lines)}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = {"test": {"accuracy": accuracies[-1]}, "train": {"accuracy": train_accuracy}}
    (folder / "result.json").write_text(json.dumps(measured | {"parameters": parameters, "seconds": seconds}))


def test_selection_ranks_the_best_first(start, capsys, monkeypatch, tmp_path):
    """Means, deviations, ranges and gaps of recorded trials; the verdicts, the picture, and which net is best."""
    monkeypatch.setenv("COLUMNS", "150")  # of the table on the screen
    run = start()
    module = load(ROOT / "recipes/model_selection.py")
    drawn, real = [], module.curves
    monkeypatch.setattr(module, "curves", lambda *args: drawn.append(args) or real(*args))
    records = {  # of each trial: validation accuracies by epoch, training accuracy, seconds
        "middle": [((0.70, 0.82), 0.83, 2), ((0.72, 0.84), 0.87, 4)],
        "worst": [((0.20, 0.20), 0.20, 1), ((0.86, 0.86), 0.86, 1)],
        "best": [((0.90, 0.90), 0.99, 9), ((0.96, 0.96), 0.99, 9)],
    }
    for net, trials in records.items():
        for number, record in enumerate(trials):
            trial(run.folder / net / f"seed{number}-fold0", *record, parameters=len(net))
    module.report(run, tuple(records), ["seed0-fold0", "seed1-fold0"], epochs=2)
    whole = result(run.folder)
    best, middle, worst = whole["ranking"]
    assert [best["net"], middle["net"], worst["net"]] == ["best", "middle", "worst"]
    assert whole["summary"] == "best: validation accuracy 0.9300 ± 0.0424 over 2 trials"
    assert whole["epochs"] == 2
    expected = {"parameters": 6, "trials": 2, "mean": 0.83, "deviation": 0.02 / math.sqrt(2), "lowest": 0.82, "highest": 0.84}
    assert {name: middle[name] for name in expected} == pytest.approx(expected)
    assert [row["gap"] for row in whole["ranking"]] == pytest.approx([0.06, 0.02, 0.0], abs=1e-9)  # training minus validation
    assert [row["seconds"] for row in whole["ranking"]] == pytest.approx([9, 3, 1])
    assert [row["verdict"].partition(":")[0] for row in whole["ranking"]] == [
        "overfits", "good, and still improving", "underfits",
    ]  # fmt: skip
    ((path, series, what),) = drawn
    assert (path, what) == (run.folder / "selection.png", "validation accuracy")
    assert list(series.items())[1] == ("middle", [[0.70, 0.82], [0.72, 0.84]])
    assert list(series) == ["best", "middle", "worst"]
    said = capsys.readouterr().out
    assert "0.830 ± 0.014" in said
    assert "0.820–0.840" in said
    assert "+0.020" in said
    assert "middle: good, and still improving" in said


def test_one_trial_has_no_deviation(start):
    run = start()
    trial(run.folder / "only/seed0-fold0", (0.9,), 0.9, 1)
    load(ROOT / "recipes/model_selection.py").report(run, ("only",), ["seed0-fold0"], epochs=1)
    (row,) = result(run.folder)["ranking"]
    assert (row["deviation"], row["verdict"]) == (0.0, "good, and no longer improving")


@pytest.mark.parametrize(("options", "why"), [
    ({"k": 1}, "--k must be at least 2"), ({"seeds": 0}, "--seeds at least 1"),
    ({"nets": ()}, "--nets must name at least one net"), ({"k": 9}, "--k is 9, but there are only 8 images"),
])  # fmt: skip
def test_selection_refuses(options, why, start):
    with pytest.raises(Refused, match=why) as refused:
        load(ROOT / "recipes/model_selection.py").main(start(limit=8), **options)
    assert refused.value.code == 2
