"""Images that tables hold: a column of encoded images, one of labels, perhaps one of splits, in memory-mapped Arrow files.

The images are binary, or structs with `bytes` and `path` as the hub has them. An image is called by its table and its row, from
0: `data/train-00000-of-00002.parquet#12`, and `train#12` on the hub. That is unique, says where to look, and does not depend on
what other tables there are.

The Arrow files are those that `datasets` writes, of the hub (hub.py) or of parquet files (parquet.py): a row is read where it
lies, with no other rows decoded for it.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import Refused
from .columns import column_flag, guess, side
from .labels import tidy
from .listing import ListedImage, Listing, open_file
from .several import AS_FOUND, Rules, of_cells

if TYPE_CHECKING:
    import pyarrow


class Part(NamedTuple):
    """A table as people know it."""

    name: str
    split: str  # train, validation, test; empty if not given
    time: int  # of its last change, ns
    files: list[Path]  # Arrow streams, which have its rows one after the other


class Damaged(Refused):
    """An Arrow file cannot be read. Exit code 1."""


class Columns(NamedTuple):
    """What the columns are called; `split` may be empty."""

    image: str
    label: str
    split: str
    group: str = ""


def images(schema: "pyarrow.Schema") -> list[str]:
    """The columns that may hold images."""
    return [field.name for field in schema if _bytes_of(field.type)]


def choose(source: Path, schema: "pyarrow.Schema", wanted: Mapping[str, str], split_known: bool) -> Columns:
    """The columns of a table: those `wanted`, or the likeliest; no split is guessed where it is known.

    Raises Refused: 2 for a column that is not there or that nobody can guess, 4 for one that does not hold what it should.
    """
    for what, column in wanted.items():
        if column and column not in schema.names and (what, column) != ("split", "none"):
            raise Refused(f"{source}: no column {column!r}; its columns are {', '.join(schema.names)}", 2)
    if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
        raise Refused(f"{source}: several columns are called {twice[0]!r}; rename all but one", 4)
    import pyarrow

    candidates, classes = images(schema), _class_names(schema)
    image = wanted.get("image") or (candidates[0] if len(candidates) == 1 else "")
    if not image:
        has = ", ".join(candidates or schema.names)
        raise Refused(f"{source}: which column is the image? {column_flag('image')}; it has {has}", 2)
    if image not in candidates:
        raise Refused(f"{source}: the column {image!r} is {schema.field(image).type}; images are bytes, or structs with bytes", 4)
    others = [name for name in schema.names if name not in candidates]
    inner = [name for name in others if "." in name and guess("label", [name.rpartition(".")[2]])]  # json.label
    label = wanted.get("label") or guess("label", others) or (next(iter(classes)) if len(classes) == 1 else "")
    label = label or (inner[0] if len(inner) == 1 else "")
    if not label:
        has = ", ".join(others) or "no other than images"
        raise Refused(f"{source}: which column is the label? {column_flag('label')}; it has {has}", 2)
    if not _is_label(kind := schema.field(label).type):
        takes = "labels are whole numbers or text" + ", one for each image" * pyarrow.types.is_nested(kind)
        raise Refused(f"{source}: the column {label!r} is {kind}; {takes}", 4)
    others = [] if split_known else [name for name in others if name != label]
    split = wanted.get("split") or guess("split", others)
    split = "" if split == "none" and "none" not in schema.names else split
    return Columns(image, label, split, wanted.get("group", ""))


def read(
    source: Path, root: Path, parts: Sequence[Part], wanted: Mapping[str, str], revision: str = "", rules: Rules = AS_FOUND
) -> Listing:
    """The images of `parts`; `rules` say what is told of several labels.

    A path instead of bytes, as hub data sets of files have it, is absolute or relative to `root`.

    A part without any label is left out and counted, as the hub has tests whose labels are secret. Raises Refused as `choose`,
    and 4 for a row without label or split.
    """
    images: list[ListedImage] = []
    ignored: Counter[str] = Counter()
    rows: dict[str, Rows] = {}
    groups: dict[str, str] = {}
    names: dict[str, None] = {}  # of classes, in order
    for part in parts:
        table = _with_inner_columns(_mapped(part.files))
        columns = choose(source, table.schema, wanted, any(part.split for part in parts))
        labels = _labels(f"{source}: {part.name}", table, columns.label)
        if table.num_rows and not any(label is not None for label in labels):
            ignored[f"images of {part.name} without a label"] += table.num_rows
            continue
        splits = table[columns.split].to_pylist() if columns.split else [part.split] * table.num_rows
        if columns.group:
            values = table[columns.group].to_pylist()
            groups |= {f"{part.name}#{number}": "" if value is None else tidy(str(value)) for number, value in enumerate(values)}
        rows[part.name] = Rows(table[columns.image], root)
        names |= dict.fromkeys(_class_names(table.schema).get(columns.label, ()))
        stamps = rows[part.name].stamps(part.time)
        for number, (label, split, (size, time)) in enumerate(zip(labels, splits, stamps, strict=True)):
            if columns.split:
                split = side(source, f"{part.name} row {number}", columns.split, str(split))
            images.append(ListedImage(f"{part.name}#{number}", label or "", split, size, time))
    if not images:
        raise Refused(f"{source}: no images with a label in it{f' ({next(iter(ignored))})' if ignored else ''}", 4)

    cells = [image.label for image in images]
    texts, notes, multi_label = of_cells(str(source), columns.label, cells, lambda number: _row(images[number].path), rules)
    images = [image._replace(label=text) for image, text in zip(images, texts, strict=True)]

    def opened(path: str) -> BufferedReader | BytesIO:
        name, _, number = path.rpartition("#")
        return rows[name].open(int(number))

    ordered = tuple(dict.fromkeys(map(tidy, names)))
    return Listing(source, root, images, ignored, opened, ordered, revision, tuple(notes), groups, multi_label)


def _row(path: str) -> str:
    return " row ".join(path.rsplit("#", 1))


class Rows:
    """The images of a table: `content`, or a path instead."""

    def __init__(self, column: "pyarrow.ChunkedArray", root: Path):
        import pyarrow

        self.root = root
        self.content, self.path = column, None
        if pyarrow.types.is_struct(column.type):
            parts = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
            self.content, self.path = parts["bytes"], parts.get("path")
            if self.path is not None and not _is_text(self.path.type):
                self.path = None  # a number, which names no file

    def stamps(self, time: int) -> list[tuple[int, int]]:
        """(bytes, time of the last change) of each image: that of its table is `time`."""
        import pyarrow.compute

        stamps = []
        for number, size in enumerate(pyarrow.compute.binary_length(self.content).to_pylist()):
            if size is None and (path := self._file(number)):
                try:
                    status = os.stat(path)
                    stamps.append((status.st_size, status.st_mtime_ns))
                    continue
                except (OSError, ValueError):  # named with the other bad ones when it is opened
                    pass
            stamps.append((size or 0, time))
        return stamps

    def open(self, number: int) -> BufferedReader | BytesIO:
        """The image of a row. Raises OSError; FileNotFoundError if there is none."""
        content = self.content[number]
        if content.is_valid:
            return BytesIO(content.as_buffer())
        path = self._file(number)
        if not path:
            raise FileNotFoundError("no image in this row")
        return open_file(path)

    def _file(self, number: int) -> str:
        path = self.path[number].as_py() if self.path is not None else None
        return os.path.join(self.root, path) if path else ""


def plain(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """The type as which a column of this type is kept: without views and dictionaries. Other types stay."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, plain(field.type)) for field in kind])
    if pyarrow.types.is_dictionary(kind):
        return plain(kind.value_type)
    if _is_text(kind):
        return pyarrow.string() if pyarrow.types.is_string(kind) else pyarrow.large_string()
    return pyarrow.large_binary() if _bytes_of(kind) and not pyarrow.types.is_binary(kind) else kind


