"""The places of images: the parts of their paths that say split and class, without wrappers and by the usual names.

Each function takes the places as they are and gives them as they should be, with a line in `notes` about what it did.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import labels, published
from .folder import Entry
from .listing import SPLITS
from .part_names import CLASSES_TOO, is_images, part_of

CLUTTER = re.compile("BACKGROUND_Google|257\\.clutter")  # of Caltech-101 and -256, which no result counts as a class
DRAWN = re.compile(r"(.+?)_(mask|seg|segmentation|gt|annotation)(_?\d+)?", re.IGNORECASE)  # beside 1.png, what is drawn on it

HINT = re.compile("_(mask|seg|gt|annotation)", re.IGNORECASE)


class Placed(NamedTuple):
    """An image and the parts of its path that say its split and class: train/cat/1.jpg, cat/1.jpg."""

    entry: Entry
    parts: list[str]


def images_below(images: Sequence[Entry], depth: int) -> list[Entry]:
    """Those that lie at least `depth` folders deep, with a name below."""
    return [entry for entry in images if len(entry.parts) > depth]


def wrappers(images: Sequence[Entry]) -> int:
    """How many folders lie around the right one, each the only one with folders of images; images beside it are not looked at."""
    depth = 0
    while True:
        below = images_below(images, depth + 1)
        names = {entry.parts[depth] for entry in below}
        if len(names) != 1 or any(len(entry.parts) == depth + 2 for entry in below):
            return depth
        inside = {entry.parts[depth + 1] for entry in below}
        if SPLITS.get(next(iter(names)).casefold()) == "train" and not any(part_of(name)[0] for name in inside):
            return depth  # train/ alone, to be split
        depth += 1


def without_inner_wrappers(placed: list[Placed], notes: list[str]) -> list[Placed]:
    """Without the one folder in a part of a split that holds all of it: train/train/cat, val/images/1.jpg."""
    inside = defaultdict[str, set[str]](set)
    for image in placed:
        inside[image.parts[0]].add(image.parts[1] if len(image.parts) > 2 else "")
    wrapped = {}
    for name, names in inside.items():
        inner = next(iter(names))
        if part_of(name)[0] and len(names) == 1 and inner and (part_of(inner)[0] == part_of(name)[0] or is_images(inner)):
            wrapped[name] = inner
    if wrapped:
        notes.append("read from " + ", ".join(os.sep.join(pair) + os.sep for pair in wrapped.items()))
    if not wrapped:
        return placed
    return [
        image._replace(parts=[image.parts[0], *image.parts[2:]]) if image.parts[0] in wrapped and len(image.parts) > 2 else image
        for image in placed
    ]


def parts_of_a_split(placed: Sequence[Placed], notes: list[str]) -> dict[str, str]:
    """What the top folders are called -> the split they are; empty if they are none.

    There is one to train on with at least two classes; the others have classes of the same names, or none.
    """
    inside = defaultdict[str, set[str]](set)
    for image in placed:
        if len(image.parts) > 1:
            inside[image.parts[0]].add(labels.tidy(image.parts[1]) if len(image.parts) > 2 else "")
    groups = defaultdict[tuple[str, ...], dict[str, str]](dict)
    for name in inside:
        part, others = part_of(name)
        if part:
            groups[others][name] = part
    for names in groups.values():
        train = [name for name, part in names.items() if part == "train"]
        rest = {name: part for name, part in names.items() if part != "train"}
        if len(train) != 1 or not rest or "" in inside[train[0]] or len(inside[train[0]]) < 2:
            continue
        flat = [name for name, part in rest.items() if inside[name] == {""} or part == "no labels"]
        with_classes = {name: part for name, part in rest.items() if name not in flat}
        if any(2 * len((inside[name] - {""}) & inside[train[0]]) < len(inside[name] - {""}) for name in with_classes):
            continue
        splits = {train[0]: "train", **with_classes}
        read_as = ", ".join(f"{name}{os.sep} {part}" for name, part in sorted(splits.items()))
        if with_classes or train[0].casefold() != "train":
            notes.append(f"read as a split: {read_as}")
        return splits
    return {}


def with_labels_of_flat_parts(
    content: Sequence[Entry], placed: list[Placed], splits: Mapping[str, str], notes: list[str]
) -> tuple[list[Placed], dict[str, str]]:
    """With the classes that a table gives to a part of the split without class folders, and that part."""
    sides = {**splits}
    if "train" not in splits.values() and not any(part_of(name)[0] == "train" for name in splits):
        return placed, sides
    classes = {image.parts[1] for image in placed if image.parts[0] in splits and len(image.parts) > 2}
    tops = defaultdict[str, list[Placed]](list)
    for image in placed:
        if image.parts[0] not in splits and len(image.parts) > 1:
            tops[image.parts[0]].append(image)
    for name, images in tops.items():
        part = part_of(name)[0]
        if part not in ("validation", "test") or any(len(image.parts) > 2 for image in images):
            continue
        classes_of, table = published.flat_side(content, [image.entry for image in images], classes)
        if classes_of:
            notes.append(f"labels of {name}{os.sep} are those of {table}")
            placed = [
                image._replace(parts=[name, classes_of[image.entry.name], image.parts[-1]])
                if image.entry.name in classes_of
                else image
                for image in placed
            ]
            sides = {top: side or "train" for top, side in sides.items()} | {name: part}
    return placed, sides


def split_inside(placed: list[Placed], notes: list[str]) -> list[Placed]:
    """With the split before the class, if each class has its own: cat/train/1.jpg as train/cat/1.jpg."""
    inside = defaultdict[str, set[str]](set)
    deeper = defaultdict[str, set[str]](set)
    for image in placed:
        if len(image.parts) > 1:
            inside[image.parts[0]].add(image.parts[1] if len(image.parts) > 2 else "")
            if len(image.parts) > 3:
                deeper[image.parts[0]].add(image.parts[2])
    if len(inside) < 2 or any(len(names) > 1 for names in deeper.values()):
        return placed
    parts = {name: part_of(name)[0] for names in inside.values() for name in names}
    if not all(part in ("train", "validation", "test") for part in parts.values()) or not all(
        "train" in {parts[name] for name in names} and len({parts[name] for name in names}) > 1 for names in inside.values()
    ):
        return placed
    notes.append(f"each class has its split inside: {', '.join(sorted(parts))}")
    spelt = {"train": "train", "validation": "val", "test": "test"}
    return [
        image._replace(parts=[spelt[parts[image.parts[1]]], image.parts[0], *image.parts[2:]])
        for image in placed
        if len(image.parts) > 2
    ]


def without_unlabelled(placed: list[Placed], notes: list[str]) -> list[Placed]:
    """Without a flat folder called pred or unlabeled, beside class folders or beside the one folder that holds them."""
    names = {image.parts[0] for image in placed if len(image.parts) > 1}
    nested = {image.parts[0] for image in placed if len(image.parts) > 2}
    flat = {image.parts[0] for image in placed if len(image.parts) == 2}
    drop = {name for name in names - nested if part_of(name)[0] == "no labels"}
    rest = names - drop
    one = len(rest) == 1 and rest <= nested and not rest & flat  # labeled/cat, labeled/dog
    if not one:
        drop = {name for name in drop if name.casefold() not in CLASSES_TOO}
    if not drop or (len(names - drop) < 2 and not one):
        return placed
    count = sum(image.parts[0] in drop for image in placed)
    notes.append(f"{count:,} images in {', '.join(sorted(drop))}{os.sep} have no class and are left out")
    kept = [image for image in placed if image.parts[0] not in drop]
    return [image._replace(parts=image.parts[1:]) for image in kept] if one else kept


def perhaps_drawn(image: Entry) -> bool:
    """Whether its name looks like that of a mask."""
    return HINT.search(image.last) is not None


def without_masks(placed: list[Placed], notes: list[str]) -> list[Placed]:
    """Without what is drawn on an image in the same folder: 1_mask.png beside 1.png."""
    perhaps = [image for image in placed if perhaps_drawn(image.entry)]
    names = {os.path.splitext(image.entry.name)[0] for image in placed} if perhaps else set()
    drawn = set[str]()
    for image in perhaps:
        stem = os.path.splitext(image.entry.name)[0]
        if (match := DRAWN.fullmatch(stem)) and match[1] in names:
            drawn.add(image.entry.name)
    if drawn:
        notes.append(f"{len(drawn):,} masks are left out, as {min(drawn)}")
    return [image for image in placed if image.entry.name not in drawn] if drawn else placed


def without_flat_parts(placed: list[Placed], splits: Mapping[str, str], ignored: Counter[str]) -> list[Placed]:
    """Without the images of a part of the split that has no class folders, which are counted."""
    if not splits:
        return placed
    nested = {image.parts[0] for image in placed if len(image.parts) > 2}
    kept = []
    for image in placed:
        name = image.parts[0]
        if len(image.parts) == 2 and name not in splits and name not in nested and part_of(name)[0]:
            ignored[f"images without a class in {name}{os.sep}"] += 1
        else:
            kept.append(image)
    return kept


def without_clutter(placed: list[Placed], notes: list[str], split: bool) -> list[Placed]:
    """Without what Caltech ships as images of no class."""
    kept = [image for image in placed if len(image.parts) < 2 + split or not CLUTTER.fullmatch(image.parts[split])]
    if len(kept) < len(placed):
        names = {image.parts[split] for image in placed} - {image.parts[split] for image in kept if len(image.parts) > split}
        notes.append(f"{', '.join(sorted(names))} is no class, as Caltech says, and left out: rename it to train on it")
    return kept
