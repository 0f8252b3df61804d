"""recipes/custom.py on several processes, as its users run it: a net with batch norm, an average, validation images."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, metrics, result
from jobs import Job, begin
from photos import write_photos
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
FLAGS = ("--size", 16, "--net", "CifarResNet", "--mode", "scratch", "--batch", 8, "--epochs", 2, "--threads", 1)
FLAGS = (*FLAGS, "--mix", "either", "--micro-batches", 2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", {"a": 20, "b": 20})


def start(photos: Path, place: Path, *flags, chaos: tuple = (), processes: int | None = None, **more) -> Job:
    options = (*FLAGS, "--data", photos, "--validation", 0.2, "--test", 0.2, "--ema", 0.9, "--out", "run", *flags)
    return begin(*chaos, "--", ROOT / "recipes/custom.py", *options, cwd=place, processes=processes, **more)


@pytest.fixture(scope="module")
def reference(photos, tmp_path_factory) -> Path:
    """The run of one process that nothing disturbs."""
    job = start(photos, place := tmp_path_factory.mktemp("reference"))
    assert job.wait() == 0, job.output
    return place / "run"


def same(folder: Path, reference: Path) -> None:
    for name in ("model", "best", "ema"):
        files = [load_file(place / f"{name}.safetensors") for place in (folder, reference)]
        assert files[0].keys() == files[1].keys()
        assert [key for key, tensor in files[0].items() if not tensor.equal(files[1][key])] == [], name
    assert metrics(folder) == metrics(reference)
    left_out = {"seconds", "images_per_second", "world_size"}
    one, other = ({key: value for key, value in result(place).items() if key not in left_out} for place in (folder, reference))
    assert one == other


def test_two_processes_end_with_the_bits_of_one(photos, reference, tmp_path):
    """The running statistics that the average follows, and the best weights with them, are the main process's."""
    job = start(photos, tmp_path, processes=2)
    assert job.wait(60) == 0, job.output
    same(tmp_path / "run", reference)
    best = json.loads((tmp_path / "run/result.json").read_text())["best"]
    assert best["test"]["count"] == 8


def test_killed_at_every_kind_of_moment_the_same_command_gives_the_same_bits(photos, reference, tmp_path):
    """While files are examined and stored, in an evaluation, the best weights' test, the report; the folder: test_folder.py."""
    moments = [("check=1", 0), ("store=1", -1), ("evaluate=4", 0), ("best=1", 0), ("draw=1", 0)]  # -1: whichever stores
    cache = {"ONELOOP_CACHE": str(tmp_path / "cache")}
    for number, (at, rank) in enumerate(moments):
        chaos, processes = ("--rank", rank, "--at", at, "--do", "SIGKILL"), 2 if number in (1, 3) else None
        job = start(photos, tmp_path, chaos=chaos, processes=processes, env=cache)
        assert job.wait(60) != 0, at
        if processes is None:
            assert job.process.exitcode == -9
        else:  # torch's launcher names the process that it sees ended first: the killed one, or the one that misses it
            assert "SIGKILL" in job.output or "another process died" in job.output, job.output
    job = start(photos, tmp_path, processes=2, env=cache)
    assert job.wait(60) == 0, job.output
    same(tmp_path / "run", reference)


def test_gradual_in_two_stages_on_two_processes_and_one(photos, reference, tmp_path):
    """The main process is killed at the second stage's end; the run that was killed ends on one process."""
    flags = ("--mode", "gradual", "--source", reference)
    job = start(photos, tmp_path, *flags, "--out", "whole", processes=2)
    assert job.wait(60) == 0, job.output
    job = start(photos, tmp_path, *flags, chaos=("--rank", 0, "--at", "best=2", "--do", "SIGKILL"), processes=2)
    assert job.wait(60) != 0
    assert job.output.count("another process died") == 1, job.output
    assert start(photos, tmp_path, *flags).wait(60) == 0
    for stage in ("frozen", "unlocked"):
        same(tmp_path / "run" / stage, tmp_path / "whole" / stage)
