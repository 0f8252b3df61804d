"""`oneloop predict`: every file in turn, the net's own probabilities, and names that cannot harm a terminal."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT
from PIL import Image, ImageOps
from trained import claimed, train_here

from launch.data.file_feed import batches
from launch.data.image_file import read_image
from launch.data.resize import ResizeRule, reduced_size
from launch.report import runs
from launch.sources.folder import class_folders, entries
from launch.trained import rebuild
from oneloop import load

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

pytestmark = pytest.mark.usefixtures("own_path")


def test_predict_is_the_net_on_images_normalised_as_in_training(trained_runs, oneloop):
    trained = rebuild(runs.read(trained_runs / "birds"))
    assert not any(module.training for module in trained.net.modules())
    files = sorted((trained_runs / "images/test").rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.4915, 0.4823, 0.4468), (0.2470, 0.2435, 0.2616)))
    with torch.no_grad():
        expected = trained.net((pixels / 255 - mean) / std).softmax(1)
    code, out, error = oneloop("predict", trained_runs / "birds", trained_runs / "images/test", "--json")
    assert (code, error) == (0, "")
    said = json.loads(out)
    assert [each["image"] for each in said] == [*map(str, files)]
    for each, probabilities in zip(said, expected, strict=True):
        found = {prediction["class"]: prediction["probability"] for prediction in each["predictions"]}
        assert [found["airplane"], found["bird"]] == pytest.approx(probabilities.tolist(), abs=1e-6)
        assert [*found.values()] == sorted(found.values(), reverse=True)


def test_a_run_uses_the_mean_that_its_weights_record(birds, trained_runs, oneloop):
    """Even if the recipe's own have changed since."""
    claimed(birds, mean=[0.0, 0.1, 0.2], std=[1.0, 0.9, 0.8])
    file = trained_runs / "images/test/bird/01.png"
    pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    mean, std = torch.tensor([0.0, 0.1, 0.2]).view(3, 1, 1), torch.tensor([1.0, 0.9, 0.8]).view(3, 1, 1)
    with torch.no_grad():
        expected = rebuild(runs.read(trained_runs / "birds")).net((pixels / 255 - mean)[None] / std).softmax(1)[0]
    (said,) = json.loads(oneloop("predict", birds, file, "--json")[1])
    found = {prediction["class"]: prediction["probability"] for prediction in said["predictions"]}
    assert [found["airplane"], found["bird"]] == pytest.approx(expected.tolist(), abs=1e-6)


def test_predict_names_and_skips_files_that_are_not_images(trained_runs, oneloop, tmp_path, monkeypatch):
    image = Image.open(trained_runs / "images/test/bird/01.png")
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "c.txt").write_text("no image")
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tmp_path / "d.tiff")
    (tmp_path / ".hidden").write_text("not looked at")
    code, out, error = oneloop("predict", trained_runs / "birds", tmp_path, tmp_path / "nowhere.jpg", "--top", 1)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1
    assert [(row["image"], row["rank"]) for row in rows] == [(str(tmp_path / "a.png"), "1")]
    assert [line.split()[0].rstrip(":") for line in error.splitlines()[:-1]] == [
        str(tmp_path) if name == "c.txt" else str(tmp_path / name) for name in ("c.txt", "b.png", "d.tiff", "nowhere.jpg")
    ]
    assert error.splitlines()[0] == f"{tmp_path}: left out what is no image by its name: 1 .txt"
    assert "no known range" in error
    assert error.splitlines()[-1] == "3 of 4 files could not be read as an image"
    code, _, error = oneloop("predict", trained_runs / "birds", tmp_path / "c.txt")  # a file that is named is tried
    assert (code, error.splitlines()[-1]) == (1, "1 of 1 files could not be read as an image")
    assert oneloop("predict", trained_runs / "birds", tmp_path / "a.png")[0] == 0  # control
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    _, table, _ = oneloop("predict", trained_runs / "birds", tmp_path / "a.png")
    assert f"{float(rows[0]['probability']):.1%}" in table
    assert "┃" in table


