"""A shorter run that a longer one may start from: the same configuration, finished, and with fewer epochs.

All that a step depends on is a function of (seed, step), so the first 10 epochs of a run of 20 are the run of 10, as long as
nothing else depends on the number of epochs: `find` compares code, weights, data, options and the learning rate of each step.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass

from .. import source_copy
from ..errors import Refused, first_line
from ..files import write_atomically
from ..folder import siblings
from ..report.runs import Record, last_launch, model_selection_split, read, read_json, read_metrics
from ..run import Run
from ..weights import load
from . import checkpoint
from .schedules import Schedule


@dataclass(frozen=True)
class Settings:
    """Options of the optimizer's `groups` at the start, and the factor of their learning rates at each step."""

    groups: list[dict]
    schedule: Schedule | None
    steps: int  # of an epoch

    def sha256(self, steps: int) -> str:
        """Over the options, and the factors of the first `steps` steps."""
        factors = [self.schedule(step / self.steps) if self.schedule else 1.0 for step in range(steps)]
        return hashlib.sha256(json.dumps([self.groups, factors], default=str).encode()).hexdigest()


def find(run: Run, fingerprint: str, start: str, settings: Settings) -> tuple[dict | None, list[str]]:
    """The last checkpoint of a shorter run beside this one, whose lines this run takes; also what to tell the user.

    `fingerprint` is that of the data, `start` the sha256 of the weights that this run begins with. Main process only.
    """
    reason: list[str] = []
    for record in _beside(run, fingerprint):
        saved, _ = checkpoint.latest(record.folder / "checkpoints")
        why = _unlike(record, run, saved["state"] if saved else {}, fingerprint, start, settings)
        if not why:
            return saved, _remember(record, run)
        reason = reason or [f"starts from the beginning and not where {record.folder} ended: {why}"]
    return None, reason


def _beside(run: Run, fingerprint: str) -> list[Record]:
    """The finished runs beside this one that differ in fewer epochs alone, the longest, then the newest first."""
    epochs = run.config.get("epochs")
    if not isinstance(epochs, int):
        return []
    shorter = []
    for place, recorded in siblings(run.folder, run.config, run.micro_batches, fingerprint, apart="epochs"):
        if isinstance(recorded["config"].get("epochs"), int) and recorded["config"]["epochs"] < epochs and not place.is_symlink():
            with contextlib.suppress(Refused, OSError):  # one that cannot be read is not started from
                shorter.append(read(place))
    finished = [record for record in shorter if record.result]
    return sorted(finished, key=lambda record: (-record.options["epochs"], -(record.folder / "result.json").stat().st_mtime))


def _unlike(record: Record, run: Run, state: dict, fingerprint: str, start: str, settings: Settings) -> str:
    """Why the shorter run, whose last checkpoint has this `state`, is not the beginning of this one; "" if it is."""
    copies = record.config.get("code", [])
    if run.code and len(copies) > 1:
        return "its code was edited during training"
    if names := source_copy.edited(record.folder, copies, run.code):
        return f"{', '.join(names)} changed since"
    if "settings" not in state or state["origin"] != run.origin(fingerprint, epochs=record.options["epochs"]):
        return "its last checkpoint cannot be used"
    if state["start"] != start:
        return "it began with other weights"
    if state["settings"] != settings.sha256(state["step"]):
        return "the learning rate, or another option of the optimizer, depends on the number of epochs"
    return _take_record(record, run, settings.steps)


def _take_record(record: Record, run: Run, steps: int) -> str:
    """Give the run the lines and best weights that the shorter `record` has; `steps` are those of an epoch.

    Returns why not, if the lines are not those that the longer run would have written by itself, or cannot be read. Raises
    OSError if the run's folder cannot be written.
    """
    if record.options["epochs"] % run.eval_every:
        return f"--eval-every {run.eval_every} would not evaluate after its last epoch"
    last = record.options["epochs"] * steps
    try:
        events = read_metrics(record.folder / "metrics.jsonl")
        during = (None, model_selection_split(events))  # not what only the end has
        events = [event for event in events if event.get("split") in during]
        load(record.folder / "best.safetensors")  # which checks them
        best = (record.folder / "best.safetensors").read_bytes()
    except (OSError, Refused) as error:
        return first_line(error)
    wanted = []
    for step in range(1, last + 1):
        epoch, rest = divmod(step, steps)
        wanted += [("train", step)] if not rest or (run.log_every and step % run.log_every == 0) else []
        wanted += [("eval", step)] if not rest and epoch % run.eval_every == 0 else []
    if [(event["event"], event["step"]) for event in events] != wanted:
        return "its lines were logged at other steps; repeat its --log-every and --eval-every"
    write_atomically(run.folder / "best.safetensors", best)
    write_atomically(run.folder / "metrics.jsonl", "".join(json.dumps(event) + "\n" for event in events).encode())
    return ""


def _remember(record: Record, run: Run) -> list[str]:
    """Record in config.json where the run starts from; returns what to say of it. Raises OSError."""
    before, ours = last_launch(record.config), read_json(run.folder / "config.json") or {}
    facts = {key: before[key] for key in ("device", "world_size", "threads", "versions")}
    started = {"folder": str(record.folder), "epochs": record.options["epochs"], **facts}
    write_atomically(run.folder / "config.json", json.dumps(ours | {"started_from": started}, indent=1).encode())
    notes = [f"starts where {record.folder} ended, after {record.options['epochs']} epochs"]
    now = last_launch(ours)
    other = [f"{name} {old}" for name, old in before["versions"].items() if now["versions"].get(name) != old]
    other += [f"device {before['device']}"] if before["device"] != now["device"] else []
    return [*notes, *([f"its first epochs ran on {', '.join(other)}"] if other else [])]
