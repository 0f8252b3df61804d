"""A run's folder: which one it is, whether it may be used, and what is written there when a launch begins.

`launch.report.runs` reads what `record_launch` writes.
"""

import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from . import source_copy
from .data.disk_feed import DiskSplit
from .data.images import Images
from .environment import LIBRARIES
from .errors import Refused
from .files import write_atomically
from .old_names import first_name, later, options_to_hash
from .report.runs import FORMAT, last_launch, read_json, recorded_json, recorded_white

NOT_A_PATH = ("hub", "synthetic")  # of --data
MARK = "preparing"  # a file: from a folder's first moment until config.json is there, whatever else an early end leaves


class RunFolder(NamedTuple):
    """A run's folder, its number of micro-batches, its --data, its result if it is finished, and its `white` (see resize.py)."""

    folder: Path
    micro_batches: int
    data: str
    result: dict | None
    white: int | None = None  # of a run that is there


def find_folder(
    config: dict, out: Path | None, *, fresh: bool, world: int, texts: dict[str, str], accept_edit: bool
) -> RunFolder:
    """The folder for a run of this `config` on `world` processes. Writes nothing; main process only. Raises Refused (2, 4).

    `out`, `fresh` and `accept_edit` are the flags, `texts` the run's code as `source_copy.sources` returns it.
    """
    folder = _name_folder(config, out, fresh)
    recorded = _read_config(folder)
    if recorded is None:
        return RunFolder(folder, config["micro_batches"] or world, config["data"], None)
    data = _check_config(folder, config, recorded)
    result = read_json(folder / "result.json")
    _check_code(folder, recorded, texts, finished=bool(result), accept_edit=accept_edit)
    moved = data != config["data"]
    return RunFolder(folder, recorded["micro_batches"], data, None if moved else result, recorded_white(recorded))


def _name_folder(config: dict, out: Path | None, fresh: bool) -> Path:
    """Path of the run, which need not be there yet. Raises Refused (2)."""
    hashed = json.dumps(options_to_hash(config), sort_keys=True, default=str)
    short = hashlib.sha256(hashed.encode()).hexdigest()[:8]
    recipe, first = config["recipe"], first_name(config["recipe"])
    places = [Path("runs") / name / f"{config.get('net', name)}-{short}" for name in (recipe, first)]
    folder = out or (places[1] if places[1].exists() and not places[0].exists() else places[0])
    if not folder.name and not (folder := folder.resolve()).name:
        raise Refused("--out / cannot be a run folder; name a folder inside it", 2)
    numbers = _numbers(folder)  # of name, name-2, name-3, …: what --fresh made
    if fresh and numbers:
        return folder.with_name(f"{folder.name}-{numbers[-1] + 1}")
    if out is None and numbers and numbers[-1] > 1:
        return folder.with_name(f"{folder.name}-{numbers[-1]}")
    return folder


def _read_config(folder: Path) -> dict | None:
    """The config.json of a run folder; None if a new run may have the folder. Raises Refused (4) if none may."""
    if folder.exists() and not folder.is_dir():
        raise Refused(f"--out {folder} is a file", 4)
    recorded = read_json(folder / "config.json")
    if recorded is None:
        if folder.exists() and not (folder / MARK).exists() and any(folder.glob("[!.]*")):
            raise Refused(f"{folder} is not empty and not a run folder; choose another with --out", 4)
    elif recorded.get("format") != FORMAT:
        raise Refused(f"{folder} was written by another version of oneloop (format {recorded.get('format')})", 4)
    return recorded


def _check_config(folder: Path, config: dict, recorded: dict) -> str:
    """Raise Refused (4) if the run that is `recorded` has another configuration; returns its --data.

    A number of micro-batches left open (0) is the one that the run began with, whatever was said then. Data may have moved: their
    fingerprint says whether they are the same, and is compared once they are loaded.
    """
    ours = json.loads(json.dumps(config, default=str))
    ours |= {"micro_batches": config["micro_batches"] or recorded["micro_batches"]}
    theirs = recorded["config"] | {"micro_batches": recorded["micro_batches"]}
    if not {ours["data"], theirs["data"]} & {*NOT_A_PATH}:
        ours["data"] = theirs["data"]
    if differences := _differences(theirs, ours):
        longer = "epochs" in config and {line.split()[0] for line in differences} == {"epochs"}
        way = "Use another folder beside it: more epochs start from its last checkpoint" if longer else "Choose another --out"
        raise Refused(
            f"{folder} belongs to another configuration: {'; '.join(differences)}. {way}, repeat its command to resume it, "
            "or start over with --fresh",
            4,
        )
    return theirs["data"]


def _check_code(folder: Path, recorded: dict, texts: dict[str, str], *, finished: bool, accept_edit: bool) -> None:
    """Raise Refused (4) if the run was trained with other code, unless it is to go on with the new one."""
    names = source_copy.edited(folder, recorded.get("code", []), texts)
    if names and (finished or not accept_edit):
        resume = "" if finished else ", or resume with the new code by --accept-edit, which records it"
        raise Refused(
            f"{', '.join(names)} changed since {folder} was trained, so its numbers come from other code. Undo the edit, or "
            f"start over with --fresh{resume}",
            4,
        )


def siblings(folder: Path, config: dict, micro_batches: int, fingerprint: str, apart: str) -> Iterator[tuple[Path, dict]]:
    """The runs beside `folder` on the same images that differ from `config` only in `apart`, and what their config.json holds."""
    wanted = json.loads(json.dumps(config, default=str))
    for path in sorted(folder.parent.glob("*/config.json")):
        try:
            recorded = recorded_json(path)
            differ = {line.split()[0] for line in _differences(recorded["config"], wanted)}
            same = (recorded["micro_batches"], recorded["data"]["fingerprint"]) == (micro_batches, fingerprint)
        except (Refused, OSError, AttributeError, KeyError, TypeError):  # not a run, or one that cannot be read
            continue
        if same and differ == {apart}:
            yield path.parent, recorded


