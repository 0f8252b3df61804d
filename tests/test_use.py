"""A trained net put to use: the numbers of its training, files that say the same, and one line for what cannot be."""

import copy
import csv
import io
import json
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

from launch import cli, commands, runs, sources
from launch.errors import Refused
from launch.rebuild import load, rebuild

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


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    """What a recipe in this process adds to Python's path and modules goes with the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("cifar2", "twice", "by_hand", "transfer"):
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


def tampered(folder: Path, name: str = "model.safetensors") -> None:
    """Move one tensor in a file of weights a little, and leave its metadata as they are."""
    with safetensors.safe_open(folder / name, framework="pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["conv1.weight"] = tensors["conv1.weight"] * 1.5
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
    assert "does not hold the weights that" in error
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


# ------------------------------------------------------------------------------------------------------------------ predict


def test_predict_is_the_net_on_images_normalised_as_in_training(place, oneloop):
    trained = rebuild(runs.read(place / "birds"))
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
    assert "without a known white" in error
    assert error.splitlines()[-1] == "4 of 5 files could not be read as an image"
    assert oneloop("predict", place / "birds", tmp_path / "a.png")[0] == 0  # control
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    _, table, _ = oneloop("predict", place / "birds", tmp_path / "a.png")
    assert f"{float(rows[0]['probability']):.1%}" in table
    assert "┃" in table


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
    assert oneloop("predict", place / "twice/second", tmp_path)[0] == 0  # in grey, 28 × 28


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
    code, out, error = oneloop("export", place / "twice/second", "--format", kind, "--out", file)
    assert (code, error) == (0, "")
    assert out.startswith(f"{file}: {file.stat().st_size:,} bytes; logits of 16 images are the net's within ")
    trained = rebuild(runs.read(place / "twice"), "second")
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
    code, out, error = oneloop("export", place / "twice/second", "--format", kind, "--out", file)
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert "its logits differ by 1.0e-02; nothing is written" in error
    assert file.read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


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
        code, out, _ = oneloop("evaluate", place / "twice" / stage, "--json")
        said = json.loads(out)  # and nothing that the recipe prints
        assert (code, said["loss"]) == (0, result(place / "twice" / stage)["test"]["loss"])
        assert rebuild(runs.read(place / "twice"), stage).net[0].out_channels == width
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


def test_the_recipe_where_it_was_or_where_the_user_says(birds, place, oneloop, tmp_path, monkeypatch):
    """And never one that a run folder brings along: it is code, and the folder may be from anyone."""
    monkeypatch.chdir(tmp_path)
    config = json.loads((birds / "config.json").read_text())
    ran = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n" + (ROOT / "recipes/cifar2.py").read_text()
    image = place / "pictures/test/bird/01.png"
    for folder, runs_it in ((birds, False), (tmp_path / "elsewhere", True)):  # the second is the control
        folder.mkdir(exist_ok=True)
        (folder / "cifar2.py").write_text(code)
        (birds / "config.json").write_text(json.dumps(config | {"recipe_file": str(folder / "cifar2.py")}))
        exit_code, _, error = oneloop("predict", birds, image)
        assert (exit_code, ran.exists()) == ((0, True) if runs_it else (2, False)), error
    (birds / "config.json").write_text(json.dumps(config | {"recipe_file": "/gone/cifar2.py"}))
    code, _, error = oneloop("predict", birds, image)
    assert (code, error.count("\n")) == (2, 1)
    assert "is neither at /gone/cifar2.py nor at recipes/cifar2.py; --recipe FILE says where it is" in error
    assert oneloop("predict", birds, image, "--recipe", ROOT / "recipes/cifar2.py")[0] == 0
    monkeypatch.chdir(ROOT)
    assert oneloop("predict", birds, image)[0] == 0


def test_a_run_on_the_hubs_data_is_used_without_it(birds, place, oneloop, monkeypatch):
    config = json.loads((birds / "config.json").read_text())
    config["config"]["data"] = "hub"
    (birds / "config.json").write_text(json.dumps(config))

    def asked(*_):
        raise Refused("the hub was asked")

    monkeypatch.setattr(sources, "_cached_hub", asked)
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
        assert (code, error.count("\n")) == (4, 1)
        assert says in error
    folder = shutil.copytree(place / "twice", tmp_path / "run")  # its second stage is no more: the recipe comes to its end
    (tmp_path / "twice.py").write_text(TWICE.replace('zip(("first", "second"), widths, strict=True)', '[("first", 3)]'))
    (folder / "result.json").write_text('{"summary": "as it was"}')
    code, _, error = oneloop("predict", folder / "second", place / "pictures", "--recipe", tmp_path / "twice.py")
    assert (code, error.count("\n")) == (2, 1)
    assert "ended without calling `train` for the stage second" in error
    assert result(folder) == {"summary": "as it was"}


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
