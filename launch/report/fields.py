"""The fields that readers of a run folder rely on, and what they must be: a folder may come from anyone, or from a failing disk.

A field that a new reader relies on is one line in the table of its file: CONFIG, FACTS, STOPPED, RESULT or EVENTS.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import Refused


def moment(text: str) -> datetime:
    """A start time as config.json records it, in this machine's time zone. Raises ValueError and what `datetime` raises."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").astimezone()


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e100  # finite, and so are its square and sums of those


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _fraction(value: Any) -> bool:
    return _number(value) and 0 <= value < 1


def _whole(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 2**63


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _time(value: Any) -> bool:
    try:
        moment(value)
    except (TypeError, ValueError, OverflowError, OSError):  # the last two: years that the system's clock cannot represent
        return False
    return True


def _launches(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(launch, dict) and _time(launch.get("started")) for launch in value)


Fields = dict[str, Callable[[Any], bool]]  # dotted name -> whether a value will do
CONFIG: Fields = {
    "config.recipe": _text, "config.data": _text, "config.seed": _whole, "micro_batches": _whole, "data.fingerprint": _text,
    "started": _time, "world_size": _whole, "device": _text, "threads": _whole, "precision": _text, "resumed": _launches,
}  # fmt: skip
# In config.json of some runs only: about the net, where a run trains once; a flag that is recorded where it is used.
FACTS: Fields = {"model": _text, "parameters": _whole, "config.validation": _fraction}
STOPPED: Fields = {"code": _whole, "why": _text}
RESULT: Fields = {
    "test.accuracy": _number, "test.loss": _number, "train.accuracy": _number, "train.loss": _number, "best.accuracy": _number,
    "ema.accuracy": _number, "ema.loss": _number, "validation.accuracy": _number, "validation.loss": _number,
    "best.test.accuracy": _number, "best.test.loss": _number,
    "test.balanced_accuracy": _number, "images_per_second": _positive, "seconds": _number, "parameters": _whole, "summary": _text,
}  # fmt: skip
SEVERAL = ("mean_average_precision", "f1", "threshold")  # measures of images with several labels
RESULT |= {
    f"{split}.{name}": _number for split in ("test", "train", "best", "ema", "validation", "best.test") for name in SEVERAL
}
HEAD: Fields = {"step": _whole, "epoch": _whole, "images": _whole}
EVENTS: dict[str, Fields] = {  # the lines of metrics.jsonl
    "train": HEAD | {"loss": _number, "images_per_second": _positive, "seconds": _number},
    "eval": HEAD | {"split": _text, "loss": _number, "accuracy": _number},
    "eval of several labels": HEAD | {"split": _text, "loss": _number, **dict.fromkeys(SEVERAL, _number)},
}


def wrong(content: dict, fields: Fields, needed: bool = True) -> str:
    """The first of `fields` that is not what it must be, or (if `needed`) is missing from `content`, in words; "" if none."""
    for name, sound in fields.items():
        *outer, last = name.split(".")
        place = content
        for key in outer:
            place = place.get(key, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            return f"{'.'.join(outer)} is not an object"
        if last not in place and needed:
            return f"{name} is missing"
        if last in place and not sound(place[last]):
            return f"{name} is {str(place[last])[:40]!r}"
    return ""


def check(content: dict, fields: Fields, path: Path, needed: bool = True) -> None:
    """Raises Refused (4), naming the file `path` that holds `content`, if something is `wrong` with it."""
    if why := wrong(content, fields, needed):
        raise damaged(path, why)


def damaged(path: Path, why: str) -> Refused:
    return Refused(f"{path} is damaged ({why}); start over with --fresh or another --out", 4)
