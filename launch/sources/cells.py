"""Tables as text, whatever the file: CSV with , ; or tabs, parquet, JSON, JSON lines, and lists of paths and labels."""

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import Refused, first_line
from .folder import SUFFIXES as IMAGE_SUFFIXES
from .labels import tidy
from .listing import open_file

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".txt")
NAMES = ("synsets.txt", "classes.txt", "labels.txt")  # beside a list: the names of classes that it numbers

Cells = tuple[list[str], list[list[str]]]  # the names of the columns, and their values


def read(table: Path) -> Cells:
    """The columns of a table. Raises Refused (1) if it cannot be read, 4 for a row of another length."""
    try:
        with open_file(str(table)) as content:
            start = content.read(4096)
        suffix = table.suffix.lower()
        if suffix == ".parquet":
            return _parquet(table)
        text = _text(table, start)
        if suffix == ".jsonl":
            return _columns([json.loads(line) for line in text.splitlines() if line.strip()])
        if suffix == ".json":
            return _columns(_records(json.loads(text)))
        if suffix == ".txt":
            return _list(table, text)
        rows = _split(text)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors, and those of an encoding, are ValueErrors
        raise Refused(f"{table} cannot be read as a table: {getattr(error, 'strerror', None) or first_line(error)}") from error
    head, *body = [row for row in rows if row] or [[]]
    if not head:
        raise Refused(f"{table}: the table has no rows")
    if any(is_image_name(cell) for cell in head):  # no names of columns
        body = [head, *body]
        head = [str(number) for number in range(1, len(head) + 1)]
    for number, row in enumerate(body, 1):
        if len(row) != len(head):
            raise Refused(f"{table}: row {number} has {len(row)} values for {len(head)} columns; quote values with commas", 4)
    return [*map(tidy, head)], [*map(list, zip(*body, strict=True))] if body else [[] for _ in head]


def lines(table: Path) -> list[list[str]]:
    """The rows of a text file, with that of the names if it has one. Raises OSError and ValueError."""
    with open_file(str(table)) as content:
        start = content.read(4096)
    text = _text(table, start)
    rows = _split(text)
    if rows and len(rows[0]) == 1:
        rows = [line.split(None, 1) for line in text.splitlines()]
    return [row for row in rows if row]


def is_image_name(cell: str) -> bool:
    """Whether it ends as images do."""
    return os.path.splitext(cell.strip())[1].lower() in IMAGE_SUFFIXES


def _text(table: Path, start: bytes) -> str:
    encoding = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}.get(start[:2], "utf-8-sig")  # as Excel writes "Unicode text"
    errors = "strict" if encoding == "utf-16" else "surrogateescape"  # as file names are read
    if encoding != "utf-16" and b"\0" in start:
        raise ValueError("it is no text in UTF-8; save it as CSV in UTF-8")
    return table.read_bytes().decode(encoding, errors)


def _split(text: str) -> list[list[str]]:
    """The rows of a CSV file, separated by what its first line has most of."""
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    blanks = 0 < head.count(delimiter) == head.count(f"{delimiter} ")  # path, label
    return [*csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=blanks)]


def _parquet(table: Path) -> Cells:
    import pyarrow.parquet  # comes with datasets; takes 0.1 s

    content = pyarrow.parquet.ParquetFile(table).read()  # of columns with the same name, too
    fields = [*zip(content.schema, content.columns, strict=True)]
    values = [[_cell(value) for value in column.to_pylist()] for _, column in fields]
    return [tidy(field.name) for field, _ in fields], values


def _cell(value: object) -> str:
    """A value of a parquet file; of an image without bytes, as `datasets` writes it, its path."""
    if isinstance(value, dict) and isinstance(value.get("path"), str) and not value.get("bytes"):
        return value["path"]
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return json.dumps(value)
    return "" if value is None else str(value)


def _columns(records: Iterable[Any]) -> Cells:
    """Objects with the same keys as columns. Raises ValueError for anything else."""
    rows = [*records]
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("it is no list of objects")
    head = [*dict.fromkeys(str(key) for row in rows for key in row)]
    return [*map(tidy, head)], [[_plain(row.get(name)) for row in rows] for name in head]


def _plain(value: object) -> str:
    """A value of JSON as a cell: a list as one of JSON, one of a single text as that."""
    if isinstance(value, Mapping) and isinstance(value.get("choices"), list):
        value = value["choices"]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value[0] if len(value) == 1 else json.dumps(value)
    return "" if value is None else str(value)


def _records(content: Any) -> list[Any]:
    """What a JSON file says of images: a list of objects, {path: label}, Label Studio's tasks, or what COCO writes."""
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _coco(content)
    if isinstance(content, dict):
        if not all(isinstance(label, str | int) for label in content.values()):
            raise ValueError("it is neither a list of objects nor one of paths and labels")
        return [{"path": path, "label": label} for path, label in content.items()]
    if isinstance(content, list) and content and all(isinstance(task, dict) and "annotations" in task for task in content):
        return [{**task.get("data", {}), "choice": _choices(task)} for task in content]
    if not isinstance(content, list):
        raise ValueError("it is no list of objects")
    return content


def _choices(task: Mapping[str, Any]) -> list[str]:
    """What a task of Label Studio was labelled with, by its first annotation that was not cancelled."""
    for annotation in task["annotations"]:
        if not annotation.get("was_cancelled"):
            values = [result.get("value", {}) for result in annotation.get("result", [])]
            return [choice for value in values for choice in value.get("choices", [])]
    return []


def _coco(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Images with the names of their categories: of their boxes, if there are some."""
    names = {category["id"]: category.get("name", category["id"]) for category in content.get("categories", [])}
    categories: dict[Any, dict[Any, None]] = {}
    for annotation in content["annotations"]:
        categories.setdefault(annotation["image_id"], {})[annotation["category_id"]] = None
    return [
        {
            "file_name": image["file_name"],
            "label": [str(names.get(number, number)) for number in categories.get(image["id"], ())],
        }
        for image in content["images"]
    ]


def _list(table: Path, text: str) -> Cells:
    """A list of paths and labels, as in `cats/1.jpg 3`. Numbers are named by what lies beside it."""
    rows = []
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines())), 1):
        if line.startswith("#"):
            continue
        words = re.split(r"\s*[,;\t]\s*|\s+", line)
        ends = [place for place, word in enumerate(words) if is_image_name(word)]
        if ends:  # a path with blanks
            path = line[: line.index(words[ends[-1]]) + len(words[ends[-1]])]
            label = line[len(path) :].strip(" ,;\t")
        else:
            path, label = words[0], " ".join(words[1:])
        if not label:
            raise ValueError(f"row {number} has no label after {path!r}; a list has a path and a label in each row")
        rows.append((path, label))
    labels = [label for _, label in rows]
    if all(re.fullmatch(r"-?\d+( -?\d+)*", label) for label in labels):
        labels = [label.split(" ")[0] for label in labels]
        labels = named(table, labels)
    return ["path", "label"], [[path for path, _ in rows], labels]


def named(table: Path, labels: list[str]) -> list[str]:
    """The names of numbered classes, from a file beside the list that has as many lines; the numbers if there is none."""
    numbers = {int(label) for label in labels}
    for name in NAMES:
        file = table.with_name(name)
        if not file.is_file() or file == table:
            continue
        names = [tidy(line) for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()]
        if numbers and min(numbers) == 0 and max(numbers) < len(names):
            return [names[int(label)] for label in labels]
        if numbers and min(numbers) == 1 and max(numbers) == len(names):
            return [names[int(label) - 1] for label in labels]
    return labels
