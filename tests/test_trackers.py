"""Trackers beside W&B have each step of the record once, also after a kill, and never end a run. Their own readers say so."""

import json
import os
import re
import signal
import time
from pathlib import Path

import jobs
import pytest
from conftest import ROOT, metrics, run_recipe
from test_records_agree import fit

from launch.errors import Refused
from launch.report import trackers
from launch.report.runs import read_metrics
from launch.run import Run

FLAGS = ("--data", "synthetic", "--limit", 300, "--epochs", 2, "--threads", 1, "--out", "run", "--log-every", 1)


class Kept:
    """A tracker that keeps what it gets, also from launch to launch, and fails when it has `most` rows."""

    def __init__(self):
        self.rows, self.ended, self.most = [], 0, 10**9

    def log(self, row, step):
        if len(self.rows) >= self.most:
            raise RuntimeError("no more room")
        self.rows.append((step, row))

    def finish(self):
        self.ended += 1


@pytest.fixture
def kept(monkeypatch) -> Kept:
    """What `--track tensorboard` logs to in this test."""
    tracker = Kept()

    def begin(*_):
        arrived: trackers.Arrived = {}
        for step, row in tracker.rows:
            for key in row:
                arrived.setdefault(key, set()).add(step)
        return tracker, arrived, "here"

    monkeypatch.setitem(trackers.STARTS, "tensorboard", begin)
    monkeypatch.setattr(trackers, "missing", lambda _: [])
    return tracker


def steps_of_the_record(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "train"]


def steps(rows: list[tuple[int, dict]], key: str) -> list[int]:
    return [step for step, row in rows if key in row]


def test_rows_and_the_result_arrive_and_a_resumed_run_sends_what_is_missing(kept, start, images, tmp_path, capsys):
    run = start(out="run", track=("tensorboard",), log_every=1)
    fit(run, images, epochs=2)
    assert "TensorBoard here" in capsys.readouterr().out
    assert steps(kept.rows, "train/loss") == steps_of_the_record(tmp_path / "run")
    assert kept.rows[-1][1].keys() >= {"result/best/accuracy", "result/accuracy"}
    assert kept.ended == 1
    everything = kept.rows[:]
    del kept.rows[3:]  # a tracker that lost the rest; the longer run begins with all rows of the shorter one
    run.end()
    fit(start(out="run", fresh=True, track=("tensorboard",), log_every=1), images, epochs=2)
    assert steps(kept.rows, "train/loss") == steps(everything, "train/loss")


def test_a_tracker_that_fails_is_reported_once_and_the_record_continues(kept, start, images, tmp_path, capsys):
    fit(start(out="plain", track=("none",), log_every=1), images, epochs=2)
    kept.most = 2
    capsys.readouterr()
    fit(start(out="run", track=("tensorboard",), log_every=1), images, epochs=2)
    said = capsys.readouterr().out
    assert said.count("TensorBoard failed (no more room); the run continues without it, metrics.jsonl has everything") == 1
    assert metrics(tmp_path / "run") == metrics(tmp_path / "plain")
    assert (len(kept.rows), kept.ended) == (2, 0)


def test_a_tracker_that_cannot_start_is_one_line(start, images, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "missing", lambda _: [])
    monkeypatch.setitem(trackers.STARTS, "mlflow", lambda *_: 1 / 0)
    fit(start(track=("mlflow",)), images, epochs=1)
    assert "MLflow cannot start (division by zero); the run continues without it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("track", "said"),
    [
        (("mlflow",), "--track mlflow needs it: pip install mlflow"),
        (("none", "wandb"), "--track is none, or one or several trackers; it is none wandb"),
        ((), "--track is none, or one or several trackers; it is without a value"),
    ],
)
def test_a_wrong_track_is_refused_at_once(track, said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else object())
    with pytest.raises(Refused, match=said) as refusal:
        Run(data="synthetic", track=track).configure("test", {}, "no")
    assert refusal.value.code == 2


