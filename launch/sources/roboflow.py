"""Roboflow's `_classes.csv` in each part of the split: a row for each image beside it, a column of 0 and 1 for each label."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import Refused
from . import cells, several
from .folder import Entry
from .labels import tidy
from .listing import ListedImage, Listing, Reading
from .part_names import part_of

NAME = "_classes.csv"


def read(folder: Path, content: Sequence[Entry], images: Sequence[Entry], reading: Reading) -> Listing | None:
    """The images that such tables name; None if there are none. The split is the folder's: train/, valid/, test/.

    Raises Refused: 4 for tables with other labels than the first, and as `several.in_columns`.
    """
    tables = [entry for entry in content if entry.kind == "file" and entry.parts[-1] == NAME]
    if not tables:
        return None
    there = {entry.name: entry for entry in images}
    paths: list[str] = []
    values: list[list[str]] = []
    names: list[str] = []
    for table in tables:
        head, columns = cells.read(Path(table.path))
        if names and head[1:] != names:
            raise Refused(f"{folder}: {tables[0].name} and {table.name} have other columns; write the same ones in both", 4)
        names = head[1:]
        paths += ["/".join((*table.parts[:-1], tidy(name))) for name in columns[0]]
        values = [[*one, *map(str.strip, more)] for one, more in zip(values or [[]] * len(names), columns[1:], strict=True)]
    if wrong := [name for name, of in zip(names, values, strict=True) if not several.is_one_hot(of)]:
        raise Refused(f"{folder}: the column {wrong[0]!r} of {NAME} is not of 0 and 1", 4)
    labels, notes = several.in_columns(str(folder), names, values, reading.rules)
    multi_label = labels is not None
    if labels is None:
        labels = [names[[cell in several.ONES for cell in row].index(True)] for row in zip(*values, strict=True)]
    parts = {table.parts[0]: part_of(table.parts[0])[0] if len(table.parts) > 1 else "" for table in tables}
    if len({*parts.values()}) < 2 or not {*parts.values()} <= {"train", "validation", "test"}:
        parts = dict.fromkeys(parts, "")
    listed = []
    for path, label in sorted(zip(paths, labels, strict=True)):
        entry = there.get(path)
        size, time = (entry.size, entry.time) if entry else (0, 0)
        listed.append(ListedImage(path, label, parts[path.split("/")[0]] if "/" in path else "", size, time))
    used = f"labels are those of {', '.join(table.name for table in tables)}"
    listing = Listing(folder, folder, listed, names=tuple(names), notes=(used, *notes), multi_label=multi_label)
    if rest := len(there.keys() - {*paths}):
        listing.ignored["images in no row"] += rest
    return listing
