"""The weights that a net by name begins with: all last layers, the classes of the source, its normalisation, published ones."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from launch import sources
from launch.data.resize import rule_for
from launch.errors import Refused
from launch.weights.tensors import weights_sha256, write_tensors
from nets import named
from nets.residual import CifarResNet
from nets.transfer import locked

REPVIT = "timm/repvit_m0_9"  # of two heads


@pytest.fixture(scope="module")
def recipe():
    from conftest import ROOT

    from launch.recipe import load as load_recipe

    return load_recipe(ROOT / "recipes/custom.py")


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def images():
    """Synthetic images of three classes, 32 × 32."""
    images = sources.custom("synthetic", rule_for(32, 0))
    return replace(images, classes=("ant", "bee", "cow"))


# ---------------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("crossvit_9_240", ("head.0", "head.1")),
        ("levit_128s", ("head.linear", "head_dist.linear")),
        ("repvit_m0_9", ("head.head.l", "head.head_dist.l")),
        ("efficientvim_m1", ("heads.0", "heads.1", "heads.2", "heads.3")),
        ("volo_d1_224", ("aux_head", "head")),  # timm's get_classifier() names one
        ("caformer_s18", ("head.fc.fc2",)),
        ("convnext_atto", ("head.fc",)),
    ],
)
def test_every_last_layer_and_no_other(timm, name, expected):
    classes = 64  # other layers have as many outputs, too
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=classes)
    assert named.heads(net, classes) == expected
    assert not named.last_block(net, expected).startswith(("head", "aux_head"))


@pytest.fixture(scope="module")
def of_five(timm, tmp_path_factory):
    """A RepViT for five classes, in a file."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("source") / "repvit.pt"
    torch.save(timm.create_model("repvit_m0_9", num_classes=5).state_dict(), path)
    return path


def test_every_head_is_new_and_learns(start, recipe, of_five, monkeypatch):
    calls = []

    def recorded(run, model, images, optimizer, loss, **options):
        rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        calls.append((locked(model), {name: rates.get(id(parameter)) for name, parameter in model.named_parameters()}, model))
        return {"test": {"accuracy": 0.5}}

    monkeypatch.setattr(recipe, "train", recorded)
    for mode in ("finetune", "frozen", "gradual"):
        run = start(out=mode)
        recipe.main(run, net=REPVIT, mode=mode, source=str(of_five), size=32, epochs=2, lr=0.1)
        run.end()
    (_, finetune, _), (_, frozen, _), _, (rest, unlocked, _) = calls
    heads = {f"head.{head}.l.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")}
    assert {name for name, rate in finetune.items() if rate == 0.1} == heads
    assert {rate for name, rate in finetune.items() if name not in heads} == {0.1 * recipe.BACKBONE_LR}
    assert {name for name, rate in frozen.items() if rate} == heads
    assert {name.partition(".")[2][:1] for name, rate in unlocked.items() if rate and name not in heads} == {"3"}  # stages.3
    assert "stages.2" in rest


class Encoder(nn.Module):
    """(N, 3, H, W) -> (N, features, H, W)"""

    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 1)

    def forward(self, x):
        return self.conv(x)


class Pooled(Encoder):
    """The net has as many features as classes, but no layer that gives them."""

    def forward(self, x):
        return x.mean((2, 3))[:, :1].expand(-1, 10)


@pytest.mark.parametrize(("net", "said"), [(Encoder, "gives 1×4×32×32 for an image, not 1×10"), (Pooled, "has no last layer")])
def test_an_encoder_is_refused_in_a_line(start, recipe, monkeypatch, net, said):
    monkeypatch.setitem(named.OWN, "Encoder", net)
    with pytest.raises(Refused, match=f"{said}.*an encoder without a classifier") as refused:
        recipe.main(start(), net="Encoder", mode="scratch", size=32, epochs=1)
    assert refused.value.code == 2
    assert "\n" not in str(refused.value)


def test_a_net_of_timm_that_cannot_be_made_is_not_called_a_download(timm, start, recipe, monkeypatch):
    def broken(*_arguments, **_options):
        raise TypeError("unexpected keyword argument 'num_classes'\nand more")

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(Refused, match=r"--net timm/resnet18 cannot be made .*num_classes'$") as refused:
        recipe.main(start(), net="timm/resnet18", mode="scratch", size=32, epochs=1)
    assert refused.value.code == 2


# --------------------------------------------------------------------------------------------------------- the source's classes


def source_of(path, classes, **about):
    """A CifarResNet of these classes, in a file as `train` writes it; its tensors."""
    torch.manual_seed(2)
    tensors = CifarResNet(20, num_classes=len(classes) if classes else 3).state_dict()
    about |= {"classes": list(classes), "weights_sha256": weights_sha256(tensors)}
    write_tensors(path, tensors, {"oneloop": json.dumps(about)} if classes else {"format": "pt"})
    return tensors


