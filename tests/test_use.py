"""A trained net put to use: the numbers of its training, files that say the same, and one line for what cannot be."""

import contextlib
import copy
import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, metrics, result
from PIL import Image
from torch import nn

from launch import cli, commands
from launch.errors import Refused
from launch.rebuild import load, rebuild
from launch.record import runs

TWICE = '''"""Grey images, resized; two stages with other nets, and a summary: all that a recipe of several stages does.

Source  none
"""
from dataclasses import replace
import torch
from torch import nn
from launch import Run, sources, train

def main(run: Run, widths: tuple[int, ...] = (3, 5)):
    images = replace(sources.mnist(run.data, limit=run.limit), size=20)
    run.open(images, {})
    results = []
    for name, width in zip(("first", "second"), widths, strict=True):
        net = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
                            nn.Linear(4 * width, 10))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        results.append(train(run, net, images, optimizer, epochs=1, batch=50, stage=name)["test"])
        print("trained", name)
    (run.folder / "notes.txt").write_text("written at the end")
    run.finish({"summary": "two stages", "stages": results})
'''


LARGE = '''"""Large grey images of three classes.

Source  none
"""
import torch
from torch import nn
from launch import Run, train
from launch.data import Images, Split

def main(run: Run):
    pixels, labels = torch.zeros(3, 1, 2048, 4096, dtype=torch.uint8), torch.arange(3)
    images = Images(train=Split(pixels, labels), test=Split(pixels, labels), classes=("a", "b", "c"), mean=(0.5,), std=(0.5,),
                    source="drawn", fingerprint="0")
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))
    train(run, net, images, torch.optim.SGD(net.parameters(), lr=0.1), epochs=1, batch=3)
'''


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    """What a recipe in this process adds to Python's path and modules goes with the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("cifar2", "twice", "by_hand", "transfer", "large", "evil", "mine"):
        sys.modules.pop(name, None)


def train_here(recipe: Path, *flags) -> None:
    """What `python RECIPE …` does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "argv", [*map(str, (recipe, "--data", "synthetic", "--threads", 1, *flags))])
        cli(load(recipe).main)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`birds`, a run of cifar2.py; `twice`, one of two stages; `pictures`, 12 of the test images of `birds` and their labels."""
    place = tmp_path_factory.mktemp("use")
    train_here(ROOT / "recipes/cifar2.py", "--net", "NetBatchNorm", "--limit", 300, "--epochs", 3, "--out", place / "birds")
    (place / "twice.py").write_text(TWICE)
    train_here(place / "twice.py", "--limit", 100, "--widths", 3, 5, "--out", place / "twice")
    images = rebuild(runs.read(place / "birds")).images
    for split in ("train", "test"):
        for index in range(12):
            folder = place / "pictures" / split / images.classes[images.test.labels[index]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.test.pixels[index].permute(1, 2, 0).numpy()).save(folder / f"{index:02}.png")
    return place


@pytest.fixture
def birds(place, tmp_path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(place / "birds", tmp_path / "birds"))


@pytest.fixture
def oneloop(capsys):
    """oneloop(command, …) -> (exit code, stdout, stderr), in this process."""

    def oneloop(*args) -> tuple[int, str, str]:
        capsys.readouterr()  # what was said before
        code = commands.main([*map(str, args)])
        return code, *capsys.readouterr()

    return oneloop


def tampered(folder: Path, name: str = "model.safetensors", knows: bool = True) -> None:
    """Move one tensor in a file of weights a little, and leave its metadata as they are, but for its digest if not `knows`."""
    with safetensors.safe_open(folder / name, framework="pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["conv1.weight"] = tensors["conv1.weight"] * 1.5
    if not knows:
        said = json.loads(about["oneloop"])
        del said["weights_sha256"]
        about["oneloop"] = json.dumps(said)
    safetensors.torch.save_file(tensors, folder / name, about)


# ----------------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("split", ["test", "train"])
def test_evaluate_gives_the_numbers_of_the_training(place, oneloop, split):
    code, out, _ = oneloop("evaluate", place / "birds", "--split", split, "--json")
    said, trained = json.loads(out), result(place / "birds")
    assert code == 0
    assert {name: said[name] for name in ("loss", "accuracy", "count")} == trained[split]
    assert said["logged"] == {name: trained[split][name] for name in ("loss", "accuracy")}


def test_evaluate_the_best_weights(place, oneloop):
    code, out, _ = oneloop("evaluate", place / "birds", "--weights", "best", "--json")
    said, best = json.loads(out), result(place / "birds")["best"]
    (line,) = [line for line in metrics(place / "birds") if line.get("split") == "test" and line["epoch"] == best["epoch"]]
    assert code == 0
    assert (said["accuracy"], said["loss"]) == (line["accuracy"], line["loss"]) == (best["accuracy"], said["logged"]["loss"])


def test_evaluate_other_weights_than_the_recorded_ones(birds, oneloop):
    """They are refused; and, as a control that the weights in the file are those that are measured, they measure otherwise."""
    tampered(birds)
    code, out, error = oneloop("evaluate", birds)
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert "is damaged: its tensors" in error
    tampered(birds, knows=False)
    assert "does not hold the weights that" in oneloop("evaluate", birds)[2]
    (birds / "result.json").write_text(json.dumps(result(birds) | {"weights_sha256": ""}))
    said = json.loads(oneloop("evaluate", birds, "--json")[1])
    assert said["loss"] != said["logged"]["loss"]


def test_evaluate_on_other_data(place, oneloop, tmp_path):
    """Accuracy is what `predict` says of the same files; without --data, other data than the run's are refused."""
    code, out, _ = oneloop("evaluate", place / "birds", "--data", place / "pictures", "--json")
    said = json.loads(out)
    assert (code, said["count"], said["logged"]) == (0, 12, None)
    _, out, _ = oneloop("predict", place / "birds", place / "pictures/test", "--top", 1, "--json")
    right = [Path(each["image"]).parent.name == each["predictions"][0]["class"] for each in json.loads(out)]
    assert said["accuracy"] == sum(right) / 12
    folder = shutil.copytree(place / "birds", tmp_path / "birds")
    config = json.loads((folder / "config.json").read_text())
    config["data"]["fingerprint"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    code, _, error = oneloop("evaluate", folder)
    assert code == 4
    assert "was trained on other data: synthetic sha256 0000000000000000, now" in error


def test_evaluate_refuses_other_classes_and_names_both(place, oneloop, tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            shutil.copy(place / "pictures/test/bird/01.png", tmp_path / split / name)
    code, _, error = oneloop("evaluate", place / "birds", "--data", tmp_path)
    assert code == 4
    assert all(name in error for name in ("airplane", "bird", "cat", "dog"))
    assert error.count("\n") == 1


def test_evaluate_in_the_precision_of_the_run(oneloop, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        train_here(ROOT / "recipes/cifar2.py", "--limit", 100, "--epochs", 1, "--out", tmp_path / "run")
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
        AcceleratorState._reset_state(reset_partial_state=True)
        assert json.loads(oneloop("evaluate", tmp_path / "run", "--json")[1])["loss"] == result(tmp_path / "run")["test"]["loss"]
        AcceleratorState._reset_state(reset_partial_state=True)
        config = (tmp_path / "run/config.json").read_text()  # control
        (tmp_path / "run/config.json").write_text(config.replace('"precision": "bf16"', '"precision": "no"'))
        assert json.loads(oneloop("evaluate", tmp_path / "run", "--json")[1])["loss"] != result(tmp_path / "run")["test"]["loss"]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_logged_numbers_of_the_best_are_those_of_its_epoch(birds, oneloop):
    """The first of several that are best."""
    lines = [json.loads(line) for line in (birds / "metrics.jsonl").read_text().splitlines()]
    tests = [line for line in lines if line.get("split") == "test"]
    for line, accuracy in zip(tests, (0.25, 0.75, 0.75), strict=True):
        line["accuracy"] = accuracy
    (birds / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for weights, line in {"best": tests[1], "last": tests[2]}.items():
        said = json.loads(oneloop("evaluate", birds, "--weights", weights, "--json")[1])
        assert said["logged"] == {"accuracy": 0.75, "loss": line["loss"]}
    assert tests[1]["loss"] != tests[2]["loss"]


# ------------------------------------------------------------------------------------------------------------------ predict


def test_predict_is_the_net_on_images_normalised_as_in_training(place, oneloop):
    trained = rebuild(runs.read(place / "birds"))
    assert not any(module.training for module in trained.net.modules())
    files = sorted((place / "pictures/test").rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.4915, 0.4823, 0.4468), (0.2470, 0.2435, 0.2616)))
    with torch.no_grad():
        expected = trained.net((pixels / 255 - mean) / std).softmax(1)
    code, out, error = oneloop("predict", place / "birds", place / "pictures/test", "--json")
    assert (code, error) == (0, "")
    said = json.loads(out)
    assert [each["image"] for each in said] == [*map(str, files)]
    for each, probabilities in zip(said, expected, strict=True):
        found = {prediction["class"]: prediction["probability"] for prediction in each["predictions"]}
        assert [found["airplane"], found["bird"]] == pytest.approx(probabilities.tolist(), abs=1e-6)
        assert [*found.values()] == sorted(found.values(), reverse=True)


def test_a_run_uses_the_mean_that_its_weights_record(birds, place, oneloop):
    """Whatever the recipe's are by now."""
    claimed(birds, mean=[0.0, 0.1, 0.2], std=[1.0, 0.9, 0.8])
    file = place / "pictures/test/bird/01.png"
    pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    mean, std = torch.tensor([0.0, 0.1, 0.2]).view(3, 1, 1), torch.tensor([1.0, 0.9, 0.8]).view(3, 1, 1)
    with torch.no_grad():
        expected = rebuild(runs.read(place / "birds")).net((pixels / 255 - mean)[None] / std).softmax(1)[0]
    (said,) = json.loads(oneloop("predict", birds, file, "--json")[1])
    found = {prediction["class"]: prediction["probability"] for prediction in said["predictions"]}
    assert [found["airplane"], found["bird"]] == pytest.approx(expected.tolist(), abs=1e-6)


def test_predict_names_what_is_no_image_and_goes_on(place, oneloop, tmp_path, monkeypatch):
    picture = Image.open(place / "pictures/test/bird/01.png")
    picture.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "c.txt").write_text("no image")
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tmp_path / "d.tiff")
    (tmp_path / ".hidden").write_text("not looked at")
    code, out, error = oneloop("predict", place / "birds", tmp_path, tmp_path / "nowhere.jpg", "--top", 1)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1
    assert [(row["image"], row["rank"]) for row in rows] == [(str(tmp_path / "a.png"), "1")]
    assert [line.split()[0].rstrip(":") for line in error.splitlines()[:-1]] == [
        str(tmp_path / name) for name in ("b.png", "c.txt", "d.tiff", "nowhere.jpg")
    ]
    assert "no known range" in error
    assert error.splitlines()[-1] == "4 of 5 files could not be read as an image"
    assert oneloop("predict", place / "birds", tmp_path / "a.png")[0] == 0  # control
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    _, table, _ = oneloop("predict", place / "birds", tmp_path / "a.png")
    assert f"{float(rows[0]['probability']):.1%}" in table
    assert "┃" in table


