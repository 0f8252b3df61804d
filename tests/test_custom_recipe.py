"""recipes/custom.py, cifar10_fast.py and ablations.py give `train` what their flags say; nets have their names."""

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from photos import write_photos
from recipe_calls import CIFAR, FALLING, IMAGENET, MOMENTS
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18
from weight_files import saved

from launch.data.augment import EpochRng, random_resized_crop
from launch.data.augment_ops import rand_augment, trivial_augment
from launch.data.feed import MemoryFeed
from launch.data.mix import cutmix, mixup
from launch.errors import Refused
from launch.recipe import load
from launch.sources.options import DataOptions
from launch.training.optimizers import Muon
from launch.weights.tensors import whole_of
from nets import named
from nets.cifar2 import Net
from nets.fast import FastNet, SixViews

N = 48
CPU = torch.device("cpu")
METHODS = {"augment": "trivial", "constant": False, "ema": 0.99, "patience": None, "lr": 1e-3}  # what can be switched on


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs that are not split, of classes of 30 and 12."""
    return write_photos(tmp_path_factory.mktemp("photos"), {"ant": 30, "bee": 12})


@pytest.fixture(scope="module")
def recipe():
    return load(ROOT / "recipes/custom.py")


@pytest.fixture
def asked(start, recipe, folder, monkeypatch):
    """asked(flags of the run, options of the recipe) -> what the recipe gives to `train`, in each of its calls."""
    calls, number = [], iter(range(99))

    def recorded(run, model, images, optimizer, loss=F.cross_entropy, **options):
        model = whole_of(model)  # of the last layer, which --mode frozen trains by itself
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        groups = [{**group, "params": [*group["params"]]} for group in optimizer.param_groups]
        facts = {"model": model, "images": images, "loss": loss, "groups": groups, "state": state, "trains": trains}
        calls.append(SimpleNamespace(run=run, optimizer=optimizer, **facts, **options))
        return {"test": {"accuracy": 0.25 * len(calls), "loss": 1.0, "count": 4}}

    def asked(flags=None, **options):
        calls.clear()
        run = start(out=f"run{next(number)}", **{"limit": 0} | (flags or {}))
        run.data = str(options.pop("data", folder))
        fields = {field.name for field in dataclasses.fields(DataOptions)} & options.keys()
        data = DataOptions(**{name: options.pop(name) for name in fields})
        recipe.main(run, data, **{"net": "CifarResNet", "mode": "scratch", "size": 16, "epochs": 20} | METHODS | options)
        run.end()
        return calls

    monkeypatch.setattr(recipe, "train", recorded)
    monkeypatch.setattr(recipe, "check_batches", lambda *_: None)  # nothing is trained on them
    return asked


def augmented(pixels, augment):
    return augment(pixels, EpochRng(1, len(pixels), CPU).of(torch.arange(len(pixels))))


# --------------------------------------------------------------------------------------------------------------------- options


def test_the_defaults_are_those_that_the_docs_describe(asked):
    (call,) = asked(epochs=20)
    assert (call.epochs, call.batch, call.ema, call.patience, call.mix) == (20, 32, 0.99, 10, None)
    assert call.augment == [random_resized_crop, trivial_augment]
    assert call.loss is F.cross_entropy
    assert type(call.optimizer) is torch.optim.AdamW
    assert {(group["lr"], group["weight_decay"]) for group in call.groups} == {(1e-3, 0.05), (1e-3, 0.0)}
    rates = [call.schedule(epoch) for epoch in (0, 1, 1.0001, 10.5, 20, 25)]  # a twentieth of the epochs up, then down
    assert rates == pytest.approx([0.01, 1, 1, 0.5, 0, 0], abs=1e-3)
    assert (call.images.mean, call.images.std) == (IMAGENET["mean"], IMAGENET["std"])
    assert call.images.model_selection_split == "validation"
    assert (call.images.train.rule.size, call.images.train.rule.cache_size) == (16, 32)


def test_every_flag_reaches_the_training(asked):
    chosen = {"lr": 0.5, "weight_decay": 0.25, "ema": 0.5, "patience": 3, "constant": True, "smoothing": 0.3}
    (call,) = asked(epochs=6, batch=9, cache_size=24, **chosen)
    assert (call.epochs, call.batch, call.ema, call.patience, call.schedule) == (6, 9, 0.5, 3, None)
    assert {(group["lr"], group["weight_decay"]) for group in call.groups} == {(0.5, 0.25), (0.5, 0.0)}
    assert call.images.train.rule.cache_size == 24
    logits, labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(call.loss(logits, labels), F.cross_entropy(logits, labels, label_smoothing=0.3))
    assert asked(ema=0.0, patience=0)[0].ema == 0
    assert asked(ema=0.0, patience=0)[0].patience == 0


def test_augmentations_and_mixes_are_what_they_are_called(asked):
    pixels = torch.randint(0, 256, (N, 8, 8, 3), dtype=torch.uint8)
    by_name = {}
    for name, more in (("crop", None), ("trivial", trivial_augment), ("rand", rand_augment())):
        (call,) = asked(augment=name)
        assert call.augment[0] is random_resized_crop
        for each in call.augment[1:]:
            by_name[name] = augmented(pixels, each)
        assert torch.equal(by_name.get(name, pixels), augmented(pixels, more) if more else pixels), name
    assert not torch.equal(by_name["trivial"], by_name["rand"])
    images, others = torch.randn(N, 1, 6, 6), torch.randn(N, 1, 6, 6)
    rng = EpochRng(1, N, CPU).of(torch.arange(N))
    for name, expected in (("mixup", mixup()), ("cutmix", cutmix())):
        (call,) = asked(mix=name)
        for mine, its in zip(call.mix(images, others, rng), expected(images, others, rng), strict=True):
            assert torch.equal(mine, its)
    (call,) = asked(mix="either")
    mixes = [call.mix, mixup(), cutmix()]
    shares = [each(images, others, rng)[1] for each in mixes]
    assert all(any(share == other[index] for other in shares[1:]) for index, share in enumerate(shares[0]))
    assert not torch.equal(shares[0], shares[1])
    assert not torch.equal(shares[0], shares[2])


def test_flags_about_the_images_reach_them(asked, folder, tmp_path):
    images = asked()[0].images
    sizes = {name: len(getattr(images, name)) for name in ("train", "validation", "test")}
    assert sum(sizes.values()) == 42
    assert sizes["train"] > 25
    more = asked({"validation": 0.4}, test=0.3)[0].images
    assert len(more.validation) > sizes["validation"] + 4
    assert len(more.test) > sizes["test"] + 3
    assert len(asked({"limit": 11})[0].images.train) == 11
    given = tmp_path / "split.csv"
    given.write_bytes(more.files["split.csv"])
    assert asked(split=str(given))[0].images.fingerprint == more.fingerprint
    table = folder / "table.csv"
    rows = [(path.relative_to(folder), path.parent.name) for path in sorted(folder.rglob("*.jpg"))]
    table.write_text("image,animal\n" + "".join(f"{path},{label}\n" for path, label in rows) + "lost.jpg,bee\n")
    try:
        with pytest.raises(Refused, match="--skip-bad"):
            asked(data=table, columns=("image=image", "label=animal"))
        found = asked(data=table, columns=("image=image", "label=animal"), skip_bad=True)[0].images
        assert (found.classes, sum(len(getattr(found, name)) for name in sizes)) == (("ant", "bee"), 42)
        with pytest.raises(Refused, match="it takes image=NAME, label=NAME and split=NAME") as refused:
            asked(data=table, columns=("picture=image",))
        assert refused.value.code == 2
    finally:
        table.unlink()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_balanced_weights_are_1_on_average_and_equal_for_all_classes(smoothing, asked):
    """Over all training images, whatever the net says; and label smoothing holds for them, too."""
    (call,) = asked(class_weights="balanced", smoothing=smoothing)
    labels = call.images.train.labels
    logits = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0))
    each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    expected = (each[labels == 0].mean() + each[labels == 1].mean()) / 2
    torch.testing.assert_close(call.loss(logits, labels), expected)
    assert labels.bincount().max() > 2 * labels.bincount().min()  # control
    assert (each.mean() - expected).abs() > 1e-3


def test_balanced_weights_are_1_on_average_also_if_a_limit_leaves_out_a_class(asked):
    (call,) = asked({"limit": 1}, class_weights="balanced")
    assert call.loss(torch.zeros(1, 2), call.images.train.labels).item() == pytest.approx(torch.tensor(2.0).log().item())


# --------------------------------------------------------------------------------------------------------------------- weights


def no_published_weights(*_, **__):
    raise AssertionError("weights were downloaded")


@pytest.fixture
def published(monkeypatch):
    """torchvision's weights of resnet18, as its server would send them: here random ones."""
    torch.manual_seed(5)
    state = resnet18(num_classes=1000).state_dict()
    monkeypatch.setattr("launch.weights.files.fetch", lambda *_: ("resnet18 of the test", saved(state)))
    return state


