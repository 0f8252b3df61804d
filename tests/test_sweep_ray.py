"""`oneloop sweep --on ray`: a cluster of two machines, one of which is lost: its run starts on the other and resumes exactly."""

import os
import signal
import socket
import sys
import time

import jobs
import psutil
import pytest
from conftest import ROOT, command, metrics, result
from jobs import wait_for

from launch import commands
from launch.commands import sweep_ray
from launch.commands.sweep_cells import Cell
from launch.errors import Refused
from launch.report.runs import read, read_metrics

CIFAR2 = ROOT / "recipes/cifar2.py"
FLAGS = ("--data", "synthetic", "--limit", 64, "--batch", 16, "--net", "NetRes", "--threads", 1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--on moon", "--on is ray, ray://HOST:PORT or slurm, not moon"),
        ("--on ray://head", "--on is ray, ray://HOST:PORT or slurm, not ray://head"),
        ("--on ray --cpus 0", "--cpus must be at least 1, it is 0"),
        ("--on ray --gpus 2", "--gpus 2 needs --config_file launch/gpus.yaml"),
        ("--on ray --at-once 2", "leave out --at-once"),
        ("--cpus 2", "--cpus and --gpus belong to --on"),
    ],
)
def test_wrong_places_start_nothing(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert commands.main(["sweep", str(CIFAR2), "--seed", "1", "2", *flags.split()]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Refused, match="--on ray needs ray: pip install ray") as refused:
        sweep_ray.join("ray")
    assert refused.value.code == 2


def test_no_cluster_is_one_line_within_seconds():
    pytest.importorskip("ray")
    with socket.socket() as nobody:  # bound, and listens to no one
        nobody.bind(("127.0.0.1", 0))
        began = time.monotonic()
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(Refused, match=f"no Ray cluster at {address}: Connection refused; .*ray start --head") as refused:
            sweep_ray.join(f"ray://{address}")
        assert refused.value.code == 1
        assert time.monotonic() - began < sweep_ray.REACH_SECONDS


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two machines with one core each, both on this one, and the second of them."""
    pytest.importorskip("ray", reason="needs ray: pip install ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    second = made.add_node(**{name: value for name, value in small.items() if name != "include_dashboard"})
    yield made, second
    made.shutdown()


def lose(node) -> None:
    """Kill Ray's processes on a machine and all that they have started at once, as a power cut would."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_runs_of_a_lost_machine_go_on_elsewhere_exactly(cluster, tmp_path):
    made, second = cluster
    (alone, there) = (tmp_path / name for name in ("alone", "there"))
    alone.mkdir()
    there.mkdir()
    asked = command("sweep", CIFAR2, *FLAGS, "--epochs", 30, "--lr", 0.01, 0.02)
    job = jobs.python(*asked, "--on", f"ray://{made.address}", cwd=there, log=there / "log")

    def begun() -> bool:
        lines = [len(read_metrics(path)) for path in there.glob("runs/cifar2/*/metrics.jsonl")]
        return len(lines) == 2 and min(lines) >= 4

    wait_for(lambda: begun() or not job.running(), 180)
    assert job.running(), job.output
    lose(second)
    undisturbed = jobs.run(*asked, cwd=alone)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert job.wait(240) == 0, job.output
    folders = [path.parent.relative_to(alone) for path in sorted(alone.glob("runs/cifar2/*/result.json"))]
    assert len(folders) == 2
    for folder in folders:
        assert result(there / folder)["weights_sha256"] == result(alone / folder)["weights_sha256"]
        assert metrics(there / folder) == metrics(alone / folder)
    assert sum(bool(read(there / folder).config["resumed"]) for folder in folders) == 1  # that of the lost machine
    assert "2 machines in the cluster" in job.output


@pytest.mark.slow
def test_a_stopped_sweep_lets_its_runs_save(cluster, tmp_path):
    made, _ = cluster
    flags = ("sweep", CIFAR2, *FLAGS, "--lr", 0.01, 0.02, 0.03, "--epochs", 10000, "--on", f"ray://{made.address}")
    job = jobs.python(*command(*flags), cwd=tmp_path, log=tmp_path / "log")

    def records() -> list:
        return [path for path in tmp_path.glob("runs/cifar2/*/metrics.jsonl") if path.stat().st_size]

    wait_for(lambda: len(records()) == 2 or not job.running(), 180)
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait(60) == 143, job.output  # sooner than sweep_ray.END_SECONDS, after which it gives up waiting
    assert "stopping 3 runs\n" in job.output
    assert job.output.endswith("stopped by SIGTERM; run the same command to resume\n")
    assert [read(path.parent).stopped["code"] for path in records()] == [143, 143]  # the third had not begun


PROBE = """
import json, os, sys, time
import psutil
place = sys.argv[-1]
os.makedirs(place, exist_ok=True)
if not os.path.exists(place + "/began"):
    open(place + "/began", "w").close()
    psutil.Process().parent().parent().kill()  # Ray's worker, as if memory was short
    time.sleep(60)
with open(place + "/result.json", "w") as file:
    json.dump({"summary": "well"}, file)
"""


@pytest.mark.slow
def test_control_without_another_start_a_run_whose_worker_died_is_not_finished(cluster, tmp_path, monkeypatch, capsys):
    """The same run with another start finishes; a run that fails by itself is not started again."""
    made, _ = cluster
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.chdir(tmp_path)
    once, again = (Cell((str(tmp_path / name),), name, tmp_path / name) for name in ("once", "again"))
    for cell, retries in ((once, 0), (again, 1)):
        monkeypatch.setattr(sweep_ray, "RETRIES", retries)
        left = sweep_ray.run_on_ray([cell], ["launch", "probe.py"], f"ray://{made.address}", 1, 0)
        assert [why.partition(":")[0] for why in left.values()] == ([] if retries else ["interrupted"])
    failed = Cell(("--none",), "failed", tmp_path / "failed")
    left = sweep_ray.run_on_ray([failed], ["launch", "none.py"], f"ray://{made.address}", 1, 0)
    assert left[failed].startswith("failed: ")
    assert "none.py" in left[failed]
    assert "[1/1] again: well\n" in capsys.readouterr().out
