"""A table of pictures, CSV or parquet: a row for each, with columns for its path, its label and, if wanted, its split.

Paths are relative to the table's folder, or absolute. What lies beside the pictures and is in no row is not looked at.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import Refused, first_line
from .listing import SPLITS, Listing, Picture

SUFFIXES = (".csv", ".tsv", ".parquet")
COLUMNS = {  # what a column holds -> what it is called, the likeliest first
    "image": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path", "name"),
    "label": ("label", "labels", "class", "category", "target", "y", "cls", "class_name", "label_name"),
    "split": ("split", "set", "subset", "partition"),
}


def read(table: Path, columns: Mapping[str, str]) -> Listing:
    """The pictures of `table`, an absolute path. `columns` names columns that should not be guessed: image, label, split.

    Raises Refused: 1 if it cannot be read, 2 for a column that is not there, 4 for a row without path, label or a known split,
    and for a path that an earlier row has.
    """
    head, values = _columns(table)
    chosen = {what: _choose(table, what, head, columns.get(what, "")) for what in COLUMNS}
    paths, labels = (values[head.index(chosen[what])] for what in ("image", "label"))
    splits = values[head.index(chosen["split"])] if chosen["split"] else [""] * len(paths)
    if not paths:
        raise Refused(f"{table}: the table has no rows")
    pictures, first = [], dict[str, int]()
    for number, (path, label, split) in enumerate(zip(paths, labels, splits, strict=True), 1):
        for column, value in ((chosen["image"], path), (chosen["label"], label)):
            if not value:
                raise Refused(f"{table}: row {number} has nothing in the column {column!r}; fill it or remove the row", 4)
        if first.setdefault(path, number) != number:
            raise Refused(f"{table}: row {number} names {path} again, after row {first[path]}; a picture has one label", 4)
        if chosen["split"] and split.casefold() not in SPLITS:
            names = "train, validation (val, valid) or test"
            raise Refused(f"{table}: row {number} has the split {split!r} (column {chosen['split']!r}); it takes {names}", 4)
        try:
            status = os.stat(table.parent / path)
            size, time = status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # named with the other bad files when it is opened
            size, time = 0, 0
        pictures.append(Picture(path, label, SPLITS[split.casefold()] if split else "", size, time))
    return Listing(table, table.parent, pictures)


def names_pictures(table: Path) -> bool:
    """Whether it seems to be a table of pictures and their labels."""
    try:
        head, _ = _columns(table)
        return all(guess(what, head) for what in ("image", "label"))
    except Refused:
        return False


def rows(table: Path) -> list[dict[str, str]]:
    """The rows of a table as text. Raises Refused (1)."""
    head, values = _columns(table)
    return [dict(zip(head, row, strict=True)) for row in zip(*values, strict=True)]


def _columns(table: Path) -> tuple[list[str], list[list[str]]]:
    """The names of the columns and their values as text."""
    try:
        if table.suffix.lower() == ".parquet":
            import pyarrow.parquet  # comes with datasets; takes 0.1 s

            read = pyarrow.parquet.read_table(table)
            names = [each.name for each in read.schema if not pyarrow.types.is_nested(each.type)]  # not pictures themselves
            values = [read[name].to_pylist() for name in names]
            return names, [["" if value is None else str(value) for value in column] for column in values]
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:  # as file names are read
            head = file.readline()
            file.seek(0)
            lines = [*csv.reader(file, delimiter=max(",;\t", key=head.count))]
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors, and those of an encoding, are ValueErrors
        raise Refused(f"{table} cannot be read as a table: {getattr(error, 'strerror', None) or first_line(error)}") from error
    head, *body = [line for line in lines if line] or [[]]
    for number, line in enumerate(body, 1):
        if len(line) != len(head):
            raise Refused(f"{table}: row {number} has {len(line)} values for {len(head)} columns; quote values with commas", 4)
    return head, [*map(list, zip(*body, strict=True))] if body else [[] for _ in head]


def _choose(table: Path, what: str, head: list[str], wanted: str) -> str:
    """The column of `what`: `wanted`, or the likeliest; empty if there is no split."""
    if wanted:
        if wanted not in head:
            raise Refused(f"{table}: no column {wanted!r}; its columns are {', '.join(head)}", 2)
        return wanted
    if (found := guess(what, head)) or what == "split":
        return found
    raise Refused(f"{table}: which column is the {what}? Name it with --{what}-column; it has {', '.join(head)}", 2)


def guess(what: str, head: Sequence[str]) -> str:
    """The likeliest column of `what`; empty if none is called like that."""
    names = {name.strip().casefold(): name for name in reversed(head)}
    return next((names[name] for name in COLUMNS[what] if name in names), "")
