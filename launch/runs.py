"""What a run folder says, read without torch: its configuration, its record, its state.

    config.json     resolved configuration, environment of each launch, data
    metrics.jsonl   the record: a line for each train interval and each evaluation
    result.json     the result; its presence marks a finished run
    stopped.json    why the last launch ended before that; absent after a kill
"""

import glob
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock

from .errors import Refused

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
    """The record in `folder`. Raises Refused (4) if it is no run folder, damaged, or another version's."""
    config = read_json(folder / "config.json")
    if config is None:
        raise Refused(f"{folder} is no run folder: it has no config.json", 4)
    if config.get("format") != FORMAT:
        raise Refused(f"{folder} was written by another version of oneloop (format {config.get('format')})", 4)
    return Record(folder, config, read_json(folder / "result.json"), read_json(folder / "stopped.json"))


def find(places: Iterable[str | Path]) -> list[Path]:
    """The run folders that `places` name: run folders, globs of them, or folders with runs somewhere inside.

    In the order given, sorted within a place, each once. Raises Refused (2), naming the place that has none.
    """
    found: dict[Path, None] = {}
    for place in places:
        named = [Path(place)] if Path(place).exists() else sorted(map(Path, glob.glob(str(place))))
        inside = [folder for path in named for folder in _under(path)]
        if not inside:
            raise Refused(f"no run at {place}: no folder there holds a config.json, as a recipe leaves it under runs/", 2)
        found |= dict.fromkeys(inside)
    return list(found)


def _under(path: Path) -> Iterator[Path]:
    """`path` if it is a run folder, else those below it; what lies inside a run folder belongs to it."""
    if (path / "config.json").is_file():
        yield path
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _under(inner)


def home(folder: Path) -> tuple[Path, dict]:
    """The run folder that `folder` is, or that the stage `folder` lies in, and what its config.json holds. Raises Refused (4)."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if (recorded := read_json(place / "config.json")) is not None:
            return place, recorded
    raise Refused(f"{folder} is no run folder: it has no config.json", 4)


def stages(folder: Path) -> list[Path]:
    """The folders of the trainings inside a run, sorted; none where the run is one training itself."""
    return sorted(path.parent for path in folder.rglob("metrics.jsonl") if path.parent != folder)


def in_use(folder: Path) -> bool:
    """Whether a process works on the run in `folder`. Takes its lock for an instant."""
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
    """The content of a JSON file, None where there is none. Raises Refused (4) for a damaged one."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Refused(f"{path} is damaged ({error}); --fresh or another --out starts anew", 4) from error


def read_metrics(path: Path) -> list[dict]:
    """The events of a `metrics.jsonl`; a torn last line, as a kill leaves it, is left out."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events


def describe(result: dict) -> str:
    """A result.json in one line; a recipe of several stages brings its own as "summary"."""
    if "summary" in result:
        return result["summary"]
    test, best = result["test"], result["best"]
    return (
        f"{result['net']}, {result['epochs']} epochs: test accuracy {test['accuracy']:.4f} "
        f"({round(test['accuracy'] * test['count'])}/{test['count']}), loss {test['loss']:.4f}; "
        f"best {best['accuracy']:.4f} after epoch {best['epoch']}; {result['images_per_second']:,.0f} images/s, "
        f"{result['seconds']:,.0f} s"
    )
