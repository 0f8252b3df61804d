"""Runs that `oneloop sweep` starts: each cell once and in order, one process each, GPUs and cores shared out; its exit codes."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from made_runs import write_run

from launch import commands
from launch.commands import sweep, sweep_cells
from launch.errors import Refused

CIFAR2 = ROOT / "recipes/cifar2.py"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sweep_cells, "POLL_SECONDS", 0.001)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield tmp_path
    sys.modules.pop("cifar2", None)


class Process:
    """A launcher that ends when it is looked at for the second time."""

    def __init__(self, code):
        self.code, self.looks, self.returncode = code, 0, None

    def poll(self):
        self.looks += 1
        self.returncode = self.code if self.looks > 1 else None
        return self.returncode


def finished(folder, **options):
    write_run(folder, (0.5, 0.75), recipe="cifar2", data="synthetic", **options)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"test": result["test"] | {"count": 100}}))


@pytest.fixture
def started(here, monkeypatch):
    """The commands that are started, with what their environment adds; `started.outcome(flags)` says how each ends.

    A run that ends well leaves a run folder as `train` does.
    """

    class Started(list):
        outcome = staticmethod(lambda flags: 0)
        together, running = 0, ()

    found = Started()

    def popen(command, *, stderr, env, **_):
        words = [*map(str, command)]
        place = words.index(str(CIFAR2))
        flags = tuple(words[place + 1 :])
        axes = sweep.axes_of(flags)
        (cell,) = sweep.grid(CIFAR2, axes, 1, words[words.index("--config_file") + 1] if "--config_file" in words else None)
        found.append((words[:place], flags, {name: env.get(name) for name in ("CUDA_VISIBLE_DEVICES",)}))
        code = found.outcome(flags)
        if code == 0:
            options = {name: axes.get(f"--{name}", [usual])[0] for name, usual in (("net", "Net"), ("lr", "0.01"))}
            finished(cell.folder, seed=int(axes.get("--seed", ["1"])[0]), **options)
        else:
            stderr.write(f"a warning at the beginning\nit broke with {code}\n")
            stderr.flush()
        process = Process(code)
        found.running = [each for each in found.running if each.returncode is None] + [process]
        found.together = max(found.together, len(found.running))
        return process

    monkeypatch.setattr(sweep_cells.subprocess, "Popen", popen)
    monkeypatch.setattr("launch.commands.compare.draw", lambda *_: None)
    return found


def run(*args) -> int:
    return commands.main(["sweep", str(CIFAR2), "--data", "synthetic", *map(str, args)])


def test_each_cell_is_started_once_in_the_order_of_the_flags(started, capsys):
    assert run("--net", "Net", "NetRes", "--seed", 1, 2, "--epochs", 2) == 0
    common = ("--data", "synthetic")
    assert [flags for _, flags, _ in started] == [
        (*common, "--net", net, "--seed", seed, "--epochs", "2") for net in ("Net", "NetRes") for seed in ("1", "2")
    ]
    assert started.together == 1
    for launcher, _, _ in started:
        assert launcher[:4] == [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    out = capsys.readouterr().out
    assert "4 runs, 0 of them already finished" in out
    assert all(f"[{number}/4] " in out for number in range(1, 5))
    assert out.count("0.7500") >= 4


def test_a_run_that_fails_is_named_gives_1_and_stops_no_other(started, capsys):
    started.outcome = lambda flags: 3 if flags[-1] == "0.03" else 0
    assert run("--lr", "0.01", "0.03", "0.1") == 1
    assert [flags[-1] for _, flags, _ in started] == ["0.01", "0.03", "0.1"]
    out, error = capsys.readouterr()
    assert "failed: it broke with 3" in error
    command = next(line for line in error.splitlines() if "accelerate launch" in line)
    words = shlex.split(command)
    assert words[:2] == ["accelerate", "launch"]
    assert words[-4:] == ["--data", "synthetic", "--lr", "0.03"]
    assert "1 of 3 runs failed; run the same command to try them again" in error
    assert "accuracy" in out  # the others are compared


def test_runs_that_were_killed_are_not_called_failed(started, capsys):
    started.outcome = lambda flags: -9 if flags[-1] == "2" else 1
    assert run("--seed", 1, 2) == 1
    assert "2 of 2 runs are not finished" in capsys.readouterr().err


def test_a_run_that_saved_and_stopped_is_interrupted_whatever_its_launcher_says(started, capsys):
    """A queue has stopped it: accelerate's launcher ends with 1."""

    def outcome(flags):
        (cell,) = sweep.grid(CIFAR2, sweep.axes_of(flags), 1, None)
        write_run(cell.folder, (0.5,), finished=False, stopped=143)
        return 1

    started.outcome = outcome
    assert run("--seed", 1) == 1
    out, error = capsys.readouterr()
    assert "interrupted: it broke with 1" in out
    assert "1 of 1 runs are not finished" in error


def test_a_launcher_that_fails_after_its_run_has_finished_is_named(started, here, capsys):
    """A second process died at the end: result.json is there, and something went wrong all the same."""

    def outcome(flags):
        (cell,) = sweep.grid(CIFAR2, sweep.axes_of(flags), 1, None)
        finished(cell.folder)
        return 1

    started.outcome = outcome
    assert run("--seed", 1) == 1
    assert "failed: it broke with 1" in capsys.readouterr().err


