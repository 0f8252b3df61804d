"""A table of images: a row for each, with columns for its path, its label and, if there is one, its split.

Paths are relative to the table's folder, or absolute. Where none is there as it is written, they are looked for below the
table's folder: names without a folder or suffix, paths of another machine. What is in no row is not looked at.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ..errors import Refused
from . import cells, columns, several
from .find import Finder, split_path
from .folder import walk
from .labels import shown, tidy
from .listing import ListedImage, Listing
from .several import AS_FOUND, Rules

SUFFIXES = cells.SUFFIXES
SHOWN, LONG = 10, 200  # columns in a message, characters of a path

# Folders whose tables are about the images beside them; beside any other folder there may be images of other data.
FOR_TABLES = {
    "annotation", "annotations", "csv", "label", "labels", "list", "lists", "meta", "metadata", "split", "splits", "tables",
}  # fmt: skip


def read(table: Path, wanted: Mapping[str, str], rules: Rules = AS_FOUND) -> Listing:
    """The images of `table`, an absolute path. `wanted` names columns that should not be guessed: image, label, split, group.
    `rules` say what is told of several labels.

    Raises Refused: 1 if it cannot be read, 2 for a column that is not there or that nobody can guess, 4 for a row without path,
    label or a known split, for a path that an earlier row has; where no row names a file that is there, see `_nowhere`.
    """
    head, values = cells.read(table)
    files = _Files(table.parent)
    chosen = columns.choose(table, head, values, wanted, files.is_there)
    paths = values[head.index(chosen.image)]
    if not paths:
        raise Refused(f"{table}: the table has no rows")
    _check_filled(table, chosen.image, paths)
    labels, notes, multi_label = _labels(table, chosen, head, values, rules)
    splits = [""] * len(paths)
    if chosen.split:
        texts = values[head.index(chosen.split)]
        splits = [columns.side(table, f"row {number}", chosen.split, text) for number, text in enumerate(texts, 1)]
        if columns.plain(chosen.split) not in columns.COLUMNS["split"]:
            pairs = dict(sorted(zip(map(tidy, texts), splits, strict=True)))
            notes.append(
                f"split of the column {shown(chosen.split)}: {', '.join(f'{text} {part}' for text, part in pairs.items())}"
            )
    images, first = [], dict[str, int]()
    located = files.located(table, paths, notes)
    for number, ((path, size, time), label, split) in enumerate(zip(located, labels, splits, strict=True), 1):
        if first.setdefault(path, number) != number:
            raise Refused(f"{table}: row {number} names {path} again, after row {first[path]}; its labels belong into one row", 4)
        images.append(ListedImage(path, label, split, size, time))
    if not any(image.time for image in images):
        raise _nowhere(table, paths)
    used = {*chosen[:4], *chosen.one_hot}
    if unused := [name for name in head if name not in used]:
        notes.append(f"columns that are not used: {', '.join(map(shown, unused[:SHOWN]))}" + " …" * (len(unused) > SHOWN))
    if not chosen.group and not any(splits):
        notes += columns.looks_like_groups(head, values, [*used])
    groups = (
        dict(zip((image.path for image in images), map(tidy, values[head.index(chosen.group)]), strict=True))
        if chosen.group
        else {}
    )
    return Listing(
        table, table.parent, images, names=chosen.one_hot, notes=(*chosen.notes, *notes), groups=groups, multi_label=multi_label
    )


def names_images(table: Path) -> bool:
    """Whether it seems to be a table of images and their labels."""
    try:
        head, values = cells.read(table)
        columns.choose(table, head, values, {}, _Files(table.parent).is_there)
        return len(values[0]) > 0
    except Refused:
        return False


def rows(table: Path, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The rows of a table as text, of these columns. Raises Refused: 1 if it cannot be read, 4 without them or with two."""
    head, values = cells.read(table)
    for name in names:
        if name not in head:
            raise Refused(f"{table}: it needs the columns {' and '.join(names)}; it has {', '.join(head)}", 4)
        columns.once(table, name, head)
    return zip(*(values[head.index(name)] for name in names), strict=True)


