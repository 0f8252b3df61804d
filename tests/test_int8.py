"""`oneloop export --int8`: calibrated, measured, written if it costs little and else not at all."""

import json

import numpy as np
import pytest

from launch.commands import export_int8
from launch.errors import Refused
from launch.report import runs
from launch.trained import rebuild

pytestmark = pytest.mark.usefixtures("own_path")
INT8 = ("--format", "onnx", "--int8")


@pytest.fixture(scope="module")
def onnxruntime():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def made(trained_runs, tmp_path_factory, onnxruntime):
    """The folder with the file, and what was printed."""
    import contextlib
    import io

    from launch.commands import main

    place, out = tmp_path_factory.mktemp("int8"), io.StringIO()
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_int8, "CALIBRATING", 32)
        assert main(["export", str(trained_runs / "birds"), *INT8, "--max-drop", "100", "--out", str(place / "net.onnx")]) == 0
    return place, out.getvalue()


def test_the_table_is_what_the_file_does(made, trained_runs, onnxruntime):
    """Accuracy, agreement and bytes, computed here from the file that was written."""
    place, out = made
    known = json.loads((place / "net.onnx.json").read_text())
    row = next(row for row in known["kinds"] if row["kind"] == known["chosen"])
    assert [of["kind"] for of in known["kinds"]] == ["float32", *export_int8.KINDS]
    trained = rebuild(runs.read(trained_runs / "birds"))
    pixels = (trained.images.test.pixels.float() / 255).numpy()
    (logits,) = onnxruntime.InferenceSession(place / "net.onnx").run(["logits"], {"images": pixels})
    assert row["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == trained.images.test.labels.numpy()), abs=0.005)
    assert known["images"] == len(pixels) == 500
    assert row["bytes"] == (place / "net.onnx").stat().st_size < 0.6 * known["kinds"][0]["bytes"]
    assert row["images_per_cpu_second"] == max(of["images_per_cpu_second"] for of in known["kinds"][1:])
    assert known["kinds"][0]["agreement"] == 1
    for of in known["kinds"]:
        assert f"{of['kind']:25} {of['accuracy']:8.4f}" in out
    slower = row["images_per_cpu_second"] < known["kinds"][0]["images_per_cpu_second"]
    assert ("it is slower than float32 on this machine" in out) == slower


def test_weights_are_int8_for_each_channel(made):
    import onnx

    weights = {tensor.name: tensor for tensor in onnx.load(made[0] / "net.onnx").graph.initializer}
    scales = [onnx.numpy_helper.to_array(tensor).shape for name, tensor in weights.items() if name.endswith("weight_scale")]
    assert (32,) in scales  # the first convolution's channels


def test_a_graph_that_loses_too_much_is_not_written(trained_runs, oneloop, tmp_path, monkeypatch, onnxruntime):
    """Control of the gate: a graph that was calibrated on the wrong images, and is bad."""
    inputs = export_int8._inputs
    monkeypatch.setattr(export_int8, "KINDS", {"int8": export_int8.KINDS["int8"]})
    monkeypatch.setattr(export_int8, "CALIBRATING", 32)
    monkeypatch.setattr(export_int8, "_inputs", lambda trained, split, most: inputs(trained, split, most) * (split == "test"))
    code, out, error = oneloop("export", trained_runs / "birds", *INT8, "--max-drop", 0, "--out", tmp_path / "net.onnx")
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert "points of accuracy on 500 test images" in error
    assert [*tmp_path.iterdir()] == []


def test_flags_that_do_not_fit_are_one_line(trained_runs, oneloop):
    for flags, why in (
        (("--format", "safetensors", "--int8"), "--int8 is for --format onnx"),
        (("--format", "onnx", "--max-drop", 1), "--max-drop is for --int8"),
        ((*INT8, "--max-drop", -1), "--max-drop is for --int8, and takes 0 to 100 points"),
    ):
        code, out, error = oneloop("export", trained_runs / "birds", *flags)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert error.startswith(why)


def test_the_images_of_the_run_are_fetched_wherever_they_come_from(birds, oneloop, monkeypatch, onnxruntime):
    """Those of the hub, too: any others would do for an export, not for a measurement."""
    asked = []

    def rebuilt(*_, data, **__):
        asked.append(data)
        raise Refused("enough")

    monkeypatch.setattr("launch.commands.export.rebuild", rebuilt)
    config = json.loads((birds / "config.json").read_text())
    config["config"]["data"] = "hub"
    (birds / "config.json").write_text(json.dumps(config))
    oneloop("export", birds, *INT8)
    oneloop("export", birds, "--format", "onnx")
    assert asked == ["hub", ""]
