"""Each launch file gives the number of processes, the device and the precision that it promises."""

import json
import os
import re
import sys
import threading
from types import SimpleNamespace
from typing import NamedTuple

import jobs
import pytest
import torch
import torch.distributed.run
from accelerate.commands import launch as launcher
from conftest import ROOT

from launch.errors import Refused
from launch.processes import accelerator, cpu_only_emulates_bf16, first_to_say

NO_BF16 = cpu_only_emulates_bf16()
PROMISES = {  # file -> (processes, precision); None: as many as GPUs
    "accelerate_config.yaml": (1, "no"),
    "launch/cpu.yaml": (1, "no"),
    "launch/cpus.yaml": (2, "no"),
    "launch/elastic.yaml": (2, "no"),
    "launch/gpu.yaml": (1, "bf16"),
    "launch/gpus.yaml": (None, "bf16"),
}
PROBE = """
from launch import Run, cli
def main(run: Run, epochs: int = 1):
    a = run.accelerator
    with open(f"rank{a.process_index}", "w") as file: file.write(f"{a.num_processes} {a.mixed_precision} {a.device.type}")
cli(main)
"""


def launch(*flags, cwd, env=None):
    (cwd / "probe.py").write_text('"""Probe.\n\nSource none\n"""\n' + PROBE)
    return jobs.run("-m", "accelerate.commands.launch", *flags, "probe.py", "--data", "synthetic", cwd=cwd, env=env)


def test_every_file_is_promised_something():
    files = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("[!.]*.yaml"), *(ROOT / "launch").glob("*.yaml")]}
    # nodes.yaml: tests/test_nodes.py; sweep.yaml, which is W&B's: tests/test_sweep.py
    assert files == PROMISES.keys() | {"launch/nodes.yaml", "launch/sweep.yaml"}
    for file in files - {"launch/sweep.yaml"}:
        assert re.search(f"accelerate launch --config_file {file} (--.*)?recipes/cifar2.py", (ROOT / file).read_text()), file


@pytest.mark.parametrize("file", PROMISES)
def test_file_keeps_its_promise(file, tmp_path):
    processes, precision = PROMISES[file]
    if processes is None and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    done = launch("--config_file", str(ROOT / file), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ranks = sorted(path.read_text().split() for path in tmp_path.glob("rank*"))
    assert len(ranks) == int(ranks[0][0]) == (processes or torch.cuda.device_count())
    assert {rank[1] for rank in ranks} == {"no" if NO_BF16 and ranks[0][2] == "cpu" else precision}


@pytest.mark.parametrize("flags", [("--cpu", "--num_processes", "2")])
def test_two_processes_that_would_be_one_are_an_error(flags, tmp_path):
    done = launch(*flags, cwd=tmp_path)
    assert done.returncode != 0
    assert "launch/cpus.yaml" in done.stderr
    assert not list(tmp_path.glob("rank*"))


def test_processes_that_each_think_they_are_the_only_one_are_an_error(tmp_path):
    """WORLD_SIZE alone, as some schedulers set it, starts no process group."""
    done = launch("--num_processes", "1", cwd=tmp_path, env={"RANK": "0", "WORLD_SIZE": "2"})
    assert done.returncode != 0
    assert "each process would think it is the only one; use accelerate launch --config_file launch/cpus.yaml" in done.stderr
    assert not list(tmp_path.glob("rank*"))


LEFT = {  # what is left in a shell -> what is said of it
    "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0": "",
    "LOCAL_RANK=0 LOCAL_WORLD_SIZE=4 MASTER_PORT=29500": "",
    "SLURM_PROCID=1 SLURM_NTASKS=4 SLURM_LOCALID=1 PMI_SIZE=1 PMI_RANK=0": "",
    "OMPI_COMM_WORLD_SIZE=2": "OMPI_COMM_WORLD_SIZE is 2 in the environment, but MPI's processes do not train together here: use",
    "PMI_SIZE=4 PMI_RANK=3": "PMI_SIZE is 4 in the environment",
    "MV2_COMM_WORLD_SIZE=2 WORLD_SIZE=1": "MV2_COMM_WORLD_SIZE is 2 in the environment",
    "WORLD_SIZE=abc": "WORLD_SIZE is 'abc' in the environment, and no number; unset it",
    "LOCAL_RANK=": "LOCAL_RANK is '' in the environment, and no number; unset it",
    "LOCAL_RANK=-1": "LOCAL_RANK is '-1' in the environment",
    "RANK=1": "RANK is 1 of 1 processes in the environment; unset what a launcher has left there",
    "LOCAL_RANK=3 RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2": "LOCAL_RANK is 3 of 2 processes",
    "RANK=1 LOCAL_RANK=1 WORLD_SIZE=2": "WORLD_SIZE is 2 but MASTER_ADDR, MASTER_PORT is not set",
    "WORLD_SIZE=0": "0 processes were started",
    "LOCAL_WORLD_SIZE=0 LOCAL_RANK=0": "",
    "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=99999": "MASTER_PORT is 99999 in the environment",
    "OMPI_COMM_WORLD_SIZE=many": "OMPI_COMM_WORLD_SIZE is 'many' in the environment, and no number",
    "TORCHELASTIC_MAX_RESTARTS=few": "TORCHELASTIC_MAX_RESTARTS is 'few' in the environment, and no number",
    "ACCELERATE_DEBUG_MODE=perhaps": "accelerate cannot start",
}
ALONE = {left for left, said in LEFT.items() if not said} | {
    "RANK=1",
    "WORLD_SIZE=abc",
    "WORLD_SIZE=0",
    "ACCELERATE_DEBUG_MODE=perhaps",  # which accelerate reads once in a process
}  # in a process


@pytest.mark.parametrize("left", LEFT)
def test_what_a_launcher_left_in_the_shell_is_one_line_or_does_no_harm(left, tmp_path, monkeypatch):
    variables = dict(each.split("=") for each in left.split())
    if left not in ALONE:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Refused, match=LEFT[left]) as refused:
            accelerator()
        assert refused.value.code == 2
        return
    job = jobs.begin("--", ROOT / "tests/tiny.py", "--epochs", 1, "--threads", 1, "--out", "run", cwd=tmp_path, env=variables)
    code = job.wait(60)
    assert "Traceback" not in job.output
    if LEFT[left]:
        assert code == 2, job.output
        assert LEFT[left] in job.output
        assert job.output.count("\n") == 1, job.output
        assert not (tmp_path / "run").exists()
    else:
        assert code == 0, job.output
        assert json.loads((tmp_path / "run/result.json").read_text())["world_size"] == 1


