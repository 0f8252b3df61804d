"""The recipes of the chapter and of the documents train with the documents' numbers, and their flags reach the training."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from recipe_calls import AS_THEY_ARE, CIFAR, FALLING, FASHION, MNIST, check, facts, first_weights, same, sgd
from recipe_calls import given as given
from recipe_calls import one_run as one_run

from launch import sources
from launch.recipe import load
from nets.nin import NinNet

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
    """0.001 times the squares of all parameters; it is not the baseline, so not shuffled, as in DLwPT ch. 8."""
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
    """Every recipe of one training trains with the options of its command line."""
    said = {"epochs": 3, "batch": 2, "lr": 0.25}
    for name in ("cifar2", "convolutions", "mnist", "fashion_small", "cifar10", "zoo", "fashion_nin"):
        (call,) = given(name, limit=9, **said)
        assert (call.epochs, call.batch, call.groups[0]["lr"], len(call.images.train)) == (3, 2, 0.25, 9)
    for name in ("mnist", "fashion_small", "cifar10"):
        (call,) = given(name, limit=9, momentum=0.125)
        assert call.groups[0]["momentum"] == 0.125


def test_plots_of_the_chapter(given, monkeypatch, tmp_path):
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
    call.plots(tmp_path)
    assert (tmp_path / "filters.png").exists()
    assert (tmp_path / "features.png").exists()
    images = sources.cifar10("synthetic", keep=("airplane", "bird"))
    bird = next(pixels for pixels, label in zip(*images.test, strict=True) if label == 1).float() / 255
    normal = ((bird - torch.tensor(CIFAR["mean"])[:, None, None]) / torch.tensor(CIFAR["std"])[:, None, None])[None]
    filters, features = drawn["filters.png"], drawn["features.png"]
    for plots in drawn.values():
        torch.testing.assert_close(plots.pop("image"), bird)
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
