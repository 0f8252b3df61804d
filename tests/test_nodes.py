"""Several machines, as network namespaces of one: each has its own address, and the cable between them can be pulled."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, metrics, result
from jobs import begin, python, wait_for
from test_chaos import FLAGS, TINY, launched, same, saved

from launch.processes import cpu_only_emulates_bf16

pytestmark = pytest.mark.slow
NODES = (f"oneloop-{os.getpid()}-a", f"oneloop-{os.getpid()}-b")  # another worker, or working tree, has its own
FIRST, PORT = "10.77.0.1", 29500
NETWORK = {"GLOO_SOCKET_IFNAME": "cable"}
PRECISION = "no" if cpu_only_emulates_bf16() and not torch.cuda.is_available() else "bf16"  # of what is launched in bf16


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


@pytest.fixture(scope="module")
def nodes():
    """Two network namespaces, joined by a cable: an interface of that name in each."""
    if not shutil.which("ip"):
        pytest.skip("needs iproute2")
    try:
        for number, name in enumerate(NODES, 1):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            if number == 2:
                ip("-n", NODES[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", name)
        for number, name in enumerate(NODES, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode().strip()
        remove()
        pytest.skip(f"network namespaces are not permitted here: {reason}")
    yield
    remove()


def remove() -> None:
    for name in NODES:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """One machine, two processes."""
    place = tmp_path_factory.mktemp("one-machine")
    code, output = launched(cwd=place, processes=2)
    assert code == 0, output
    return place / "run"


def test_two_machines_give_the_bits_of_one_with_two_processes(nodes, reference, tmp_path):
    """Start a job as launch/nodes.yaml does, with accelerate's own launcher."""
    config = ["--config_file", str(ROOT / "launch/nodes.yaml"), "--mixed_precision", "no"]
    recipe = ("--main_process_ip", FIRST, TINY, *FLAGS)
    options = {"cwd": tmp_path, "env": NETWORK}
    jobs = [
        python("-m", "accelerate.commands.launch", *config, "--machine_rank", rank, *recipe, network=name, **options)
        for rank, name in enumerate(NODES)
    ]
    assert [job.wait() for job in jobs] == [0, 0], [job.output for job in jobs]
    same(tmp_path / "run", reference)
    assert result(tmp_path / "run")["world_size"] == 2


def test_machine_cut_off_ends_the_job_and_it_goes_on_exactly(nodes, reference, tmp_path):
    def both(*chaos) -> list[tuple[int, str]]:
        place = ("--rdzv-backend", "static", "--rdzv-endpoint", f"{FIRST}:{PORT}", "--nnodes", 2)
        options = {"cwd": tmp_path, "processes": 1, "env": NETWORK}
        jobs = [
            begin(*chaos, "--", TINY, *FLAGS, agent=(*place, "--node-rank", rank), network=name, **options)
            for rank, name in enumerate(NODES)
        ]
        return [(job.wait(90), job.output) for job in jobs]

    cut = f"ip -n {NODES[1]} link set cable down"
    for code, output in both("--silence", 3, "--rank", 0, "--at", "step=8", "--do", cut):
        assert code != 0
        assert "silent for 3.0 s, at step 8" in output
    assert saved(tmp_path / "run") == 5
    ip("-n", NODES[1], "link", "set", "cable", "up")
    ended = both()
    assert [code for code, _ in ended] == [0, 0], ended
    same(tmp_path / "run", reference)
    assert [line["step"] for line in metrics(tmp_path / "run") if line["event"] == "train"] == list(range(1, 25))


@pytest.fixture
def queue(tmp_path):
    """queue(recipe, *flags, cwd=…, **environment) starts launch/slurm.sh in a process group of its own.

    The script and torchrun are real; srun, which starts the tasks and hands signals on, and scontrol stand in for a queue: what
    srun was told lies in the file told, what was asked of scontrol in asked.
    """
    tools = {
        "srun": 'echo "$@" > told\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"',
        "scontrol": 'if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >> asked; fi',
    }
    (tmp_path / "bin").mkdir()
    for name, body in tools.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def queue(*command, **environment) -> subprocess.Popen:
        path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_NNODES": "1", "PROCESSES_PER_NODE": "2"}
        with open(tmp_path / "log", "a") as log:
            return subprocess.Popen(
                [str(ROOT / "launch/slurm.sh"), *map(str, command)], cwd=tmp_path,
                env=os.environ | slurm | {"PATH": path} | environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    return queue


def test_slurm_script_asks_for_another_turn_when_the_queue_stops_it(queue, tmp_path):
    flags = (TINY, "--threads", 1, "--log-every", 1, "--epochs", 4000, "--seed", 5)
    assert queue(*flags, "--out", "mine").wait(60) == 2
    assert (tmp_path / "log").read_text() == "set the run folder with RUN=FOLDER in the environment, not with --out\n"
    assert queue(*flags, "--fresh").wait(60) == 2
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").write_text("echo activated\n")
    job = queue(*flags, SLURM_CPUS_PER_TASK="3", VENV="venv")
    record = tmp_path / "runs/slurm-7-1/metrics.jsonl"
    wait_for(lambda: (record.exists() and record.stat().st_size) or job.poll() is not None, 120)
    os.kill(job.pid, signal.SIGUSR1)  # to the script alone, as --signal=B:USR1 does
    assert job.wait(60) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert json.loads((record.parent / "stopped.json").read_text())["code"] == 138
    assert "stopped by SIGUSR1" in (tmp_path / "log").read_text()
    assert "activated" in (tmp_path / "log").read_text()
    recorded = json.loads((record.parent / "config.json").read_text())
    assert (recorded["config"]["seed"], recorded["precision"]) == (5, PRECISION)  # the user's; the script's
    told = (tmp_path / "told").read_text()
    assert "--cpus-per-task=3" in told
    assert "--rdzv-endpoint 127.0.0.1:20007" in told  # of this job alone


def test_slurm_script_does_not_ask_again_for_a_turn_that_fails(queue, tmp_path):
    """The turn before was stopped by the queue, this one fails before it opens the run folder."""
    (tmp_path / "runs/slurm-7-1").mkdir(parents=True)
    (tmp_path / "runs/slurm-7-1/stopped.json").write_text('{"code": 138, "why": "stopped by SIGUSR1"}')
    assert queue(TINY, "--epochs", "many", PROCESSES_PER_NODE="1").wait(60) != 0
    assert not (tmp_path / "asked").exists()


def test_slurm_script_asks_for_another_turn_when_stopped_before_the_first_step(queue, tmp_path):
    job = queue(TINY, "--threads", 1)
    wait_for(lambda: (tmp_path / "told").exists())
    os.kill(job.pid, signal.SIGUSR1)
    assert job.wait(60) == 0
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert not (tmp_path / "runs").exists()
