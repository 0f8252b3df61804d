"""The command of a finished run prints its result only while data, split and weights to begin with are what it was trained on."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, Tiny, optimizer_for
from photos import write_photos
from safetensors.torch import save_file

from launch import commands, train
from launch.command_line import cli
from launch.commands import sweep_cells
from launch.errors import Refused
from launch.recipe import load
from launch.sources import synthetic


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(recipe, *flags) -> (exit code, what it says): as `python RECIPE FLAGS`, in this process and the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("launch.report.show.show", lambda *_: None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def command(recipe, *flags):
        module = load(ROOT / f"recipes/{recipe}.py")
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, flags), "--threads", "1", "--wandb", "disabled"])
        code = 0
        try:
            cli(module.main)
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out + said.err

    yield command
    for path in (ROOT / "recipes").glob("*.py"):
        sys.modules.pop(path.stem, None)


PHOTOS = [(f"{label}/{number:04}.jpg", label) for number, label in enumerate(["ant"] * 8 + ["bee"] * 8)]
SPLITS = ("train", "train", "val", "test")
FLAGS = ("--data", "table.csv", "--net", "Net", "--mode", "scratch", "--size", 32, "--epochs", 1)


@pytest.fixture
def table(tmp_path):
    """write(change) writes a table of 16 photographs, each row as `change` of (number, [path, label, split]) leaves it."""
    write_photos(tmp_path, {"ant": 8, "bee": 8})

    def write(change=lambda number, row: row):
        rows = [change(number, [*photo, SPLITS[number % 4]]) for number, photo in enumerate(PHOTOS)]
        (tmp_path / "table.csv").write_text("path,label,split\n" + "".join(",".join(row) + "\n" for row in rows if row))

    write()
    return write


CHANGES = {
    "two labels corrected": lambda number, row: [row[0], "bee", row[2]] if number in (0, 1) else row,
    "a row moved to the test split": lambda number, row: [*row[:2], "test"] if number == 4 else row,
    "an image removed": lambda number, row: None if number == 5 else row,
    "a class renamed": lambda number, row: [row[0], row[1].replace("bee", "bumblebee"), row[2]],
}


def test_labels_splits_and_images_that_changed_are_refused(command, table, tmp_path):
    code, said = command("custom", *FLAGS)
    assert code == 0, said
    (folder,) = (tmp_path / "runs/custom").iterdir()
    config, before = (folder / "config.json").read_bytes(), sorted(folder.rglob("*"))
    sweep = ["sweep", str(ROOT / "recipes/custom.py"), *map(str, FLAGS), "--threads", "1", "--wandb", "disabled"]
    assert commands.main([*sweep, "--on", "slurm"]) == 0  # nothing is left to submit
    for change in CHANGES.values():
        table(change)
        code, said = command("custom", *FLAGS)
        assert code == 4
        assert "was trained on other data" in said
        assert "--fresh starts over" in said
        assert "already finished" not in said
    table()
    code, said = command("custom", *FLAGS)
    assert code == 0
    assert said.startswith("already finished: Net, 1 epochs")
    shutil.copy(tmp_path / "ant/0000.jpg", tmp_path / "ant/0001.jpg")  # another image, the same name
    assert command("custom", *FLAGS)[0] == 4
    assert (folder / "config.json").read_bytes() == config
    assert sorted(folder.rglob("*")) == before


def test_an_edited_split_file_is_refused(command, tmp_path):
    write_photos(tmp_path / "set", {"ant": 8, "bee": 8})
    rows = [f"{path},{SPLITS[number % 4]}\n" for number, (path, _) in enumerate(PHOTOS)]
    (tmp_path / "split.csv").write_text("path,split\n" + "".join(rows))
    flags = ("--data", "set", "--split", "split.csv", *FLAGS[2:])
    assert command("custom", *flags)[0] == 0
    assert "already finished" in command("custom", *flags)[1]
    (tmp_path / "split.csv").write_text("path,split\n" + "".join(rows).replace("test", "val", 1))
    code, said = command("custom", *flags)
    assert (code, "was trained on other data" in said) == (4, True)


def test_data_that_are_gone_keep_the_result_and_it_is_said(command, table, tmp_path, tmp_path_factory, capsys):
    assert command("custom", *FLAGS)[0] == 0
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # below the table's folder they would be found
    for lost in ("ant", "bee", "table.csv"):  # a part of the images is other data
        shutil.move(tmp_path / lost, elsewhere)
        code, said = command("custom", *FLAGS)
        assert (code, "already finished" in said) == ((4, False) if lost == "ant" else (0, True)), said
        if lost != "ant":
            assert said.count("its data cannot be compared with those that it was trained on: ") == 1
    sweep = ["sweep", str(ROOT / "recipes/custom.py"), *map(str, FLAGS), "--threads", "1", "--wandb", "disabled"]
    assert commands.main(sweep) == 0
    said = capsys.readouterr()
    assert "1 runs, 1 of them already finished" in said.out
    assert "its data cannot be compared" in said.err


def test_a_sweep_starts_a_finished_cell_whose_data_changed(command, table, tmp_path, capsys, monkeypatch):
    """The run itself, which a shell stands in for, says what is wrong."""

    def start(_command, errors, _environment):
        with errors.open("w") as file:
            return subprocess.Popen(["sh", "-c", "echo was trained on other data >&2; exit 4"], stderr=file)

    monkeypatch.setattr(sweep_cells, "_start", start)
    assert command("custom", *FLAGS)[0] == 0
    table(CHANGES["two labels corrected"])
    sweep = ["sweep", str(ROOT / "recipes/custom.py"), *map(str, FLAGS), "--threads", "1", "--wandb", "disabled"]
    assert commands.main(sweep) == 1
    said = capsys.readouterr()
    assert "1 runs, 0 of them already finished" in said.out
    assert "failed: was trained on other data" in said.err
    assert "seconds" not in said.out  # the heading of a column: no table shows the old result


@pytest.mark.usefixtures("few_synthetic")
@pytest.mark.parametrize("recipe", ["custom", "transfer", "cifar10"])
def test_other_weights_to_begin_with_are_refused(recipe, command, tmp_path):
    """A finished run and an interrupted one refuse; if the weights are gone, the result stays."""
    from nets.residual import CifarResNet

    def weights(seed):
        torch.manual_seed(seed)
        save_file(CifarResNet(20, num_classes=10).state_dict(), tmp_path / "source.safetensors")

    weights(1)
    flags = {
        "custom": ("--net", "CifarResNet", "--mode", "frozen", "--size", 32, "--source", "source.safetensors", "--epochs", 1),
        "transfer": ("--mode", "frozen", "--few", 16, "--source", "source.safetensors", "--epochs", 1),
        "cifar10": ("--weights", "source.safetensors", "--epochs", 0),
    }[recipe]
    flags = (*flags, "--data", "synthetic", "--limit", 32)
    code, said = command(recipe, *flags)
    assert code == 0, said
    assert command(recipe, *flags)[1].startswith("already finished")
    (folder,) = (tmp_path / "runs" / recipe).iterdir()
    weights(2)
    code, said = command(recipe, *flags)
    assert code == 4, said
    assert "began with other weights than its source holds now: sha256 " in said
    (folder / "result.json").rename(tmp_path / "result.json")
    assert (command(recipe, *flags)[0], (folder / "result.json").exists()) == (4, False)  # nor does it go on
    (tmp_path / "result.json").rename(folder / "result.json")
    (tmp_path / "source.safetensors").unlink()
    code, said = command(recipe, *flags)
    assert code == 0
    assert "already finished" in said
    assert "cannot be compared with those that it was trained on: cannot read weights" in said
    config = json.loads((folder / "config.json").read_text())
    del config["loaded"]  # as in a run from before it was recorded
    (folder / "config.json").write_text(json.dumps(config))
    weights(3)
    assert command(recipe, *flags)[1].startswith("already finished")


@pytest.mark.usefixtures("few_synthetic")
@pytest.mark.parametrize("recipe", ["cifar2", "depth", "model_selection", "cifar10_fast", "by_hand"])
def test_every_kind_of_recipe_compares(recipe, command, tmp_path, monkeypatch):
    """One training, several stages, trials shared by the processes, a loop of its own."""
    flags = ("--data", "synthetic", "--limit", 32, "--epochs", 1, "--batch", 16)
    code, said = command(recipe, *flags)
    assert code == 0, said
    assert command(recipe, *flags)[1].startswith("already finished")
    monkeypatch.setitem(synthetic.COUNTS, "train", 257)
    code, said = command(recipe, *flags)
    assert (code, "was trained on other data" in said) == (4, True)


def test_a_finished_run_of_train_alone_ends_before_its_net_moves(images, start, monkeypatch):
    """Compare it as a sweep does, without a process group and a device; the recipe's output is not shown."""
    run = start()
    train(run, net := Tiny(), images, optimizer_for(net), epochs=1, batch=16)
    run.end()
    monkeypatch.setattr(Tiny, "to", None)

    def main(run, images):
        train(run, net := Tiny(), images, optimizer_for(net), epochs=1, batch=16)

    assert run.compare_data(main, {"images": images}) == ""
    with pytest.raises(Refused, match="was trained on other data") as refused:
        run.compare_data(main, {"images": replace(images, fingerprint="62")})
    assert refused.value.code == 4
    assert torch.optim.Optimizer.add_param_group.__wrapped__  # torch's own again