def test_predict_takes_every_file(place, oneloop, tmp_path):
    """More than are in memory at a time; in the order of their names, each with what is said of it alone."""
    pictures = sorted((place / "pictures/test").rglob("*.png"))
    for number in range(503):
        (tmp_path / f"{number:04}.png").symlink_to(pictures[number % 12])
    (tmp_path / "0400.png").unlink()
    (tmp_path / "0400.png").write_text("no image")
    code, out, error = oneloop("predict", place / "birds", tmp_path, "--top", 1, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, error.count("\n")) == (1, 2)
    assert [Path(row["image"]).name for row in rows] == [f"{number:04}.png" for number in range(503) if number != 400]
    few = list(csv.DictReader(io.StringIO(oneloop("predict", place / "birds", *pictures, "--top", 1)[1])))
    for row in rows:
        expected = few[int(Path(row["image"]).stem) % 12]
        assert row["class"] == expected["class"]
        assert float(row["probability"]) == pytest.approx(float(expected["probability"]), abs=1e-5)


def test_predict_takes_large_images_few_at_a_time(place, oneloop, tmp_path):
    """Of 4 images (1, 2048, 4096) never all are in memory at once."""
    seen = []
    (tmp_path / "large.py").write_text(LARGE)
    picture = next((place / "pictures").rglob("*.png"))
    for number in range(4):
        shutil.copy(picture, tmp_path / f"{number}.png")
    train_here(tmp_path / "large.py", "--out", tmp_path / "run")
    trained = rebuild(runs.read(tmp_path / "run"), recipe=tmp_path / "large.py")
    trained.net.register_forward_pre_hook(lambda _net, images: seen.append(images[0].shape))
    from launch.commands.predict import predictions

    assert len([*predictions(trained, sorted(tmp_path.glob("*.png")), 1)]) == 4
    assert seen == [(2, 1, 2048, 4096)] * 2


