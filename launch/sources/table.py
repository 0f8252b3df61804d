"""A table of images, CSV or parquet: a row for each, with columns for its path, its label and, if wanted, its split.

Paths are relative to the table's folder, or absolute. What lies beside the images and is in no row is not looked at.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import Refused, first_line
from .labels import settled, shown, tidy
from .listing import SPLITS, ListedImage, Listing, open_file

SUFFIXES = (".csv", ".tsv", ".parquet")
COLUMNS = {  # what a column holds -> what it is called, the likeliest first
    "image": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path", "name"),
    "label": ("label", "labels", "class", "category", "target", "y", "cls", "class_name", "label_name"),
    "split": ("split", "set", "subset", "partition"),
}
ZEROS, ONES = ("0", "0.0", "", "False"), ("1", "1.0", "True")  # of a column for each class
SHOWN, LONG = 10, 200  # columns in a message, characters of a path


def read(table: Path, columns: Mapping[str, str]) -> Listing:
    """The images of `table`, an absolute path. `columns` names columns that should not be guessed: image, label, split.

    Raises Refused: 1 if it cannot be read, 2 for a column that is not there or that nobody can guess, 4 for a row without path,
    label or a known split, for a path that an earlier row has; where no row names a file that is there, see `_nowhere`.
    """
    head, values = _columns(table)
    chosen = {what: _choose(table, what, head, values, columns.get(what, "")) for what in COLUMNS}
    paths, labels = (values[head.index(chosen[what])] for what in ("image", "label"))
    splits = [*map(tidy, values[head.index(chosen["split"])])] if chosen["split"] else [""] * len(paths)
    if not paths:
        raise Refused(f"{table}: the table has no rows")
    for number, row in enumerate(zip(paths, labels, strict=True), 1):
        for column, value in zip((chosen["image"], chosen["label"]), row, strict=True):
            if not tidy(value):
                raise Refused(f"{table}: row {number} has nothing in the column {column!r}; fill it or remove the row", 4)
    classes, notes = settled(table, labels, lambda number: f"row {number + 1}")
    images, first, there = [], dict[str, int](), False
    for number, (path, label, split) in enumerate(zip(paths, labels, splits, strict=True), 1):
        path, size, time = _found(table.parent, path)
        if first.setdefault(path, number) != number:
            raise Refused(f"{table}: row {number} names {path} again, after row {first[path]}; an image has one label", 4)
        if chosen["split"] and split.casefold() not in SPLITS:
            names = "train, validation (val, valid) or test"
            raise Refused(f"{table}: row {number} has the split {split!r} (column {chosen['split']!r}); it takes {names}", 4)
        there = there or time != 0
        images.append(ListedImage(path, classes[label], SPLITS[split.casefold()] if split else "", size, time))
    if not there:
        raise _nowhere(table, paths)
    if unused := [name for name in head if name not in chosen.values()]:
        notes.append(f"columns that are not used: {', '.join(map(shown, unused[:SHOWN]))}" + " …" * (len(unused) > SHOWN))
    return Listing(table, table.parent, images, notes=tuple(notes))


def names_images(table: Path) -> bool:
    """Whether it seems to be a table of images and their labels."""
    try:
        head, _ = _columns(table)
        return all(guess(what, head) for what in ("image", "label"))
    except Refused:
        return False


def rows(table: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The rows of a table as text, of these columns. Raises Refused: 1 if it cannot be read, 4 without them or with two."""
    head, values = _columns(table)
    for name in columns:
        if name not in head:
            raise Refused(f"{table}: it needs the columns {' and '.join(columns)}; it has {', '.join(head)}", 4)
        _once(table, name, head)
    return zip(*(values[head.index(name)] for name in columns), strict=True)


def _columns(table: Path) -> tuple[list[str], list[list[str]]]:
    """The names of the columns and their values as text."""
    try:
        with open_file(str(table)) as content:
            start = content.read(4096)
        if table.suffix.lower() == ".parquet":
            import pyarrow.parquet  # comes with datasets; takes 0.1 s

            read = pyarrow.parquet.ParquetFile(table).read()  # of columns with the same name, too
            fields = [*zip(read.schema, read.columns, strict=True)]
            values = [[_text(each) for each in column.to_pylist()] for _, column in fields]
            return [tidy(field.name) for field, _ in fields], values
        encoding = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}.get(start[:2], "utf-8-sig")  # as Excel writes "Unicode text"
        errors = "strict" if encoding == "utf-16" else "surrogateescape"  # as file names are read
        with open(table, encoding=encoding, errors=errors, newline="") as file:
            head = file.readline()
            if encoding != "utf-16" and b"\0" in start:
                raise ValueError("it is no text in UTF-8; save it as CSV in UTF-8")
            file.seek(0)
            delimiter = max(",;\t", key=head.count)
            blanks = 0 < head.count(delimiter) == head.count(f"{delimiter} ")  # path, label
            lines = [*csv.reader(file, delimiter=delimiter, skipinitialspace=blanks)]
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors, and those of an encoding, are ValueErrors
        raise Refused(f"{table} cannot be read as a table: {getattr(error, 'strerror', None) or first_line(error)}") from error
    head, *body = [line for line in lines if line] or [[]]
    if not head:
        raise Refused(f"{table}: the table has no rows")
    for number, line in enumerate(body, 1):
        if len(line) != len(head):
            raise Refused(f"{table}: row {number} has {len(line)} values for {len(head)} columns; quote values with commas", 4)
    return [*map(tidy, head)], [*map(list, zip(*body, strict=True))] if body else [[] for _ in head]


