"""recipes/pictures.py on several processes, as its users run it: a net with batch norm, an average, validation pictures."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, metrics, result
from jobs import Job, begin
from photos import write_photos
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
FLAGS = ("--size", 16, "--net", "CifarResNet", "--batch", 8, "--epochs", 2, "--threads", 1, "--shards", 2, "--mix", "either")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", {"a": 20, "b": 20})


def start(photos: Path, place: Path, *flags, chaos: tuple = (), processes: int | None = None) -> Job:
    options = (*FLAGS, "--data", photos, "--validation", 0.2, "--test", 0.2, "--ema", 0.9, "--out", "run", *flags)
    return begin(*chaos, "--", ROOT / "recipes/pictures.py", *options, cwd=place, processes=processes)


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
    job = start(photos, tmp_path, "--epochs", 2, processes=2)
    assert job.wait(60) == 0, job.output
    same(tmp_path / "run", reference)
    best = json.loads((tmp_path / "run/result.json").read_text())["best"]
    assert best["test"]["count"] == 8
