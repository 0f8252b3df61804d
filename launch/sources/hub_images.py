"""Images of the Hugging Face hub: downloaded once by `datasets`; after that the hub is not asked again.

What is kept is where the Arrow files of `datasets` lie, and the revision (commit) that they are of.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import cache_folder, deleted, locked, slug, unwritable
from ..errors import Refused
from ..files import write_atomically
from . import hub, image_table
from .image_table import Part
from .listing import SPLITS, Listing

if TYPE_CHECKING:
    from rich.progress import Progress

NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?")
WAYS_OUT = "or name a folder or a table"


def matches(path: Path) -> bool:
    """Whether `path` may be a data set of the hub: owner/name or owner/name:config, and no such file or folder is here."""
    return NAME.fullmatch(str(path)) is not None and not path.exists()


def read(source: Path, wanted: Mapping[str, str], bar: "Progress") -> Listing:
    """The images of the data set `source`; `wanted` as in image_table.choose. `bar` gives way to those of `datasets`.

    Raises Refused: 1 if the hub does not have it or it cannot be downloaded, 2 and 4 as image_table.read, 2 if it has several
    configurations.
    """
    record = _read(source)
    if not record:
        live = bar.live.is_started
        if live:
            bar.stop()
        record = _download(source)
        if live:
            bar.start()
    splits = _splits(source, [*record["splits"]])
    parts = []
    ignored: Counter[str] = Counter()
    for name, files in record["splits"].items():
        paths = [*map(Path, files)]
        if name in splits:
            parts.append(Part(name, splits[name], max(path.stat().st_mtime_ns for path in paths), paths))
        else:
            ignored[f"split {name}"] += 1
    found = image_table.read(source, source, parts, wanted, record["revision"])
    found.ignored.update(ignored)
    return found


def clear(source: Path) -> Path | None:
    """Forget the revision, so that the hub is asked again. Returns the deleted file, or None. Raises Refused (1)."""
    return deleted(_path(source))


def _splits(source: Path, names: list[str]) -> dict[str, str]:
    """name -> split of those that are used: a single one is to be split. Raises Refused (4) if none is one to train on."""
    known = {name: SPLITS[name.casefold()] for name in names if name.casefold() in SPLITS}
    if len(names) == 1 or {*known.values()} == {"train"}:
        return dict.fromkeys(known or names, "")
    if not known:
        raise Refused(f"{source}: its splits are {', '.join(names)}; none is called train, validation or test", 4)
    return known


def _download(source: Path) -> dict:
    found = NAME.fullmatch(str(source))
    assert found, source
    try:
        answer = hub.ask(found["name"])  # before the lock, so that processes do not wait for each other's timeouts
        with locked(_path(source).stem):
            if record := _read(source):
                return record
            splits = {}
            for name, table in hub.download(found["name"], answer, WAYS_OUT, found["config"]).items():
                splits[name] = [each["filename"] for each in table.cache_files]
            revision = Path(next(iter(splits.values()))[0]).parent.name  # as `datasets` calls the folder, also when offline
            record = {"revision": answer.revision or revision, "splits": splits}
            try:
                write_atomically(_path(source), json.dumps(record).encode())
            except OSError as error:
                raise unwritable(_path(source).parent, error) from error
            return record
    except Refused as error:
        if error.code != 1:
            raise
        raise Refused(f"no folder or table {source} here; {error}") from error


def _read(source: Path) -> dict | None:
    """What is known of the data set, if its files are still there."""
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
        record = json.loads(_path(source).read_bytes())
        if all(Path(file).exists() for files in record["splits"].values() for file in files):
            return record
    return None


def _path(source: Path) -> Path:
    return cache_folder() / f"{slug('hub', source)}.json"