def _text(value: object) -> str:
    """A value of a parquet file; of an image without bytes, as `datasets` writes it, its path."""
    if isinstance(value, dict) and isinstance(value.get("path"), str) and not value.get("bytes"):
        return value["path"]
    return "" if value is None else str(value)


def _choose(table: Path, what: str, head: list[str], values: list[list[str]], wanted: str) -> str:
    """The column of `what`: `wanted`, or the likeliest; empty if there is no split."""
    if wanted := tidy(wanted):
        if wanted not in head:
            raise Refused(f"{table}: no column {wanted!r}; its columns are {', '.join(head)}", 2)
        return _once(table, wanted, head)
    found = guess(what, head)
    if (found or what == "split") and sum(name.casefold() == found.casefold() for name in head) < 2:
        return found
    if what == "label" and not found and (said := _several(head, values)):
        raise Refused(f"{table}: {said}", 4)
    if found:
        _once(table, found, head)
    raise Refused(f"{table}: which column is the {what}? {column_flag(what)}; it has {', '.join(head)}", 2)


def _once(table: Path, name: str, head: list[str]) -> str:
    if (count := head.count(name)) > 1:
        raise Refused(f"{table}: {count} columns are called {name!r}; rename all but one", 4)
    return name


def chosen(columns: Sequence[str]) -> dict[str, str]:
    """What --columns says, as in label=species: {"label": "species"}. Raises Refused (2)."""
    found = {}
    for column in columns:
        what, _, name = column.partition("=")
        if what not in COLUMNS or not name:
            raise Refused(f"--columns {column}: it takes image=NAME, label=NAME and split=NAME", 2)
        found[what] = name
    return found


def column_flag(what: str) -> str:
    """How to name the column that is `what`."""
    return f"Name it with --columns {what}=NAME"


def _several(head: list[str], values: list[list[str]]) -> str:
    """What to say of a table with a column for each class, or with lists; empty if it is neither."""
    image = guess("image", head)
    ones = [number for number, column in enumerate(values) if head[number] != image and {*column} <= {*ZEROS, *ONES}]
    if len(ones) < 2 or not values[0]:
        return ""
    what = f"it has a column of 0 and 1 for each class ({', '.join(shown(head[number]) for number in ones[:SHOWN])} …)"
    for number, row in enumerate(zip(*(values[each] for each in ones), strict=True), 1):
        if (count := sum(value in ONES for value in row)) != 1:
            return f"{what}, and row {number} has {count or 'no'} ones: images with several labels or none are not trained on"
    return f"{what}; write one column with the name of the class instead"


def _found(folder: Path, path: str) -> tuple[str, int, int]:
    """The path as it is there, with blanks at its ends or without; size in bytes and time of its file, 0 if there is none."""
    for each in dict.fromkeys((path, path.strip())):
        try:
            status = os.stat(folder / each)
            return each, status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # named with the other bad files when it is opened
            pass
    return path, 0, 0


def _nowhere(table: Path, paths: Sequence[str]) -> Refused:
    """What to say where no path of a table leads to a file: 1, as for a folder that is gone; 4 if the paths look wrong."""
    path = os.path.join(table.parent, paths[0])
    hint, code = "its paths are relative to its folder", 1
    if paths[0][:2] in ("b'", 'b"') or paths[0][0] in "[{":
        hint, code = "the column holds no paths", 4
    elif any("\\" in each for each in paths):
        hint, code = "write / in its paths, not \\", 4
    elif not os.path.splitext(paths[0])[1]:
        hint, code = "its paths lack a suffix such as .jpg", 4
    such = path if len(path) <= LONG else path[:LONG] + "…"
    return Refused(f"{table}: none of the files that it names is there, such as {such}; {hint}", code)


def guess(what: str, head: Sequence[str]) -> str:
    """The likeliest column of `what`; empty if none is called like that."""
    names = {name.strip().casefold(): name for name in reversed(head)}
    return next((names[name] for name in COLUMNS[what] if name in names), "")