def test_predict_finds_the_images_that_training_finds(trained_runs, oneloop, tmp_path):
    """Behind links, too, but not in circles; neither Thumbs.db nor hidden files are tried, and what is left out is said."""
    image = next((trained_runs / "images/test").rglob("*.png"))
    for place in ("elsewhere", "new/a", "new/.hidden", "new/__MACOSX"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(2):
            shutil.copy(image, tmp_path / place / f"{number}.PNG")
    new = tmp_path / "new"
    (new / "b").symlink_to(tmp_path / "elsewhere")
    (new / "a/up").symlink_to(new)
    for name in ("Thumbs.db", "a/desktop.ini", "a/notes"):
        (new / name).write_text("no image")
    os.mkfifo(new / "pipe.png")
    listing = class_folders(new, entries(new))
    code, out, error = oneloop("predict", trained_runs / "birds", new, "--top", 1, "--csv")
    found = [row["image"] for row in csv.DictReader(io.StringIO(out))]
    assert (code, found) == (0, [str(new / each.path) for each in listing.images])
    assert found == [str(new / name) for name in ("a/0.PNG", "a/1.PNG", "b/0.PNG", "b/1.PNG")]
    kinds = "1 .db, 1 .ini, 1 link in a circle, 1 no extension, 1 special"
    assert error == f"{new}: left out what is no image by its name: {kinds}\n"
    code, _, error = oneloop("predict", trained_runs / "birds", new / "pipe.png")  # named: it is not waited for
    assert (code, error.splitlines()[0]) == (1, f"{new / 'pipe.png'} cannot be read as an image: it is not a file")
    for place in (new / "a", new / "b"):
        for file in place.glob("*.PNG"):
            file.unlink()
    code, _, error = oneloop("predict", trained_runs / "birds", new)
    assert (code, error) == (
        1,
        f"{new}: no images in it (1 .db, 1 .ini, 2 hidden, 1 link in a circle, 1 no extension, 1 special)\n",
    )


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(9, 40), (40, 9), (5, 3)])
def test_an_image_is_resized_by_torch(mode, size, tmp_path):
    """torch resizes, as in training; Pillow's own resize gives other pixels in other versions."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.png")
    whole = torch.from_numpy(np.array(image).reshape(size[1], size[0], -1)).permute(2, 0, 1)[None].contiguous()
    expected = torch.nn.functional.interpolate(whole, (8, 6), mode="bilinear", antialias=True)[0]
    found = read_image(tmp_path / "a.png", (len(whole[0]), 8, 6))
    assert torch.equal(found, expected)
    exact = torch.nn.functional.interpolate(whole.double(), (8, 6), mode="bilinear", antialias=True)[0]
    assert (found - exact).abs().max() <= 1.5  # rounded twice


def test_pixels_are_those_that_pillow_decodes_and_torch_resizes(tmp_path):
    """The central square of each kind of file, to the bit."""
    random, rule = np.random.default_rng(0), ResizeRule(size=32, cache_size=64)
    image = Image.fromarray(random.integers(0, 256, (12, 15, 3), dtype=np.uint8)).resize((100, 80), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "a.jpg": (image, {}),
        "turned.jpg": (image, {"exif": exif}),
        "grey.jpg": (image.convert("L"), {}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "small.jpg": (image.resize((90, 60)), {}),
        "a.png": (image, {}),
        "grey.png": (image.convert("L"), {}),
    }

    def resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return torch.nn.functional.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True)[0]

    for name, (kind, options) in kinds.items():
        kind.save(tmp_path / name, **options)
    read = next(batches([tmp_path / name for name in kinds], (3, 32, 32), rule, torch.device("cpu")))
    assert (read.places, read.unread) == ([*range(len(kinds))], {})
    for name, seen in zip(kinds, read.pixels, strict=True):
        opened = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
        pixels = torch.from_numpy(np.array(opened)).permute(2, 0, 1).contiguous()
        width, height = reduced_size(*opened.size, rule)
        pixels = pixels if (height, width) == pixels.shape[1:] else resize(pixels, height, width)
        side = round(min(width, height) * 7 / 8)
        top, left = (height - side) // 2, (width - side) // 2
        expected = resize(pixels[:, top : top + side, left : left + side].contiguous(), 32, 32)
        assert torch.equal(seen, expected), name


def test_predict_takes_every_file(trained_runs, oneloop, tmp_path):
    """More files than fit in one batch: sorted by name, each with the prediction that it gets alone."""
    images = sorted((trained_runs / "images/test").rglob("*.png"))
    for number in range(503):
        (tmp_path / f"{number:04}.png").symlink_to(images[number % 12])
    (tmp_path / "0400.png").unlink()
    (tmp_path / "0400.png").write_text("no image")
    code, out, error = oneloop("predict", trained_runs / "birds", tmp_path, "--top", 1, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, error.count("\n")) == (1, 2)
    assert [Path(row["image"]).name for row in rows] == [f"{number:04}.png" for number in range(503) if number != 400]
    few = list(csv.DictReader(io.StringIO(oneloop("predict", trained_runs / "birds", *images, "--top", 1)[1])))
    for row in rows:
        expected = few[int(Path(row["image"]).stem) % 12]
        assert row["class"] == expected["class"]
        assert float(row["probability"]) == pytest.approx(float(expected["probability"]), abs=1e-5)


def test_predict_takes_large_images_few_at_a_time(trained_runs, tmp_path, monkeypatch):
    """Four images of (1, 2048, 4096) are never all in memory at once."""
    seen = []
    (tmp_path / "large.py").write_text(LARGE)
    image = next((trained_runs / "images").rglob("*.png"))
    for number in range(4):
        shutil.copy(image, tmp_path / f"{number}.png")
    train_here(tmp_path / "large.py", "--out", tmp_path / "run")
    model = load(tmp_path / "run", recipe=tmp_path / "large.py")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model.net.register_forward_pre_hook(lambda _net, images: seen.append(images[0].shape))
    assert len(model.predict(sorted(tmp_path.glob("*.png")))) == 4
    assert seen == [(1, 1, 2048, 4096)] * 4


def test_predict_takes_any_image(trained_runs, oneloop, tmp_path):
    """The same image with transparency, with a palette, enlarged or rotated by EXIF has nearly the same probabilities."""
    image = Image.open(trained_runs / "images/test/bird/01.png")
    larger = image.resize((160, 96), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.png")
    image.convert("RGBA").save(tmp_path / "b.webp", lossless=True)
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "c.gif")
    larger.save(tmp_path / "d.tiff")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "e.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "f.png")  # control: another image
    code, out, _ = oneloop("predict", trained_runs / "birds", tmp_path, "--json")
    assert code == 0
    first, *others, turned = [dict(map(dict.values, each["predictions"]))["bird"] for each in json.loads(out)]
    assert others[0] == others[3] == pytest.approx(first, abs=1e-6)
    assert others == pytest.approx([first] * 4, abs=0.05)
    assert turned != pytest.approx(first, abs=0.005)
    assert (
        oneloop("predict", trained_runs / "twice/second", tmp_path, "--recipe", trained_runs / "twice.py")[0] == 0
    )  # in grey, 28 × 28


BELL = "ev\x1b]0;il\a\u202e\n"  # would set a terminal's title, ring, turn the line round and end it
SHOWN = "ev\\x1b]0;il\\x07\\u202e\\n"
NO_TEXT = os.fsdecode(b"not \xff UTF-8")  # and its name is no text


def named(folder: Path, name: str) -> None:
    """Rename the run's second class to `name` in its weights' metadata."""
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, framework="pt") as opened:
            about, tensors = json.loads(opened.metadata()["oneloop"]), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        safetensors.torch.save_file(tensors, file, {"oneloop": json.dumps(about | {"classes": ["airplane", name]})})


@pytest.mark.parametrize("kind", ["--csv", "--json", "table"])
def test_names_are_escaped_before_they_reach_the_terminal(birds, trained_runs, oneloop, tmp_path, monkeypatch, kind):
    """Names of files and of classes: all are predicted, and no control character reaches the terminal."""
    photos = tmp_path / f"photos {BELL}"
    photos.mkdir()
    for name in ("a", BELL, NO_TEXT):
        shutil.copy(trained_runs / "images/test/bird/01.png", photos / f"{name}.png")
    (photos / f"z {BELL} {NO_TEXT}.png").write_text("no image")
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
    assert f"z {SHOWN} not \\udcff UTF-8.png cannot be read" in error
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