def test_predict_takes_any_image(place, oneloop, tmp_path):
    """Grey, with transparency, with a palette, larger, or lying on its side: one image, nearly the same probabilities."""
    picture = Image.open(place / "pictures/test/bird/01.png")
    larger = picture.resize((160, 96), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "a.png")
    picture.convert("RGBA").save(tmp_path / "b.webp", lossless=True)
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "c.gif")
    larger.save(tmp_path / "d.tiff")
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "e.png", exif=exif)
    picture.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "f.png")  # control: another image
    code, out, _ = oneloop("predict", place / "birds", tmp_path, "--json")
    assert code == 0
    first, *others, turned = [dict(map(dict.values, each["predictions"]))["bird"] for each in json.loads(out)]
    assert others[0] == others[3] == pytest.approx(first, abs=1e-6)
    assert others == pytest.approx([first] * 4, abs=0.05)
    assert turned != pytest.approx(first, abs=0.005)
    assert oneloop("predict", place / "twice/second", tmp_path, "--recipe", place / "twice.py")[0] == 0  # in grey, 28 × 28


BELL = "ev\x1b]0;il\a\u202e\n"  # would set a terminal's title, ring, turn the line round and end it
SHOWN = "ev\\x1b]0;il\\x07\\u202e\\n"
NO_TEXT = os.fsdecode(b"not \xff UTF-8")  # and its name is no text


