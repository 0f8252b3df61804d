"""Which column of a table is the image, the label, the split: by usual names, or as told. What is guessed is said."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import Refused
from .cells import is_image_name
from .labels import shown, tidy
from .listing import SPLITS
from .part_names import PARTS
from .several import ONES, ZEROS, is_one_hot

COLUMNS = {  # what a column holds -> what it is called, the likeliest first
    "image": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path", "name"),
    "label": ("label", "labels", "class", "category", "target", "y", "cls", "class_name", "label_name"),
    "split": ("split", "set", "subset", "partition"),
}
RATHER = {  # names that are said to have been taken, and of which none is taken beside another
    "image": (
        "image_id", "id_code", "image_name", "image_file", "image_index", "image_filename", "imageid", "img_id", "img_name",
    ),
    "label": (
        "diagnosis", "breed", "dx", "species", "classid", "class_id", "choice", "category_name", "category_id", "label_id",
        "disease", "variety", "emotion", "ground_truth", "gt", "tag", "tags", "finding_labels",
    ),
    "split": ("is_valid", "is_val", "is_validation", "is_test", "is_train", "fold", "phase", "usage"),
}  # fmt: skip
LAST = ("id",)  # of images, if nothing else is
GROUPS = re.compile(
    "(patient|subject|lesion|case|video|clip|person|participant|animal|individual|plant|tree|field|plot|slide|scan|series|study|"
    "session|camera|sequence|burst|scene|driver|identity|specimen|mouse|donor)(_?(id|no|nr|number|name))?"
)
SHOWN = 10  # columns in a message


class Columns(NamedTuple):
    """The names of the columns, empty if there is none. `one_hot`: a column for each class, instead of one of labels."""

    image: str
    label: str
    split: str
    group: str = ""
    one_hot: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    told: bool = False  # whether the columns of labels are as wanted, and not guessed


def told(columns: Sequence[str], split: str = "", group: str = "") -> dict[str, str]:
    """What --columns, --split-column and --group say, as in label=species: {"label": "species"}. Raises Refused (2)."""
    names = {what: name for what, name in (("split", split), ("group", group)) if name}
    for column in columns:
        what, _, name = column.partition("=")
        if what not in COLUMNS or not name:
            raise Refused(f"--columns {column}: it takes image=NAME, label=NAME and split=NAME", 2)
        names[what] = name
    return names


def column_flag(what: str) -> str:
    """How to name the column that is `what`."""
    return f"Name it with --columns {what}=NAME"


def plain(name: str) -> str:
    """A column's name as it is looked up."""
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def guess(what: str, head: Sequence[str]) -> str:
    """The likeliest column of `what`; empty if none is called like that."""
    names = {plain(name): name for name in reversed(head)}
    if usual := next((names[name] for name in COLUMNS[what] if name in names), ""):
        return usual
    rather = [names[name] for name in RATHER[what] if name in names]
    return rather[0] if len(rather) == 1 else ""


def choose(
    table: Path, head: list[str], values: list[list[str]], wanted: Mapping[str, str], is_there: Callable[[str], bool]
) -> Columns:
    """The columns of a table: as `wanted`, by their names, or by what is in them; `is_there` says whether a cell names an image.

    Raises Refused: 2 for a column that is not there or that nobody can guess, 4 for one that is there twice.
    """
    for what in ("image", "label", "split", "group"):
        name = tidy(wanted.get(what, ""))
        if name and not (what == "split" and name == "none"):
            names = name.split(",") if what == "label" and name not in head else [name]
            if wrong := [column for column in map(tidy, names) if column not in head]:
                raise Refused(f"{table}: no column {wrong[0]!r}; its columns are {', '.join(head)}", 2)
    notes: list[str] = []
    group = tidy(wanted.get("group", ""))
    image = _image(table, head, values, tidy(wanted.get("image", "")), is_there, notes)
    split = _split(table, head, values, tidy(wanted.get("split", "")), image)
    label, one_hot = _label(table, head, values, tidy(wanted.get("label", "")), (image, split, group), notes)
    for name in filter(None, (image, label, split, group)):
        once(table, name, head)
    return Columns(image, label, split, group, one_hot, tuple(notes), told=bool(wanted.get("label")))


def once(table: Path, name: str, head: Sequence[str]) -> str:
    """`name`, which is a column. Raises Refused (4) if it is several."""
    if (count := list(head).count(name)) > 1:
        raise Refused(f"{table}: {count} columns are called {name!r}; rename all but one", 4)
    return name


def _guessed(table: Path, what: str, free: Sequence[str], head: Sequence[str]) -> str:
    """The likeliest of the `free` columns. Raises Refused: 4 if it is there twice, 2 if another differs in capitals only."""
    name = guess(what, free)
    if name and len({other for other in head if plain(other) == plain(name)}) > 1:
        raise Refused(f"{table}: which column is the {what}? {column_flag(what)}; it has {', '.join(head)}", 2)
    return once(table, name, head) if name else ""


