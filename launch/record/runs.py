"""What a run folder says, read without torch: its configuration, its record, its state.

    config.json     resolved configuration, environment of each launch, data
    metrics.jsonl   the record: a line for each train interval and each evaluation
    result.json     the result; its presence marks a finished run
    stopped.json    why the last launch ended before that; absent after a kill
"""

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import filelock

from ..errors import Refused

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1  # of a run folder


@dataclass(frozen=True)
class Record:
    """One run folder as it was when it was read. `config` is config.json's content, `result` that of result.json."""

    folder: Path
    config: dict
    result: dict | None
    stopped: dict | None

    @property
    def options(self) -> dict:
        """The resolved configuration: the recipe, its options and the Run flags that change numbers."""
        return self.config["config"]

    @property
    def state(self) -> Literal["finished", "running", "failed", "interrupted"]:
        """failed: ended by an error; interrupted: by a signal or a kill, so the same command goes on."""
        if self.result is not None:
            return "finished"
        if in_use(self.folder):
            return "running"
        return "interrupted" if self.stopped is None or self.stopped["code"] > 128 else "failed"

    def metrics(self) -> list[dict]:
        return read_metrics(self.folder / "metrics.jsonl")


def read(folder: Path) -> Record:
    """The record in `folder`. Raises Refused: it cannot be read (1); it is no run folder, damaged, or another version's (4)."""
    path = folder / "config.json"
    config = read_json(path)
    if config is None:
        raise Refused(f"{folder} is no run folder: it has no config.json", 4)
    if config.get("format") != FORMAT:
        raise Refused(f"{folder} was written by another version of oneloop (format {config.get('format')})", 4)
    _check(config, CONFIG, path)
    _check(config, FACTS, path, needed=False)
    stopped = read_json(folder / "stopped.json")
    _check(stopped or {}, STOPPED, folder / "stopped.json", needed=stopped is not None)
    return Record(folder, config, read_result(folder), stopped)


def read_result(folder: Path) -> dict | None:
    """The result of the run or stage in `folder`, None if it is not finished. Raises Refused as `read` does."""
    result = read_json(folder / "result.json")
    _check(result or {}, RESULT, folder / "result.json", needed=False)
    return result


def find(places: Iterable[str | Path]) -> list[Path]:
    """The run folders that `places` name: run folders, globs of them, or folders with runs somewhere inside.

    In the order given, sorted within a place, each once, whatever links lead to it. A folder that cannot be looked into is one
    of them: it may be a run, and `read` says what is wrong. Raises Refused (2), naming the place that has none.
    """
    found: dict[str, Path] = {}  # by its real path
    for place in places:
        named = [Path(place)]
        if not os.path.exists(place):
            named = [path for path in sorted(map(Path, glob.glob(str(place)))) if not _leads_up(path)]
        seen: set[str] = set()
        inside = [folder for path in sorted(named, key=Path.is_symlink) for folder in _under(path, seen)]
        if not inside:
            raise Refused(f"no run at {place}: no folder there holds a config.json, as a recipe leaves it under runs/", 2)
        for folder in inside:
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def _under(path: Path, seen: set[str]) -> Iterator[Path]:
    """The run folders at and below `path`, whose real paths are added to `seen`: links last, and only to what is not in it."""
    real = os.path.realpath(path)
    if real in seen:
        return
    seen.add(real)
    try:
        if (path / "config.json").is_file():
            yield path
        below = sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))
    except OSError:
        if path.is_dir():
            yield path
        return
    for inner in sorted(below, key=Path.is_symlink):
        if not _leads_up(inner):
            yield from _under(inner, seen)


