"""Real processes: several of them, killed ones, two on one folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest
from conftest import ROOT, launcher, metrics, result, run_recipe
from jobs import wait_for

from launch.report.runs import read_metrics

pytestmark = pytest.mark.slow
FLAGS = ("--data", "synthetic", "--limit", 125, "--batch", 16, "--epochs", 4, "--threads", 1, "--micro-batches", 2)
FLAGS = (*FLAGS, "--out", "run", "--log-every", 3)
RECIPE = (ROOT / "launch/verify/few_tests.py", 60, ROOT / "recipes/cifar2.py", *FLAGS, "--net", "NetBatchNorm")  # 60 test images


def whole(*flags, **options) -> subprocess.CompletedProcess:
    """The run to its end, 4 epochs of 8 steps: 125 images in batches of 16."""
    return run_recipe("cifar2", *FLAGS, "--net", "NetBatchNorm", *flags, tests=60, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """One process, never disturbed: the run that the others must equal."""
    place = tmp_path_factory.mktemp("uninterrupted")
    done = whole(cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "run"


def same(folder: Path, reference: Path) -> None:
    assert result(folder)["weights_sha256"] == result(reference)["weights_sha256"]
    assert metrics(folder) == metrics(reference)


def begin(*flags, cwd: Path, processes: int | None = None, until: int = 0) -> jobs.Job:
    """Start the run, and return when metrics.jsonl has reached step `until`; it then waits a second for what is to come."""
    pause = ("--at", f"step={until + 1}", "--do", "sleep 1") if until else ()
    job = jobs.begin(*pause, "--", *RECIPE, *flags, cwd=cwd, processes=processes)
    wait_for(lambda: steps(cwd / "run") >= until or not job.running())
    return job


def steps(folder: Path) -> int:
    lines = read_metrics(folder / "metrics.jsonl")  # without one that is being written
    return lines[-1]["step"] if lines else 0


def test_two_processes_give_the_bits_of_one(uninterrupted, tmp_path):
    """Under `accelerate launch`, fresh processes; batch norm included: statistics per micro-batch, running ones once."""
    launched = map(str, [sys.executable, *launcher(processes=2), *RECIPE])
    done = subprocess.run([*launched], cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "run", uninterrupted)
    assert result(tmp_path / "run")["world_size"] == 2
    assert "Warning" not in done.stderr


def test_dropout_and_short_last_micro_batches_on_two_processes(tmp_path):
    """65 images in batches of 64: the last batch has 1 image, so the second process has none."""
    flags = ("--data", "synthetic", "--limit", 65, "--epochs", 2, "--threads", 1, "--micro-batches", 4, "--net", "NetDropout")
    for processes in (None, 2):
        done = run_recipe("cifar2", *flags, "--out", f"on-{processes}", cwd=tmp_path, processes=processes)
        assert done.returncode == 0, done.stderr
    same(tmp_path / "on-2", tmp_path / "on-None")


def test_evaluation_on_two_processes_uses_the_statistics_of_one(tmp_path):
    """Many batches, so that each process has some; batch norm's running statistics are made on the main one only."""
    (tmp_path / "small.py").write_text(
        "import launch.data, tiny\nfrom launch import cli\nlaunch.data.MemoryFeed.evaluation_batch = 3\nmain = tiny.main\n"
        "if __name__ == '__main__':\n    cli(main)\n"
    )
    for processes in (None, 2):
        flags = ("--threads", 1, "--micro-batches", 2, "--out", f"on-{processes}")
        job = jobs.begin(tmp_path / "small.py", *flags, cwd=tmp_path, processes=processes)
        assert job.wait() == 0, job.output
    same(tmp_path / "on-2", tmp_path / "on-None")


def test_control_other_micro_batches_give_other_bits(uninterrupted, tmp_path):
    assert whole("--micro-batches", 1, cwd=tmp_path).returncode == 0
    assert result(tmp_path / "run")["weights_sha256"] != result(uninterrupted)["weights_sha256"]