WITHOUT_WANDB = """
import importlib.util, json, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "wandb" else find(name, package)
sys.modules["wandb"] = None  # to import it is an ImportError
import launch.report.show
from launch.commands import main
from launch.sources import synthetic
launch.report.show.show = lambda *_: None
synthetic.COUNTS |= {"train": 64, "test": 20}
for words in json.loads(sys.argv[1]):
    sys.argv = words
    code = 0
    try:
        code = main() if words[0] == "oneloop" else runpy.run_path(words[0], run_name="__main__") and 0
    except SystemExit as end:
        code = end.code or 0
    print("--", code, flush=True)
"""


def test_wandb_is_needed_only_where_it_is_used(tmp_path):
    """Without wandb: training with --track none says nothing of it, with the default one line; runs and compare work."""
    recipe = [f"{ROOT}/recipes/cifar2.py", "--data", "synthetic", "--limit", "64", "--epochs", "1", "--threads", "1"]
    words = [
        [*recipe, "--out", "quiet", "--track", "none"],
        [*recipe, "--out", "default"],
        ["oneloop", "runs", "quiet"],
        ["oneloop", "compare", "quiet", "default"],
        ["oneloop", "upload", "quiet"],
    ]
    done = jobs.run("-c", WITHOUT_WANDB, json.dumps(words), cwd=tmp_path, env={"WANDB_MODE": "offline"})
    quiet, *others = re.split(r"(?m)^-- ", done.stdout)
    assert "W&B" not in quiet
    assert "W&B is not installed: pip install wandb; the run continues without it" in others[0]
    assert [part.partition("\n")[0] for part in others] == ["0", "0", "0", "0", "2"], done.stderr  # exit codes
    assert done.stderr == "W&B is not installed: pip install wandb\n"


def read_tensorboard(place: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(place / "run/tensorboard"), {"scalars": 0})
    read.Reload()
    return {tag: [event.step for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def read_trackio(place: Path) -> dict[str, list[int]]:
    code = "import json, sys; from trackio.sqlite_storage import SQLiteStorage as S\n"
    code += "print(json.dumps([S.get_logs('oneloop', name) for name in S.get_runs('oneloop')]))"
    (rows,) = json.loads(jobs.run("-c", code, cwd=place, env={"TRACKIO_DIR": str(place / "trackio")}).stdout)
    return {key: [row["step"] for row in rows if key in row] for key in set().union(*rows)}


def read_mlflow(place: Path) -> dict[str, list[int]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("oneloop").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["net"] == "Net"
    return {key: [metric.step for metric in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}


READERS = {"tensorboard": read_tensorboard, "trackio": read_trackio, "mlflow": read_mlflow}


@pytest.mark.parametrize("tracker", READERS)
@pytest.mark.filterwarnings("ignore")
def test_killed_within_an_epoch_and_resumed_each_step_is_there_once(tracker, tmp_path):
    pytest.importorskip(tracker)
    env = {"TRACKIO_DIR": str(tmp_path / "trackio"), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    recipe = (ROOT / "recipes/cifar2.py", *FLAGS, "--track", tracker, "--batch", 16, "--save-every", 4)
    job = jobs.begin(*recipe, cwd=tmp_path, env=env)
    written = tmp_path / "run/metrics.jsonl"
    jobs.wait_for(lambda: written.exists() and len(read_metrics(written)) > 9, 60)  # 19 steps an epoch, a checkpoint every 4
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    before = len(read_metrics(written))
    done = run_recipe("cifar2", *recipe[1:], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "resuming run after step" in done.stdout
    assert trackers.NAMES[tracker] in done.stdout
    shown = READERS[tracker](tmp_path)
    assert shown["train/loss"] == steps_of_the_record(tmp_path / "run")
    assert shown["test/accuracy"] == [19, 38]
    assert shown["result/accuracy"] == [38]
    assert before < 38  # control: it was killed within the training


def test_a_tensorboard_that_stays_open_shows_each_step_once(tmp_path):
    """It has read the files of a launch that was killed, which the next launch replaces."""
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Accelerator(cpu=True)
    read = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0})
    for launch in range(2):
        time.sleep(launch)  # its files are named by the second, and read in that order
        tracker, arrived, _ = trackers.STARTS["tensorboard"](tmp_path, "name", {})
        for step in range(1, 6):
            tracker.log({"loss": 1 / step}, step=step)
        read.Reload()
        assert ([event.step for event in read.Scalars("loss")], arrived) == ([1, 2, 3, 4, 5], {})
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.name.startswith("events.")