def test_fp16_on_a_cpu_is_refused(tmp_path):
    done = launch("--num_processes", "1", "--cpu", "--mixed_precision", "fp16", cwd=tmp_path)
    assert done.returncode != 0
    assert "fp16 needs a GPU" in done.stderr


class Started(NamedTuple):
    """Processes that `accelerate launch` would start on this machine."""

    processes: int
    precision: str
    cpu: bool = False
    machines: int = 1
    machine: int = 0


@pytest.fixture
def started(monkeypatch):
    """started(gpus, FLAGS…) -> what `accelerate launch FLAGS recipe.py --lr 1` would start, on a machine with so many GPUs."""

    def started(gpus, *flags) -> Started:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
        monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda _: False)
        seen = []

        def alone(command, env):
            assert command == [sys.executable, "recipe.py", "--lr", "1"]
            assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & env.keys()
            seen.append(Started(1, env["ACCELERATE_MIXED_PRECISION"], env["ACCELERATE_USE_CPU"] == "True"))
            return SimpleNamespace(wait=lambda: None, returncode=0)

        def several(args):
            config, python, command = torch.distributed.run.config_from_args(args)
            assert (python, command) == (sys.executable, ["-u", "recipe.py", "--lr", "1"])
            assert config.min_nodes == config.max_nodes
            if config.max_nodes > 1:
                assert config.rdzv_endpoint == "10.0.0.1:29500"
            precision, cpu = os.environ["ACCELERATE_MIXED_PRECISION"], os.environ.get("ACCELERATE_USE_CPU") == "true"
            seen.append(Started(config.nproc_per_node, precision, cpu, config.max_nodes, config.rdzv_configs["rank"]))

        monkeypatch.setattr(launcher.subprocess, "Popen", alone)
        monkeypatch.setattr(torch.distributed.run, "run", several)
        launcher.launch_command(launcher.launch_command_parser().parse_args([*flags, "recipe.py", "--lr", "1"]))
        (what,) = seen
        return what

    return started


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("file", PROMISES)
def test_what_a_file_would_start_on_gpus(file, gpus, started):
    processes, precision = PROMISES[file]
    assert started(gpus, "--config_file", str(ROOT / file)) == Started(processes or gpus, precision, file == "launch/cpu.yaml")


def test_what_flags_and_an_edited_file_would_start_on_eight_gpus(started, tmp_path):
    assert started(8, "--config_file", str(ROOT / "launch/gpus.yaml"), "--num_processes", "3") == Started(3, "bf16")
    text = (ROOT / "launch/elastic.yaml").read_text()
    (tmp_path / "elastic.yaml").write_text(text.replace("num_processes: 2 ", "num_processes: gpu ").replace('"no"', "bf16"))
    assert started(8, "--config_file", str(tmp_path / "elastic.yaml")) == Started(8, "bf16")
    assert started(8) == Started(8, "no")  # as accelerate_config.yaml says of no file at all


@pytest.mark.parametrize("machine", [0, 1])
def test_what_two_machines_of_eight_gpus_would_start(machine, started):
    place = ("--config_file", str(ROOT / "launch/nodes.yaml"), "--machine_rank", str(machine), "--main_process_ip", "10.0.0.1")
    assert started(8, *place) == Started(1, "bf16", machines=2, machine=machine)  # one process on each
    assert started(8, *place, "--num_processes", "16") == Started(8, "bf16", machines=2, machine=machine)


def test_control_another_number_of_gpus_or_another_file_starts_something_else(started, tmp_path):
    text = (ROOT / "launch/gpus.yaml").read_text()
    (tmp_path / "few.yaml").write_text(text.replace("num_processes: gpu", "num_processes: 2"))
    assert started(8, "--config_file", str(tmp_path / "few.yaml")) != Started(8, "bf16")
    with pytest.raises(ValueError, match="Cuda is not available"):
        started(0, "--config_file", str(ROOT / "launch/gpus.yaml"))


def test_a_process_whose_machine_was_cut_off_says_its_line_without_an_answer(monkeypatch):
    """torch's store is on the first machine, and its clients wait for its answers without an end."""
    answers, back = [], threading.Event()

    def add(*_):
        return answers.pop(0) if answers else (back.wait(20), 2)[1]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", lambda: SimpleNamespace(add=add))
    monkeypatch.setattr("launch.processes.ANSWER_SECONDS", 0.2)
    answers += [1, 2]
    assert [first_to_say(Refused("lost")) for _ in range(2)] == [True, False]
    assert first_to_say(Refused("lost"))
    back.set()