def named(folder: Path, name: str) -> None:
    """Have the run's second class be called `name` in all that it records."""
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, framework="pt") as opened:
            about, tensors = json.loads(opened.metadata()["oneloop"]), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        safetensors.torch.save_file(tensors, file, {"oneloop": json.dumps(about | {"classes": ["airplane", name]})})


@pytest.mark.parametrize("kind", ["--csv", "--json", "table"])
def test_names_that_are_no_text_or_would_steer_the_terminal(birds, place, oneloop, tmp_path, monkeypatch, kind):
    """Of files and of classes: each is predicted, and nothing reaches the terminal that it would obey."""
    photos = tmp_path / f"photos {BELL}"
    photos.mkdir()
    for name in ("a", BELL, NO_TEXT):
        shutil.copy(place / "pictures/test/bird/01.png", photos / f"{name}.png")
    (photos / f"z {BELL} {NO_TEXT}").write_text("no image")
    named(birds, BELL)
    mine = tmp_path / "cifar2.py"
    text = (ROOT / "recipes/cifar2.py").read_text()
    mine.write_text(text.replace("    train(", f"    images = replace(images, classes=('airplane', {BELL!r}))\n    train(", 1)
                    .replace("import torch", "from dataclasses import replace\nimport torch", 1))  # fmt: skip
    flags = [] if kind == "table" else [kind]
    if kind == "table":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "400")
    code, out, error = oneloop("predict", birds, photos, "--recipe", mine, *flags)
    assert code == 1
    assert error.count("\n") == 3
    assert error.startswith("cifar2.py changed since")
    assert f"z {SHOWN} not \\udcff UTF-8 cannot be read" in error
    for text in (out, error):
        assert not {"\a", "\u202e"} & {*text}
        assert "\x1b]" not in text
    if kind == "--json":
        assert [each["image"] for each in json.loads(out)] == [str(photos / f"{name}.png") for name in ("a", BELL, NO_TEXT)]
        assert {each["class"] for said in json.loads(out) for each in said["predictions"]} == {"airplane", BELL}
    else:
        assert out.count(f"{SHOWN}.png") == (2 if kind == "--csv" else 1)
        assert "not \\udcff UTF-8.png" in out
        assert out.count("airplane") == 3
        assert len(out.splitlines()) == (7 if kind == "--csv" else 12)
    name = birds.rename(tmp_path / f"{BELL}{NO_TEXT}")
    for command in ("predict", "evaluate", "explain", "export"):
        _, out, error = oneloop(command, name, *([photos / "a.png"] if command in ("predict", "explain") else []), *(
            ["--format", "safetensors"] if command == "export" else []), "--weights", "best")  # fmt: skip
        assert not {"\a", "\u202e"} & {*out, *error}
    code, out, error = oneloop("export", name, "--format", "safetensors", "--recipe", mine)
    assert (code, out.count("\n"), error.count("\n")) == (0, 1, 1)
    assert f"{SHOWN}not \\udcff UTF-8/exported.safetensors: " in out
    code, out, error = oneloop("evaluate", name, "--recipe", mine, "--data", photos)
    assert (code, error.count("\n")) == (4, 2)
    assert SHOWN in error


def test_what_the_encoding_of_the_output_lacks_is_escaped(place, tmp_path):
    shutil.copy(place / "pictures/test/bird/01.png", tmp_path / "猫.png")
    with open(tmp_path / "out", "w", encoding="ascii") as file, contextlib.redirect_stdout(file):
        assert commands.main(["predict", str(place / "birds"), str(tmp_path / "猫.png")]) == 0
    assert (tmp_path / "out").read_text().count("\\u732b.png,") == 2


