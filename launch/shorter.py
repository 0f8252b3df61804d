"""A shorter run that a longer one may start from: the same configuration, finished, and with fewer epochs.

All that a step depends on is a function of (seed, step), so that 10 epochs of a run of 20 are the run of 10, as long as nothing
else depends on the number of epochs: `launch.loop` compares the learning rates of each step.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from . import code
from .checkpoint import write_atomically
from .errors import Refused, first_line
from .record.runs import Record, last_launch, read, read_json, read_metrics
from .weights import load

if TYPE_CHECKING:
    from .run import Run


def beside(folder: Path, config: dict, shards: int, fingerprint: str) -> Iterator[Record]:
    """The finished runs beside `folder` that differ from `config` in fewer epochs alone, the longest, then the newest first."""
    wanted = json.loads(json.dumps(config, default=str))
    epochs = wanted.pop("epochs", None)
    found = []
    for path in sorted(folder.parent.glob("*/config.json")) if isinstance(epochs, int) else []:
        try:
            record = read(path.parent)
            had = dict(record.options)
            fewer = had.pop("epochs", epochs) < epochs
            same = had == wanted and (record.config["shards"], record.config["data"]["fingerprint"]) == (shards, fingerprint)
        except (Refused, OSError, AttributeError, KeyError, TypeError, ValueError):  # no run, or one that cannot be read
            continue
        if fewer and same and record.result and not path.parent.is_symlink():
            found.append(record)
    return iter(sorted(found, key=lambda record: (-record.options["epochs"], -(record.folder / "result.json").stat().st_mtime)))


def other_code(record: Record, run: "Run") -> str:
    """Why the shorter run's code is not this one's; "" if it is, from its first step to its last."""
    if run.code and len(record.config.get("code", [])) > 1:
        return "its code was edited on the way"
    names = code.edited(record.folder, record.config.get("code", []), run.code)
    return f"{', '.join(names)} changed since" if names else ""


def take_record(record: Record, run: "Run", steps: int) -> str:
    """Give the run in `run.folder` the lines and best weights that the shorter `record` has; `steps` are those of an epoch.

    Returns why not, if the lines are not those that the longer run would have written by itself, or cannot be read. Main process
    only. Raises OSError if the run's folder cannot be written.
    """
    if record.options["epochs"] % run.eval_every:
        return f"its last evaluation is none of --eval-every {run.eval_every}"
    last = record.options["epochs"] * steps
    try:
        events = [event for event in read_metrics(record.folder / "metrics.jsonl") if event.get("split") != "train"]
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


def remember(record: Record, run: "Run") -> list[str]:
    """Record in config.json where the run starts from; returns what to say of it. Main process only. Raises OSError."""
    before, ours = last_launch(record.config), read_json(run.folder / "config.json")
    facts = {key: before[key] for key in ("device", "world_size", "threads", "versions")}
    started = {"folder": str(record.folder), "epochs": record.options["epochs"], **facts}
    write_atomically(run.folder / "config.json", json.dumps(ours | {"started_from": started}, indent=1).encode())
    notes = [f"starts where {record.folder} ended, after {record.options['epochs']} epochs"]
    now = last_launch(ours)
    other = [f"{name} {old}" for name, old in before["versions"].items() if now["versions"].get(name) != old]
    other += [f"device {before['device']}"] if before["device"] != now["device"] else []
    return [*notes, *([f"its bits are those of {', '.join(other)}"] if other else [])]
