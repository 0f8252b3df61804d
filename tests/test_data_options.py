"""Flags for your own images are one group, which the commands with --data share; each is recorded."""

import dataclasses
import json

import pytest
from conftest import ROOT
from photos import write_photos
from PIL import Image
from trained import train_here

from launch.command_line import parse
from launch.option_groups import apart, together
from launch.recipe import load
from launch.run import Run
from launch.sources.options import DataOptions

OPTIONS = {"split": "s.csv", "test": 0.2, "columns": ("label=kind",), "skip_bad": True, "cache_size": 80, "white": 4095}
OPTIONS |= {"group": "patient", "classes_at": 2}
FLAGS = ("--split", "s.csv", "--test", "0.2", "--columns", "label=kind", "--skip-bad", "--cache-size", "80", "--white", "4095")
FLAGS = (*FLAGS, "--group", "patient", "--classes-at", "2")


@pytest.fixture(scope="module")
def main():
    return load(ROOT / "recipes/custom.py").main


def test_a_group_is_recorded_flag_by_flag_and_gathered_again(main):
    run, options = parse(main, ["--data", "synthetic", *FLAGS])
    assert options["data"] == DataOptions(**OPTIONS)
    run.configure("custom", options, "no")
    assert {name: run.config[name] for name in OPTIONS} == OPTIONS
    assert run.config["data"] == "synthetic"  # --data, not the group of this name
    assert together(main, apart(options)) == options
    del (older := apart(options))["white"]  # a run from before this flag
    assert together(main, older)["data"] == DataOptions(**OPTIONS | {"white": 0})
    assert not {"group", "classes_at", "label_from", "split_column"} & apart({"data": DataOptions()}).keys()  # as before them


def test_control_a_flag_of_the_group_names_another_run(main):
    configurations = []
    for flags in ((), ("--test", "0.2")):
        run, options = parse(main, ["--data", "synthetic", *flags])
        run.configure("custom", options, "no")
        configurations.append(run.config)
    assert configurations[0] != configurations[1]


def test_the_help_of_recipe_and_commands_shows_the_group(main, oneloop, capsys):
    with pytest.raises(SystemExit):
        parse(main, ["--help"])
    section = capsys.readouterr().out.partition("data options")[2].partition("╭")[0]
    for field in dataclasses.fields(DataOptions):
        assert f"--{field.name.replace('_', '-')}" in section
    for command, names in (("data", ("--split", "--test", "--columns", "--skip-bad", "--white")), ("evaluate", ("--skip-bad",))):
        with pytest.raises(SystemExit) as ended:
            oneloop(command, "--help")
        assert ended.value.code == 0
        assert {*names} <= {*capsys.readouterr().out.partition("data options")[2].split()}


def test_oneloop_data_leaves_out_bad_files_and_knows_what_is_white(oneloop, tmp_path, monkeypatch):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    place = write_photos(tmp_path / "set", {"ant": 6, "bee": 6})
    (place / "ant/empty.jpg").touch()
    Image.new("I;16", (20, 20), 4000).save(place / "bee/grey.png")
    code, out, _ = oneloop("data", place)
    assert code == 4
    assert "4,095 is taken as white (12 bits)" in out
    code, out, said = oneloop("data", place, "--skip-bad", "--white", "4095")
    assert (code, said) == (0, "")
    assert "ant/empty.jpg: empty file" in out
    assert "4,095 is white" in out
    assert oneloop("data", place, "--white", "70000")[::2] == (2, "--white must be from 0 to 65535, it is 70000\n")


def test_evaluate_reads_other_images_as_its_flags_say(oneloop, tmp_path, monkeypatch):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    place = write_photos(tmp_path / "set", {"ant": 8, "bee": 8})
    flags = ("--data", place, "--net", "Net", "--mode", "scratch", "--size", 32, "--epochs", 1, "--batch", 8)
    flags = (*flags, "--wandb", "disabled")
    train_here(ROOT / "recipes/custom.py", *flags, "--out", "run")
    other = write_photos(tmp_path / "other", {"ant": 3, "bee": 3}, start=100)
    (other / "ant/empty.jpg").touch()
    code, _, said = oneloop("evaluate", "run", "--data", other)
    assert code == 4
    assert "1 bad file" in said
    code, out, _ = oneloop("evaluate", "run", "--data", other, "--skip-bad", "--json")
    assert code == 0
    assert json.loads(out)["count"] == 6
    code, _, said = oneloop("evaluate", "run", "--skip-bad")
    assert (code, said) == (2, "--skip-bad is for images of your own: --data PATH names them\n")


def test_finish_says_and_records(tmp_path, capsys):
    run = Run(data="synthetic", wandb="disabled")
    run.recipe, run.folder = "mine", tmp_path
    run.finish("accuracy 0.9", test={"accuracy": 0.9})
    assert capsys.readouterr().out == "accuracy 0.9\n"
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "recipe": "mine",
        "summary": "accuracy 0.9",
        "test": {"accuracy": 0.9},
    }
    run.rank = 1  # another process: it neither says nor writes it
    run.finish("accuracy 0.8")
    assert capsys.readouterr().out == ""
    assert "0.9" in (tmp_path / "result.json").read_text()
