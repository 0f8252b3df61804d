"""Trained runs for the tests of what is done with them, and ways to change what they record. conftest.py imports the fixtures."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
from PIL import Image

from launch import cli, commands
from launch.recipe import load
from launch.report import runs
from launch.trained import rebuild

ROOT = Path(__file__).parents[1]

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
    run.finish("two stages", stages=results)
'''


@pytest.fixture
def own_path(monkeypatch):
    """Undo, after the test, what a recipe in this process adds to Python's path and modules."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("cifar2", "twice", "by_hand", "transfer", "large", "evil", "mine"):
        sys.modules.pop(name, None)


def train_here(recipe: Path, *flags) -> None:
    """Run `python RECIPE …` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "argv", [*map(str, (recipe, "--data", "synthetic", "--threads", 1, *flags))])
        cli(load(recipe).main)


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory) -> Path:
    """Holds `birds`, a run of cifar2.py, `twice`, a run of two stages, and `images`, 12 test images of `birds` by class."""
    folder = tmp_path_factory.mktemp("use")
    train_here(ROOT / "recipes/cifar2.py", "--net", "NetBatchNorm", "--limit", 300, "--epochs", 3, "--out", folder / "birds")
    (folder / "twice.py").write_text(TWICE)
    train_here(folder / "twice.py", "--limit", 100, "--widths", 3, 5, "--out", folder / "twice")
    images = rebuild(runs.read(folder / "birds")).images
    for split in ("train", "test"):
        for index in range(12):
            shown = folder / "images" / split / images.classes[images.test.labels[index]]
            shown.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.test.pixels[index].permute(1, 2, 0).numpy()).save(shown / f"{index:02}.png")
    return folder


@pytest.fixture
def birds(trained_runs, tmp_path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(trained_runs / "birds", tmp_path / "birds"))


@pytest.fixture
def oneloop(capsys):
    """oneloop(command, …) -> (exit code, stdout, stderr), in this process."""

    def oneloop(*args) -> tuple[int, str, str]:
        capsys.readouterr()  # of earlier commands
        code = commands.main([*map(str, args)])
        return code, *capsys.readouterr()

    return oneloop


def claimed(folder: Path, **changes) -> None:
    """Change what model.safetensors says about its net; None removes an entry."""
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
        about, tensors = json.loads(file.metadata()["oneloop"]) | changes, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    about = {name: value for name, value in about.items() if value is not None}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"oneloop": json.dumps(about)})


@pytest.fixture
def said(oneloop):
    """said(path, flags…) -> what `oneloop data --json` prints."""

    def said(*args) -> dict:
        code, out, error = oneloop("data", *args, "--json")
        found = json.loads(out)
        assert code == (4 if found["bad"] else 0), error
        return found

    return said