@pytest.mark.parametrize("buffer", [1, 1 << 20], ids=["line by line", "at the end"])
def test_output_to_a_full_disk_is_one_line(place, buffer):
    predict, evaluate = ["predict", place / "birds", place / "pictures"], ["evaluate", place / "birds"]
    for args in (predict, evaluate, ["runs", place], ["--help"]):
        with (
            open("/dev/full", "w", buffering=buffer) as full,
            contextlib.redirect_stdout(full),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            assert commands.main([*map(str, args)]) == 1
        assert said.getvalue() == "cannot write to standard output: No space left on device\n"
    with open("/dev/full", "w", buffering=1) as full, contextlib.redirect_stderr(full):  # nor can that be said
        assert commands.main(["runs", str(place / "nowhere")]) == 2


def test_a_reader_that_has_gone_is_no_error(place):
    """As in `oneloop predict … | head`."""
    for args in (["predict", place / "birds", place / "pictures"], ["runs", place, "--json"], ["runs", place]):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as pipe, contextlib.redirect_stdout(pipe), contextlib.redirect_stderr(io.StringIO()) as said:
            assert commands.main([*map(str, args)]) == 0
        assert said.getvalue() == ""


def test_control_an_error_that_is_no_output_is_a_traceback(monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "as of a file of ours", "somewhere")

    monkeypatch.setattr("launch.commands.runs.main", broken)
    with pytest.raises(OSError, match="of ours"):
        commands.main(["runs"])


# ------------------------------------------------------------------------------------------------------------------- export


def in_file(kind: str, file: Path, net: nn.Module):
    """The function that the file holds, as its users read it, and what the file says of itself."""
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
def test_export_is_the_net_with_its_preprocessing(place, oneloop, tmp_path, kind):
    """Of the stage with batch norm, grey images and a resize: logits within 1e-4, for batches of 1 and of many."""
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    file = tmp_path / "exported"
    code, out, error = oneloop("export", place / "twice/second", "--recipe", place / "twice.py", "--format", kind, "--out", file)
    assert (code, error) == (0, "")
    assert out.startswith(f"{file}: {file.stat().st_size:,} bytes; logits of 16 images are the net's within ")
    trained = rebuild(runs.read(place / "twice"), "second", recipe=place / "twice.py")
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
def test_an_export_that_is_not_the_net_is_not_published(place, oneloop, tmp_path, monkeypatch, kind):
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
    code, out, error = oneloop("export", place / "twice/second", "--recipe", place / "twice.py", "--format", kind, "--out", file)
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert "its logits differ by 1.0e-02; nothing is written" in error
    assert file.read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_an_export_leaves_the_runs_own_files(birds, place, oneloop, tmp_path, monkeypatch):
    """Of its run and of any other: all that training, evaluating and saving made. Earlier exports may go."""
    other, twice = shutil.copytree(birds, tmp_path / "other"), shutil.copytree(place / "twice", tmp_path / "twice")
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
        assert oneloop("explain", birds, place / "pictures/test/bird/01.png", "--out", path)[0] == 2
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.chdir(birds)
    for _ in range(2):  # control: what it makes, it may make again
        assert oneloop("export", birds, "--format", "safetensors")[0] == 0
        assert oneloop("explain", birds, place / "pictures/test/bird/01.png", "--out", "my-explained.png")[0] == 0
    assert oneloop("export", ".", "--format", "safetensors", "--out", tmp_path / "model.safetensors")[0] == 0
    assert oneloop("export", birds, "--format", "safetensors", "--out", "link.safetensors")[0] == 0  # not where it leads
    (tmp_path / "config.json").write_text('{"model_type": "of others"}')  # a folder of weights, and no run
    assert oneloop("export", birds, "--format", "safetensors", "--out", tmp_path / "model.safetensors")[0] == 0
    assert {path: path.read_bytes() for path in before} == before


# ------------------------------------------------------------------------------------------------------------------ explain


def test_explain_draws_a_picture(place, oneloop, tmp_path, monkeypatch):
    pytest.importorskip("captum")
    monkeypatch.chdir(tmp_path)
    code, out, error = oneloop("explain", place / "birds", place / "pictures/test/bird/01.png", "--class", "airplane")
    assert (code, error) == (0, "")
    assert out.startswith("airplane: ")
    assert "from conv2; 01-explained.png" in out
    with Image.open("01-explained.png") as picture:
        assert picture.size == (1080, 540)
    code, _, error = oneloop("explain", place / "birds", place / "pictures/test/bird/01.png", "--class", "cat")
    assert (code, error) == (2, f"no class 'cat'; those of {place / 'birds'} are airplane, bird\n")


def test_explain_takes_the_most_probable_class(place, oneloop, tmp_path):
    pytest.importorskip("captum")
    for picture in sorted((place / "pictures/test").rglob("*.png"))[:3]:
        first = next(csv.DictReader(io.StringIO(oneloop("predict", place / "birds", picture)[1])))
        code, out, _ = oneloop("explain", place / "birds", picture, "--out", tmp_path / "explained.png")
        assert code == 0
        assert out.startswith(f"{first['class']}: {float(first['probability']):.1%}, from conv2; ")


def test_grad_cam_is_where_the_class_is():
    """One class is brightness, the other its opposite: the bright quarter of the image raises the first, nothing the second."""
    pytest.importorskip("captum")
    from launch.commands.explain import grad_cam

    first, maps, last = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
    for module, weight in ((first, [[1.0]]), (maps, [[1.0], [-1.0]]), (last, [[1.0, 0.0], [-1.0, 0.0]])):
        nn.init.zeros_(module.bias)
        module.weight.data = torch.tensor(weight)[..., None, None]
    net = nn.Sequential(first, maps, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), last, nn.Flatten())
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4, :4] = 2
    name, heat = grad_cam(net, image, 0, (16, 16))
    assert name == "1"  # not the last, which sees one place
    assert heat.shape == (16, 16)
    assert heat.max() == 1
    assert heat[:6, :6].min() == 1
    assert heat[10:, 10:].max() == 0
    assert not grad_cam(net, image, 1, (16, 16))[1].any()
    with pytest.raises(Refused, match="no convolution"):
        grad_cam(nn.Flatten(), image, 0, (8, 8))


# ------------------------------------------------------------------------------------------------- stages, recipes, refusals