def _labels(
    table: Path, chosen: columns.Columns, head: list[str], values: list[list[str]], rules: Rules
) -> tuple[list[str], list[str], bool]:
    """The label of each row, lines of what was guessed, and whether there are several: of its column, or those that have a 1."""
    if chosen.label:
        return several.of_cells(
            str(table), chosen.label, values[head.index(chosen.label)], lambda number: f"row {number + 1}", rules
        )
    ones = [values[head.index(name)] for name in chosen.one_hot]
    if not rules.multi_label and not chosen.told and (some := several.one_in_each_row(chosen.one_hot, ones)):
        others = ", ".join(shown(name) for name in chosen.one_hot if name not in some)
        raise Refused(
            f"{table}: the columns {', '.join(map(shown, some))} have one 1 in each row, {others} besides: --columns "
            f"label={','.join(some)} takes these alone, {several.FLAG} yes all as labels of an image",
            2,
        )
    labels, notes = several.in_columns(str(table), chosen.one_hot, ones, rules)
    if labels is not None:
        return labels, notes, True
    names = ", ".join(map(shown, chosen.one_hot[:SHOWN])) + " …" * (len(chosen.one_hot) > SHOWN)
    labels = [chosen.one_hot[[cell in several.ONES for cell in row].index(True)] for row in zip(*ones, strict=True)]
    return labels, [f"the label is the column that has a 1: {names}"], False


def _check_filled(table: Path, column: str, cells: Sequence[str]) -> None:
    """Raise Refused (4) for the first blank cell."""
    if blank := [number for number, cell in enumerate(cells, 1) if not tidy(cell)]:
        raise Refused(f"{table}: row {blank[0]} has nothing in the column {column!r}; fill it or remove the row", 4)


class _Files:
    """The files that the rows of a table in `folder` name."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def finder(self) -> Finder:
        """The images below the folder, or beside one for tables: looked for once, and only if no row names a file as it is."""
        finder = Finder(self.folder)
        if not finder.entries and self.folder.resolve().name.casefold() in FOR_TABLES:
            return Finder(self.folder, walk(self.folder.parent), above=True)
        return finder

    def is_there(self, cell: str) -> bool:
        """Whether a cell names an image."""
        return bool(self._status(cell)) or bool(self.finder.candidates(split_path(cell), 0, whole=False))

    def located(self, table: Path, paths: Sequence[str], notes: list[str]) -> list[tuple[str, int, int]]:
        """Each path as it is there; size in bytes and time of its file, 0 if there is none."""
        statuses = [self._status(path) for path in paths]
        if any(statuses):
            return [status or (path, 0, 0) for path, status in zip(paths, statuses, strict=True)]
        try:
            names = self.finder.find(paths, str(table))
        except OSError as error:
            raise Refused(f"{error.filename or self.folder}: {error.strerror or error}") from error
        there = [name in self.finder.entries for name in names]
        if any(there):
            first = there.index(True)
            notes.append(f"images are found by the ends of their paths: {shown(paths[first])} is {shown(names[first])}")
        images = (self.finder.listed(name, "", "") for name in names)
        return [(image.path, image.size, image.time) for image in images]

    def _status(self, path: str) -> tuple[str, int, int] | None:
        for spelling in dict.fromkeys((path, path.strip())):
            try:
                status = os.stat(self.folder / spelling)
                return spelling, status.st_size, status.st_mtime_ns
            except (OSError, ValueError):  # named with the other bad files when it is opened
                pass
        return None


def _nowhere(table: Path, paths: Sequence[str]) -> Refused:
    """What to say where no path of a table leads to a file: 1, as for a folder that is gone; 4 if the paths look wrong."""
    path = os.path.join(table.parent, paths[0])
    hint, code = "its paths are relative to its folder, below which no file has such a name", 1
    if paths[0][:2] in ("b'", 'b"') or paths[0][0] in "[{":
        hint, code = "the column holds no paths", 4
    such = path if len(path) <= LONG else path[:LONG] + "…"
    return Refused(f"{table}: none of the files that it names is there, such as {such}; {hint}", code)
