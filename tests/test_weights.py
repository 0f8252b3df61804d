"""Weights from files and run folders into nets: what is right loads, and what is wrong is refused before it can do anything."""

import argparse
import collections
import datetime
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import Tiny, optimizer_for
from torch import nn
from weight_files import Evil, refusal, same, saved, sha256

from launch import train
from launch.errors import Refused
from launch.weights import load, load_into
from launch.weights.tensors import weights, weights_sha256, write_tensors
from nets.residual import CifarResNet

pytestmark = pytest.mark.usefixtures("own_cache")


def archive(*names) -> bytes:
    """A zip archive of files with these names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name in names:
            packed.writestr(name, b"something")
    return file.getvalue()


class Headed(nn.Module):
    """A net whose head has any size, for partial loading."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, classes)


# -------------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."])
def test_state_dicts_nested_and_prefixed(tensors, tmp_path, key, prefix):
    found = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({key: found, "epoch": 3} if key else found, tmp_path / "w.pth")
    assert same(load(tmp_path / "w.pth"), tensors)


def test_prefix_of_a_compiled_part(tensors, tmp_path):
    torch.save({name.replace("conv.", "conv._orig_mod."): tensor for name, tensor in tensors.items()}, tmp_path / "w.pt")
    assert same(load(tmp_path / "w.pt"), tensors)


