"""Checkpoints as other tools write them: read without executing anything; what was taken and what was left is said."""

import gzip
import json
import pickle
import sys
import types

import pytest
import safetensors.torch
import torch
from tiny import Tiny
from weight_files import Evil, refusal, same, saved

from launch.errors import Refused
from launch.weights import load, load_into, read
from launch.weights.into import without_prefix

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def file(tmp_path):
    """Writes what torch.save is given, and returns the path."""

    def write(content, name="w.pth"):
        (tmp_path / name).write_bytes(saved(content))
        return tmp_path / name

    return write


def under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def more(tensors):
    return {name: tensor + 1 for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "encoder.", "model.encoder.", "module.backbone."])
def test_a_part_of_something_larger_is_taken_and_said(tensors, file, prefix):
    beside = {"criterion.weight": torch.ones(5)} if not prefix.startswith("module") else {}
    net = Tiny()
    report = load_into(net, load(file({"state_dict": under(prefix, tensors) | beside, "epoch": 3})))
    assert same(net.state_dict(), tensors)
    assert report.dropped == ()
    assert str(report).startswith(f"those under {prefix.removeprefix('module.')} are taken")
    assert ("1 others left out" in str(report)) == bool(beside)


def test_two_parts_that_fit_alike_are_refused_and_an_average_is_known(tensors):
    two = under("encoder_q.", tensors) | under("encoder_k.", more(tensors))
    with pytest.raises(Refused, match=r"several parts .* fit Tiny: encoder_q\., encoder_k\.; save the one you mean") as refused:
        load_into(Tiny(), two)
    assert refused.value.code == 4
    both = under("model.", tensors) | under("ema.module.", more(tensors))
    for average, taken in ((True, more(tensors)), (False, tensors)):
        part, line = without_prefix(Tiny(), both, average)
        assert same(part, taken)
        assert "--average or --no-average" in line


def test_control_names_that_fit_as_they_are_stay(tensors):
    """A net that has a part of this name itself, and one whose names merely end alike."""
    net = torch.nn.ModuleDict({"encoder": Tiny()})
    assert without_prefix(net, under("encoder.", tensors)) == (under("encoder.", tensors), "")
    assert without_prefix(Tiny(), tensors | under("head.", tensors))[1] == ""


@pytest.mark.parametrize(
    "keys",
    [
        ("state_dict", "state_dict_ema"),  # timm's train.py
        ("model", "model_ema"),  # torchvision's references
        ("state_dict", "ema", "shadow"),
        ("student", "teacher"),  # DINO
        ("current_model_state", "state_dict"),  # Lightning's WeightAveraging
    ],
)
def test_an_average_in_the_file_is_taken_or_not(tensors, file, keys):
    plain, *path = keys
    average = more(tensors)
    for key in reversed(path[1:]):
        average = {key: average, "decay": 0.9}
    path_ = file({plain: tensors, path[0]: average, "epoch": 3})
    (note,) = read(path_).notes
    assert same(load(path_), more(tensors))
    assert note.startswith("".join(f"[{key!r}]" for key in path) + " is taken")
    assert "--no-average" in note
    assert same(load(path_, average=False), tensors)
    assert read(path_, average=False).notes[0].startswith(f"[{plain!r}] is taken")


def test_what_was_taken_off_is_said(tensors, file):
    assert read(file(tensors)).notes == ()
    assert read(file(under("module._orig_mod.", tensors))).notes == ("taken off their names: module. _orig_mod.",)
    averaged = torch.optim.swa_utils.AveragedModel(Tiny()).state_dict()
    assert read(file({"model_ema": averaged})).notes == (
        "an average of the weights, of torch's AveragedModel",
        "taken off their names: module.",
    )


