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
from .errors import Refused
from .runs import Record, read, read_metrics

if TYPE_CHECKING:
    from .cli import Run


def beside(folder: Path, config: dict, shards: int, fingerprint: str) -> Iterator[Record]:
    """The finished runs beside `folder` that differ from `config` in fewer epochs alone, the longest first."""
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
    return iter(sorted(found, key=lambda record: -record.options["epochs"]))


def take_record(record: Record, run: "Run", steps: int) -> str:
    """Give the run in `run.folder` the lines and best weights that the shorter `record` has; `steps` are those of an epoch.

    Returns why not, if the lines are not those that the longer run would have written by itself, or its code is other code.
    Main process only. Raises OSError.
    """
    if names := code.edited(record.folder, record.config.get("code", []), run.code):
        return f"{', '.join(names)} changed since"
    if record.options["epochs"] % run.eval_every:
        return f"its last evaluation is none of --eval-every {run.eval_every}"
    last = record.options["epochs"] * steps
    events = [event for event in read_metrics(record.folder / "metrics.jsonl") if event.get("split") != "train"]
    wanted = []
    for step in range(1, last + 1):
        epoch, rest = divmod(step, steps)
        wanted += [("train", step)] if not rest or (run.log_every and step % run.log_every == 0) else []
        wanted += [("eval", step)] if not rest and epoch % run.eval_every == 0 else []
    if [(event["event"], event["step"]) for event in events] != wanted:
        return "its lines were logged at other steps; repeat its --log-every and --eval-every"
    write_atomically(run.folder / "metrics.jsonl", "".join(json.dumps(event) + "\n" for event in events).encode())
    write_atomically(run.folder / "best.safetensors", (record.folder / "best.safetensors").read_bytes())
    return ""
