"""`oneloop sweep`: wrong flags start nothing, failures are named, stopped runs resume, finished runs are not run again."""

import os
import signal
import subprocess
import sys

import filelock
import jobs
import pytest
import yaml
from conftest import ROOT, command, metrics, result

from launch import commands
from launch.command_line import parse
from launch.commands import sweep, sweep_cells
from launch.errors import Refused
from launch.recipe import load
from launch.report.runs import find, in_use, read, read_metrics

CIFAR2 = ROOT / "recipes/cifar2.py"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in the test's folder; undo what importing a recipe adds to Python's path and modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("cifar2", None)


def refuse(command, **_):
    raise AssertionError(f"started {command}")


def test_values_after_a_flag():
    words = ["--net", "Net", "NetRes", "--lr=0.1", "--l2", "-0.5", "0", "--book", "--n_blocks", "3"]
    assert sweep.axes_of(words) == {
        "--net": ["Net", "NetRes"], "--lr": ["0.1"], "--l2": ["-0.5", "0"], "--book": [], "--n-blocks": ["3"],
    }  # fmt: skip


WRONG = {
    "--net Net Nett": "",  # tyro words it
    "--limit 5 -5": "--limit must be at least 0, it is -5",
    "--lr 0.01 1e-2": "--lr 1e-2 and --lr 0.01 are the same run",
    "--lr 0.01 --lr 0.1": "--lr is given twice",
    "--seed 1 2 --fresh": "--fresh is for a single run",
    "--seed 1 2 --out x": "--out is for a single run",
    "--seed 1 --at-once 0": "--at-once must be at least 1",
    "--seed 1 --config_file none.yaml": "none.yaml",
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_start_nothing(flags, here, monkeypatch, capsys):
    monkeypatch.setattr(sweep_cells.subprocess, "Popen", refuse)
    try:
        code = commands.main(["sweep", str(CIFAR2), *flags.split()])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert WRONG[flags] in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_cells_are_the_grid_and_share_the_cores(here):
    axes = {"--net": ["Net", "NetRes"], "--epochs": ["1"], "--seed": ["1", "2"], "--data": ["synthetic"]}
    cells = sweep.grid(CIFAR2, axes, 1, None)
    assert [cell.name for cell in cells] == [f"--net {net} --seed {seed}" for net in ("Net", "NetRes") for seed in (1, 2)]
    assert cells[1].flags == ("--net", "Net", "--epochs", "1", "--seed", "2", "--data", "synthetic")
    two = sweep.grid(CIFAR2, axes, 2, None)
    assert two[0].flags[-2:] == ("--threads", str(max(1, len(os.sched_getaffinity(0)) // 2)))
    assert [cell.folder for cell in two] == [cell.folder for cell in cells]  # threads are not part of the configuration
    given = sweep.grid(CIFAR2, axes | {"--threads": ["3"]}, 2, None)
    assert given[0].flags[-2:] == ("--threads", "3")


def test_several_trackers_are_one_run(here):
    cells = sweep.grid(CIFAR2, sweep.axes_of(["--lr", "0.1", "0.2", "--track", "wandb", "wandb"]), 1, None)
    assert [cell.name for cell in cells] == ["--lr 0.1", "--lr 0.2"]
    assert cells[0].flags == ("--lr", "0.1", "--track", "wandb", "wandb")


def test_runs_at_once_get_a_gpu_each(here, monkeypatch):
    begun = []

    class Ended:
        returncode = 1

        def poll(self):
            return 1

    def start(_command, errors, environment):
        begun.append(environment)
        errors.write_text("")
        return Ended()

    monkeypatch.setattr(sweep_cells, "_start", start)
    cells = sweep.grid(CIFAR2, {"--data": ["synthetic"], "--seed": ["1", "2", "3"]}, 2, None)
    sweep.run(cells, ["launch"], 2, gpus=["4", "6"])
    assert begun == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("4", "6", "4")]
    sweep.run(cells, ["launch"], 2, gpus=["4"])  # a single GPU is shared: nothing to set
    assert begun[3:] == [{}] * 3


@pytest.fixture
def cells(here, monkeypatch):
    """cells(script, …) -> a cell for each script, which a shell runs instead of a training; FOLDER is the cell's folder."""

    def cells(*scripts):
        made = sweep.grid(CIFAR2, {"--data": ["synthetic"], "--seed": [str(seed) for seed in range(len(scripts))]}, 1, None)
        of = {cell.flags: script.replace("FOLDER", str(cell.folder)) for cell, script in zip(made, scripts, strict=True)}

        def start(command, errors, _environment):
            script = of[tuple(command[1:])]
            with open(errors, "w") as file:
                return subprocess.Popen(["sh", "-c", script], stderr=file, start_new_session=True)

        monkeypatch.setattr(sweep_cells, "_start", start)
        return made

    return cells


WELL = """echo '{"summary": "well"}' > FOLDER/result.json"""


def test_a_run_stopped_together_with_its_sweep_is_interrupted(cells, capsys):
    """The signal reaches sweep and run at once, as from a queue: the run has already exited when the sweep looks."""
    me = os.getpid()
    for script in (f"kill -TERM {me}; exit 1", f"trap 'exit 1' TERM; kill -TERM {me}; while :; do sleep 0.01; done"):
        with pytest.raises(Refused, match="stopped by SIGTERM; run the same command to resume") as refused:
            sweep.run(cells(script, "exit 7"), ["launch"], 1)
        assert refused.value.code == 143
        out = capsys.readouterr().out
        assert "[1/2] --seed 0: interrupted\n" in out
        assert "failed" not in out
        assert "--seed 1" not in out


def test_failed_and_interrupted_runs_are_named_with_the_reason(cells, capsys):
    made = cells("kill -KILL $$", "echo 'not \033[31mfinite' >&2; exit 3", "exit 0", WELL, "exit 4")
    killed, broken, silent, done, damaged = made
    done.folder.mkdir(parents=True)
    damaged.folder.mkdir(parents=True)
    (damaged.folder / "config.json").write_text("[]")
    left = sweep.run(made, ["launch"], 2)
    assert left[killed] == f"interrupted: exit code -9, and no result in {killed.folder}"
    assert left[broken] == "failed: not \x1b[31mfinite"
    assert left[silent] == f"failed: exit code 0, and no result in {silent.folder}"
    assert left[damaged].startswith(f"failed: {damaged.folder}/config.json is damaged")
    assert done not in left
    out = capsys.readouterr().out
    assert r"failed: not \x1b[31mfinite" in out
    assert "[4/5] --seed 3: well\n" in out


def test_finished_runs_are_not_started(cells, capsys):
    first, second = cells("exit 5", WELL)
    for cell in (first, second):
        cell.folder.mkdir(parents=True)
    (first.folder / "result.json").write_text('{"summary": "done before"}')
    assert sweep.run([first, second], ["launch"], 1) == {}
    assert "2 runs, 1 of them already finished" in capsys.readouterr().out


def test_a_run_in_use_is_neither_started_nor_failed(cells, capsys, monkeypatch):
    """The sweep was killed, and its runs continue."""
    first, second = cells("exit 0", "exit 3")
    first.folder.mkdir(parents=True)
    with filelock.FileLock(first.folder / "lock"):
        left = sweep.run([first, second], ["launch"], 2)
    assert left[first] == f"running: another command is working on {first.folder}"
    assert left[second].startswith("failed: exit code 3")
    out = capsys.readouterr().out
    assert "[1/2] --seed 0: running: " in out
    assert "[1/2] --seed 0 …" not in out


def test_launch_file_gives_precision_and_processes(here):
    assert sweep.launched(str(ROOT / "launch/gpu.yaml")) == ("bf16", 1)
    assert sweep.launched(str(ROOT / "launch/cpus.yaml")) == ("no", 2)
    axes = {"--data": ["synthetic"]}
    plain, bf16 = (sweep.grid(CIFAR2, axes, 1, file)[0].folder for file in (None, str(ROOT / "launch/gpu.yaml")))
    assert plain != bf16


@pytest.mark.slow
def test_a_stopped_sweep_resumes_and_a_failure_stops_no_other_run(here, monkeypatch, capsys):
    recipe = [str(CIFAR2), "--data", "synthetic", "--limit", "64", "--batch", "16", "--net", "NetRes", "--epochs", "20"]
    one, both = (["sweep", *recipe, "--at-once", "2", "--lr", *rates] for rates in (["0.01"], ["1e8", "0.01"]))
    (cell,) = sweep.grid(CIFAR2, sweep.axes_of([*recipe[1:], "--lr", "0.01"]), 1, None)
    sound = cell.folder

    job = jobs.python(*command(*one), cwd=here, log=here / "out", errors=here / "errors")
    jobs.wait_for(lambda: len(read_metrics(sound / "metrics.jsonl")) >= 4 or not job.running())
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait() == 143
    assert (here / "errors").read_text() == "stopped by SIGTERM; run the same command to resume\n"
    assert job.output.endswith(": interrupted\n")
    assert not any(in_use(folder) for folder in find(["runs"]))  # no process is left
    assert read(sound).state == "interrupted"
    assert read_metrics(sound / "metrics.jsonl")[-1]["epoch"] < 20

    done = jobs.run(*command(*both), cwd=here)
    assert done.returncode == 1
    out, errors = done.stdout, done.stderr
    assert "not finite" in errors
    assert "accelerate launch " + " ".join(recipe) in errors
    assert "1 of 2 runs failed" in errors
    assert "\nfailed: " in "\n" + errors
    assert read(sound).config["resumed"]
    steps = [line["step"] for line in metrics(sound) if line.get("split") == "test"]
    assert steps == [4 * epoch for epoch in range(1, 21)]  # each epoch once
    assert f"{result(sound)['test']['accuracy']:.4f}" in out
    assert "failed" in out
    assert (here / "compare/curves.png").exists()

    monkeypatch.setattr(sweep_cells.subprocess, "Popen", refuse)
    assert commands.main([*one, "--compare", "again"]) == 0
    out, _ = capsys.readouterr()
    assert "1 runs, 1 of them already finished" in out
    assert (here / "again/bars.png").exists()


def test_what_a_wandb_agent_runs(here):
    """launch/sweep.yaml as W&B reads it, and the command that W&B's own functions build for a cell."""
    from wandb.sdk.launch.sweeps import utils

    config = yaml.safe_load((ROOT / "launch/sweep.yaml").read_text())
    assert config["method"] == "grid"
    assert (ROOT / config["program"]).is_file()
    cell = {name: {"value": each.get("value", each.get("values", [None])[-1])} for name, each in config["parameters"].items()}
    words = utils.create_sweep_command_args({"args": cell}) | {"env": ["/usr/bin/env"], "program": [config["program"]]}
    template = utils.create_sweep_command(config["command"])
    command = [part for each in template for part in (words[each[2:-1]] if each.startswith("${") else [each])]
    place = command.index("recipes/cifar2.py")
    assert command[:place] == ["/usr/bin/env", "accelerate", "launch", "--config_file", "accelerate_config.yaml"]
    recipe = load(CIFAR2)
    asked, options = parse(recipe.main, command[place + 1 :])
    assert (asked.fresh, asked.seed) == (True, 3)
    assert options == {"net": "NetBatchNorm", "n_blocks": 100, "epochs": 100, "batch": 64, "lr": 0.03, "l2": 0.0, "book": False}
    assert set(config["parameters"]["net"]["values"]) <= recipe.NETS.keys()
