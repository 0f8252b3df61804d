"""Contents of a run folder, read without torch: its configuration, its record, its state.

    config.json     resolved configuration, environment of each launch, data
    metrics.jsonl   the record: a line for each train interval and each evaluation
    result.json     the result; its presence marks a finished run
    stopped.json    why the last launch ended before that; absent after a kill

First the folder as a whole (read, find, stages), then its lock, then its files. What a file must hold is in fields.py.
"""

import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import filelock

from ..errors import Refused
from ..old_names import record_of_today
from .fields import CONFIG, EVENTS, FACTS, RESULT, STOPPED, check, damaged, moment, wrong

if sys.platform != "win32":
    import fcntl

FORMAT = 1  # of a run folder
# Entries of metrics.jsonl that the clock measures: no two runs have the same.
CLOCK = ("seconds", "images_per_second", "data_wait")
WORDS = {"accuracy": "accuracy", "mean_average_precision": "mAP"}  # what chooses the best weights, for people


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
        """failed: ended by an error; interrupted: by a signal or a kill, so the same command resumes it."""
        if self.result is not None:
            return "finished"
        if in_use(self.folder):
            return "running"
        return "interrupted" if self.stopped is None or self.stopped["code"] > 128 else "failed"

    @property
    def why(self) -> str:
        """Reason why the last launch ended before the run was finished; "" after a kill."""
        return self.stopped["why"] if self.stopped else ""

    @property
    def started(self) -> datetime:
        """Start of the last launch, in this machine's time zone."""
        return moment(last_launch(self.config)["started"])

    def metrics(self) -> list[dict]:
        return read_metrics(self.folder / "metrics.jsonl")


def read(folder: Path) -> Record:
    """The record in `folder`. Raises Refused: it cannot be read (1); not a run folder, damaged, of another format (4)."""
    path = folder / "config.json"
    config = read_json(path)
    if config is None:
        raise _not_a_run(folder)
    if config.get("format") != FORMAT:
        raise Refused(f"{folder} was written by another version of oneloop (format {config.get('format')})", 4)
    check(config, CONFIG, path)
    check(config, FACTS, path, needed=False)
    stopped = read_json(folder / "stopped.json")
    check(stopped or {}, STOPPED, folder / "stopped.json", needed=stopped is not None)
    return Record(folder, config, read_result(folder), stopped)


def read_result(folder: Path) -> dict | None:
    """The result of the run or stage in `folder`, None if it is not finished. Raises Refused as `read` does."""
    result = read_json(folder / "result.json")
    check(result or {}, RESULT, folder / "result.json", needed=False)
    return result


def find(places: Iterable[str | Path]) -> list[Path]:
    """The run folders that `places` name: run folders, globs of them, or folders with runs somewhere inside.

    In the order given, sorted within a place, each once, however many links lead to it. A folder that may not be listed is
    included: it may be a run, and `read` says what is wrong. Raises Refused (2), naming the place that has none.
    """
    found: dict[str, Path] = {}  # by its real path
    for place in places:
        named = [Path(place)]
        if not os.path.exists(place):
            named = [path for path in sorted(map(Path, glob.glob(str(place)))) if not _leads_up(path)]
        seen: set[str] = set()
        inside = [folder for path in sorted(named, key=Path.is_symlink) for folder in _under(path, seen)]
        if not inside:
            raise Refused(f"no run at {place}: no folder there contains a config.json", 2)
        for folder in inside:
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def _under(path: Path, seen: set[str]) -> Iterator[Path]:
    """The run folders at and below `path`, symbolic links last. Skips the real paths in `seen`, and adds those it visits."""
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
    """Return whether `path` is a link to a folder that contains it."""
    return path.is_symlink() and Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def home(folder: Path) -> tuple[Path, dict]:
    """The run folder that is `folder` or contains the stage `folder`, and its config.json's content. Raises Refused (4)."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if (recorded := read_json(place / "config.json")) is not None:
            return place, recorded
    raise _not_a_run(folder)


def _not_a_run(folder: Path) -> Refused:
    return Refused(f"{folder} is not a run folder: it has no config.json", 4)


def recorded_white(recorded: dict) -> int:
    """The pixel value of 16-bit grey that is white for the run with the config.json `recorded`; 0: 65,535, or no such image."""
    white: int = recorded.get("data", {}).get("white", recorded["config"].get("white", 0))
    return white


def last_launch(config: dict) -> dict:
    """The last launch in config.json: versions, device, processes, when it started."""
    return (config["resumed"] or [config])[-1]


def command(config: dict) -> str:
    """The command of the run's first launch, with what started it, as far as it was recorded."""
    return f"{config.get('launcher') or 'python'} {config['command']}"


def stages(folder: Path) -> list[Path]:
    """The folders of a run's stages, sorted; empty if the run trains once. A run inside this one is not a stage of it."""

    def of_another(place: Path) -> bool:
        return place != folder and ((place / "config.json").exists() or of_another(place.parent))

    return sorted(place for place in trainings(folder) if place != folder and not of_another(place))


def trainings(folder: Path) -> list[Path]:
    """The folders at and below `folder` that have a metrics.jsonl, also while checkpoints come and go there."""
    return [Path(place) for place, _, files in os.walk(folder) if "metrics.jsonl" in files]