@pytest.mark.parametrize(
    ("classes", "rows", "said"),
    [
        (("ant", "bee", "cow"), [0, 1, 2], "last layer linear: the source's, which tells the same classes apart"),
        (("cow", "ant", "bee"), [1, 2, 0], "last layer linear: the source's, its rows by the names of the classes"),
        (("ant", "dog", "bee", "cow"), [0, 2, 3], "last layer linear: the source's, its rows by the names of the classes"),
        (("fig", "nut", "pear"), None, "last layer linear: new, because the source tells other classes apart (fig, nut, pear)"),
        (("ant", "bee", "dog"), None, "last layer linear: new, because the source tells other classes apart (ant, bee, dog)"),
        (("ant", "bee"), None, "last layer linear: new, because the source tells other classes apart (ant, bee)"),
        ((), [0, 1, 2], "linear: kept, but the weights do not say what its 3 classes are: they have to be ant, bee, cow"),
    ],
)
def test_the_last_layer_goes_by_the_names_of_the_classes(start, recipe, images, tmp_path, capsys, classes, rows, said):
    tensors = source_of(tmp_path / "w.safetensors", classes)
    net, _ = recipe.net_for(start(), "CifarResNet", images, False, str(tmp_path / "w.safetensors"), "")
    out, found = capsys.readouterr().out, net.state_dict()
    assert said in out
    assert found["conv1.weight"].equal(tensors["conv1.weight"])
    for name in ("linear.weight", "linear.bias"):
        if rows is None:
            assert name in out.split("new ", 1)[1]
            assert not any(row.equal(other) for row in found[name] for other in tensors[name])
        else:
            assert found[name].equal(tensors[name][rows])


def test_what_a_file_says_of_its_classes_need_not_be_true(start, recipe, images, tmp_path):
    """The layer has three outputs: with two or four names for them it stays new; with nonsense nothing is known of it."""
    tensors = source_of(tmp_path / "w.safetensors", ("a", "b", "c"))
    for classes, new in ((["ant", "bee", "cow", "dog"], True), (["ant", "bee"], True), (["ant", "ant", "a"], False), (7, False)):
        about = {"classes": classes, "mean": ["a"], "std": [0, 0, 0], "weights_sha256": weights_sha256(tensors)}
        write_tensors(tmp_path / "w.safetensors", tensors, {"oneloop": json.dumps(about)})
        net, _ = recipe.net_for(run := start(), "CifarResNet", images, False, str(tmp_path / "w.safetensors"), "")
        run.end()
        assert net.linear.weight.equal(tensors["linear.weight"]) != new


def test_images_are_normalised_as_the_sources_were(start, recipe, images, tmp_path, capsys):
    about = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.1, 0.3]}
    source_of(tmp_path / "w.safetensors", ("ant", "bee", "cow"), **about)
    _, images = recipe.net_for(start(), "CifarResNet", images, False, str(tmp_path / "w.safetensors"), "")
    assert (images.mean, images.std) == ((0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    assert "normalised as the source's were: mean (0.5, 0.4, 0.3)" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- published weights


def test_published_weights_of_torchvision_are_in_the_net(start, recipe, images, monkeypatch, capsys):
    asked, published = [], named.build("squeezenet1_1", 1000, 32).state_dict()
    monkeypatch.setattr(recipe, "load", lambda address: asked.append(address) or published)
    net, images = recipe.net_for(start(), "squeezenet1_1", images, True, "", "")
    assert "squeezenet1_1" in asked[0]
    found = net.state_dict()
    assert {name for name in found if not found[name].equal(published[name])} == {"classifier.1.weight", "classifier.1.bias"}
    assert images.mean == (0.485, 0.456, 0.406)
    assert capsys.readouterr().out == ""


def test_published_weights_of_timm_are_in_the_net_and_images_normalised_for_them(timm, start, recipe, images, monkeypatch):
    published = timm.create_model("test_vit", num_classes=1000).state_dict()
    cfg = timm.get_pretrained_cfg("test_vit")
    assert (cfg.mean, cfg.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(published))
    images = replace(images, train=sources.custom("synthetic", rule_for(160, 0)).train)
    net, images = recipe.net_for(start(), "timm/test_vit", images, True, "", "")
    found = net.state_dict()
    assert {name for name in found if not found[name].equal(published[name])} == {"head.weight", "head.bias"}
    assert (images.mean, images.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_published_weights_for_as_many_classes_keep_their_last_layer_and_say_so(start, recipe, images, monkeypatch, capsys):
    published = named.build("squeezenet1_1", 3, 32).state_dict()
    monkeypatch.setattr(recipe, "load", lambda _address: published)
    net, _ = recipe.net_for(start(), "squeezenet1_1", images, True, "", "")
    assert net.classifier[1].weight.equal(published["classifier.1.weight"])
    assert "last layer classifier.1: kept, but the weights do not say what its 3 classes are" in capsys.readouterr().out
