"""W&B mirrors the record: one run, its configuration at init, nothing that can slow or stop the training."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, metrics, result, run_recipe
from servers import silent

FLAGS = ("--data", "synthetic", "--limit", 300, "--epochs", 3, "--threads", 1, "--out", "run")
KEY = "0123456789abcdef0123456789abcdef01234567"


def inspect(folder: Path) -> list[dict]:
    """The records of an offline run, as W&B's own reader prints them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("plain")
    assert run_recipe("cifar2", *FLAGS, "--wandb", "disabled", cwd=place).returncode == 0
    return place / "run"


def test_offline_run_has_the_record_on_epochs(plain, tmp_path):
    done = run_recipe("cifar2", *FLAGS, cwd=tmp_path, env={"WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stderr
    assert "W&B offline in run/wandb" in done.stdout
    assert metrics(tmp_path / "run") == metrics(plain)
    assert result(tmp_path / "run")["weights_sha256"] == result(plain)["weights_sha256"]
    (folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    records = inspect(folder)
    rows = []
    for record in records:
        if record["type"] == "history":
            rows.append(record["history"]["item"])
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    ours = [line for line in metrics(tmp_path / "run") if line["event"] == "train"]
    assert [row["train/loss"] for row in rows] == pytest.approx([line["loss"] for line in ours])
    assert all({"test/accuracy", "test/loss", "lr", "images", "images_per_second"} <= row.keys() for row in rows)
    (run,) = (record["run"] for record in records if record["type"] == "run")
    config = run["config"]["update"]
    assert {"net", "lr", "batch", "seed", "precision", "parameters", "world_size"} <= config.keys()  # given at init
    assert run["tags"] == ["synthetic"]


@pytest.mark.parametrize("kind", ["refused", "hangs"])
def test_unreachable_server_costs_seconds_and_changes_nothing(kind, plain, tmp_path):
    env = {"WANDB_MODE": "online", "WANDB_API_KEY": KEY}
    with silent() as address:
        env["WANDB_BASE_URL"] = address if kind == "hangs" else "http://127.0.0.1:9"
        began = time.monotonic()
        done = run_recipe("cifar2", *FLAGS, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" in done.stdout
    assert "logging offline" in done.stdout
    assert time.monotonic() - began < 40
    assert metrics(tmp_path / "run") == metrics(plain)
    assert len(list((tmp_path / "run/wandb").glob("offline-run-*"))) == 1


def test_without_a_key_it_is_offline_and_never_asks(plain, tmp_path):
    done = run_recipe("cifar2", *FLAGS, cwd=tmp_path, env={"WANDB_MODE": None})
    assert done.returncode == 0, done.stderr
    assert "W&B offline" in done.stdout


def test_broken_mirror_is_said_once_and_the_record_goes_on(plain, tmp_path):
    """`log` raises from the second epoch on, in the real process."""
    (tmp_path / "broken.py").write_text(
        "import runpy, sys\n"
        "from accelerate.tracking import WandBTracker\n"
        "calls, log = [], WandBTracker.log\n"
        "def broken(self, *values, **options):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 1: raise BrokenPipeError('service died')\n"
        "    return log(self, *values, **options)\n"
        "WandBTracker.log = broken\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "broken.py", str(ROOT / "recipes/cifar2.py"), *map(str, FLAGS)]
    env = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("W&B failed (service died)") == 1
    assert metrics(tmp_path / "run") == metrics(plain)
