"""Trackers beside W&B, by accelerate's classes for them: TensorBoard, Trackio, MLflow. Each gets the rows that W&B gets, by step.

At the start of every launch they get the rows of metrics.jsonl that they lack: all of them in new files (TensorBoard, whose files
are the run folder's own), or those that their own reader does not find (Trackio, MLflow). So no step is missing or doubled after
a kill, and a tracker that is named later has the whole run. A new tracker goes into NAMES and STARTS.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import tracking

from ..files import write_atomically
from . import wandb_mirror
from .runs import read_json

NAMES = {"tensorboard": "TensorBoard", "trackio": "Trackio", "mlflow": "MLflow"}  # keys: what to import, and to pip install
FILE = "trackers.json"  # in a run's folder: what each tracker calls the run
REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # its own defaults take minutes

Arrived = dict[str, set[int]]  # the steps at which a tracker has each value


def missing(names: Iterable[str]) -> list[str]:
    """Those of the trackers `names` that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


class Mirror:
    """A tracker that has been started for one run or stage; anything that fails in it is raised."""

    def __init__(self, name: str, folder: Path, facts: dict):
        self.name, self.step = name, 0
        self.tracker, self.arrived, self.place = STARTS[name](folder, *wandb_mirror.described(folder, facts))

    def send(self, events: Iterable[dict]) -> None:
        """Log the rows of these events of metrics.jsonl, except what has arrived."""
        events = list(events)
        steps = [step for step, _ in itertools.groupby(events, key=lambda event: event["step"])]
        for self.step, row in zip(steps, wandb_mirror.rows(events), strict=True):
            self._log(row)

    def send_result(self, result: dict) -> None:
        """Log the numbers of the run's `result`, at its last step."""
        numbers = wandb_mirror.summary(result).items()
        self._log({f"result/{key}": value for key, value in numbers if isinstance(value, int | float)})

    def _log(self, row: dict) -> None:
        lacking = {key: value for key, value in row.items() if self.step not in self.arrived.get(key, ())}
        if lacking:
            self.tracker.log(lacking, step=self.step)

    def finish(self, code: int) -> None:
        """Close the tracker's run, which ends with the exit code `code`."""
        if self.name == "mlflow" and code:  # accelerate's tracker calls every run finished
            import mlflow

            mlflow.end_run(status="FAILED" if code in (1, 2, 3, 4) else "KILLED")
        elif self.name == "trackio":  # accelerate's tracker leaves the run to be finished again as Python exits
            import trackio

            with contextlib.redirect_stdout(io.StringIO()):  # its own lines
                trackio.finish()
        else:
            self.tracker.finish()


def _tensorboard(folder: Path, _name: str, config: dict) -> tuple[Any, Arrived, str]:
    """New event files in `folder`/tensorboard instead of those of earlier launches."""
    place = folder / "tensorboard"
    for old in place.glob("events.out.tfevents.*"):
        old.unlink()
    # purge_step: a TensorBoard that has read the old files drops what it knows from them.
    tracker = tracking.TensorBoardTracker(place.name, str(folder), purge_step=0)
    tracker.start()
    tracker.log({"configuration": f"```\n{json.dumps(config, indent=1, default=str)}\n```"}, step=0)
    return tracker, {}, f"in {place}"


def _trackio(folder: Path, name: str, config: dict) -> tuple[Any, Arrived, str]:
    """The run's one run in Trackio's local database, which is where Trackio itself says, or TRACKIO_DIR."""
    if remote := next((variable for variable in REMOTE if os.environ.get(variable)), ""):
        raise RuntimeError(f"{remote} is set, and what has arrived there cannot be read; log here, then `trackio sync`")
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import TRACKIO_DIR

    project = _project()
    name = _known(folder, "trackio", f"{name}-{secrets.token_hex(4)}")
    arrived: Arrived = {}
    for row in SQLiteStorage.get_logs(project, name):
        for key in row:
            arrived.setdefault(key, set()).add(row["step"])
    quiet = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
    tracker = tracking.TrackioTracker(project, name=name, group=config["recipe"], config=config, resume="allow", **quiet)
    with contextlib.redirect_stdout(io.StringIO()):  # five lines of its own
        tracker.start()
    return tracker, arrived, f"{project}/{name} in {TRACKIO_DIR}"


def _mlflow(folder: Path, name: str, config: dict) -> tuple[Any, Arrived, str]:
    """The run's one run on MLflow's server or in its store: MLFLOW_TRACKING_URI, else MLflow's own default."""
    for variable, value in QUICK.items():
        os.environ.setdefault(variable, value)
    import mlflow

    client, known = mlflow.MlflowClient(), read_json(folder / FILE) or {}
    try:
        begun = client.get_run(known["mlflow"]).info.run_id if "mlflow" in known else None
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        begun = None  # deleted, or another store
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _project()
    tracker = tracking.MLflowTracker(project, run_name=name, run_id=begun)
    tracker.start()
    info = tracker.tracker.info
    arrived: Arrived = {}
    if begun:
        for key in client.get_run(info.run_id).data.metrics:
            arrived[key] = {metric.step for metric in client.get_metric_history(info.run_id, key)}
    else:
        tracker.store_init_configuration(config)
    _remember(folder, "mlflow", info.run_id)
    return tracker, arrived, f"{project}/{info.run_id} in {mlflow.get_tracking_uri()}"


STARTS: dict[str, Callable[[Path, str, dict], tuple[Any, Arrived, str]]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


def _project() -> str:
    return os.environ.get("WANDB_PROJECT") or wandb_mirror.PROJECT


def _known(folder: Path, tracker: str, new: str) -> str:
    """What `tracker` calls the run in `folder`: `new` from now on, unless it has a name."""
    name = (read_json(folder / FILE) or {}).get(tracker, new)
    _remember(folder, tracker, name)
    return name


def _remember(folder: Path, tracker: str, name: str) -> None:
    names = read_json(folder / FILE) or {}
    if names.get(tracker) != name:
        write_atomically(folder / FILE, json.dumps(names | {tracker: name}).encode())