def test_killed_then_the_same_command_on_another_number_of_processes(uninterrupted, tmp_path):
    """SIGKILL on one process, then on two, then one finishes: one curve, each step once."""
    for processes, until in ((None, 9), (2, 18)):
        job = begin("--save-every", 5, cwd=tmp_path, processes=processes, until=until)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(10)
        assert not (tmp_path / "run/result.json").exists()
    done = whole(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming run after step" in done.stdout
    same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_same_command_goes_on(number, uninterrupted, tmp_path):
    job = begin(cwd=tmp_path, until=9)
    os.kill(job.pid, number)
    assert job.wait(30) == 128 + number
    assert f"stopped by {number.name} at step" in job.output
    assert "Traceback" not in job.output
    done = whole(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "run", uninterrupted)


def test_sigterm_to_the_launcher_of_one_process_saves(uninterrupted, tmp_path):
    """accelerate's launcher dies of it without a word to its child, which must notice."""
    pause = (ROOT / "tests/chaos.py", "--at", "step=10", "--do", "sleep 2", "--")  # the run is short, and it looks twice a second
    job = jobs.python(*launcher(), *pause, *RECIPE, cwd=tmp_path)
    wait_for(lambda: steps(tmp_path / "run") >= 9 or not job.running())
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait(30) == -signal.SIGTERM
    assert "stopped by SIGTERM" in job.output
    assert whole(cwd=tmp_path).returncode == 0
    same(tmp_path / "run", uninterrupted)


def test_sigterm_to_one_worker_stops_both_at_the_same_step(uninterrupted, tmp_path):
    job = begin(cwd=tmp_path, processes=2, until=9)
    listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.split("\n")[1:]
    workers = [int(pid) for pid, parent in (line.split() for line in listing if line) if int(parent) == job.pid]
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGTERM)
    assert job.wait(60) != 0
    assert job.output.count("stopped by SIGTERM") == 1
    done = whole(cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "run", uninterrupted)


UNEVEN = """
import sys, time, tiny, torch
from launch import Run, cli, train
sys.modules["launch.run"].START_SECONDS = 2

def main(run: Run):
    images = tiny.tiny_images()
    run.open(images, {})
    for trial in range(3)[run.rank :: run.world]:
        model = tiny.Tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(run.single_process(), model, images, optimizer, epochs=1, batch=8, stage=f"trial-{trial}")
    time.sleep(4 * run.rank)
    run.wait_for_everyone(days=1)
    print("together")

if __name__ == "__main__":
    cli(main)
"""


def test_processes_with_trials_of_their_own_wait_for_each_other(tmp_path):
    """Three trials on two processes, and longer than the wait for a process that takes no part, here 2 s."""
    (tmp_path / "uneven.py").write_text(UNEVEN)
    job = jobs.begin(tmp_path / "uneven.py", "--data", "synthetic", cwd=tmp_path, processes=2)
    assert job.wait() == 0, job.output
    assert job.output.count("together") == 2


@pytest.mark.parametrize("out", [(), ("--out", "run")])
def test_moved_data_on_two_processes(out, tmp_path):
    """The sha256 of the images is the same, the path is another: all processes must know it."""
    flags = (ROOT / "tests/tiny.py", "--threads", 1, "--save-every", 3, "--log-every", 1, *out)
    fault = ("--at", "step=12", "--do", "SIGKILL", "--")
    jobs.begin(*fault, *flags, "--data", tmp_path / "before", cwd=tmp_path, processes=2).wait()
    job = jobs.begin(*flags, "--data", tmp_path / "after", cwd=tmp_path, processes=2)
    assert job.wait() == 0, job.output
    assert "after step 9" in job.output
    assert len(list(tmp_path.rglob("config.json"))) == 1


