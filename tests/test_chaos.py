"""Faults on real processes: killed, stopped, broken, warned. What is left is sound, and the same command gives the same bits."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, launcher, metrics, result
from jobs import begin, gone, run, wait_for
from safetensors.torch import load_file

from launch.training import checkpoint

pytestmark = pytest.mark.slow
TINY = ROOT / "tests/tiny.py"
FLAGS = ("--threads", 1, "--micro-batches", 2, "--save-every", 5, "--log-every", 1, "--out", "run")  # 3 epochs of 8 steps


def launched(*flags, chaos: tuple = (), recipe: Path = TINY, seconds: float = 60, **options) -> tuple[int, str]:
    """Exit code and output of one job, which leaves no process behind."""
    job = begin(*chaos, "--", recipe, *FLAGS, *flags, **options)
    return job.wait(seconds), job.output


def same(folder: Path, reference: Path) -> None:
    assert result(folder)["weights_sha256"] == result(reference)["weights_sha256"]
    assert metrics(folder) == metrics(reference)


def saved(folder: Path) -> int:
    """The step of the newest sound checkpoint."""
    found, complaints = checkpoint.latest(folder / "checkpoints")
    assert complaints == []
    assert all(tensor.isfinite().all() for tensor in found["model"].values())
    return found["state"]["step"]


def since_the_last_step(folder: Path) -> float:
    return time.time() - (folder / "metrics.jsonl").stat().st_mtime


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The run that nothing disturbs, on one process."""
    place = tmp_path_factory.mktemp("reference")
    code, output = launched(cwd=place)
    assert code == 0, output
    return place / "run"


def goes_on(reference: Path, place: Path, processes: int | None = None) -> None:
    """The same command, without the fault, ends with the reference's bits."""
    code, output = launched(cwd=place, processes=processes)
    assert code == 0, output
    same(place / "run", reference)


def test_killed_process_ends_the_job_and_the_same_command_goes_on(reference, tmp_path):
    code, output = launched(chaos=("--rank", 1, "--at", "step=8", "--do", "SIGKILL"), cwd=tmp_path, processes=2)
    assert code != 0
    assert since_the_last_step(tmp_path / "run") < 15
    assert "another process died, or was silent for 300 s, at step 8 (" in output
    assert saved(tmp_path / "run") == 5
    goes_on(reference, tmp_path, processes=2)


@pytest.mark.parametrize(
    ("at", "moment"),
    [
        ("open=1", "during start-up"),
        ("step=8", "at step 8"),
        ("save=2.3", "at step 11"),
    ],
)
def test_killed_main_process_is_told_by_those_that_are_left(at, moment, reference, tmp_path):
    code, output = launched(chaos=("--rank", 0, "--at", at, "--do", "SIGKILL"), cwd=tmp_path, processes=2)
    assert code != 0
    told = [line for line in output.splitlines() if "another process died" in line]
    assert len(told) == 1, output
    assert moment in told[0]
    assert "launch/command_line.py" not in output  # in a traceback
    if at == "save=2.3":
        goes_on(reference, tmp_path, processes=2)


ALONE = """
import tiny
from launch import Run, cli
from launch.errors import Refused

def refuse(step, batch, run):
    if (step, batch) == MOMENT and run.rank == ALONE:
        raise Refused("this image has changed", 4)

def main(run: Run):
    if MOMENT is None and run.rank == ALONE:
        raise Refused("this image has changed", 4)
    run.stop_when = lambda step, batch: refuse(step, batch, run)
    tiny.main(run)

if __name__ == "__main__":
    cli(main)
"""


@pytest.mark.parametrize(("alone", "moment"), [(1, None), (1, (5, None)), (0, (8, 0))])
def test_what_one_process_alone_refuses_is_said_and_holds_nobody_up(alone, moment, tmp_path):
    (tmp_path / "alone.py").write_text(ALONE.replace("MOMENT", repr(moment)).replace("ALONE", str(alone)))
    code, output = launched(recipe=tmp_path / "alone.py", cwd=tmp_path, processes=2)
    assert code != 0
    assert output.count("this image has changed") == 1
    lines = [line for line in output.splitlines() if "another process died" in line]
    assert len(lines) == 1, output
    assert (f"at step {moment[0] + 1}" if moment else "during start-up") in lines[0]