def test_a_stage_is_rebuilt_and_nothing_is_written(place, oneloop):
    def state():
        return {path: path.read_bytes() for path in (place / "twice").rglob("*") if path.is_file()}

    before = state()
    for stage, width in (("first", 3), ("second", 5)):
        code, out, _ = oneloop("evaluate", place / "twice" / stage, "--recipe", place / "twice.py", "--json")
        said = json.loads(out)  # and nothing that the recipe prints
        assert (code, said["loss"]) == (0, result(place / "twice" / stage)["test"]["loss"])
        assert rebuild(runs.read(place / "twice"), stage, recipe=place / "twice.py").net[0].out_channels == width
    code, _, error = oneloop("predict", place / "twice", place / "pictures")
    assert code == 4
    assert f"name one: {place / 'twice/first'}, {place / 'twice/second'}\n" in error
    assert state() == before


def test_describing_a_recipe_of_stages_writes_nothing(oneloop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = oneloop("describe", ROOT / "recipes/transfer.py")
    assert code == 0
    assert "layer3.2.conv2" in out
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """evil(path) writes a recipe that trains as cifar2.py does and is known by `evil.ran`; the current directory is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    class Evil:
        mark = tmp_path / "ran"

        @property
        def ran(self) -> bool:
            there = self.mark.exists()
            self.mark.unlink(missing_ok=True)
            return there

        def __call__(self, path: Path) -> Path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"open({str(self.mark)!r}, 'w').close()\n" + (ROOT / "recipes/cifar2.py").read_text())
            return path

    return Evil()


def recorded(folder: Path, **changes) -> None:
    """Change what config.json records: the options of its "config", or its own entries."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        (config["config"] if name in config["config"] else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "explain"])
def test_a_run_folder_brings_no_recipe(command, birds, place, oneloop, tmp_path, evil, monkeypatch):
    """A recipe is code and a run folder may be from anyone: whatever name or file it records, nothing that it brings is run."""
    if command == "explain":
        pytest.importorskip("captum")
    image = place / "pictures/test/bird/01.png"
    args = {"evaluate": [], "export": ["--format", "safetensors", "--out", tmp_path / "out"]}.get(command, [image])
    beside, outside, inner = evil(birds / "evil.py"), evil(tmp_path / "evil.py"), evil(birds / "recipes/evil.py")
    evil(tmp_path / "recipes/evil.py")  # beside the run folder
    (birds / "link.py").symlink_to(outside)
    (birds / "elsewhere").symlink_to(tmp_path)
    for name in (
        str(outside.with_suffix("")), str(beside.with_suffix("")), "../evil", "../birds/evil", "../../here/../evil", "evil", "",
        ".", "..", "evil\0", "evil.py", "a/evil", "*", "link", "elsewhere/evil",
    ):  # fmt: skip
        linked = birds / "link.py", birds / "elsewhere/evil.py"
        for file in (*map(str, (beside, inner, outside, *linked)), "evil.py", f"{name}.py", "\0", "", "/" * 9999, 3, None):
            recorded(birds, recipe=name, recipe_file=file)
            code, out, error = oneloop(command, birds, *args)
            assert (code, out, error.count("\n"), evil.ran) == (2, "", 1, False), (name, file)
    recorded(birds, recipe="evil", recipe_file=str(inner))
    for here in (birds, birds / "recipes"):  # who works inside of it
        monkeypatch.chdir(here)
        assert (oneloop(command, birds, *args)[0], evil.ran) == (2, False)
        assert (oneloop(command, ".", *args)[0] in (2, 4), evil.ran) == (True, False)
    (tmp_path / "here/recipes").symlink_to(birds / "recipes")  # and where `recipes` leads into it
    monkeypatch.chdir(tmp_path / "here")
    assert (oneloop(command, birds, *args)[0], evil.ran) == (2, False)
    (tmp_path / "here/recipes").unlink()
    assert (oneloop(command, birds, *args, "--recipe", outside)[0], evil.ran) == (0, True)  # control: it could have run


def test_a_recipe_that_is_elsewhere_is_the_users_to_name(birds, place, oneloop, tmp_path, evil):
    """One that a run records and that is none of those in `recipes`, such as a changed copy: the message has the flag."""
    image, mine = place / "pictures/test/bird/01.png", evil(tmp_path / "my own/cifar2.py")
    recorded(birds, recipe_file=str(mine))
    code, _, error = oneloop("predict", birds, image)
    assert (code, error.count("\n"), evil.ran) == (2, 1, False)
    assert f"{birds} was trained by {mine}, which is neither in {ROOT / 'recipes'} nor in recipes/" in error
    assert error.endswith(f"if you trust that file, --recipe '{mine}'\n")
    assert (oneloop("predict", birds, image, "--recipe", mine)[0], evil.ran) == (0, True)
    recorded(birds, recipe="mine", recipe_file="/gone/mine.py")
    code, _, error = oneloop("predict", birds, image)
    assert (code, error.count("\n")) == (2, 1)
    assert f"mine.py, is neither in {ROOT / 'recipes'} nor in recipes/; --recipe FILE says where it is" in error


def test_recipes_that_need_no_flag(birds, place, oneloop, tmp_path, evil):
    """Those of the package, from anywhere, and those in `recipes` where the user works; of one name, the package's first."""
    image = place / "pictures/test/bird/01.png"
    assert oneloop("predict", birds, image)[0] == 0
    recorded(birds, recipe_file="/gone/cifar2.py")  # the run was made on another machine
    assert oneloop("predict", birds, image)[0] == 0
    (tmp_path / "copy").mkdir()
    recorded(birds, recipe_file=shutil.copy(ROOT / "recipes/cifar2.py", tmp_path / "copy"))  # in another checkout
    assert oneloop("predict", birds, image)[0] == 0
    recorded(birds, recipe_file=str(evil(birds / "cifar2.py")))  # what the folder brings does not stand in the way
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, False)
    mine = evil(tmp_path / "here/recipes/mine.py")
    recorded(birds, recipe="mine", recipe_file=str(mine))
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, True)
    recorded(birds, recipe_file="/gone/mine.py")
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, True)
    evil(tmp_path / "here/recipes/cifar2.py")
    recorded(birds, recipe="cifar2")
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, False)
    recorded(birds, recipe_file=str(tmp_path / "here/recipes/cifar2.py"))  # which is the one that trained it
    assert (oneloop("predict", birds, image)[0], evil.ran) == (0, True)


