"""`oneloop train` is `accelerate launch`, with names for the package's own recipes; a wheel has these, below launch/."""

import configparser
import json
import os
import subprocess
import sys

import jobs
import pytest
from conftest import ROOT, command

from launch import commands, recipe
from launch.commands import train

LAUNCH = [sys.executable, "-P", "-m", "accelerate.commands.launch"]
CIFAR2 = str(ROOT / "recipes/cifar2.py")
FLAGS = ("--data", "synthetic", "--limit", 64, "--epochs", 1, "--threads", 1)


@pytest.fixture
def becomes(monkeypatch, tmp_path):
    """becomes(WORDS…) -> what `oneloop train WORDS` becomes, from the folder of the test, behind LAUNCH."""
    monkeypatch.chdir(tmp_path)

    def becomes(*words):
        seen = []
        monkeypatch.setattr(os, "execv", lambda path, command: seen.append((path, command)))
        train.main(words)
        ((path, command),) = seen
        assert path == sys.executable
        assert command[:4] == LAUNCH
        return command[4:]

    return becomes


def test_a_name_or_a_path_with_flags_on_both_sides(becomes, tmp_path):
    assert becomes("cifar2") == [CIFAR2]
    assert becomes("cifar2", "--data", "synthetic", "mnist") == [CIFAR2, "--data", "synthetic", "mnist"]
    (tmp_path / "mine.py").touch()
    words = ["--num_processes", "2", "--multi_gpu", "mine.py", "--seed", "2"]
    assert becomes(*words) == words
    (tmp_path / "cifar2").mkdir()
    assert becomes("--mixed_precision=bf16", "cifar2") == ["--mixed_precision=bf16", CIFAR2]


def test_the_packages_own_launch_files_are_found_from_anywhere(becomes, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # else launch/gpus.yaml is refused
    own = str(ROOT / "launch/gpus.yaml")
    assert becomes("--config_file", "launch/gpus.yaml", "cifar2") == ["--config_file", own, CIFAR2]
    assert becomes("--config_file", "gpus.yaml", "cifar2")[1] == "gpus.yaml"  # none is that name alone
    assert becomes("cifar2", "--config_file", "launch/gpus.yaml")[1:] == ["--config_file", "launch/gpus.yaml"]  # the recipe's
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/gpus.yaml").touch()
    assert becomes("--config_file", "launch/gpus.yaml", "cifar2")[1] == "launch/gpus.yaml"  # the user's


def test_in_a_checkout_the_command_is_as_one_would_write_it(becomes, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert becomes("cifar2") == ["recipes/cifar2.py"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nowhere --data x", "nowhere is not a recipe: no such file, and the package's own are ablations, by_hand"),
        ("nowhere.py", "nowhere.py is not a recipe: no such file"),
        ("nowhere --net depth", "nowhere is not a recipe"),  # depth is one
        ("--num_processes 2", "no recipe in `--num_processes 2`"),
        ("photos cifar2", "photos is not a recipe"),
    ],
)
def test_what_is_no_recipe_starts_nothing(words, says, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started"))
    assert commands.main(["train", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(says)
    assert error.count("\n") == 1


def test_a_run_of_train_is_one_of_accelerate_launch(tmp_path):
    """The same folder, records and code; what one began, the other finds finished."""
    done = jobs.run(*command("train", "--num_processes", 1, "cifar2", *FLAGS), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("runs/cifar2/Net-*")
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["command"] == " ".join(map(str, (CIFAR2, *FLAGS)))
    assert recorded["recipe_file"] == CIFAR2
    assert "cifar2.py" in recorded["code"][0]
    again = jobs.run("-m", "accelerate.commands.launch", "--num_processes", 1, CIFAR2, *FLAGS, cwd=tmp_path)
    assert again.stdout.splitlines()[0].startswith("already finished: Net, 1 epochs")
    assert again.stdout.splitlines()[1] == str(run.relative_to(tmp_path))


def test_the_wheel_has_the_recipes_below_launch_and_nothing_else_beside_it(tmp_path):
    build = "import setuptools; setuptools.setup()"
    subprocess.run([sys.executable, "-c", build, "-q", "build_py", "--build-lib", tmp_path], cwd=ROOT, check=True, timeout=60)
    assert {path.name for path in tmp_path.iterdir()} == {"launch", "nets", "oneloop"}
    for folder, place in (("recipes", tmp_path / "launch/recipes"), ("launch", tmp_path / "launch"), ("nets", tmp_path / "nets")):
        left_out = {"__pycache__", ".ruff_cache", "ruff.toml"}  # what tools leave, and the rules for recipes' imports
        files = {str(path.relative_to(ROOT / folder)) for path in (ROOT / folder).rglob("*") if not left_out & {*path.parts}}
        built = {str(path.relative_to(place)) for path in place.rglob("*")}
        assert built - {name for name in built if folder == "launch" and name.startswith("recipes")} == files
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from launch import recipe\n"
        "print(recipe.located('cifar2'))\n"
        "import importlib.util; assert importlib.util.find_spec('recipes') is None"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "launch/recipes/cifar2.py"


def test_a_checkout_has_its_recipes_beside_launch():
    assert recipe.RECIPES == ROOT / "recipes"
    assert recipe.names() == sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert not {"recipes", "tests"} & {*config["options"]["packages"].split()}