def test_job_that_may_restart_finishes_by_itself(reference, tmp_path):
    """Elastic: both processes are started again, from the checkpoint."""
    chaos = ("--rank", 1, "--at", "step=14", "--do", "SIGKILL")
    options = {"chaos": chaos, "cwd": tmp_path, "processes": 2, "agent": ("--max-restarts", 1)}
    code, output = launched(**options)
    assert code != 0
    assert "restarts need a store of their own" in output  # torch's default would now and then meet the dead ones' addresses
    code, output = launched(**options, env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    assert code == 0, output
    assert "resuming run after step 10" in output
    same(tmp_path / "run", reference)


def test_silent_process_ends_the_job_in_bounded_time(reference, tmp_path):
    chaos = ("--silence", 2, "--rank", 1, "--at", "step=8", "--do", "SIGSTOP")
    code, output = launched(chaos=chaos, cwd=tmp_path, processes=2)
    assert code != 0
    assert since_the_last_step(tmp_path / "run") < 20
    assert "silent for 2.0 s, at step 8 (Timed out waiting 2000ms" in output
    goes_on(reference, tmp_path)


@pytest.mark.parametrize(
    ("processes", "rank", "named"),
    [(2, 1, "micro-batch 1, process 1"), (2, 0, "micro-batch 0, process 0"), (None, 0, "micro-batch 0")],
)
def test_one_broken_image_stops_all_before_the_update(processes, rank, named, reference, tmp_path):
    chaos = ("--rank", rank, "--at", "step=8", "--do", "NAN")
    code, output = launched(chaos=chaos, cwd=tmp_path, processes=processes)
    assert code == 3 if processes is None else "exitcode  : 3" in output
    assert len(re.findall(rf"the loss is not finite at step 8, from training image \d+ \({named}", output)) == 1
    assert "); the weights are those after step 7. Look at these images" in output
    assert saved(tmp_path / "run") == 5
    goes_on(reference, tmp_path)


@pytest.mark.parametrize(
    ("at", "what", "code", "step"),
    [
        ("save=1.2", "SIGTERM", 143, 6),  # while a checkpoint of step 5 is written: it is finished, then the next step is too
        ("evaluate=16", "SIGTERM,SIGTERM", 143, 16),
        ("step=8", "SIGUSR1", 138, 8),
        ("save=2.3", "SIGKILL", -9, 5),
    ],
)
def test_signals_and_kills_at_bad_moments(at, what, code, step, reference, tmp_path):
    ended, output = launched(chaos=("--at", at, "--do", what), cwd=tmp_path)
    assert ended == code, output
    assert saved(tmp_path / "run") == step
    if code == -9:  # and once more, while it goes on
        assert launched(chaos=("--at", "save=1", "--do", "SIGKILL"), cwd=tmp_path)[0] == -9
        assert saved(tmp_path / "run") == step
    else:
        assert f"stopped by {what.partition(',')[0]} at step {step}" in output
    goes_on(reference, tmp_path)


def test_full_disk_is_one_line_and_loses_nothing(reference, tmp_path):
    code, output = launched(chaos=("--at", "save=2.2", "--do", "ENOSPC"), cwd=tmp_path, processes=2)
    assert code != 0
    assert "cannot write run: No space left on device" in output
    assert saved(tmp_path / "run") == 5
    assert not list((tmp_path / "run/checkpoints").glob(".tmp-*"))
    goes_on(reference, tmp_path)


def test_killed_launcher_leaves_no_orphans(tmp_path):
    job = begin(TINY, *FLAGS, "--epochs", 4000, cwd=tmp_path, processes=2)
    wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists() and (tmp_path / "run/metrics.jsonl").stat().st_size)
    os.kill(job.pid, signal.SIGKILL)
    wait_for(lambda: gone(job.pid), 10)
    assert "stopped by SIGTERM at step" in job.output
    assert json.loads((tmp_path / "run/stopped.json").read_text())["code"] == 143


