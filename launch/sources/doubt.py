"""Whether what is read as class folders may be something else: the parts of a split, a folder around the right one, domains.

Where two readings are possible nobody can know which one is meant, so that it is refused, with the folder that would be right.
"""

import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ..errors import Refused
from .folder import Entry, splits_of
from .labels import shown, tidy
from .listing import Listing
from .part_names import CLASSES_TOO, PARTS, is_images, is_masks, part_of
from .table import names_images

NO_IMAGES = "name a folder with a folder for each class, or a table"
NAMED_CLASSES = (  # in the names of files, the likeliest first
    r"^(.+)__[0-9]+$", r"^(.+)_[0-9]+$", r"^(.+)-[0-9]+$", r"^(.+)[.][0-9]+$", r"^(.+) [(][0-9]+[)]$", r"^([A-Za-z]+)[0-9]+$",
    r"^[0-9]+[_-](.+)$", r"^([^_]+)_", r"^([^-]+)-",
)  # fmt: skip
TRIALS = ("sample", "submission")  # words in the names of tables whose labels are none
ALIKE = 0.8  # from this part of their folders on, classes have the same ones
DEPTH = 4  # of the folders that may be the right one
SHOWN = 4  # names in a message


def refuse_one(listing: Listing) -> None:
    """Raises Refused (4) if a table has one class."""
    if listing.multi_label and not listing.classes:
        raise Refused(f"{listing.source}: no image has a label", 4)
    if len(classes := listing.classes) == 1 and not listing.multi_label:
        raise Refused(f"{listing.source}: {one(classes[0])}", 4)


def refuse(folder: Path, images: Sequence[Sequence[str]], splits: Mapping[str, str], paths: Sequence[Sequence[str]]) -> None:
    """Raises Refused (4) if the class folders in `folder` may be none, naming what would be right.

    `images` are the places of images as parts, below those of the `splits` if there are any; `paths` their paths as they are.
    """
    why, inner = _doubt(images, splits)
    if not why:
        return
    ways = [_way_out(folder, paths, images)]
    if why.endswith("?") and not any(is_masks(parts[len(splits) > 0]) for parts in images):
        depth = len(paths[0]) - len(images[0]) + inner + 1
        ways.append(f"--classes-at {depth} takes the folders inside, of all of them, as the classes")
        ways.append("if the first are the classes, move the images out of the folders in them, or give a table")
    raise Refused(f"{folder}: {why}; {'; '.join(ways)}", 4)


def doubtful(images: Sequence[Sequence[str]], splits: Mapping[str, str]) -> bool:
    """Whether `refuse` may refuse them."""
    return bool(_doubt(images, splits)[0])


def _doubt(images: Sequence[Sequence[str]], splits: Mapping[str, str]) -> tuple[str, int]:
    """Why the first folders of `images`, parts of paths, may not be the classes (below those of `splits`); empty if they are.

    With it, the level of the folders inside that may be the classes instead.
    """
    level = int(bool(splits))
    below = defaultdict[str, list[Sequence[str]]](list)
    for parts in images:
        if len(parts) > level + 1 and (not splits or parts[0] in splits):
            below[parts[level]].append(parts[level + 1 :])
    if not below:
        return "no class folders", 0
    if len(below) == 1:
        return one(next(iter(below))), 0
    inside = {name: {parts[0] if parts[1:] else "" for parts in rest} for name, rest in below.items()}
    if like := _called_like_parts(inside):
        return f"{_named(like)} would be {_number(like)} and {'are' if len(like) > 1 else 'is'} called like a part of a split", 0
    there = {side: {tidy(parts[1]) for parts in images if parts[0] == side and len(parts) > 2} for side in splits}
    trained = set[str]().union(*(names for side, names in there.items() if splits[side] in ("train", "")))
    for side, names in there.items():
        if not names & trained:
            return f"{_named(names)} in {shown(side)} would be {_number(names)} without a training image", 0
    doubled = all(folders == {name} for name, folders in inside.items())  # casting_data/casting_data/train/ok
    for name, folders in inside.items():
        folders = {parts[1] for parts in below[name] if parts[2:]} if doubled else folders
        if len({PARTS[part.casefold()] for part in folders if part.casefold() in PARTS}) > 1:
            return f"the class {shown(name)} would have a split inside, {_named(folders)}; a split has its classes inside", 0
    for name, folders in inside.items():
        if len(again := folders & inside.keys()) > 1:
            other = f"has folders called like other classes, {_named(again)}"
            return f"{shown(name)} would be a class and {other}: if it is none, move it", 0
    if doubled or (len({frozenset(folders) for folders in inside.values()}) == 1 and len(next(iter(inside.values()))) == 1):
        inside = {name: {parts[1] if parts[2:] else "" for parts in rest} for name, rest in below.items()}  # amazon/images/bike
        level += 1
    if {len(parts) for rest in below.values() for parts in rest} == {2, 3}:
        inside = {name: {parts[-2] for parts in rest} for name, rest in below.items()}  # CUB/images/auk beside segmentations/auk
    if same := _same(inside):
        how = "all" if same <= set.intersection(*inside.values()) else "mostly"
        return (
            f"{_named(inside)} would be the classes and {how} have the same folders, {_named(same)}: which are the classes?",
            level + 1,
        )
    image_folders, mask_folders = ({name for name in inside if is_kind(name)} for is_kind in (is_images, is_masks))
    if image_folders and mask_folders:
        return f"{_named(image_folders | mask_folders)} would be classes and are called like images and what is drawn on them", 0
    return "", 0


