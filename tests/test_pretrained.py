"""Pretrained nets as their authors mean them: preprocessing, sizes, learning rates by layer, the last layer first."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_recipe
from jobs import begin
from photos import photo, write_photos
from PIL import Image
from torch import nn

from launch import sources
from launch.data.images import prepared
from launch.data.resize import ResizeRule, centred, read
from launch.errors import Refused
from launch.recipe import load
from launch.trained import find_run, rebuild
from launch.training.optimizers import groups
from nets import named, zoo
from nets.sizes import as_timm_has_them, timm_net


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


# ------------------------------------------------------------------------------------------- the default, and without a network


@pytest.mark.parametrize("net", ["resnet18", "timm/test_resnet"])
def test_without_a_network_one_line_says_which_flag_goes_on_and_nothing_is_made(net, tmp_path, monkeypatch, start):
    pytest.importorskip("timm")
    import huggingface_hub

    def unreachable(*_, **__):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    run = start()
    run.data = "synthetic"
    with pytest.raises(Refused, match="--mode scratch trains without weights") as refused:
        load(ROOT / "recipes/custom.py").main(run, net=net, size=32)
    assert refused.value.code == 1
    assert "\n" not in str(refused.value)
    assert not run.folder.exists()


def test_a_net_without_published_weights_says_so(start):
    run = start()
    run.data = "synthetic"
    with pytest.raises(Refused, match="--net Net has no published weights: --mode scratch") as refused:
        load(ROOT / "recipes/custom.py").main(run, net="Net", size=32)
    assert refused.value.code == 2


# --------------------------------------------------------------------------------------------------------------- preprocessing


def timms_own(config: dict, image: Image.Image) -> np.ndarray:
    from timm.data import create_transform

    seen = create_transform(
        config["input_size"], interpolation=config["interpolation"], crop_pct=config["crop_pct"], mean=(0,) * 3, std=(1,) * 3
    )
    return (seen(image) * 255).permute(1, 2, 0).numpy()


def torchvisions_own(name: str, image: Image.Image) -> np.ndarray:
    from torchvision.models import get_model_weights

    seen = get_model_weights(name).DEFAULT.transforms()
    seen.mean, seen.std = [0.0] * 3, [1.0] * 3
    return (seen(image) * 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "timm/vit_tiny_patch16_224", "resnet50", "efficientnet_b0"])
def test_pixels_are_those_of_the_weights_own_transform(name, tmp_path):
    """Within what one resampling differs: cut and resized in another order, in whole pixels, by another kernel's rounding."""
    pytest.importorskip("timm")
    wants = named.published_preprocessing(name)
    photo(3, 300, 400).save(tmp_path / "x.png")
    image = Image.open(tmp_path / "x.png").convert("RGB")
    if name.startswith("timm/"):
        import timm

        config = {**timm.get_pretrained_cfg(name.removeprefix("timm/")).to_dict(), "input_size": (3, 224, 224)}
        theirs = timms_own(config, image)
    else:
        theirs = torchvisions_own(name, image)
    ours = {}
    for crop in (wants["crop"], 0.6):
        rule = ResizeRule(224, 448, 0, crop, wants["interpolation"])
        ours[crop] = centred(read(tmp_path / "x.png", rule), rule).astype(float)
    difference = {crop: np.abs(pixels - theirs).mean() for crop, pixels in ours.items()}
    assert difference[wants["crop"]] < 2.0  # of 255
    assert difference[0.6] > 4 * difference[wants["crop"]]  # control: another crop is seen