def _mapped(files: Sequence[Path]) -> "pyarrow.Table":
    """The rows of Arrow streams, where they lie on disk. Raises Damaged."""
    import pyarrow.ipc

    try:
        table = pyarrow.concat_tables(pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all() for file in files)
        table.validate(full=True)  # of images, it looks at the offsets only
        return table
    except (OSError, pyarrow.ArrowException) as error:
        raise Damaged(f"cannot read {files[0]} ({error}); delete it to rebuild it") from error


def _with_inner_columns(table: "pyarrow.Table") -> "pyarrow.Table":
    """`table` with a column for each field of its structs that are no images: json.label for WebDataset's json."""
    import pyarrow

    for field in table.schema:
        if pyarrow.types.is_struct(field.type) and not _bytes_of(field.type):
            for inner, column in zip(field.type, table[field.name].flatten(), strict=True):
                table = table.append_column(f"{field.name}.{inner.name}", column)
    return table


def _labels(where: str, table: "pyarrow.Table", column: str) -> list[str | None]:
    """The labels as text, a list of several as JSON; None for a row without one, which is -1 where there are names."""
    values = table[column].to_pylist()
    if _inner(table.schema.field(column).type) is not None:
        names = _class_names(table.schema).get(column)
        known = {*range(len(names))} if names else {*()}
        if names and (wrong := {number for row in values for number in row or ()} - known):
            raise Refused(f"{where} has the label {min(wrong)} (column {column!r}); labels are 0 to {len(names) - 1}", 4)
        lists = ([names[value] if names else str(value) for value in row] if row is not None else None for row in values)
        return [None if row is None else row[0] if len(row) == 1 else json.dumps(row) for row in lists]
    if (classes := _class_names(table.schema).get(column)) is None:
        return [None if value is None else str(value) for value in values]
    if wrong := {*values} - {None, -1, *range(len(classes))}:
        raise Refused(f"{where} has the label {min(wrong)} (column {column!r}); labels are 0 to {len(classes) - 1}", 4)
    return [None if value in (None, -1) else classes[value] for value in values]


def _class_names(schema: "pyarrow.Schema") -> dict[str, list[str]]:
    """column -> the names of its classes, as `datasets` writes them into the metadata of a table."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        features = {name: kind[0] if isinstance(kind, list) else kind.get("feature", kind) for name, kind in features.items()}
        columns = {
            name: kind["names"] for name, kind in features.items() if "ClassLabel" in (kind.get("_type"), kind.get("dtype"))
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: [*map(str, names)] for name, names in columns.items() if isinstance(names, list) and _is_whole(schema, name)}


def _is_whole(schema: "pyarrow.Schema", name: str) -> bool:
    import pyarrow

    return name in schema.names and pyarrow.types.is_integer(_inner(kind := schema.field(name).type) or kind)


def _is_label(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    kind = _inner(kind) or kind
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_integer(kind) or types.is_boolean(kind) or _is_text(kind)


def _inner(kind: "pyarrow.DataType") -> "pyarrow.DataType | None":
    """The type of a list's items; None for what is no list."""
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return kind.value_type if is_list else None


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(fits(kind) for fits in (types.is_string, types.is_large_string, types.is_string_view))


def _bytes_of(kind: "pyarrow.DataType") -> bool:
    """Whether a column of this type can hold encoded images."""
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_binary_view))