def _same(inside: Mapping[str, set[str]]) -> set[str]:
    """The folders that several of the classes have, if they have hardly any others, and each at least half of these."""
    counts = Counter(name for folders in inside.values() for name in folders)
    shared = {name for name, count in counts.items() if name and count > 1}
    alike = sum(counts[name] for name in shared) >= ALIKE * counts.total()
    return shared if len(shared) > 1 and alike and 2 * counts.total() >= len(inside) * len(counts) else set()


def one(name: str) -> str:
    """What is wrong with a single class."""
    return f"one class, {shown(name)}; a net tells at least two apart"


def _called_like_parts(inside: Mapping[str, set[str]]) -> list[str]:
    """Those of the classes, each with the folders in it ("": images, too), that are rather parts of a split."""
    groups = defaultdict[tuple[str, ...], dict[str, str]](dict)  # other words in the name -> name -> part
    for name in inside:
        part, others = part_of(name)
        if part:
            groups[others][name] = part
    for names in groups.values():
        if len({*names.values()}) > 1:  # seg_train and seg_test; not bullet_train and test_tube
            return [*names]
    nested = {name for name, folders in inside.items() if len(folders) > 1 and "" not in folders}
    plain = groups.get((), {})
    return [name for name in plain if name.casefold() not in CLASSES_TOO or (name in nested and nested != inside.keys())]


def _way_out(folder: Path, paths: Sequence[Sequence[str]], images: Sequence[Sequence[str]]) -> str:
    """What to name or do instead."""
    for depth in range(1, DEPTH + 1):
        below = defaultdict[tuple[str, ...], list[Sequence[str]]](list)
        for parts in paths:
            if len(parts) > depth + 1:
                below[tuple(parts[:depth])].append(parts[depth:])
        masks = {path for path in below if any(map(is_masks, path))}
        right = {path: inside for path, inside in below.items() if path not in masks and not _doubt(inside, splits_of(inside))[0]}
        if right:
            first = min(right, key=lambda path: (not splits_of(right[path]), not _trains(path[0]), -len(right[path]), path))
            what = f"name the folder of the classes: --data {_quoted(folder.joinpath(*first))} ({_contents(right[first])})"
            if len(right) > 1:
                what += f", or another of {len(right)} such folders; those called train, val and test are read as a split"
            return what
    return (
        table_in(folder)
        or names_in(images)
        or (
            "put the images of each class into a folder of its own, <class>/ or train/<class>/ and test/<class>/, or give a table"
        )
    )


def names_in(images: Sequence[Sequence[str]]) -> str:
    """How to read the classes from the names of files, as cat_1.jpg, if all begin or end like that; empty if they do not."""
    stems = [os.path.splitext(parts[-1])[0] for parts in images]
    for expression in NAMED_CLASSES:
        matches = [match[1] if (match := re.search(expression, stem)) else "" for stem in stems]
        counts = Counter(filter(None, matches))
        left_out = [parts for parts, name in zip(images, matches, strict=True) if not name]
        tests = all(part_of(parts[0])[0] not in ("", "train") for parts in left_out)
        if 1 < len(counts) <= len(stems) / 2 and min(counts.values()) > 1 and tests:
            return f"if the names say the classes ({_named(counts)}): --label-from {shlex.quote(expression)}"
    return ""


def archive_in(content: Sequence[Entry]) -> str:
    """How to unpack what lies there, empty if there is no archive."""
    files = [entry for entry in content if entry.kind == "file"]
    for entry in files:
        if command := unpack(Path(entry.path)):
            return command
    return ""


def unpack(file: Path) -> str:
    """How to unpack an archive, empty if it is none."""
    name = file.name.casefold()
    target = file.with_name(re.sub(r"\.(zip|tar|tgz|tar\.\w+)$", "", file.name, flags=re.IGNORECASE))
    if name.endswith(".zip"):
        return f"unpack it: unzip -q {_quoted(file)} -d {_quoted(target)}, then --data {_quoted(target)}"
    if re.search(r"\.(tar|tgz|tar\.\w+)$", name):
        return (
            f"unpack it: mkdir {_quoted(target)} && tar -xf {_quoted(file)} -C {_quoted(target)}, then --data {_quoted(target)}"
        )
    return ""


def table_in(folder: Path) -> str:
    """How to name a table of images that lies there, empty if there is none."""
    tables = [table for pattern in ("*.[ct]sv", "*/*.[ct]sv", "*.json", "*.txt") for table in folder.glob(pattern)]
    tables = [table for table in tables if not any(word in table.name.casefold() for word in TRIALS)]
    for table in sorted(
        tables, key=lambda path: (not _trains(path.parent.name), part_of(path.stem)[0] not in ("", "train"), path)
    ):
        if names_images(table):
            return f"if a table says the classes, name it: --data {_quoted(table)}"
    for matlab in sorted([*folder.glob("*.mat"), *folder.glob("*/*.mat")]):
        if "label" in matlab.name or "meta" in matlab.name or "anno" in matlab.name:
            return (
                f"labels in {_quoted(matlab)} are Matlab's: write a table of path and label with scipy.io.loadmat, and name that"
            )
    return ""


def _trains(name: str) -> bool:
    return part_of(name)[0] == "train"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _contents(images: Sequence[Sequence[str]]) -> str:
    splits = splits_of(images)
    level = int(bool(splits))
    classes = {parts[level] for parts in images if len(parts) > level + 1}
    return f"classes {_named(classes)}" + f"; split {_named(splits)}" * (len(splits) > 1)


def _number(names: Collection[str]) -> str:
    return "classes" if len(names) > 1 else "a class"


def _named(names: Collection[str]) -> str:
    ordered = sorted(names)
    return ", ".join(map(shown, ordered[:SHOWN])) + f" and {len(ordered) - SHOWN} more" * (len(ordered) > SHOWN)