# ------------------------------------------------------------------------------------------------------------- the lock


def in_use(folder: Path) -> bool:
    """Return whether a process works on the run in `folder`, that is, holds its lock. False if the lock may not be read."""
    if sys.platform == "win32":
        return _in_use_on_windows(folder)
    try:
        # A shared lock needs only read access, as in another user's folder, and is released with the descriptor.
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


# ------------------------------------------------------------------------------------------------------------ the files


def read_json(path: Path) -> dict | None:
    """The object in a JSON file, None if there is no such file. Raises Refused: it cannot be read (1), it is damaged (4)."""
    content = _content(path)
    if content is None:
        return None
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    return record_of_today(found) if path.name == "config.json" else found


def recorded_json(path: Path) -> dict:
    """Read a JSON file that a run has written: `read_json`, but raises Refused (4) also if there is none."""
    found = read_json(path)
    if found is None:
        raise damaged(path, "no such file")
    return found


def read_metrics(path: Path) -> list[dict]:
    """The events of a `metrics.jsonl`, empty if there is no such file. A torn last line, as a kill leaves it, is skipped.

    Raises Refused: it cannot be read (1); another line is damaged (4), since skipping it would lose what follows.
    """
    *lines, torn = (_content(path) or b"").split(b"\n")
    events = []
    for number, line in enumerate([*lines, torn], 1):
        try:
            event = json.loads(line)
            several = event["event"] == "eval" and "mean_average_precision" in event
            why = wrong(event, EVENTS["eval of several labels" if several else event["event"]])
        except (ValueError, RecursionError, TypeError, KeyError):
            why = "not an event"
        if not why:
            events.append(event)
        elif number <= len(lines):
            way = "restore it from a copy, or start over with --fresh or another --out"
            raise Refused(f"{path} is damaged in line {number} of {len(lines)} ({why}); {way}", 4)
    return events


def model_selection_split(events: Iterable[dict]) -> Literal["validation", "test"]:
    """The split whose accuracy chose the best weights in the training with these events."""
    return "validation" if any(event.get("split") == "validation" for event in events) else "test"


def used(known: Mapping[str, Any]) -> Literal["best", "ema", "last"]:
    """The weights of a training that everything uses unless told otherwise, by its result, which is `known`.

    The best ones where validation images chose them, else the last average, of a training that keeps one, else the last ones.
    """
    if "test" in known.get("best", {}):  # the best weights are measured on the test images only where others chose them
        return "best"
    return "ema" if "ema" in known and "validation" not in known else "last"


def measure_of(evaluation: Mapping[str, Any]) -> str:
    """The measure that an evaluation has, one of WORDS; "accuracy" in a damaged or empty one."""
    return next((name for name in WORDS if name in evaluation), "accuracy")


def measured(evaluation: Mapping[str, Any]) -> str:
    """An evaluation in a few words, without its loss."""
    name = measure_of(evaluation)
    words = f"{WORDS[name]} {evaluation[name]:.4f}"
    if "balanced_accuracy" in evaluation:
        words += f" balanced {evaluation['balanced_accuracy']:.4f}"
    return words + (f" F1 {evaluation['f1']:.4f}" if "f1" in evaluation else "")


def tested(result: Mapping[str, Any]) -> dict:
    """Test result of the weights that are `used`, from a training's result. Raises KeyError in a damaged one."""
    weights = used(result)
    return result["best"]["test"] if weights == "best" else result["ema" if weights == "ema" else "test"]


def without_clock(events: Iterable[dict]) -> list[dict]:
    """The events without the clock's entries: the rest is equal for two runs with the same bits."""
    return [{name: value for name, value in event.items() if name not in CLOCK} for event in events]


def _content(path: Path) -> bytes | None:
    """The bytes of a file, None if there is none. Raises Refused (1)."""
    try:
        if path.exists() and not path.is_file():
            raise Refused(f"{path} cannot be read: it is not a file")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}") from error


def describe(result: dict) -> str:
    """A result.json in one line; a recipe of several stages brings its own as "summary". Raises Refused (4).

    Its test accuracy is that of the weights that are `used`.
    """
    if "summary" in result:
        return str(result["summary"])
    try:
        test, best = tested(result), result["best"]
        measure = measure_of(test)
        so_far = f"; best {best[measure]:.4f} after epoch {best['epoch']}"
        of = {
            "best": f", with the best weights, which the validation images chose after epoch {best['epoch']}",
            "ema": f", with the average of the weights{so_far}",
            "last": so_far if "validation" not in result else ", with the last weights, as the best ones are lost",
        }[used(result)]
        value = f"test {WORDS[measure]} {test[measure]:.4f}"
        if measure == "accuracy":
            value += f" ({round(test['accuracy'] * test['count'])}/{test['count']})"
        value += f", balanced {test['balanced_accuracy']:.4f}" if "balanced_accuracy" in test else ""
        value += f", F1 {test['f1']:.4f} at threshold {test['threshold']:.3g}" if "f1" in test else ""
        return (
            f"{result['net']}, {result['epochs']} epochs: {value}, loss {test['loss']:.4f}{of}; "
            f"{result['images_per_second']:,.0f} images/s, "
            f"{result['seconds']:,.0f} s"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("result.json is damaged (it holds no result); start over with --fresh or another --out", 4) from error