def test_second_job_on_a_folder_is_told_the_first_one(tmp_path):
    first = begin("--epochs", 400, cwd=tmp_path, until=3)
    second = whole("--epochs", 400, cwd=tmp_path)
    assert second.returncode == 5
    assert f"in use by process {first.pid}" in second.stderr
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(10)
    reached = steps(tmp_path / "run")
    third = begin("--epochs", 400, cwd=tmp_path, until=reached + 1)  # the lock died with its holder
    os.kill(third.pid, signal.SIGTERM)
    assert third.wait(30) == 143
    assert third.output.count("stopped by SIGTERM") == 1


def test_processes_must_divide_the_micro_batches(tmp_path):
    done = run_recipe("cifar2", *FLAGS, "--micro-batches", 3, cwd=tmp_path, processes=2)
    assert done.returncode != 0
    assert "3 micro-batches, which 2 processes cannot share evenly; 1, 3 can" in done.stderr
    assert not (tmp_path / "run").exists()


def test_default_folder_same_command_same_run_and_fresh_beside_it(tmp_path):
    flags = ("--data", "synthetic", "--limit", 64, "--epochs", 1)
    assert run_recipe("cifar2", *flags, cwd=tmp_path).returncode == 0
    (folder,) = (tmp_path / "runs/cifar2").iterdir()
    began = time.monotonic()
    again = run_recipe("cifar2", *flags, "--threads", 2, "--log-every", 1, cwd=tmp_path)  # cadences are no difference
    assert again.returncode == 0
    assert "already finished: Net, 1 epochs: test accuracy" in again.stdout
    assert time.monotonic() - began < 15
    assert run_recipe("cifar2", *flags, "--fresh", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "runs/cifar2").iterdir()) == [folder.name, f"{folder.name}-2"]
    assert result(folder)["weights_sha256"] == result(folder.with_name(f"{folder.name}-2"))["weights_sha256"]
    other = run_recipe("cifar2", *flags, "--lr", 0.02, "--out", folder, cwd=tmp_path)
    assert other.returncode == 4
    assert "lr was 0.01, now 0.02" in other.stderr


def test_import_is_inert():
    """Importing the nets draws no random number, starts no device and changes no environment."""
    code = (
        "import os, torch; before = dict(os.environ); state = torch.random.get_rng_state()\n"
        "import nets.cifar2, launch\n"
        "assert dict(os.environ) == before and torch.equal(state, torch.random.get_rng_state())\n"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


RUNNING = """
import tiny, torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from launch import Run, cli, train

class Moving(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passing", torch.zeros(4), persistent=False)

    def forward(self, x):
        moved = x - self.centre.view(1, 4, 1, 1) * (1 + self.passing.sum())
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean((0, 2, 3))  # another tensor in its place
            self.passing.copy_(self.centre)
        self.calls += 1  # in evaluations, too
        return moved

def main(run: Run, epochs: int = 3, ema: float = 0.9):
    images = tiny.tiny_images()
    conv = spectral_norm(nn.Conv2d(1, 4, 3, padding=1))
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    body = [conv, norm, Moving(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(run, model, images, optimizer, epochs=epochs, batch=8, ema=ema)
    assert model[2].calls == 24, model[2].calls

if __name__ == "__main__":
    cli(main)
"""


def test_running_state_of_every_kind_follows_micro_batch_0_on_any_number_of_processes(tmp_path):
    """Spectral norm, InstanceNorm's statistics, a net's own buffers; exact after a kill, begun on two and ended on one."""
    (tmp_path / "running.py").write_text(RUNNING)

    def trained(name: str, processes: int | None = None, chaos: tuple = ()) -> jobs.Job:
        flags = ("--threads", 1, "--micro-batches", 4, "--save-every", 3, "--log-every", 1, "--out", name)
        job = jobs.begin(*chaos, "--", tmp_path / "running.py", *flags, cwd=tmp_path, processes=processes)
        job.code = job.wait()
        return job

    for name, processes in (("one", None), ("two", 2)):
        job = trained(name, processes)
        assert job.code == 0, job.output
    assert trained("killed", 2, ("--rank", 1, "--at", "step=13", "--do", "SIGKILL")).code != 0
    assert trained("killed").code == 0
    for name in ("two", "killed"):
        same(tmp_path / name, tmp_path / "one")