@pytest.mark.parametrize("moment", ["import=1", "start=1", "open=1"])
@pytest.mark.parametrize("processes", [1, 2])
def test_launcher_killed_during_start_up_leaves_no_orphans(moment, processes, tmp_path):
    if moment == "import=1" and not orphans_go_to_process_1():
        pytest.skip("a subreaper adopts orphans here; while a process imports, only process 1 tells that its launcher died")
    chaos = ("--at", moment, "--do", "LAUNCHER")
    assert launched("--epochs", 4000, chaos=chaos, cwd=tmp_path, processes=processes, seconds=20)[0] == -signal.SIGKILL


def test_control_a_launcher_that_nobody_follows_leaves_orphans(tmp_path):
    deaf = "import tiny, launch\nmain = tiny.main\nimport launch.command_line\n"
    deaf += "launch.command_line.follow_launcher = lambda: None\n"
    (tmp_path / "deaf.py").write_text(deaf + "launch.cli(main)\n")
    job = begin("--at", "start=1", "--do", "LAUNCHER", "--", tmp_path / "deaf.py", *FLAGS, cwd=tmp_path, processes=2)
    wait_for(lambda: not job.running())
    time.sleep(3)
    assert not gone(job.pid)
    os.killpg(job.pid, signal.SIGKILL)


def orphans_go_to_process_1() -> bool:
    """Ask a grandchild who its parent is once its own is gone."""
    script = "import os; me = os.getpid(); (os.fork() and os._exit(0))\nwhile os.getppid() == me: pass\nprint(os.getppid())"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "1"


def test_error_on_one_process_hangs_nobody(tmp_path):
    """Through accelerate's own launcher: the error once, and one line from the process that was left."""
    chaos = (ROOT / "tests/chaos.py", "--rank", 1, "--at", "step=3", "--do", "raise", "--", TINY, *FLAGS)
    done = run(*launcher(processes=2), *chaos, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("ValueError: chaos") == 1
    assert done.stderr.count("another process died") == 1
    assert since_the_last_step(tmp_path / "run") < 30


def test_four_processes_are_one_up_to_rounding(tmp_path):
    """More than two add up the gradients in another order; a run that four began, one goes on with."""
    assert launched("--micro-batches", 4, "--out", "one", cwd=tmp_path)[0] == 0
    chaos = "--rank", 3, "--at", "step=15", "--do", "SIGKILL"
    code, output = launched("--micro-batches", 4, cwd=tmp_path, processes=4, chaos=chaos)
    assert code != 0, output
    assert launched("--micro-batches", 4, cwd=tmp_path)[0] == 0
    one, four = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "run"))
    torch.testing.assert_close(four, one, rtol=1e-3, atol=1e-4)
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("one", "run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(("processes", "kills"), [(3, (4, 13, 20)), (4, (7, 16))])
def test_resume_on_more_processes_is_exact(processes, kills, tmp_path):
    """Where DDP's layout of buckets decides the rounding: killed at these steps, begun and resumed on the same number."""
    micro_batches = ("--micro-batches", processes)
    assert launched(*micro_batches, "--out", "whole", cwd=tmp_path, processes=processes)[0] == 0
    for step in kills:
        fault = ("--rank", step % processes, "--at", f"step={step}", "--do", "SIGKILL")
        code, output = launched(*micro_batches, "--save-every", 3, cwd=tmp_path, processes=processes, chaos=fault)
        assert code != 0, output
    assert saved(tmp_path / "run") > 9
    assert launched(*micro_batches, "--save-every", 3, cwd=tmp_path, processes=processes)[0] == 0
    same(tmp_path / "run", tmp_path / "whole")


UNUSED = """
import tiny
from launch import cli
from torch import nn

class Unused(tiny.Tiny):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(2, 2)

tiny.Tiny = Unused
main = tiny.main
if __name__ == "__main__":
    cli(main)
"""


@pytest.mark.parametrize("processes", [None, 2])
def test_parameter_without_gradient_is_refused_on_any_number_of_processes(processes, tmp_path):
    """On one process it would work, on two DDP would raise: neither is a surprise."""
    (tmp_path / "unused.py").write_text(UNUSED)
    code, output = launched(recipe=tmp_path / "unused.py", cwd=tmp_path, processes=processes)
    assert code == 2 if processes is None else "exitcode  : 2" in output
    assert output.count("idle.weight, idle.bias of Unused got no gradient at step 1: the loss does not depend on it") == 1
