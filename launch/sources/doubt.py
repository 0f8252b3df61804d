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
from .folder import splits_of
from .labels import shown, tidy
from .listing import Listing
from .table import names_images

PARTS = {  # of a split: how they are called, also as train2017, seg_train, TrainImages, test_set
    "train": "train", "training": "train", "trn": "train", "trainval": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test", "tst": "test", "eval": "test", "evaluation": "test", "holdout": "test",
    "pred": "no labels", "predict": "no labels", "unlabeled": "no labels", "unlabelled": "no labels",
}  # fmt: skip
CLASSES_TOO = ("train", "valid", "unlabeled", "unlabelled")  # among other classes: vehicles, valid and invalid tickets
KINDS = "set|sets|data|dataset|image|images|img|imgs|pic|pics|picture|pictures|photo|photos|split|folder|dir|part|files?"
PART = re.compile(rf"({'|'.join(PARTS)})({KINDS})?")
IMAGES = re.compile("(jpeg)?(images?|imgs?|pictures?|photos?)")  # what people call a folder of all images, without classes
MASKS = re.compile("(images?)?(masks?|annotations?|labels?|segmentations?(class|object)?|trimaps?|groundtruths?|gt)")
ALIKE = 0.8  # from this part of their folders on, classes have the same ones
DEPTH = 4  # of the folders that may be the right one
SHOWN = 4  # names in a message


def refuse(listing: Listing, known: Collection[str] = ()) -> None:
    """Raises Refused (4) if the classes of `listing` may be none, naming what would be right; not if all are `known`."""
    classes = listing.classes
    if {*classes} <= {*known}:
        return
    if listing.row or listing.root != listing.source:  # a table says which is which
        if len(classes) == 1:
            raise Refused(f"{listing.source}: {_one(classes[0])}", 4)
        return
    images = [image.path.split(os.sep) for image in listing.images]
    if why := _doubt(images) or (_one(classes[0]) if len(classes) == 1 else ""):
        also = "; if the first are the classes, move the images out of the folders in them, or give a table" * why.endswith("?")
        raise Refused(f"{listing.source}: {why}; {_way_out(listing.source, images)}{also}", 4)


def _doubt(images: Sequence[Sequence[str]]) -> str:
    """Why the first folders of `images`, parts of paths, may not be the classes (below those of a split); empty if they are."""
    splits = splits_of(images)
    level = int(bool(splits))
    below = defaultdict[str, list[Sequence[str]]](list)
    for parts in images:
        if len(parts) > level + 1 and (not splits or parts[0] in splits):
            below[parts[level]].append(parts[level + 1 :])
    if not below:
        return "no class folders"
    if len(below) == 1:
        return _one(next(iter(below)))
    inside = {name: {each[0] if each[1:] else "" for each in rest} for name, rest in below.items()}
    if like := _called_like_parts(inside):
        return f"{_named(like)} would be {_number(like)} and {'are' if len(like) > 1 else 'is'} called like a part of a split"
    there = {side: {tidy(parts[1]) for parts in images if parts[0] == side and len(parts) > 2} for side in splits}
    trained = set[str]().union(*(names for side, names in there.items() if splits[side] in ("train", "")))
    for side, names in there.items():
        if not names & trained:
            return f"{_named(names)} in {shown(side)} would be {_number(names)} without a training image"
    for name, folders in inside.items():
        if len({PARTS[each.casefold()] for each in folders if each.casefold() in PARTS}) > 1:
            return f"the class {shown(name)} would have a split inside, {_named(folders)}; a split has its classes inside"
    for name, folders in inside.items():
        if len(again := folders & inside.keys()) > 1:
            other = f"has folders called like other classes, {_named(again)}"
            return f"{shown(name)} would be a class and {other}: if it is none, move it"
    if len({frozenset(folders) for folders in inside.values()}) == 1 and len(next(iter(inside.values()))) == 1:
        inside = {name: {each[1] if each[2:] else "" for each in rest} for name, rest in below.items()}  # amazon/images/bike
    if {len(each) for rest in below.values() for each in rest} == {2, 3}:
        inside = {name: {each[-2] for each in rest} for name, rest in below.items()}  # CUB/images/auk beside segmentations/auk
    if same := _same(inside):
        how = "all" if same <= set.intersection(*inside.values()) else "mostly"
        return f"{_named(inside)} would be the classes and {how} have the same folders, {_named(same)}: which are the classes?"
    image_folders, mask_folders = ({name for name in inside if kind.fullmatch(_letters(name))} for kind in (IMAGES, MASKS))
    if image_folders and mask_folders:
        return f"{_named(image_folders | mask_folders)} would be classes and are called like images and what is drawn on them"
    return ""


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.casefold())


