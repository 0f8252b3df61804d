"""metadata.csv and metadata.jsonl, in which the hub's imagefolder has what it knows of the images beside them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import Refused
from . import cells, columns
from .folder import Entry
from .labels import tidy
from .listing import ListedImage, Listing, Reading
from .part_names import is_images, part_of
from .several import of_cells

NAMES = ("metadata.csv", "metadata.jsonl")


def unused(folder: Path, content: Sequence[Entry]) -> list[str]:
    """Lines about metadata files that are not as the hub has them, and how to read them."""
    lines = []
    for table in content:
        if table.name.endswith(NAMES) and table.kind == "file" and table.last in NAMES:
            command = f"--data {shlex.quote(str(folder / table.name))}"
            lines.append(f"{table.name} is not used: it has no columns file_name and label; {command} reads it as a table")
    return lines


def read(folder: Path, content: Sequence[Entry], images: Sequence[Entry], reading: Reading) -> Listing | None:
    """The images that metadata files name with a label; None if there are none. The split is the folder's: train/, test/.

    Raises Refused: 2 if the column of labels cannot be known, 4 if class folders say something else.
    """
    tables = [entry for entry in content if entry.name.endswith(NAMES) and entry.kind == "file" and entry.last in NAMES]
    if not tables:
        return None
    there = {entry.name: entry for entry in images}
    rows: list[tuple[str, str, str]] = []  # image, label, row in messages
    used: list[str] = []
    group, groups = reading.columns.get("group", ""), dict[str, str]()
    for table in tables:
        head, values = cells.read(Path(table.path))
        label = reading.columns.get("label", "") or columns.guess("label", head)
        if "file_name" not in head or label not in head:
            continue
        base = "/".join(table.parts[:-1])
        for number, (name, text) in enumerate(zip(values[head.index("file_name")], values[head.index(label)], strict=True), 1):
            path = "/".join(filter(None, (base, name.replace("\\", "/").removeprefix("./"))))
            where = f"row {number} of {table.name}"
            rows.append((path, text, where))
            if group in head:
                groups[path] = tidy(values[head.index(group)][number - 1])
        used.append(table.name)
        used_label = label
    if not rows:
        return None
    labels, notes, multi_label = of_cells(
        str(folder), used_label, [text for _, text, _ in rows], lambda number: rows[number][2], reading.rules
    )
    folders = {there[path].parts[-2] for path, _, _ in rows if path in there and len(there[path].parts) > 1}
    folders -= {name for name in folders if part_of(name)[0] or is_images(name) or name == folder.name}
    if len(folders) > 1 and not multi_label and not folders <= {*labels}:
        raise Refused(
            f"{folder}: the classes of {used[0]} and those of the folders differ: to use the table, --data {folder / used[0]}; "
            f"to use the folders, remove it", 4
        )  # fmt: skip
    parts = {path.split("/")[0]: part_of(path.split("/")[0])[0] for path, _, _ in rows}
    sides = {*parts.values()}
    if not sides <= {"train", "validation", "test"} or len(sides) < 2 or "train" not in sides:
        parts = dict.fromkeys(parts, "")
    listed = []
    for (path, _, _), text in zip(rows, labels, strict=True):
        entry = there.get(path)
        size, time = (entry.size, entry.time) if entry else (0, 0)
        listed.append(ListedImage(path, text, parts[path.split("/")[0]], size, time))
    listed.sort(key=lambda image: image.path)
    listing = Listing(
        folder, folder, listed, notes=(f"labels are those of {', '.join(used)}", *notes), groups=groups, multi_label=multi_label
    )
    if rest := len(there.keys() - {image.path for image in listed}):
        listing.ignored["images in no row"] += rest
    return listing
