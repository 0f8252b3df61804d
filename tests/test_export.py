"""`oneloop export`: the file computes what the net computes, or is not written; and no file of a run is overwritten."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from launch.commands import export
from launch.report import runs
from launch.trained import rebuild

pytestmark = pytest.mark.usefixtures("own_path")


def in_file(kind: str, file: Path, net: nn.Module):
    """The function in the file, loaded as its users would, and the file's metadata."""
    if kind == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(file)
        about = session.get_modelmeta().custom_metadata_map["oneloop"]
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), json.loads(about)
    if kind == "torch-export":
        extra = {"oneloop.json": ""}
        return torch.export.load(file, extra_files=extra).module(), json.loads(extra["oneloop.json"])
    net = copy.deepcopy(net)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    net.load_state_dict(safetensors.torch.load_file(file))
    with safetensors.safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["oneloop"])

    def whole(images):
        images = (images - torch.tensor(about["mean"]).view(-1, 1, 1)) / torch.tensor(about["std"]).view(-1, 1, 1)
        return net(torch.nn.functional.interpolate(images, (20, 20), mode="bilinear", antialias=True)).detach()

    return whole, about


@pytest.mark.parametrize("kind", ["safetensors", "torch-export", "onnx"])
def test_export_is_the_net_with_its_preprocessing(trained_runs, oneloop, tmp_path, kind):
    """With batch norm, grey images and a resize: logits within 1e-4, for batches of 1 and of 40."""
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    file = tmp_path / "exported"
    code, out, error = oneloop(
        "export", trained_runs / "twice/second", "--recipe", trained_runs / "twice.py", "--format", kind, "--out", file
    )
    assert (code, error) == (0, "")
    assert out.startswith(f"{file}: {file.stat().st_size:,} bytes; logits of 16 images match the net's within ")
    assert out.endswith(", with the last weights\n")
    trained = rebuild(runs.read(trained_runs / "twice"), "second", recipe=trained_runs / "twice.py")
    function, about = in_file(kind, file, trained.net)
    assert about["classes"] == [*map(str, range(10))]
    assert (about["mean"], about["std"], about["shape"], about["channels"]) == ([0.1307], [0.3081], [1, 28, 28], "grey")
    pixels = trained.images.test.pixels[:40].float() / 255
    inner = torch.nn.functional.interpolate((pixels - 0.1307) / 0.3081, (20, 20), mode="bilinear", antialias=True)
    expected = trained.net(inner).detach()
    for count in (1, 40):
        torch.testing.assert_close(function(pixels[:count]), expected[:count], rtol=0, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


@pytest.mark.parametrize("kind", ["safetensors", "torch-export", "onnx"])
def test_an_export_that_is_not_the_net_is_not_published(trained_runs, oneloop, tmp_path, monkeypatch, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    export, save = torch.export.export, safetensors.torch.save

    def wrong_graph(module, *args, **options):
        module = copy.deepcopy(module)
        module.net[5].bias += 0.01
        return export(module, *args, **options)

    def wrong_tensor(tensors, about):
        return save(tensors | {"5.bias": tensors["5.bias"] + 0.01}, about)

    monkeypatch.setattr(torch.export, "export", wrong_graph)
    monkeypatch.setattr(safetensors.torch, "save", wrong_tensor)
    file = tmp_path / "exported"
    file.write_text("the one before")
    code, out, error = oneloop(
        "export", trained_runs / "twice/second", "--recipe", trained_runs / "twice.py", "--format", kind, "--out", file
    )
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert "its logits differ by 1.0e-02; nothing was written" in error
    assert file.read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_an_export_without_out_lies_in_the_run_and_ends_as_its_format_says(birds, oneloop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "_needs_onnx", lambda: None)
    for made in ("as_torch_export", "as_onnx"):  # where it lies is all that is asked, and these take seconds
        monkeypatch.setattr(export, made, export.as_safetensors)
    before = {path.name for path in birds.iterdir()}
    names = {"safetensors": "exported.safetensors", "torch-export": "exported.pt2", "onnx": "exported.onnx"}
    for kind, name in names.items():
        code, out, error = oneloop("export", birds, "--format", kind)
        assert (code, error) == (0, "")
        assert out.startswith(f"{birds / name}: {(birds / name).stat().st_size:,} bytes; ")
    assert {path.name for path in birds.iterdir()} - before == {*names.values()}


def test_an_export_leaves_the_runs_own_files(birds, trained_runs, oneloop, tmp_path, monkeypatch):
    """Files of this run and of any other are refused as --out; earlier exports may be replaced."""
    other, twice = shutil.copytree(birds, tmp_path / "other"), shutil.copytree(trained_runs / "twice", tmp_path / "twice")
    (birds / "checkpoints/step-00000001/manifest.json").parent.mkdir(parents=True, exist_ok=True)
    (birds / "checkpoints/step-00000001/manifest.json").write_text("{}")
    (birds / "link.safetensors").symlink_to(birds / "model.safetensors")
    (tmp_path / "linked").symlink_to(birds)
    own = [path for folder in (birds, other, twice) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    own += [tmp_path / "linked/model.safetensors", birds / "stopped.json", birds / "BEST.safetensors", birds / "lock.pid"]
    before = {path: path.read_bytes() for path in own if path.exists()}
    assert len(own) > 40
    for path in own:
        code, out, error = oneloop("export", birds, "--format", "safetensors", "--out", path)
        assert (code, out, error.count("\n")) == (2, "", 1), path
        assert "a file of the run" in error
    (birds / "result.json").unlink()  # as in a run that goes on: what is not there yet is its own, too
    assert oneloop("export", birds, "--format", "safetensors", "--out", birds / "result.json")[0] == 2
    (birds / "result.json").write_bytes(before[birds / "result.json"])
    pytest.importorskip("captum")
    for path in (birds / "curves.png", birds / "model.safetensors", other / "kernels.png"):
        assert oneloop("explain", birds, trained_runs / "images/test/bird/01.png", "--out", path)[0] == 2
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.chdir(birds)
    for _ in range(2):  # control: what it makes, it may make again
        assert oneloop("export", birds, "--format", "safetensors")[0] == 0
        assert oneloop("explain", birds, trained_runs / "images/test/bird/01.png", "--out", "my-explained.png")[0] == 0
    assert oneloop("export", ".", "--format", "safetensors", "--out", tmp_path / "model.safetensors")[0] == 0
    assert oneloop("export", birds, "--format", "safetensors", "--out", "link.safetensors")[0] == 0  # not where it leads
    (tmp_path / "config.json").write_text('{"model_type": "of others"}')  # a folder of weights, and no run
    assert oneloop("export", birds, "--format", "safetensors", "--out", tmp_path / "model.safetensors")[0] == 0
    assert {path: path.read_bytes() for path in before} == before