def test_bicubic_is_torchs_own_and_another_than_bilinear(tmp_path):
    photo(4, 90, 120).save(tmp_path / "x.png")
    pixels = {}
    for way in ("bilinear", "bicubic"):
        rule = ResizeRule(32, 64, 0, 1.0, way)
        pixels[way] = centred(read(tmp_path / "x.png", rule), rule)
        reduced = torch.from_numpy(read(tmp_path / "x.png", rule).copy()).permute(2, 0, 1)[None]
        side = min(reduced.shape[-2:])
        top, left = ((size - side) // 2 for size in reduced.shape[-2:])
        square = reduced[..., top : top + side, left : left + side]
        expected = nn.functional.interpolate(square, (32, 32), mode=way, antialias=True)[0].permute(1, 2, 0)
        assert np.array_equal(pixels[way], expected.numpy())
    assert not np.array_equal(*pixels.values())


def test_what_the_weights_want_is_in_batches_metadata_and_the_rebuilt_net(tmp_path, monkeypatch):
    """And the fingerprint of the data is not moved by it: that says which images there are."""
    monkeypatch.chdir(tmp_path)
    folder = write_photos(tmp_path / "set", {"ant": 8, "bee": 8})
    images = sources.custom(str(folder), ResizeRule(16, 32))
    other = prepared(images, (0.5,) * 3, (0.5,) * 3, 0.95, "bicubic")
    assert other.fingerprint == images.fingerprint
    ids = torch.arange(2)
    one, two = (split.feed(each, torch.device("cpu")).batch(ids)[0] for each in (images, other) for split in (each.test,))
    same_scale = replace(other, mean=images.mean, std=images.std)
    assert not one.equal(same_scale.test.feed(same_scale, torch.device("cpu")).batch(ids)[0])
    assert not one.equal(two)

    torch.manual_seed(0)
    state = named.build("CifarResNet", 2, 16).state_dict()
    torch.save(state, tmp_path / "w.pt")
    module = load(ROOT / "recipes/custom.py")
    monkeypatch.setattr(module, "published_preprocessing", lambda name: {"crop": 0.95, "interpolation": "bicubic"})
    monkeypatch.setattr("launch.trained.load_recipe", lambda path: module)
    from trained import train_here

    monkeypatch.setattr("trained.load", lambda path: module)
    flags = ("--data", folder, "--net", "CifarResNet", "--source", "w.pt", "--size", 16, "--epochs", 1, "--batch", 8)
    train_here(ROOT / "recipes/custom.py", *flags, "--out", "run", "--wandb", "disabled")
    trained = rebuild(*find_run(Path("run")))
    assert (trained.about["crop"], trained.about["interpolation"]) == (0.95, "bicubic")
    assert trained.rule == ResizeRule(16, 32, 0, 0.95, "bicubic")
    assert trained.images.test.rule == trained.rule


# ------------------------------------------------------------------------------------------------------------------- any size


def test_transformers_are_made_for_any_size_and_positions_resampled():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    large = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    small = timm_net("vit_tiny_patch16_224", 3, 96)
    assert small(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    state = as_timm_has_them(small, large.state_dict())
    assert state["pos_embed"].shape == small.pos_embed.shape == (1, 37, 192)
    small.load_state_dict(state)
    assert state["pos_embed"][:, 0].equal(large.pos_embed[:, 0])  # the class token's stays
    assert as_timm_has_them(large, large.state_dict()).keys() == large.state_dict().keys()
    foreign = {"nothing": torch.zeros(2)}
    assert as_timm_has_them(nn.Linear(1, 1), foreign) is foreign


def test_torchvisions_transformers_take_multiples_of_their_patches(monkeypatch):
    class Small(zoo.models.VisionTransformer):
        def __init__(self, image_size=224, num_classes=10):
            super().__init__(image_size, 16, 1, 1, 8, 8, num_classes=num_classes)

    monkeypatch.setattr(zoo.models, "get_model", lambda name, weights, **options: Small(**options))
    torch.manual_seed(0)
    published = Small(num_classes=3).state_dict()
    net = zoo.zoo("vit_b_16", num_classes=3, state=published, size=64)
    assert net.encoder.pos_embedding.shape == (1, 17, 8)
    assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert net.encoder.pos_embedding[:, 0].equal(published["encoder.pos_embedding"][:, 0])
    assert as_timm_has_them(net, published)["encoder.pos_embedding"].shape == (1, 17, 8)
    with pytest.raises(ValueError, match=r"vit_b_16 takes multiples of 16, such as 96×96 and 112×112, not 100×100"):
        zoo.check_size("vit_b_16", 100)


def test_sizes_that_fit_are_named():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"_256 cannot take images of 100×100; sizes that fit: 96×96 and 128×128"):
        timm_net("maxvit_rmlp_pico_rw_256", 3, 100)


# ----------------------------------------------------------------------------------------------------- rates, and heads first


@pytest.mark.parametrize("name", ["resnet18", "timm/test_vit", "CifarResNet"])
def test_rates_fall_with_each_layer_from_the_output(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    net = named.build(name, 3, 160 if "vit" in name else 32)
    depths, last = named.depths(net), named.heads(net, 3)
    rates = {}
    names = {id(parameter): key for key, parameter in net.named_parameters()}
    for group in groups(net, 1.0, 0.1, 0.1, last, 0.5, depths):
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"]
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert rates.keys() == {*names.values()}
    assert {rates[f"{layer}.weight"] for layer in last} == {1.0}
    blocks = {"resnet18": ("layer4.1.conv1.weight", "layer4.0.conv1.weight", "layer1.0.conv1.weight", "conv1.weight")}
    blocks |= {"CifarResNet": ("layer3.2.conv1.weight", "layer3.1.conv1.weight", "layer1.0.conv1.weight", "conv1.weight")}
    transformer = *(f"blocks.{block}.mlp.fc1.weight" for block in (5, 4, 0)), "patch_embed.proj.weight"
    order = blocks.get(name, transformer)
    seen = [rates[key] for key in order]
    assert seen == sorted(seen, reverse=True)
    assert len({*seen}) == 4
    assert seen[1] == seen[0] / 2
    assert all(rates[key] == pytest.approx(0.1 * 0.5 ** depths[key]) for key in rates if key.rpartition(".")[0] not in last)


def test_control_without_a_decay_there_are_two_rates():
    net = named.build("resnet18", 3, 32)
    assert {group["lr"] for group in groups(net, 1.0, 0.1, 0.1, ("fc",), 1.0, named.depths(net))} == {1.0, 0.1}


FLAGS = ("--net", "CifarResNet", "--source", "w.pt", "--size", 16, "--batch", 8, "--epochs", 3, "--threads", 1)
FLAGS += ("--head-epochs", 1, "--layer-decay", 0.7, "--wandb", "disabled", "--save-every", 1)


def test_heads_first_and_decayed_rates_have_the_same_bits_on_two_processes_and_through_a_kill(tmp_path):
    folder = write_photos(tmp_path / "set", {"ant": 20, "bee": 20})
    torch.manual_seed(0)
    torch.save(named.build("CifarResNet", 2, 16).state_dict(), tmp_path / "w.pt")
    flags = ("--data", folder, *FLAGS)
    one = run_recipe("custom", *flags, "--micro-batches", 2, "--out", "one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    results = [json.loads((tmp_path / "one" / stage / "result.json").read_text()) for stage in ("frozen", "unlocked")]
    assert results[0]["trainable"] < results[1]["trainable"]
    assert "with the last layer alone" in one.stdout
    chaos = ("--rank", 1, "--at", "step=6", "--do", "SIGKILL", "--")
    killed = begin(*chaos, ROOT / "recipes/custom.py", *flags, "--out", "pair", cwd=tmp_path, processes=2)
    assert killed.wait(60) != 0
    assert (tmp_path / "pair/frozen/result.json").exists()  # it died in the second stage
    assert not (tmp_path / "pair/unlocked/result.json").exists()
    two = run_recipe("custom", *flags, "--out", "pair", cwd=tmp_path, processes=2)
    assert two.returncode == 0, two.stderr
    digest = json.loads((tmp_path / "pair/unlocked/result.json").read_text())["weights_sha256"]
    assert digest == results[1]["weights_sha256"]