def test_pretrained_trains_the_published_weights(asked, published):
    """All of them but the last layer, which has other classes; in every mode."""
    for mode in ("finetune", "frozen"):
        (call,) = asked(net="resnet18", mode=mode, pretrained=True, size=32)
        same = {name for name, tensor in published.items() if call.state[name].equal(tensor)}
        assert published.keys() - same == {"fc.weight", "fc.bias"}
        assert call.state["fc.weight"].shape == (2, 512)
    scratch = asked(net="resnet18", size=32)[0].state
    assert not scratch["layer1.0.conv1.weight"].equal(published["layer1.0.conv1.weight"])


@pytest.fixture
def timms(monkeypatch):
    """timm's own creation of a net, which downloads nothing here; the list has its arguments."""
    timm = pytest.importorskip("timm")
    made, real = [], timm.create_model

    def create(name, pretrained=False, **options):
        made.append((name, pretrained, options["num_classes"]))
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create)
    return made


def test_nets_of_timm_bring_their_weights_and_see_images_in_their_scale(asked, timms, monkeypatch):
    monkeypatch.setattr("launch.weights.files.fetch", no_published_weights)
    (call,) = asked(net="timm/test_resnet", mode="finetune", pretrained=True, size=32)
    assert timms[0] == ("test_resnet", True, 2)
    other = ("test_resnet", False, 3)  # of one class more, without numbers: it shows which layers follow the classes
    assert {*timms[1:]} == {other}
    assert (call.images.mean, call.images.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (call.images.test is not None, call.images.validation is not None) == (True, True)
    timms.clear()
    asked(net="timm/test_resnet", size=32)
    assert [each for each in timms if each != other] == [("test_resnet", False, 2)]


def test_a_scale_that_weights_record_is_that_of_the_batches(timms):
    net = named.build("timm/test_resnet", 3, 32)
    assert named.scale(net) == {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    net.pretrained_cfg = {"mean": (0.1, 0.2, 0.3)}
    assert named.scale(net) == {"mean": (0.1, 0.2, 0.3), "std": IMAGENET["std"]}
    assert named.scale(Net()) == IMAGENET


@pytest.fixture
def source(tmp_path):
    """Weights of a CifarResNet for other classes."""
    torch.manual_seed(6)
    net = named.build("CifarResNet", 7, 16)
    torch.save(net.state_dict(), tmp_path / "source.pt")
    return tmp_path / "source.pt", net.state_dict()


def test_a_source_is_where_the_training_starts(asked, source, capsys):
    path, state = source
    (call,) = asked(mode="finetune", source=str(path), lr=0.5)
    same = {name for name, tensor in state.items() if call.state[name].equal(tensor)}
    assert state.keys() - same == {"linear.weight", "linear.bias"}
    assert "2 dropped, 2 new" in capsys.readouterr().out
    rates = {}
    for group in call.groups:
        for parameter in group["params"]:
            name = next(name for name, each in call.model.named_parameters() if each is parameter)
            rates[name] = group["lr"]
    assert {name for name, lr in rates.items() if lr == 0.5} == {"linear.weight", "linear.bias"}
    assert {round(lr, 6) for name, lr in rates.items() if not name.startswith("linear.")} == {0.05}
    assert call.trains == rates.keys()


def test_frozen_trains_the_last_layer_and_gradual_the_last_block_after_it(asked, source, capsys):
    (call,) = asked(mode="frozen", source=str(source[0]), lr=0.5)
    assert call.trains == {"linear.weight", "linear.bias"}
    assert {group["lr"] for group in call.groups} == {0.5}
    capsys.readouterr()
    first, second = asked(mode="gradual", source=str(source[0]), lr=0.5, epochs=9)
    assert first.trains == call.trains
    assert {name.partition(".")[0] for name in second.trains} == {"layer3", "linear"}
    assert all(name.startswith(("layer3.2.", "linear.")) for name in second.trains)
    assert [group["lr"] for group in second.groups][-1] == pytest.approx(0.05)
    assert (first.stage, second.stage, first.epochs + second.epochs, second.epochs - first.epochs) == ("frozen", "unlocked", 9, 1)
    assert (first.schedule(first.epochs), second.schedule(second.epochs)) == (pytest.approx(0), pytest.approx(0))
    assert first.schedule(first.epochs / 20) == pytest.approx(1)
    said = capsys.readouterr().out
    assert "gradual: test accuracy 0.5000, 0.2500 with the last layer alone" in said  # as `recorded` counts


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        ({"mode": "finetune"}, "has no published weights: --mode scratch", 2),
        ({"mode": "frozen"}, "has no published weights: --mode scratch", 2),
        ({"mode": "gradual"}, "has no published weights: --mode scratch", 2),
        ({"mode": "frozen", "source": "x", "head_epochs": 1}, "--head-epochs is for --mode finetune", 2),
        ({"mode": "finetune", "source": "x", "head_epochs": 20}, "fewer than --epochs, 20", 2),
        ({"layer_decay": 0.0}, "--layer-decay must be more than 0", 2),
        ({"pretrained": True}, "takes no weights", 2),
        ({"source": "x"}, "takes no weights", 2),
        ({"mode": "gradual", "source": "x", "epochs": 1}, "at least 2 for --mode gradual", 2),
        ({"epochs": 0}, "--epochs must be at least 1", 2),
        ({"size": 30, "cache_size": 20}, "--cache-size at least --size", 2),
        ({"net": "resnetx"}, "unknown net 'resnetx'", 2),
        ({"net": "vgg11", "size": 16}, "at least 32×32", 2),
        ({"net": "timm/resnetx"}, "unknown net timm/resnetx", 2),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_trained(options, said, code, asked):
    with pytest.raises(Refused, match=said) as refused:
        asked(**options)
    assert refused.value.code == code


@pytest.mark.parametrize("more", [{"mode": "gradual"}, {"mode": "finetune", "head_epochs": 2}, {"mode": "scratch"}])
def test_one_image_by_itself_is_refused_before_a_folder_is_made(more, start, recipe, folder, tmp_path):
    """Control: a batch that leaves no image alone is trained; a frozen net has no batch norm that looks at a batch."""
    weights = tmp_path / "weights.safetensors"
    save_file(resnet18(num_classes=2).state_dict(), weights)
    options = {"net": "resnet18", "size": 16, "epochs": 4, "patience": 0}
    options |= more if more["mode"] == "scratch" else more | {"source": str(weights)}
    run = start(out="run")
    run.data, run.limit = str(folder), 17
    with pytest.raises(Refused, match="a batch of 1 images in 1 micro-batches leaves one image by itself") as refused:
        recipe.main(run, **options, batch=16)
    assert (refused.value.code, (tmp_path / "run").exists()) == (2, False)


def test_weights_of_another_net_or_file_are_refused(asked, source, tmp_path):
    torch.save(named.build("Net", 2, 32).state_dict(), tmp_path / "net.pt")
    with pytest.raises(Refused) as refused:
        asked(mode="finetune", source=str(tmp_path / "net.pt"))
    assert refused.value.code == 4
    state = {name: tensor for name, tensor in source[1].items() if not name.startswith("layer3")}
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(Refused, match="layer3"):
        asked(mode="finetune", source=str(tmp_path / "part.pt"))
    with pytest.raises(Refused, match="sha256 mismatch") as refused:
        asked(mode="finetune", source=str(source[0]), sha256="0" * 64)
    assert refused.value.code == 4


# ----------------------------------------------------------------------------------------------------------------- nets by name


@pytest.mark.parametrize("name", named.OWN)
@pytest.mark.parametrize("classes", [2, 5])
def test_a_net_of_the_package_has_its_name_and_as_many_outputs(name, classes):
    net = named.build(name, classes, 32)
    assert type(net).__name__ == name
    assert net.training
    last = named.head(net, classes)
    assert net.get_submodule(last).weight.shape[0] == classes
    assert net.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, classes)
    block = named.last_block(net, last)
    assert not last.startswith(f"{block}.")
    inside = {id(parameter) for parameter in net.get_submodule(block).parameters()}
    assert 0 < len(inside) < len([*net.parameters()])


@pytest.mark.parametrize("name", ["resnet18", "timm/test_vit", "timm/test_convnext", "squeezenet1_1"])
def test_a_net_of_others_has_as_many_outputs_and_a_last_block(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    size = 160 if name == "timm/test_vit" else 64
    net = named.build(name, 5, size)
    assert net.training
    assert net.eval()(torch.zeros(2, 3, size, size)).shape == (2, 5)
    last = named.head(net, 5)
    block = named.last_block(net, last)
    part = sum(p.numel() for p in net.get_submodule(block).parameters()) / sum(p.numel() for p in net.parameters())
    assert 0.02 <= part <= 0.6
    seen = []
    for module in (block, last):
        net.get_submodule(module).register_forward_hook(lambda *_, module=module: seen.append(module))
    net(torch.zeros(2, 3, size, size))
    assert seen[-1] == last  # and the block runs before it
    assert block in seen


def test_the_last_block_of_a_transformer_is_its_last_layer():
    pytest.importorskip("timm")
    net = named.build("timm/test_vit", 3, 160)
    block = named.last_block(net, named.head(net, 3))
    assert block == f"blocks.{len(net.blocks) - 1}"


def test_the_last_of_several_blocks_is_taken_and_not_the_largest():
    """A net that narrows towards its end, and whose head has a hidden layer."""
    net = nn.Sequential()
    net.first, net.large, net.last = nn.Linear(6, 3), nn.Linear(40, 40), nn.Linear(20, 20)
    net.head = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    assert named.head(net, 3) == "head.1"
    assert named.last_block(net, "head.1") == "last"


# ------------------------------------------------------------------------------------------------------------------- methods


@pytest.fixture
def remedied(monkeypatch):
    module = load(ROOT / "recipes/ablations.py")

    def remedied(method, limit=64, **options):
        calls = []

        def recorded(run, model, images, optimizer, loss, **given):
            usual = {"schedule": None, "augment": (), "mix": None, "ema": 0.0}
            calls.append(SimpleNamespace(model=model, images=images, optimizer=optimizer, loss=loss, **usual | given))

        monkeypatch.setattr(module, "train", recorded)
        module.main(SimpleNamespace(data="synthetic", limit=limit), method, **options)
        (call,) = calls
        return call

    remedied.names = module.METHODS
    return remedied


def kind(call) -> dict:
    """Names of the arguments of one call that a method changes from plain SGD."""
    logits, labels = torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.tensor([0, 0])
    images, others = torch.zeros(N, 1, 4, 4), torch.ones(N, 1, 4, 4)
    mix = call.mix and call.mix(images, others, EpochRng(1, N, CPU).of(torch.arange(N)))
    found = {
        "loss": round(call.loss(logits, labels).item(), 4),
        "mix": mix and ("mixup" if ((mix[0] > 0.01) & (mix[0] < 0.99)).any() else "cutmix"),
        "rates": call.schedule and [round(call.schedule(moment * call.epochs), 3) for moment in (0, 0.5, 1)],
        "augment": getattr(call.augment, "__name__", call.augment),
        "ema": call.ema,
        "optimizer": type(call.optimizer).__name__,
    }
    plain = round(F.cross_entropy(logits, labels).item(), 4)
    usual = {"loss": plain, "mix": None, "rates": None, "augment": (), "ema": 0.0, "optimizer": "SGD"}
    return {name: value for name, value in found.items() if value != usual[name]}


def test_each_remedy_changes_what_it_is_called_after_and_nothing_else(remedied):
    logits, labels = torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.tensor([0, 0])
    expected = {
        "none": {}, "smoothing": {"loss": round(F.cross_entropy(logits, labels, label_smoothing=0.1).item(), 4)},
        "mixup": {"mix": "mixup"}, "cutmix": {"mix": "cutmix"}, "crop": {"augment": "crop_and_flip"}, "ema": {"ema": 0.998},
        "cosine": {"rates": [1, 0.5, 0]}, "adamw": {"optimizer": "AdamW"}, "muon": {"optimizer": "Muon"},
    }  # fmt: skip
    assert expected.keys() == {*remedied.names}
    for name, changed in expected.items():
        call = remedied(name)
        assert kind(call) == changed, name
        assert type(call.model) is Net
        assert (call.epochs, call.batch, len(call.images.train), call.images.classes) == (50, 64, 64, ("airplane", "bird"))
        assert (call.images.mean, call.images.std) == (CIFAR["mean"], CIFAR["std"])
        learns = {id(parameter) for group in call.optimizer.param_groups for parameter in group["params"]}
        assert learns == {id(parameter) for parameter in call.model.parameters()}


def test_rates_of_the_remedies(remedied):
    (plain,) = remedied("none", lr=0.25, epochs=3, batch=8).optimizer.param_groups
    assert (plain["lr"], plain["momentum"], plain["weight_decay"]) == (0.25, 0, 0)
    call = remedied("cosine", epochs=3, batch=8)
    assert (call.epochs, call.batch, call.schedule(3), call.schedule(1.5)) == (3, 8, 0, pytest.approx(0.5))
    groups = remedied("adamw").optimizer.param_groups
    decays = {group["params"][0].ndim > 1: (group["lr"], group["weight_decay"]) for group in groups}
    assert decays == {True: (1e-3, 0.01), False: (1e-3, 0.0)}
    call = remedied("muon", lr=0.25)
    muon, others = call.optimizer.param_groups
    assert isinstance(call.optimizer, Muon)
    assert (muon["muon"], muon["lr"], others["muon"], others["lr"], others["momentum"]) == (True, 0.005, False, 0.25, 0.9)
    names = {id(parameter): name for name, parameter in call.model.named_parameters()}
    assert {names[id(parameter)] for parameter in muon["params"]} == {"conv1.weight", "conv2.weight", "fc1.weight"}


# --------------------------------------------------------------------------------------------------------------- cifar10_fast


def test_the_fast_recipe_whitens_by_training_images_and_measures_six_views(start, monkeypatch, capsys):
    module, seen = load(ROOT / "recipes/cifar10_fast.py"), {}

    def trained(run, net, images, optimizer, loss, **options):
        seen.update(net=net, images=images, optimizer=optimizer, loss=loss, options=options)
        return {"test": {"accuracy": 0.25, "loss": 1.0, "count": 4}}

    def evaluated(run, net, images, *split):
        seen["measured"] = net
        return {"accuracy": 0.5, "loss": 0.5, "count": 4}

    monkeypatch.setattr(module, "train", trained)
    monkeypatch.setattr(module, "evaluate", evaluated)
    run = start(limit=128)
    ended = []
    monkeypatch.setattr(run, "record", ended.append)
    module.main(run, epochs=3, batch=100, lr=0.5, momentum=0.7, weight_decay=1e-5, smoothing=0.1)
    assert isinstance(seen["measured"], SixViews)
    assert next(seen["measured"].parameters()) is next(seen["net"].parameters())
    (result,) = ended
    assert (result["test"]["accuracy"], result["one_view"]["accuracy"]) == (0.5, 0.25)
    assert result["summary"] == "test accuracy 0.5000 over six views of each image, 0.2500 over one"
    assert result["summary"] in capsys.readouterr().out
    filters, biases, head = seen["optimizer"].param_groups
    assert (filters["lr"], filters["muon_momentum"], seen["loss"].keywords) == (0.5, 0.7, {"label_smoothing": 0.1})
    for group in (biases, head):
        assert group["lr"] * group["weight_decay"] == pytest.approx(1e-5 * 100)
    assert [seen["options"]["schedule"](moment * 3) for moment in MOMENTS] == pytest.approx(FALLING)
    images, expected = seen["images"], FastNet()
    pixels, _ = MemoryFeed(images.train, images, CPU).batch(torch.arange(128))
    expected.whiten(pixels)
    torch.testing.assert_close(seen["net"].whitening.weight, expected.whitening.weight)
    expected.whiten(MemoryFeed(replace(images, train=images.test).train, images, CPU).batch(torch.arange(20))[0])
    assert not torch.allclose(seen["net"].whitening.weight, expected.whitening.weight)  # control


def test_a_new_last_layer_starts_from_zeros_where_it_alone_learns(asked, source):
    for mode, zeros in (("frozen", True), ("gradual", True), ("finetune", False)):
        call = asked(mode=mode, source=str(source[0]), epochs=2)[0]
        assert bool((call.state["linear.weight"] == 0).all()) is zeros