def test_gpus_are_shared_out_one_process_for_each_run(started, monkeypatch):
    """accelerate would start a process on every GPU that it sees."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert run("--seed", 1, 2, 3, 4, 5, "--at-once", 3) == 0
    assert started.together == 3
    for launcher, _, _ in started:
        assert launcher[4:] == ["--num_processes", "1"]
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, _, environment in started[:3]] == ["0", "1", "2"]
    assert {environment["CUDA_VISIBLE_DEVICES"] for _, _, environment in started} == {"0", "1", "2"}
    started.clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert run("--seed", 6, 7, "--at-once", 2) == 0
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, _, environment in started] == ["5", "7"]


def test_a_config_file_says_what_each_run_is_started_with(started, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    two, one = ROOT / "launch/cpus.yaml", ROOT / "launch/gpu.yaml"
    assert run("--seed", 1, "--config_file", two) == 0
    assert started[0][0][4:] == ["--config_file", str(two)]
    assert started[0][2] == {"CUDA_VISIBLE_DEVICES": None}  # its processes see all GPUs
    started.clear()
    assert run("--seed", 1, 2, "--config_file", one, "--at-once", 2) == 0
    assert [launcher[4:] for launcher, _, _ in started] == [["--config_file", str(one)]] * 2
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, _, environment in started] == ["0", "1"]


def test_cores_are_shared_by_runs_at_once_and_their_processes(here, monkeypatch):
    monkeypatch.setattr("launch.processes.cores", lambda: 12)
    axes, two = {"--data": ["synthetic"], "--seed": ["1", "2"]}, str(ROOT / "launch/cpus.yaml")
    assert [sweep.grid(CIFAR2, axes, at_once, None)[0].flags[-2:] for at_once in (2, 5, 99)] == [
        ("--threads", threads) for threads in ("6", "2", "1")
    ]
    assert sweep.grid(CIFAR2, axes, 2, two)[0].flags[-2:] == ("--threads", "3")
    assert "--threads" not in sweep.grid(CIFAR2, axes, 1, None)[0].flags


def test_images_of_a_sweep_go_where_it_is_told(started, monkeypatch):
    where = []
    monkeypatch.setattr("launch.commands.compare.draw", lambda comparison, found, folder: where.append(folder))
    assert run("--seed", 1, 2) == 0
    assert run("--seed", 3, 4, "--compare", "elsewhere") == 0
    assert where == [Path("compare"), Path("elsewhere")]


@pytest.mark.parametrize(
    ("flags", "cpus", "gpus", "threads"),
    [
        (["--on", "slurm"], 1, 0, "1"),
        (["--on", "slurm", "--cpus", "6"], 6, 0, "6"),
        (["--on", "slurm", "--gpus", "1"], 1, 1, "1"),
        (["--on", "slurm", "--cpus", "8", "--gpus", "4", "--config_file", str(ROOT / "launch/gpus.yaml")], 8, 4, "2"),
        (["--on", "slurm", "--gpus", "4", "--config_file", str(ROOT / "launch/gpus.yaml")], 4, 4, "1"),
        (["--on", "slurm", "--cpus", "6", "--config_file", str(ROOT / "launch/cpus.yaml")], 6, 0, "3"),
        (["--on", "slurm", "--config_file", str(ROOT / "launch/cpus.yaml")], 2, 0, "1"),
    ],
)
def test_shares_of_runs_elsewhere(flags, cpus, gpus, threads, here, monkeypatch):
    asked = []

    def submit(recipe, cells, precision, processes, cpus, gpus, at_once):
        asked.append((cpus, gpus, at_once))
        assert [cell.flags[cell.flags.index("--threads") + 1] for cell in cells] == [threads] * 2

    monkeypatch.setattr("launch.commands.sweep_slurm.submit", submit)
    assert run("--seed", 1, 2, *flags) == 0
    assert run("--seed", 1, 2, *flags, "--at-once", 5) == 0
    assert asked == [(cpus, gpus, None), (cpus, gpus, 5)]


def test_the_script_of_a_queue_has_each_cell_with_its_seed_and_asks_for_what_was_said(here, monkeypatch):
    from launch.commands import sweep_slurm

    cells = sweep.grid(CIFAR2, {"--data": ["synthetic"], "--lr": ["0.01", "0.03", "0.1"]}, 1, None)
    cells[1].folder.mkdir(parents=True)
    (cells[1].folder / "result.json").write_text(json.dumps({"summary": "done"}))
    monkeypatch.setattr(sweep_slurm.shutil, "which", lambda _: None)
    with pytest.raises(Refused, match="needs sbatch") as refused:
        sweep_slurm.submit(CIFAR2, cells, "bf16", 1, 6, 2, 4)
    assert refused.value.code == 2
    (file,) = here.rglob("sweep-*.sh")
    lines = file.read_text().splitlines()
    assert "#SBATCH --array=1,3%4" in lines
    assert "#SBATCH --cpus-per-task=6" in lines
    assert "#SBATCH --gpus-per-node=2" in lines
    assert "export ACCELERATE_MIXED_PRECISION=bf16 PROCESSES_PER_NODE=2" in lines
    for number, (cell, lr) in enumerate(zip(cells, ("0.01", "0.03", "0.1"), strict=True), 1):
        (line,) = [line for line in lines if line.startswith(f"{number}) ")]
        assert f"set -- --data synthetic --lr {lr} --seed 1 ;;" in line
        assert str(cell.folder) in line
    sweep_slurm_without = sweep_slurm.script(CIFAR2, cells, {1: cells[0]}, "no", 1, 1, 0, None)
    assert "#SBATCH --array=1\n" in sweep_slurm_without
    assert "gpus" not in sweep_slurm_without
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None