def test_a_run_on_the_hubs_data_is_used_without_it(birds, place, oneloop, monkeypatch):
    config = json.loads((birds / "config.json").read_text())
    config["config"]["data"] = "hub"
    (birds / "config.json").write_text(json.dumps(config))

    def asked(*_):
        raise Refused("the hub was asked")

    monkeypatch.setattr("launch.data.hub.read", asked)
    assert oneloop("predict", birds, place / "pictures")[0] == 0
    assert oneloop("evaluate", birds)[::2] == (1, "the hub was asked\n")  # control


def test_a_recipe_that_has_changed_is_refused(birds, place, oneloop, tmp_path):
    text = (ROOT / "recipes/cifar2.py").read_text()
    for old, new, says in (
        ("    n_blocks: int = 100,  # of NetResDeep\n", "", "no longer takes the options of"),
        ("else NETS[net]()", "else Net()", "the saved weights are not those of Net"),
    ):
        assert old in text
        (tmp_path / "cifar2.py").write_text(text.replace(old, new))
        code, _, error = oneloop("predict", birds, place / "pictures", "--recipe", tmp_path / "cifar2.py")
        assert (code, error.count("\n")) == (4, 2)
        assert error.startswith("cifar2.py changed since")
        assert says in error
    folder = shutil.copytree(place / "twice", tmp_path / "run")  # its second stage is no more: the recipe comes to its end
    (tmp_path / "twice.py").write_text(TWICE.replace('zip(("first", "second"), widths, strict=True)', '[("first", 3)]'))
    (folder / "result.json").write_text('{"summary": "as it was"}')
    code, _, error = oneloop("predict", folder / "second", place / "pictures", "--recipe", tmp_path / "twice.py")
    assert (code, error.count("\n")) == (2, 2)
    assert "ended without calling `train` for the stage second" in error
    assert result(folder) == {"summary": "as it was"}


def claimed(folder: Path, **changes) -> None:
    """Change what model.safetensors says of its net; None takes an entry away."""
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
        about, tensors = json.loads(file.metadata()["oneloop"]) | changes, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    about = {name: value for name, value in about.items() if value is not None}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"oneloop": json.dumps(about)})


@pytest.mark.parametrize(("name", "values"), [
    ("shape", [[3, 100_000, 100_000], [3, 32], [3, 0, 32], [2, 32, 32], [3, 32.0, 32], "332", None]),
    ("size", [-3, 100_000, 1.5, True]),
    ("mean", [[0.5] * 4, [0.5, 0.5, "0.5"], [0.5, 0.5, float("nan")], 0.5]),
    ("std", [[0.5] * 2, [0.5, 0.5, 0.0], [0.5, 0.5, float("inf")]]),
    ("classes", [[], ["airplane", "bird", "cat"], ["airplane", 3], {"airplane": 0, "bird": 1}, ["bird", "airplane"],
                 ["x"] * 1_000_000, ["x" * 100] * 90_000]),
    ("net", [3]), ("recipe", [["cifar2"]]),
])  # fmt: skip
def test_what_weights_say_must_fit_a_net(birds, place, oneloop, name, values):
    """Read as it stands, this would fill the memory, or end in a traceback."""
    for value in values:
        claimed(birds, **{name: value})
        code, out, error = oneloop("predict", birds, place / "pictures/test/bird/01.png")
        assert (code, out, error.count("\n")) == (4, "", 1), value
        assert len(error) < 1500
    claimed(birds, **json.loads(safetensors.safe_open(place / "birds/model.safetensors", framework="pt").metadata()["oneloop"]))
    assert oneloop("predict", birds, place / "pictures/test/bird/01.png")[0] == 0  # control


