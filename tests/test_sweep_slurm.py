"""`oneloop sweep --on slurm`: a readable script of a job array, whose tasks train the cells into their default run folders."""

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import filelock
import jobs
import pytest
from conftest import ROOT, metrics, result
from jobs import wait_for

from launch import commands
from launch.commands import sweep
from launch.folder import MARK
from launch.report.runs import read

TINY = ROOT / "tests/tiny.py"
# sbatch says what Slurm does; srun starts the task and hands signals on; scontrol notes what it was asked.
TOOLS = {
    "sbatch": 'echo "Submitted batch job 7"; echo "$@" >> submitted',
    "srun": 'while [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"',
    "scontrol": 'if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >> asked; fi',
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The test's folder, with a stand-in for Slurm on the PATH."""
    for name, body in TOOLS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    yield tmp_path
    sys.modules.pop("tiny", None)


def submit(*flags: str) -> str:
    """The text of the script that the sweep submitted last."""
    assert commands.main(["sweep", str(TINY), *flags, "--on", "slurm"]) == 0
    return Path(Path("submitted").read_text().splitlines()[-1]).read_text()


def task(text: str, number: int) -> subprocess.Popen:
    """Start a task of the array, as the queue does from its own copy of the script."""
    Path("copy.sh").write_text(text)
    slurm = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(number), "SLURM_NNODES": "1"}
    environment = os.environ | slurm | {"SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_CPUS_PER_TASK": "1"}
    with open("log", "a") as log:
        return subprocess.Popen(["bash", "copy.sh"], env=environment, stdout=log, stderr=log, start_new_session=True)


def test_the_script_says_what_each_task_does(here, capsys):
    text = submit("--lr", "0.1", "0.2", "--seed", "1", "2", "--cpus", "3", "--gpus", "1", "--at-once", "2")
    assert "Submitted batch job 7" in capsys.readouterr().out
    for line in ("--array=1,2,3,4%2", "--cpus-per-task=3", "--gpus-per-node=1", "--requeue", "--signal=B:USR1@90 "):
        assert f"\n#SBATCH {line}" in text
    cells = sweep.grid(TINY, {"--lr": ["0.1", "0.2"], "--seed": ["1", "2"]}, 1, None)
    cases = re.findall(r"^(\d)\) export RUN=(\S+); set -- (.*) ;;$", text, re.MULTILINE)
    wanted = [(str(place), str(cell.folder), " ".join((*cell.flags, "--threads", "3"))) for place, cell in enumerate(cells, 1)]
    assert cases == wanted
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_running_cells_are_not_submitted(here, capsys):
    """The finished ones are not either: see the last test."""
    cells = sweep.grid(TINY, {"--lr": ["0.1", "0.2"]}, 1, None)
    for cell in cells:
        cell.folder.mkdir(parents=True)
        (cell.folder / MARK).touch()  # as a run does before it takes the lock
    with filelock.FileLock(cells[0].folder / "lock"):
        text = submit("--lr", "0.1", "0.2")
        assert "#SBATCH --array=2\n" in text
        assert "--seed 1 ;;" in text  # else launch/slurm.sh would take the task's number
        assert "2 runs, 1 of them to submit" in capsys.readouterr().out
        with filelock.FileLock(cells[1].folder / "lock"):
            assert commands.main(["sweep", str(TINY), "--lr", "0.1", "0.2", "--on", "slurm"]) == 0
    assert len((here / "submitted").read_text().splitlines()) == 1


def test_control_without_the_lock_both_are_submitted(here):
    assert "#SBATCH --array=1,2\n" in submit("--lr", "0.1", "0.2")


def test_refusals_of_the_queue_are_one_line(here, monkeypatch, capsys):
    sbatch = here / "bin/sbatch"
    sbatch.write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    assert commands.main(["sweep", str(TINY), "--seed", "1", "--on", "slurm"]) == 1
    assert re.fullmatch(r"sbatch \S+\.sh: sbatch: error: invalid partition\n", capsys.readouterr().err)
    sbatch.chmod(stat.S_IREAD)
    monkeypatch.setenv("PATH", str(here / "bin"))
    assert commands.main(["sweep", str(TINY), "--seed", "1", "--on", "slurm"]) == 2
    assert "--on slurm needs sbatch on the PATH: on a login node, sbatch runs/tiny/sweep-" in capsys.readouterr().err


@pytest.mark.slow
def test_a_task_that_the_queue_stops_is_requeued_and_resumes(here):
    """With the bits of the run that plain python trains; and the sweep finds it finished."""
    flags = ("--epochs", "60", "--lr", "0.1", "0.2", "--threads", "1")
    text = submit(*flags)
    job = task(text, 2)
    (folder,) = [cell.folder for cell in sweep.grid(TINY, sweep.axes_of(flags), 1, None) if "0.2" in cell.flags]
    record = folder / "metrics.jsonl"
    wait_for(lambda: (record.exists() and record.stat().st_size) or job.poll() is not None, 120)
    os.kill(job.pid, signal.SIGUSR1)
    assert job.wait(60) == 0, Path("log").read_text()
    assert Path("asked").read_text() == "requeue 7_2\n"
    assert read(folder).stopped["code"] == 138
    assert task(text, 2).wait(120) == 0, Path("log").read_text()
    assert read(folder).config["resumed"]
    assert "#SBATCH --array=1\n" in submit(*flags)  # its folder is where a sweep looks for it
    alone = jobs.run(TINY, "--epochs", 60, "--lr", 0.2, "--threads", 1, "--out", "alone", cwd=here)
    assert alone.returncode == 0, alone.stderr
    assert result(folder)["weights_sha256"] == result(Path("alone"))["weights_sha256"]
    assert metrics(folder) == metrics(Path("alone"))