def test_a_part_that_is_called_module_keeps_its_name(tmp_path):
    torch.save({"module.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, tmp_path / "w.pt")
    assert list(load(tmp_path / "w.pt")) == ["module.weight", "fc.weight"]


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_the_bytes_tell_the_kind_of_file(tensors, tmp_path, kind):
    content = (
        safetensors.torch.save(tensors)
        if kind == "safetensors"
        else saved(tensors, _use_new_zipfile_serialization=kind == "zip")
    )  # fmt: skip
    for name in ("w.safetensors", "w.pth", "w.th", "w"):
        (tmp_path / name).write_bytes(content)
        assert same(load(tmp_path / name), tensors)
        assert same(load(str(tmp_path / name), sha256(content).upper()), tensors)
    refusal(4, "expected 00000000", tmp_path / "w", "0" * 64)


def test_resnet20_saved_under_data_parallel(tmp_path):
    """The public repository akamaster/pytorch_resnet_cifar10 saves them nested, prefixed, beside their accuracy."""
    torch.manual_seed(0)
    trained = CifarResNet(20)
    trained(torch.randn(4, 3, 32, 32))
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    without_counters = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    path = tmp_path / "resnet20.th"
    net = CifarResNet(20)
    for found in (state, without_counters):
        torch.save({"best_prec1": 91.7, "state_dict": found}, path, _use_new_zipfile_serialization=False)
        report = load_into(net, load(path))
        assert (len(report.matched), report.dropped, report.new) == (len(found), (), ())
    x = torch.randn(2, 3, 32, 32)
    assert net.eval()(x).equal(trained.eval()(x))


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle", "a whole model", "nested"])
def test_what_needs_unpickling_is_refused_and_never_runs(tmp_path, how):
    mark = tmp_path / "payload ran"
    pickle.loads(pickle.dumps(Evil(mark))).close()  # control: the payload works
    mark.unlink()
    content = {
        "zip": lambda: saved(Evil(mark)),
        "legacy": lambda: saved(Evil(mark), _use_new_zipfile_serialization=False),
        "plain pickle": lambda: pickle.dumps({"state_dict": Evil(mark)}),
        "a whole model": lambda: saved(nn.Sequential(nn.Linear(2, 2))),
        "nested": lambda: saved({"state_dict": collections.OrderedDict(w=torch.zeros(2)), "args": Evil(mark)}),
    }[how]()
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        refusal(4, r"would run whatever code.*torch\.save\(model\.state_dict\(\)", tmp_path / name)
        refusal(4, "would run whatever code", (tmp_path / name).as_uri(), sha256(content))
    assert not mark.exists()


@pytest.mark.parametrize(("content", "match"), [
    (saved({"a": 1, "b": torch.zeros(1)}), "'a', of type int, is not a dense tensor"),
    (saved({"a": torch.zeros(2, 2).to_sparse()}), "'a', of type Tensor, is not a dense tensor"),
    (saved({1: torch.zeros(1)}), "key 1 is not a string"),
    (saved(torch.zeros(1)), "holds an object of type Tensor, not a state dict"),
    (saved({}), "holds an empty dict, not a state dict"),
    (saved({"a": torch.tensor([0.0, float("nan")])}), "a contains NaN"),
    (saved({"a": torch.zeros(9)})[:-300], "cannot load weights|is not loaded"),
    (safetensors.torch.save({"a": torch.zeros(9)})[:-4], "damaged"),
    ((1 << 40).to_bytes(8, "little") + b'{"a":', "damaged"),
    (saved({"a": torch.tensor([0.0, float("-inf")])}), "a contains infinity"),
    (safetensors.torch.save({"a": torch.tensor([1.0, float("inf")])}), "a contains infinity"),
    (saved({"a": torch.tensor([1.0, float("inf")]).to(torch.float8_e5m2)}), "a contains infinity"),
    (saved({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}), "its tensors ask for 4,398,046,511,104"),
    (saved({"a": torch.zeros(1 << 10).as_strided((1 << 20, 1 << 9), (0, 1))}), "its tensors ask for 2,147,483,648"),
    (saved({"a": np.zeros(3)}), "'a', of type numpy.ndarray, is not a dense tensor"),
    (saved(nn.Linear(1, 1)), r"it holds torch\.nn\.modules\.linear\.Linear, and unpickling that would run"),
    (b"<html>not found</html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
    (b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}', "name the folder that they are in"),
    (b'{"a": {"b": 1}}', "is JSON, not weights"),
    (archive("a.npy"), r"is a zip archive, but not one of torch\.save: it has a\.npy"),
    (archive("net/constants.pkl", "net/data.pkl"), "is a TorchScript program, which is not run"),
    (b"", "is empty"),
])  # fmt: skip
def test_files_without_weights_are_refused(tmp_path, content, match):
    (tmp_path / "w.pt").write_bytes(content)
    refusal(4, match, tmp_path / "w.pt")


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}])
def test_what_lies_beside_weights_is_left_unread(tensors, tmp_path, how):
    """Checkpoints as torchvision's references, timm's train.py, Lightning and torch's tutorials save them."""
    net = Tiny()
    net.fc(torch.zeros(1, 64)).sum().backward()
    optimizer = torch.optim.AdamW(net.parameters())
    optimizer.step()
    beside = {"args": argparse.Namespace(lr=0.1, out=tmp_path), "best": np.float64(77), "when": datetime.datetime.now()}
    beside |= {"optimizer": optimizer.state_dict(), "epoch": 3, "best_acc1": torch.tensor(77.0), "rng": torch.get_rng_state()}
    beside |= {"history": np.zeros(3), "criterion": {"weight": torch.ones(5)}, "config": {"model": {"name": "tiny"}}}
    beside["losses"] = {str(epoch): torch.tensor(0.5) for epoch in range(20)}
    for key in ("state_dict", "model", "net", "model_ema"):
        (tmp_path / "w.pth").write_bytes(saved({key: tensors} | beside, **how))
        assert same(load(tmp_path / "w.pth"), tensors)
    (tmp_path / "w.pth").write_bytes(saved(torch.optim.swa_utils.AveragedModel(net).state_dict(), **how))
    assert same(load(tmp_path / "w.pth"), net.state_dict())


def test_which_of_several_sets_of_weights_is_meant_is_asked(tensors, tmp_path):
    other = {f"module.{name}": tensor + 1 for name, tensor in tensors.items()} | {"module.n_averaged": torch.tensor(3)}
    small = {name: tensor for name, tensor in tensors.items() if "fc" in name}
    for found, named in (
        ({"state_dict": tensors, "model": other}, r"\['state_dict'\], \['model'\]"),
        (tensors | {"copy": other}, r"the file itself, \['copy'\]"),
        ({"model": tensors, "ema": other, "ema2": other | {"x": torch.ones(2)}}, r"\['model'\], \['ema'\], \['ema2'\]"),
        ({"generator": tensors, "other": {f"d.{name}": each for name, each in tensors.items()}}, r"\['generator'\], \['other'\]"),
    ):
        (tmp_path / "w.pth").write_bytes(saved(found))
        refusal(4, f"holds several sets of weights: .*{named}; save the one you mean", tmp_path / "w.pth")
    round_ = {"state_dict": tensors, "same": tensors, "teacher": {f"t.{name}": tensor for name, tensor in small.items()}}
    round_["again"] = round_
    (tmp_path / "w.pth").write_bytes(saved(round_))
    assert same(load(tmp_path / "w.pth"), tensors)