def test_an_image_that_the_net_cannot_take_names_the_layer(birds, place, oneloop):
    for changes in ({"shape": [3, 28, 28]}, {"size": 28}):
        claimed(birds, **changes)
        code, _, error = oneloop("export", birds, "--format", "safetensors")
        assert (code, error.count("\n")) == (4, 1)
        assert "NetBatchNorm cannot take (1, 3, 28, 28): fc1 expects 1024 features, got 784" in error
        claimed(birds, shape=[3, 32, 32])
    claimed(birds, shape=[3, 40, 48], size=32)  # control: what is resized first may have any size
    assert oneloop("predict", birds, place / "pictures/test/bird/01.png")[0] == 0


@pytest.mark.parametrize("metadata", [b"", b"{}", b"[", b"[" * 5_000, b'{"__metadata__": {"oneloop": 3}}'])
def test_a_head_that_says_nothing_is_one_line(birds, place, oneloop, metadata):
    for length in (len(metadata), 1 << 62):
        (birds / "model.safetensors").write_bytes(length.to_bytes(8, "little") + metadata)
        code, _, error = oneloop("predict", birds, place / "pictures")
        assert (code, error.count("\n")) == (4, 1)
        assert "model.safetensors does not say what it holds" in error


@pytest.mark.parametrize("changes", [
    {"limit": "many"}, {"seed": None}, {"config": []}, {"config": {}}, {"data": 3}, {"data": {}},
    {"data": {"source": 1, "fingerprint": 2}}, {"net": 3}, {"net": ["Net"]}, {"precision": "fp99"}, {"precision": 16},
    {"recipe": 3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_config_that_no_recipe_takes_is_one_line(birds, place, oneloop, command, changes):
    recorded(birds, **changes)
    if changes == {"data": {}}:
        config = json.loads((birds / "config.json").read_text())
        (birds / "config.json").write_text(json.dumps(config | changes | {"config": config["config"] | {"data": "synthetic"}}))
    code, out, error = oneloop(command, birds, *([place / "pictures/test"] if command == "predict" else []))
    assert (code, out, error.count("\n")) == (4, "", 1) or (command == "predict" and "fp99" in str(changes))


def test_runs_without_weights_say_why_in_one_line(birds, place, oneloop, tmp_path):
    (birds / "model.safetensors").rename(tmp_path / "kept")
    (birds / "result.json").unlink()

    def refusal(*flags) -> str:
        code, _, error = oneloop("predict", birds, place / "pictures", *flags)
        assert (code, error.count("\n")) == (4, 1)
        return error

    config = json.loads((birds / "config.json").read_text())
    assert f"was interrupted: python {config['command']} goes on with it, or take --weights best, the best so far" in refusal()
    with filelock.FileLock(birds / "lock"):
        assert "is still being trained: wait for its end or take --weights best" in refusal()
    (birds / "stopped.json").write_text(json.dumps({"code": 3, "why": "the loss is not finite at step 7"}))
    assert "has not finished: the loss is not finite at step 7" in refusal()
    assert oneloop("evaluate", birds, "--weights", "best")[0] == 0
    (birds / "best.safetensors").write_bytes(b"torn")
    assert "best.safetensors" in refusal("--weights", "best")
    (birds / "config.json").write_text(json.dumps(config | {"format": 99}))
    assert "was written by another version of oneloop (format 99)" in refusal()
    (birds / "config.json").unlink()
    assert "is no run folder" in refusal()
    code, _, error = oneloop("predict", tmp_path / "nowhere", place / "pictures")
    assert (code, error) == (2, f"no run at {tmp_path / 'nowhere'}; `oneloop runs` lists what is there\n")


def test_by_hand_cannot_be_rebuilt(place, oneloop, tmp_path):
    train_here(ROOT / "recipes/by_hand.py", "--limit", 64, "--epochs", 1, "--out", tmp_path / "run")
    code, _, error = oneloop("predict", tmp_path / "run", place / "pictures")
    assert (code, error.count("\n")) == (2, 1)
    assert "does not import `train`" in error


@pytest.mark.parametrize(
    ("module", "args"), [("captum", ["explain", "RUN", "x.png"]), ("onnxruntime", ["export", "RUN", "--format", "onnx"])]
)
def test_a_library_that_is_not_installed_is_one_line(place, oneloop, monkeypatch, module, args):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, error = oneloop(*(place / "birds" if arg == "RUN" else arg for arg in args))
    assert (code, error.count("\n")) == (2, 1)
    assert f"needs {module}: pip install" in error


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from launch.commands import main\n"
        "for name in ('predict', 'evaluate', 'export', 'explain'):\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'tyro', 'accelerate', 'PIL', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("example: oneloop ") == 4