def test_compressed_by_gzip(tensors, tmp_path):
    (tmp_path / "w.pth.gz").write_bytes(gzip.compress(saved({"state_dict": tensors})))
    assert same(load(tmp_path / "w.pth.gz"), tensors)
    (tmp_path / "w.pth.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    refusal(4, "unpacks to more than 100 times its size", tmp_path / "w.pth.gz")
    (tmp_path / "w.pth.gz").write_bytes(gzip.compress(saved(tensors))[:-50])
    refusal(4, "is damaged", tmp_path / "w.pth.gz")


def test_hyperparameters_of_other_packages_are_left_unread(tensors, tmp_path, monkeypatch):
    """Of Lightning, whose dict is one of its own, and of argparse's like; in a process that has none of these packages."""
    module = types.ModuleType("lightning.fabric.utilities.data")

    class AttributeDict(dict):
        pass

    AttributeDict.__module__, AttributeDict.__qualname__ = module.__name__, "AttributeDict"
    module.AttributeDict = AttributeDict
    with monkeypatch.context() as patch:
        for name in ("lightning", "lightning.fabric", "lightning.fabric.utilities"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        parameters = AttributeDict(lr=0.1)
        parameters["optimizer"] = types.SimpleNamespace(name="sgd")
        content = saved({"state_dict": under("model.", tensors), "hyper_parameters": parameters})
    (tmp_path / "w.ckpt").write_bytes(content)
    assert same(load(tmp_path / "w.ckpt"), under("model.", tensors))


def test_control_what_is_not_known_to_be_harmless_is_never_called(tensors, tmp_path):
    (tmp_path / "w.pth").write_bytes(saved({"state_dict": tensors, "hyper_parameters": Evil(tmp_path / "made")}))
    refusal(4, "would run whatever code its author put in", tmp_path / "w.pth")
    (tmp_path / "w.gz").write_bytes(gzip.compress(pickle.dumps(Evil(tmp_path / "made"))))
    refusal(4, "is not loaded|cannot load", tmp_path / "w.gz")
    assert not (tmp_path / "made").exists()


# ------------------------------------------------------------------------------------------- as the Hugging Face hub has them


def shards(tensors, folder, index=True):
    folder.mkdir(exist_ok=True)
    names, half = list(tensors), len(tensors) // 2
    files = {f"model-0000{n}-of-00002.safetensors": part for n, part in ((1, names[:half]), (2, names[half:]))}
    for file, part in files.items():
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / file)
    known = {"weight_map": {name: file for file, part in files.items() for name in part}} if index else {}
    (folder / "model.safetensors.index.json").write_text(json.dumps(known))
    return folder


TIMM = {
    "architecture": "resnet18",
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "crop_pct": 0.95, "interpolation": "bicubic"},
    "label_names": ["ant", "bee", "cow"],
}
TRANSFORMERS = {"architectures": ["ResNetForImageClassification"], "id2label": {"0": "ant", "1": "bee", "2": "cow"}}
PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2], "resample": 3, "crop_pct": 0.875}
PROCESSOR |= {"size": {"shortest_edge": 240}, "crop_size": {"height": 228, "width": 228}}


def test_a_folder_of_the_hub_says_how_images_are_prepared(tensors, tmp_path):
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    first = read(tmp_path)
    assert same(first.tensors, tensors)
    assert (first.mean, first.std, first.crop, first.interpolation) == ((0.5,) * 3, (0.2,) * 3, 0.95, "bicubic")
    assert first.classes == ("ant", "bee", "cow")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(saved(tensors))
    (tmp_path / "config.json").write_text(json.dumps(TRANSFORMERS))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    assert same(load(tmp_path), tensors)
    assert read(tmp_path)[1:6] == first[1:6]


def test_shards_by_their_index(tensors, tmp_path):
    assert same(load(shards(tensors, tmp_path / "a")), tensors)
    assert same(load(shards(tensors, tmp_path / "b", index=False)), tensors)  # their names promise two
    for folder in ("a", "b"):
        (tmp_path / folder / "model-00002-of-00002.safetensors").unlink()
        refusal(4, r"lacks model-00002-of-00002\.safetensors of its model\.safetensors\.index\.json", tmp_path / folder)
    (tmp_path / "b/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"conv.weight": "../a/x.safetensors"}}))
    refusal(4, r"names a file that is not beside it: \.\./a/x\.safetensors", tmp_path / "b")
    refusal(2, "--sha256 is that of one file", shards(tensors, tmp_path / "c"), "0" * 64)


def test_from_the_hub(tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import huggingface_hub

    asked = []

    def snapshot(name, revision=None, allow_patterns=None, local_files_only=False):
        asked.append((name, revision, allow_patterns, local_files_only))
        return str(folder)

    folder = shards(tensors, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(TIMM))
    names = [path.name for path in folder.iterdir()] + ["README.md", "pytorch_model.bin"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name, revision=None: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert same(load("hf://owner/name@v1"), tensors)
    ((name, revision, patterns, _),) = asked
    assert (name, revision) == ("owner/name", "v1")
    assert "pytorch_model.bin" not in patterns
    assert "README.md" not in patterns
    for address in ("hf://name", "hf://a/b/c", "hf://a/b@"):
        refusal(2, "is not hf://owner/name", address)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: 1 / 0)
    assert same(load("hf://owner/name"), tensors)  # unreachable: what is cached
    assert asked[-1][3]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    refusal(1, "cannot download hf://owner/name: .*HF_ENDPOINT=URL selects a mirror, or name a local folder", "hf://owner/name")