def test_only_regular_files_are_opened(tensors, tmp_path):
    """A pipe would be waited for, a device read until the memory is full."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero"):
        refusal(1, "only regular files are opened", path)
    refusal(1, "only regular files are opened", (tmp_path / "pipe").as_uri(), "0" * 64)
    refusal(1, "File name too long", "a" * 5000)
    write_tensors(tmp_path / "model.safetensors", tensors, {"oneloop": "{}"})
    os.mkfifo(tmp_path / "result.json")
    assert same(load(tmp_path / "model.safetensors"), tensors)
    refusal(1, "result.json cannot be read: it is not a file", tmp_path)  # it says which weights are used


def test_infinity_is_refused_however_weights_come(tensors, tmp_path):
    broken = tensors | {"fc.bias": torch.tensor([0.0, float("inf"), 0.0])}
    about = {"oneloop": json.dumps({"weights_sha256": weights_sha256(broken)})}
    write_tensors(tmp_path / "model.safetensors", broken, about)
    (tmp_path / "w.pt").write_bytes(saved({"state_dict": broken}))
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "w.pt"):
        refusal(4, "fc.bias contains infinity", source)
    refusal(4, "fc.bias contains infinity", (tmp_path / "w.pt").as_uri(), sha256((tmp_path / "w.pt").read_bytes()))


def test_compressed_archives_are_not_unpacked(tensors, tmp_path):
    packed = tmp_path / "bomb.pt"
    for size, tensor in {100_000: torch.zeros(1 << 20), 300_000: torch.arange(1.0, 1 << 17)}.items():  # a bomb, and a file
        with zipfile.ZipFile(io.BytesIO(saved({"a": tensor}))) as old, zipfile.ZipFile(packed, "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry), zipfile.ZIP_DEFLATED)
        assert packed.stat().st_size < size
        refusal(4, "compressed", packed)


def test_invalid_sources_are_refused(tmp_path):
    refusal(1, "No such file", tmp_path / "none.pt")
    refusal(2, "file:///", "file://elsewhere/w.pt")
    refusal(2, "need a sha256", (tmp_path / "w.pt").as_uri())
    refusal(2, "an http, https, file or hf URL", "ftp://127.0.0.1/w-12345678.pt")
    refusal(2, "is not a valid sha256", tmp_path / "w.pt", "1234567")
    refusal(2, "is not a valid sha256", tmp_path / "w.pt", "../" * 4)
    refusal(4, "neither", tmp_path)


# --------------------------------------------------------------------------------------------------------------- run folder


def test_run_folder(start, images, tmp_path):
    model = Tiny()
    train(start(), model, images, optimizer_for(model), epochs=2, batch=20)
    run = tmp_path / "run"
    assert same(load(run), weights(model))
    assert load(run / "best.safetensors").keys() == weights(model).keys()
    other = {name: tensor + 1 for name, tensor in load(run).items()}
    (run / "model.safetensors").write_bytes(safetensors.torch.save(other))
    refusal(4, "does not match the weights_sha256 in", run)
    (run / "model.safetensors").unlink()
    (run / "result.json").unlink()
    assert same(load(run), load(run / "best.safetensors"))  # an unfinished run


@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors"])
def test_weights_of_a_run_are_those_that_its_result_records(tensors, tmp_path, name):
    """The last and the best alike; an older result without the digest of the best is accepted."""
    path, digest = tmp_path / name, weights_sha256(tensors)
    write_tensors(path, tensors, {"oneloop": "{}"})
    right = {"weights_sha256": digest, "best": {}} if name == "model.safetensors" else {"best": {"weights_sha256": digest}}
    for recorded in (right, {"weights_sha256": "", "best": {"accuracy": 1.0}}, {}):
        (tmp_path / "result.json").write_text(json.dumps(recorded))
        assert same(load(path), tensors)
    (tmp_path / "result.json").write_text(json.dumps(right))
    write_tensors(path, tensors | {"fc.bias": tensors["fc.bias"] + 1}, {"oneloop": "{}"})
    refusal(4, f"{name} does not match the weights_sha256 in .*result.json", path)
    for damaged in ("[]", '{"best": 3, "weights_sha256": 3}', "{", "[" * 100_000):
        (tmp_path / "result.json").write_text(damaged)
        refusal(4, "cannot be checked|does not match", path)
    path.rename(tmp_path / "other.safetensors")
    assert load(tmp_path / "other.safetensors")  # control: the file of no run


@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors", "elsewhere.safetensors"])
def test_weights_are_those_that_their_own_file_records(tensors, tmp_path, name):
    """Also for an unfinished run, which has no result yet."""
    path = tmp_path / name
    about = {"oneloop": json.dumps({"net": "Tiny", "weights_sha256": weights_sha256(tensors)})}
    write_tensors(path, tensors, about)
    assert same(load(path), tensors)
    write_tensors(path, tensors | {"fc.bias": tensors["fc.bias"] + 1}, about)
    refusal(4, f"{name} is damaged: its tensors do not match the digest saved with them", path)
    write_tensors(path, tensors | {"fc.bias": tensors["fc.bias"] + 1}, {"oneloop": '{"net": "Tiny"}', "format": "pt"})
    assert load(path).keys() == tensors.keys()  # control: of before, without a digest
    for damaged in ("[]", "{", "[" * 100_000):
        write_tensors(path, tensors, {"oneloop": damaged})
        refusal(4, "is damaged", path)


# ---------------------------------------------------------------------------------------------------------------- load_into


def test_strict_takes_all_or_nothing(tensors):
    net = Tiny()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for wrong, match in (
        ({**tensors, "fc.weight": torch.zeros(2, 64)}, r"do not fit Tiny: fc\.weight \(shape 2×64, the net's is 3×64\)"),
        ({**tensors, "fc.weight": torch.zeros(64, 3)}, r"fc\.weight \(shape 64×3, the net's is 3×64\)"),
        ({**tensors, "extra": torch.zeros(1)}, r"extra \(the net has no such tensor\)"),
        ({name: tensor for name, tensor in tensors.items() if name != "fc.bias"}, "missing: fc.bias"),
        ({**tensors, "fc.bias": torch.zeros(3, dtype=torch.int64)}, r"torch\.int64, the net's is torch\.float32"),
    ):
        with pytest.raises(Refused, match=match) as caught:
            load_into(net, wrong)
        assert caught.value.code == 4
        assert same(net.state_dict(), before)


def test_copies_in_place(tensors):
    net = Tiny()
    optimizer, objects = optimizer_for(net), [id(p) for p in net.parameters()]
    report = load_into(net, {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()})
    assert str(report) == "weights: 9 matched, 0 dropped, 0 new"
    assert same(net.state_dict(), tensors)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == objects == [id(p) for p in net.parameters()]
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())


def test_partial_says_what_it_did():
    torch.manual_seed(0)
    there, net = Headed(1000), Headed(10)
    fresh = net.fc.weight.clone()
    state = {**there.state_dict(), "aux.weight": torch.zeros(1)}
    del state["norm.bias"]
    report = load_into(net, state, partial=True)
    assert str(report).splitlines() == [
        "weights: 6 matched, 3 dropped, 3 new",
        "  dropped fc.weight: shape 1000×2, the net's is 10×2",
        "  dropped fc.bias: shape 1000, the net's is 10",
        "  dropped aux.weight: the net has no such tensor",
        "  new norm.bias, fc.weight, fc.bias",
    ]
    assert net.conv.weight.equal(there.conv.weight)
    assert net.fc.weight.equal(fresh)


def test_partial_that_fits_nowhere_is_refused(tensors):
    with pytest.raises(Refused, match=r"none of the 9 tensors \(other\.conv\.weight, .* and 5 more\) fits CifarResNet"):
        load_into(CifarResNet(20), {f"other.{name}": tensor for name, tensor in tensors.items()}, partial=True)


def test_long_reports_are_cut():
    net = CifarResNet(20)
    state = {**net.state_dict(), **{f"extra{number}": torch.zeros(1) for number in range(20)}}
    lines = str(load_into(net, state, partial=True)).splitlines()
    assert lines[-1] == "  … and 12 more dropped"
    assert len(lines) == 10


def test_shared_tensors_under_one_or_both_names():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    state = {name: torch.ones_like(tensor) for name, tensor in net.state_dict().items()}
    load_into(net, state)
    load_into(net, {name: tensor for name, tensor in state.items() if name != "1.weight"})
    assert net[1].weight is net[0].weight
    assert (net[1].weight == 1).all()