def _same(inside: Mapping[str, set[str]]) -> set[str]:
    """The folders that several of the classes have, if they have hardly any others, and each at least half of these."""
    counts = Counter(name for folders in inside.values() for name in folders)
    shared = {name for name, count in counts.items() if name and count > 1}
    alike = sum(counts[name] for name in shared) >= ALIKE * counts.total()
    return shared if len(shared) > 1 and alike and 2 * counts.total() >= len(inside) * len(counts) else set()


def _one(name: str) -> str:
    return f"one class, {shown(name)}; a net tells at least two apart"


def _called_like_parts(inside: Mapping[str, set[str]]) -> list[str]:
    """Those of the classes, each with the folders in it ("": images, too), that are rather parts of a split."""
    found = defaultdict[tuple[str, ...], dict[str, str]](dict)  # other words in the name -> name -> part
    for name in inside:
        part, others = _part(name)
        if part:
            found[others][name] = part
    for names in found.values():
        if len({*names.values()}) > 1:  # seg_train and seg_test; not bullet_train and test_tube
            return [*names]
    nested = {name for name, folders in inside.items() if len(folders) > 1 and "" not in folders}
    plain = found.get((), {})
    return [name for name in plain if name.casefold() not in CLASSES_TOO or (name in nested and nested != inside.keys())]


def _part(name: str) -> tuple[str, tuple[str, ...]]:
    """Which part of a split is called like that, "" if none; and what else the name says."""
    words = re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).casefold())
    if whole := PART.fullmatch("".join(words)):
        return PARTS[whole[1]], ()
    found = [PARTS[part[1]] for word in words if (part := PART.fullmatch(word))]
    others = [word for word in words if len(word) > 1 and not PART.fullmatch(word) and not re.fullmatch(KINDS, word)]
    return found[0] if found else "", tuple(others)


def _way_out(folder: Path, images: Sequence[Sequence[str]]) -> str:
    """What to name or do instead."""
    for depth in range(1, DEPTH + 1):
        below = defaultdict[tuple[str, ...], list[Sequence[str]]](list)
        for parts in images:
            if len(parts) > depth + 1:
                below[tuple(parts[:depth])].append(parts[depth:])
        masks = {path for path in below if any(MASKS.fullmatch(_letters(part)) for part in path)}
        if right := {path: inside for path, inside in below.items() if path not in masks and not _doubt(inside)}:
            first = min(right, key=lambda path: (not splits_of(right[path]), not _trains(path[0]), -len(right[path]), path))
            what = f"name the folder of the classes: --data {_quoted(folder.joinpath(*first))} ({_found(right[first])})"
            if len(right) > 1:
                what += f", or another of {len(right)} such folders; those called train, val and test are read as a split"
            return what
    return table_in(folder) or (
        "put the images of each class into a folder of its own, <class>/ or train/<class>/ and test/<class>/, or give a table"
    )


def table_in(folder: Path) -> str:
    """How to name a table of images that lies there, empty if there is none."""
    tables = [*folder.glob("*.[ct]sv"), *folder.glob("*/*.[ct]sv")]
    for table in sorted(tables, key=lambda path: (not _trains(path.parent.name), path)):
        if names_images(table):
            return f"if a table says the classes, name it: --data {_quoted(table)}"
    return ""


def _trains(name: str) -> bool:
    return _part(name)[0] == "train"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _found(images: Sequence[Sequence[str]]) -> str:
    splits = splits_of(images)
    level = int(bool(splits))
    classes = {parts[level] for parts in images if len(parts) > level + 1}
    return f"classes {_named(classes)}" + f"; split {_named(splits)}" * (len(splits) > 1)


def _number(names: Collection[str]) -> str:
    return "classes" if len(names) > 1 else "a class"


def _named(names: Collection[str]) -> str:
    ordered = sorted(names)
    return ", ".join(map(shown, ordered[:SHOWN])) + f" and {len(ordered) - SHOWN} more" * (len(ordered) > SHOWN)