def _leads_up(path: Path) -> bool:
    """Whether `path` is a link to a folder that it lies in."""
    return path.is_symlink() and Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def home(folder: Path) -> tuple[Path, dict]:
    """The run folder that `folder` is, or that the stage `folder` lies in, and what its config.json holds. Raises Refused (4)."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if (recorded := read_json(place / "config.json")) is not None:
            return place, recorded
    raise Refused(f"{folder} is no run folder: it has no config.json", 4)


def last_launch(config: dict) -> dict:
    """What config.json says of the last launch: versions, device, processes, when it started."""
    return (config["resumed"] or [config])[-1]


def stages(folder: Path) -> list[Path]:
    """The folders of the trainings inside a run, sorted; none where the run is one training itself. A run inside is another."""

    def of_another(place: Path) -> bool:
        return place != folder and ((place / "config.json").exists() or of_another(place.parent))

    inside = (path.parent for path in folder.rglob("metrics.jsonl"))
    return sorted(place for place in inside if place != folder and not of_another(place))


def in_use(folder: Path) -> bool:
    """Whether a process works on the run in `folder`: holds its lock. One that may not be looked at is not known to be held."""
    if fcntl is None:
        return _in_use_on_windows(folder)
    try:
        # A shared lock needs no more than reading, as in another user's folder, and is given back with the descriptor.
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _in_use_on_windows(folder: Path) -> bool:
    if not (folder / "lock").exists():
        return False
    lock = filelock.FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


def read_json(path: Path) -> dict | None:
    """The object in a JSON file, None where there is no file. Raises Refused: it cannot be read (1), it is damaged (4)."""
    content = _content(path)
    if content is None:
        return None
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is damaged ({error}); --fresh or another --out starts anew", 4) from error
    return found


def read_metrics(path: Path) -> list[dict]:
    """The events of a `metrics.jsonl`; a torn last line, as a kill leaves it, is left out.

    Raises Refused: it cannot be read (1), another line is damaged (4), for what follows it would be lost.
    """
    *lines, torn = (_content(path) or b"").split(b"\n")
    events = []
    for number, line in enumerate([*lines, torn], 1):
        try:
            event = json.loads(line)
            wrong = _wrong(event, EVENTS[event["event"]])
        except (ValueError, RecursionError, TypeError, KeyError):
            wrong = "it is no event"
        if not wrong:
            events.append(event)
        elif number <= len(lines):
            way = "mend it from a copy, or start anew with --fresh or another --out"
            raise Refused(f"{path} is damaged in line {number} of {len(lines)} ({wrong}); {way}", 4)
    return events


def _content(path: Path) -> bytes | None:
    """What is in a file, None where there is none. Raises Refused (1)."""
    try:
        if path.exists() and not path.is_file():
            raise Refused(f"{path} cannot be read: it is no file")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}") from error


# ------------------------------------------------------------------------------------------------------- what is believed


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e100  # finite, and so are squares and sums of it


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _whole(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 2**63


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _time(value: Any) -> bool:
    try:
        moment(value)
    except (TypeError, ValueError, OverflowError, OSError):  # the latter two for times that no clock has
        return False
    return True


def moment(text: str) -> datetime:
    """The time that a launch has recorded as the one of its start, in the zone of this machine."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").astimezone()


def _launches(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(launch, dict) and _time(launch.get("started")) for launch in value)


# What readers of a run folder depend on, by dotted name: it may come from anyone, or from a disk that lost something.
Fields = dict[str, Callable[[Any], bool]]
CONFIG: Fields = {
    "config.recipe": _text, "config.data": _text, "config.seed": _whole, "shards": _whole, "data.fingerprint": _text,
    "started": _time, "world_size": _whole, "device": _text, "threads": _whole, "precision": _text, "resumed": _launches,
}  # fmt: skip
FACTS: Fields = {"model": _text, "parameters": _whole}  # of the net, where the run is one training
STOPPED: Fields = {"code": _whole, "why": _text}
RESULT: Fields = {
    "test.accuracy": _number, "test.loss": _number, "train.accuracy": _number, "train.loss": _number, "best.accuracy": _number,
    "images_per_second": _positive, "seconds": _number, "parameters": _whole, "summary": _text,
}  # fmt: skip
HEAD: Fields = {"step": _whole, "epoch": _whole, "images": _whole}
EVENTS: dict[str, Fields] = {
    "train": HEAD | {"loss": _number, "images_per_second": _positive, "seconds": _number},
    "eval": HEAD | {"split": _text, "loss": _number, "accuracy": _number},
}


def _wrong(content: dict, fields: Fields, needed: bool = True) -> str:
    """What of `fields` is not in `content` (if `needed`) or is not what it should be; "" if nothing."""
    for name, sound in fields.items():
        *outer, last = name.split(".")
        place = content
        for key in outer:
            place = place.get(key, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            return f"{'.'.join(outer)} is no object"
        if last not in place and needed:
            return f"it has no {name}"
        if last in place and not sound(place[last]):
            return f"{name} is {str(place[last])[:40]!r}"
    return ""


def _check(content: dict, fields: Fields, path: Path, needed: bool = True) -> None:
    if wrong := _wrong(content, fields, needed):
        raise Refused(f"{path} is damaged ({wrong}); --fresh or another --out starts anew", 4)


def describe(result: dict) -> str:
    """A result.json in one line; a recipe of several stages brings its own as "summary". Raises Refused (4)."""
    if "summary" in result:
        return str(result["summary"])
    try:
        test, best = result["test"], result["best"]
        return (
            f"{result['net']}, {result['epochs']} epochs: test accuracy {test['accuracy']:.4f} "
            f"({round(test['accuracy'] * test['count'])}/{test['count']}), loss {test['loss']:.4f}; "
            f"best {best['accuracy']:.4f} after epoch {best['epoch']}; {result['images_per_second']:,.0f} images/s, "
            f"{result['seconds']:,.0f} s"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("result.json is damaged (no result is in it); --fresh or another --out starts anew", 4) from error
