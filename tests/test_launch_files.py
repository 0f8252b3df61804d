"""Each launch file gives the number of processes, the device and the precision that it promises."""

import re

import jobs
import pytest
import torch
from conftest import ROOT

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
    assert {rank[1] for rank in ranks} == {precision}


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


def test_fp16_on_a_cpu_is_refused(tmp_path):
    done = launch("--num_processes", "1", "--cpu", "--mixed_precision", "fp16", cwd=tmp_path)
    assert done.returncode != 0
    assert "fp16 needs a GPU" in done.stderr