def same_data_beside(
    folder: Path, config: dict, micro_batches: int, fingerprint: str, texts: dict[str, str]
) -> tuple[Path, str] | None:
    """The newest run beside `folder` whose data were moved since, as their sha256 says: its folder and its --data."""
    if config["data"] in NOT_A_PATH:
        return None
    runs = [
        ((place / "config.json").stat().st_mtime_ns, place, recorded["config"]["data"])
        for place, recorded in siblings(folder, config, micro_batches, fingerprint, apart="data")
        if recorded["config"]["data"] not in NOT_A_PATH and not source_copy.edited(place, recorded.get("code", []), texts)
    ]
    return max(runs)[1:] if runs else None


def lock_folder(folder: Path) -> filelock.FileLock:
    """Make the folder and lock it for this process; the system unlocks it, however the process ends. Raises Refused (5)."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        (folder / MARK).touch()  # before all else
    holder, held = folder / "lock.pid", filelock.FileLock(folder / "lock", timeout=1)  # s: `oneloop runs` may look at it
    try:
        held.acquire()
    except filelock.Timeout:
        pid = holder.read_text() if holder.exists() else "unknown"
        raise Refused(f"{folder} is in use by process {pid}; wait for it, or use --out or --fresh", 5) from None
    try:
        write_atomically(holder, str(os.getpid()).encode())  # not through a link that somebody left there
        (folder / "stopped.json").unlink(missing_ok=True)
    except OSError:
        held.release()
        raise
    return held


def check_data(folder: Path, recorded: dict, images: Images, loaded: list[str]) -> None:
    """Raise Refused (4) if the run with the config.json `recorded` began with other images, or other weights than `loaded`."""
    if recorded["data"]["fingerprint"] != images.fingerprint:
        raise Refused(
            f"{folder} was trained on other data: {recorded['data']['source']} sha256 "
            f"{recorded['data']['fingerprint'][:16]}, now {images.source} {images.fingerprint[:16]}. --fresh starts over",
            4,
        )
    had = recorded.get("loaded", loaded)  # absent: from before these were recorded
    if had != loaded:
        was, now = (", ".join(sha256[:16] for sha256 in digests) or "none" for digests in (had, loaded))
        raise Refused(
            f"{folder} began with other weights than its source holds now: sha256 {was}, now {now}. --fresh starts over", 4
        )


def record_launch(
    folder: Path,
    config: dict,
    micro_batches: int,
    texts: dict[str, str],
    images: Images,
    facts: dict,
    launch: dict,
    loaded: list[str],
) -> list[str]:
    """Record a launch in config.json, which is made for the first; returns what to tell the user. Raises Refused (4), OSError.

    `facts` are further entries of config.json, `launch` is the launch's `environment`, `loaded` the sha256 of the weights that it
    begins with.
    """
    notes: list[str] = []
    recorded = read_json(folder / "config.json")
    if recorded is None:
        recorded = {
            "format": FORMAT,
            "config": config,
            "recipe_file": str(Path(sys.argv[0]).resolve()),
            "micro_batches": micro_batches,
            "code": [],
            **facts,
            **launch,
            "loaded": loaded,
            "data": {
                "source": images.source,
                "fingerprint": images.fingerprint,
                "train": len(images.train),
                **({} if images.validation is None else {"validation": len(images.validation)}),
                "test": len(images.test),
                "classes": images.classes,
                "mean": images.mean,
                "std": images.std,
                **({"white": images.train.rule.white} if isinstance(images.train, DiskSplit) else {}),
            },
            "resumed": [],
        }
    else:
        check_data(folder, recorded, images, loaded)
        before, now = last_launch(recorded)["versions"], launch["versions"]
        for name in [name for name in LIBRARIES if before.get(name, now[name]) != now[name]]:  # some were not always recorded
            notes.append(f"{name} is {now[name]}, and was {before[name]}: the bits may differ from here on")
        recorded["resumed"].append(launch)
    copies = recorded.setdefault("code", [])
    names = source_copy.edited(folder, copies, texts)
    if texts and (names or not copies):
        copies.append(source_copy.digests(texts))
        source_copy.keep(folder, len(copies), texts)
        if names:
            notes.append(f"{', '.join(names)} changed; the new code is kept in {folder / source_copy.FOLDER / str(len(copies))}")
    write_atomically(folder / "config.json", json.dumps(recorded, indent=1, default=str).encode())
    (folder / MARK).unlink(missing_ok=True)
    return notes


def _numbers(folder: Path) -> list[int]:
    """Numbers of the folders name (1), name-2, name-3, … that are there, sorted."""
    numbers = [1] if folder.exists() else []
    for path in folder.parent.glob(f"{glob.escape(folder.name)}-*"):
        number = path.name.removeprefix(f"{folder.name}-")
        numbers += [int(number)] if number.isdecimal() and int(number) > 1 else []
    return sorted(numbers)


def _differences(recorded: dict, wanted: dict) -> list[str]:
    """Differences between two configurations, a line for each key, which begins it."""
    missing: Any = object()
    had = later(recorded) | recorded
    return [
        f"{key} was {recorded.get(key, 'absent')!r}, now {wanted.get(key, 'absent')!r}"
        for key in sorted(recorded.keys() | wanted.keys())
        if had.get(key, missing) != wanted.get(key, missing)
    ]