def _image(
    table: Path, head: list[str], values: list[list[str]], wanted: str, is_there: Callable[[str], bool], notes: list[str]
) -> str:
    if wanted:
        return wanted
    if name := _guessed(table, "image", head, head):
        if plain(name) not in COLUMNS["image"]:
            notes.append(f"images are named by the column {shown(name)}")
        return name
    some = [*zip(head, (column[:SHOWN] for column in values), strict=True)]
    fitting = [name for name, cells in some if cells and all(map(is_image_name, cells))]
    fitting = fitting or [name for name, cells in some if cells and all(cells) and all(map(is_there, cells))]
    if len(fitting) == 1 or {plain(name) for name in fitting} & {*LAST}:
        name = next((name for name in fitting if plain(name) in LAST), fitting[0])
        notes.append(f"images are named by the column {shown(name)}")
        return name
    raise Refused(f"{table}: which column is the image? {column_flag('image')}; it has {', '.join(head)}", 2)


def _label(
    table: Path, head: list[str], values: list[list[str]], wanted: str, others: Sequence[str], notes: list[str]
) -> tuple[str, tuple[str, ...]]:
    """The column of labels, or those of 0 and 1, one for each class."""
    if wanted and wanted not in head:  # several, with commas between them
        names = tuple(once(table, tidy(name), head) for name in wanted.split(","))
        if wrong := [name for name in names if not is_one_hot(values[head.index(name)])]:
            raise Refused(f"{table}: the column {wrong[0]!r} has more than 0 and 1; of several, each is for one label", 4)
        return "", names
    if wanted:
        return wanted, ()
    free = [name for name in head if name not in others]
    if name := _guessed(table, "label", free, head):
        if plain(name) not in COLUMNS["label"]:
            notes.append(f"labels are those of the column {shown(name)}")
        return name, ()
    one_hot = tuple(name for name in free if is_one_hot(values[head.index(name)]))
    if len(one_hot) > 1:
        return "", one_hot
    if len(free) == 1:
        notes.append(f"labels are those of the column {shown(free[0])}")
        return free[0], ()
    raise Refused(f"{table}: which column is the label? {column_flag('label')}; it has {', '.join(head)}", 2)


def _split(table: Path, head: list[str], values: list[list[str]], wanted: str, image: str) -> str:
    """The column of splits: as told, by its name, or the only one whose cells all say a part of a split; "" if there is none."""
    if wanted:
        return "" if wanted == "none" and "none" not in head else wanted
    free = [name for name in head if name != image]
    if name := _guessed(table, "split", free, head):
        return name
    says = {name: {PARTS.get(tidy(cell).casefold(), "") for cell in values[head.index(name)]} for name in free}
    named = [name for name, parts in says.items() if len(parts) > 1 and "train" in parts and parts <= {*SPLITS.values()}]
    return named[0] if len(named) == 1 else ""


def side(table: Path, row: str, column: str, value: str) -> str:
    """The split that a cell of the column of splits says. Raises Refused (4), naming the `row`."""
    text = tidy(value).casefold()
    if plain(column) in RATHER["split"] and plain(column).startswith("is_"):
        part = {"valid": "validation", "val": "validation", "validation": "validation", "test": "test", "train": "train"}[
            plain(column)[3:]
        ]
        if value in ONES or text in ("yes", "y", "true"):
            return part
        if value in ZEROS or text in ("no", "n", "false"):
            return "validation" if part == "train" else "train"
    part = SPLITS.get(text) or PARTS.get(text, "")
    if part in ("train", "validation", "test"):
        return part
    takes = "it takes train, validation (val, valid) or test; --split-column none ignores it"
    if plain(column) == "fold":
        takes = "which fold validates cannot be known; write train, validation and test, or ignore it with --split-column none"
    raise Refused(f"{table}: {row} has the split {value!r} (column {column!r}); {takes}", 4)


def looks_like_groups(head: Sequence[str], values: Sequence[Sequence[str]], used: Sequence[str]) -> list[str]:
    """A line for each column that several images seem to share, such as a patient."""
    lines = []
    for name, column in zip(head, values, strict=True):
        count = len({*column} - {""})
        if name not in used and GROUPS.fullmatch(plain(name)) and 1 < count < len(column):
            keeps = f"--group {shown(name)} keeps those of one on one side"
            lines.append(f"{shown(name)} has {count:,} values for {len(column):,} images: {keeps}")
    return lines


def stem(path: str) -> str:
    """A file's name without folders and suffix."""
    return os.path.splitext(os.path.basename(path.replace("\\", "/")))[0]
