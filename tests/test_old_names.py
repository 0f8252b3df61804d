"""Names of version 0.2 in today's: a run folder that it left (tests/run_of_0.2), its flags, the names that are hashed."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from jobs import begin
from made_runs import compared, write_run

from launch import commands
from launch.errors import Refused
from launch.folder import find_folder
from launch.old_names import LATER, OPTIONS, RECIPES, flags_of_today, options_of_today, options_to_hash
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


def test_a_run_of_pictures_is_found_and_is_the_one_that_its_command_names(tmp_path, monkeypatch):
    """A run of 0.2 lacks the options that came later, and lies where 0.2 had put it."""
    monkeypatch.chdir(tmp_path)
    today = {"recipe": "custom", "net": "Net", "mode": "scratch", "data": "hub", "micro_batches": 2, "seed": 1, **LATER}
    flags = {"fresh": False, "world": 1, "texts": {}, "accept_edit": False}
    new = find_folder(today, None, **flags).folder
    assert new.parent == Path("runs/custom")
    before = {"recipe": "pictures", "net": "Net", "mode": "scratch", "data": "hub", "shards": 2, "seed": 1}
    place = Path("runs/pictures", new.name)
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"format": 1, "config": before, "shards": 2}))
    assert find_folder(today, None, **flags).folder == place
    with pytest.raises(Refused, match=r"layer_decay was 'absent', now 0\.5"):
        find_folder(today | {"layer_decay": 0.5}, place, **flags)


def test_control_a_frozen_run_of_0_2_saw_other_images(tmp_path):
    """New views in each epoch, for which there is no --views now."""
    assert "views" not in options_to_hash({"views": 0, "mode": "scratch"})
    assert "views" in options_to_hash({"views": 0, "mode": "frozen"})
    write_run(tmp_path / "a", recipe="pictures", mode="frozen", seed=1)
    write_run(tmp_path / "b", recipe="custom", mode="frozen", seed=2, **LATER)
    assert compared(tmp_path).differ == ["views"]


def test_runs_from_before_an_option_are_compared_as_those_with_its_first_value(tmp_path):
    write_run(tmp_path / "a", recipe="pictures", mode="scratch", seed=1)
    write_run(tmp_path / "b", recipe="custom", mode="scratch", seed=2, **LATER)
    write_run(tmp_path / "c", recipe="custom", mode="scratch", seed=1, **LATER | {"layer_decay": 0.5})
    write_run(tmp_path / "d", recipe="mine", mode="scratch", seed=1)
    comparison = compared(tmp_path)
    assert {(group.options.get("layer_decay"), *group.seeds) for group in comparison.groups} == {(1.0, 1, 2), (0.5, 1), (None, 1)}


def test_control_another_number_of_micro_batches_is_another_run(old, tmp_path):
    (old / "result.json").unlink()
    other = [1 if flag == 2 and FLAGS[at - 1] == "--shards" else flag for at, flag in enumerate(FLAGS)]
    job = begin(RECIPE, *other, "--out", "old", cwd=tmp_path)
    assert job.wait() == 4, job.output
    assert "micro_batches was 2, now 1" in job.output
