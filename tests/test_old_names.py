"""Names of version 0.2 in today's: a run folder that it left (tests/run_of_0.2), its flags, the names that are hashed."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from jobs import begin

from launch import commands
from launch.old_names import OPTIONS, RECIPES, flags_of_today, options_of_today, options_to_hash
from launch.recipe import located
from launch.report.runs import read

OLD = Path(__file__).with_name("run_of_0.2")
RECIPE = Path(__file__).parents[1] / "recipes/ablations.py"
FLAGS = ("--data", "synthetic", "--limit", 96, "--epochs", 2, "--batch", 32, "--shards", 2, "--remedy", "crop", "--threads", 1)


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_every_old_name_is_read_and_hashed_as_it_was():
    before = {name: number for number, name in enumerate(OPTIONS)} | {"recipe": "pictures", "net": "resnet18"}
    today = options_of_today(before)
    assert not today.keys() & OPTIONS.keys()
    assert today["recipe"] == "custom"
    assert options_to_hash(today) == before
    assert all(options_to_hash({"recipe": new}) == {"recipe": old} for old, new in RECIPES.items())
    assert flags_of_today(["--shards", "2", "--stored=64", "shards", "--net", "--remedy"]) == [
        "--micro-batches", "2", "--cache-size=64", "shards", "--net", "--method",
    ]  # fmt: skip


def test_a_recipe_is_found_by_its_old_name():
    assert {old: located(old).stem for old in RECIPES} == RECIPES


def test_a_run_of_0_2_is_read_shown_and_used(old, capsys):
    record = read(old)
    assert (record.options["recipe"], record.options["method"], record.options["micro_batches"]) == ("ablations", "crop", 2)
    commands.main(["runs", str(old.parent)])
    assert "ablations" in capsys.readouterr().out
    commands.main(["evaluate", str(old), "--json"])
    recorded = json.loads((old / "result.json").read_text())
    measured = json.loads(capsys.readouterr().out)
    assert measured["accuracy"] == pytest.approx(recorded["test"]["accuracy"], abs=0.005)


def test_a_run_of_0_2_is_resumed_by_its_own_flags(old, tmp_path):
    """Its command, with the new name of the recipe: the last checkpoint is its own, so nothing is left to train."""
    ended = safetensors.torch.load_file(old / "model.safetensors")
    for name in ("result.json", "model.safetensors"):
        (old / name).unlink()
    job = begin(RECIPE, *FLAGS, "--out", "old", "--accept-edit", cwd=tmp_path)
    assert job.wait() == 0, job.output
    assert "step 6" in job.output
    resumed = safetensors.torch.load_file(old / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in ended.items())
    assert json.loads((old / "config.json").read_text())["config"]["micro_batches"] == 2


def test_control_another_number_of_micro_batches_is_another_run(old, tmp_path):
    (old / "result.json").unlink()
    other = [1 if flag == 2 and FLAGS[at - 1] == "--shards" else flag for at, flag in enumerate(FLAGS)]
    job = begin(RECIPE, *other, "--out", "old", cwd=tmp_path)
    assert job.wait() == 4, job.output
    assert "micro_batches was 2, now 1" in job.output
