"""How the images in a folder are laid out: wrapper folders, the parts of a split by other names, classes at another depth.

Each image has its place: the parts of its path without wrappers. The first that fits:
    --label-from REGEX, --classes-at DEPTH    as told
    published.py                              lists of classes and splits that the publisher ships
    metadata.py                               metadata.csv or metadata.jsonl beside the images, as the hub's imagefolder has them
    here                                      folders alone; where two readings are possible, doubt.py refuses
What is not said by the names train/, val/ and test/ is said in a line.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import Refused
from . import doubt, labels, metadata, published
from .folder import Entry, class_folders, is_image, kind_of, listed, splits_of
from .labels import shown
from .listing import ListedImage, Listing, Reading
from .part_names import CLASSES_TOO, is_images, part_of

CLUTTER = re.compile("BACKGROUND_Google|257\\.clutter")  # of Caltech-101 and -256, which no result counts as a class
SHOWN = 4  # names in a line


class Placed(NamedTuple):
    """An image and the parts of its path that say its split and class: train/cat/1.jpg, cat/1.jpg."""

    entry: Entry
    parts: list[str]


def read(folder: Path, content: Sequence[Entry], reading: Reading) -> Listing:
    """The images in `folder`, whose `entries` are `content`.

    Raises Refused: 1 if there are none, 2 for a depth or expression that fits none, 4 if it is not clear which are the classes,
    naming what would be right.
    """
    images = [entry for entry in content if is_image(entry)]
    ignored = Counter(kind_of(entry) for entry in content if entry.kind != "folder" and not is_image(entry))
    if not images:
        raise Refused(f"{folder}: no images in it{listed(ignored)}; {doubt.archive_in(content) or doubt.NO_IMAGES}")
    if reading.label_from:
        return _by_name(folder, images, ignored, reading.label_from)
    if reading.classes_at:
        return _by_depth(folder, images, ignored, reading.classes_at)
    if listing := published.read(folder, content, images, reading) or metadata.read(folder, content, images, reading):
        listing.ignored.update(ignored)
        return listing
    return _by_folders(folder, content, images, reading)


def _by_folders(folder: Path, content: Sequence[Entry], images: Sequence[Entry], reading: Reading) -> Listing:
    """The class is a folder: below wrappers, and below the parts of a split or above them."""
    notes: list[str] = []
    depth = _wrappers(images)
    if depth:
        notes.append(f"the classes are in {os.sep.join(images_below(images, depth)[0].parts[:depth])}{os.sep}")
    placed = [Placed(entry, entry.parts[depth:]) for entry in images_below(images, depth)]
    placed = _without_inner_wrappers(placed, notes)
    splits = splits_of([image.parts for image in placed])
    if not splits:
        splits = _parts_of_a_split(placed, notes)
    if not splits:
        placed = _split_inside(placed, notes)
        splits = splits_of([image.parts for image in placed])
        placed = _without_unlabelled(placed, notes, splits)
    placed = _without_clutter(placed, notes, bool(splits))
    kept, splits = _with_labels_of_flat_parts(folder, content, placed, splits, notes)
    if len({*splits.values()}) == 1:
        splits = dict.fromkeys(splits, "")
    listing = class_folders(folder, content, splits, places={image.entry.name: image.parts for image in kept})
    classes = {image.label for image in listing.images}
    if not classes <= {*reading.known}:
        doubt.refuse(folder, [image.parts for image in kept], splits, [image.entry.parts for image in kept])
    inner = {image.parts[1 + bool(splits)] for image in kept if len(image.parts) > 2 + bool(splits)}
    if len(inner) > len(classes) and not any(len(image.parts) == 2 + bool(splits) for image in kept):
        example = next(image.entry.name for image in kept if len(image.parts) > 2 + bool(splits))
        at = next(image for image in kept if image.entry.name == example)
        level = len(at.entry.parts) - len(at.parts) + bool(splits) + 2
        notes.append(
            f"folders inside the classes, as {shown(example)}, are part of them; --classes-at {level} makes them the classes"
        )
    return Listing(folder, folder, listing.images, listing.ignored, notes=(*notes, *listing.notes))


def images_below(images: Sequence[Entry], depth: int) -> list[Entry]:
    """Those that lie at least `depth` folders deep, with a name below."""
    return [entry for entry in images if len(entry.parts) > depth]


def _wrappers(images: Sequence[Entry]) -> int:
    """How many folders lie around the right one, each the only one with folders of images; images beside it are not looked at."""
    depth = 0
    while True:
        below = images_below(images, depth + 1)
        names = {entry.parts[depth] for entry in below}
        if len(names) != 1 or any(len(entry.parts) == depth + 2 for entry in below):
            return depth
        inside = {entry.parts[depth + 1] for entry in below}
        if part_of(next(iter(names)))[0] == "train" and not any(part_of(name)[0] for name in inside):
            return depth  # train/ alone, to be split
        depth += 1


def _without_inner_wrappers(placed: list[Placed], notes: list[str]) -> list[Placed]:
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
    return [
        image._replace(parts=[image.parts[0], *image.parts[2:]]) if image.parts[0] in wrapped and len(image.parts) > 2 else image
        for image in placed
    ]


def _parts_of_a_split(placed: Sequence[Placed], notes: list[str]) -> dict[str, str]:
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


def _with_labels_of_flat_parts(
    folder: Path, content: Sequence[Entry], placed: list[Placed], splits: Mapping[str, str], notes: list[str]
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
        found, table = published.flat_side(content, [image.entry for image in images], classes)
        if found:
            notes.append(f"labels of {name}{os.sep} are those of {table}")
            placed = [
                image._replace(parts=[name, found[image.entry.name], image.parts[-1]]) if image.entry.name in found else image
                for image in placed
            ]
            sides = {top: side or "train" for top, side in sides.items()} | {name: part}
    return placed, sides


def _split_inside(placed: list[Placed], notes: list[str]) -> list[Placed]:
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


def _without_unlabelled(placed: list[Placed], notes: list[str], splits: Mapping[str, str]) -> list[Placed]:
    """Without a flat folder called pred or the like beside class folders."""
    if splits:
        return placed
    names = {image.parts[0] for image in placed if len(image.parts) > 1}
    nested = {image.parts[0] for image in placed if len(image.parts) > 2}
    drop = {name for name in names - nested if part_of(name) == ("no labels", ()) and name.casefold() not in CLASSES_TOO}
    if not drop or len(names - drop) < 2:
        return placed
    count = sum(image.parts[0] in drop for image in placed)
    notes.append(f"{count:,} images in {', '.join(sorted(drop))}{os.sep} have no class and are left out")
    return [image for image in placed if image.parts[0] not in drop]


def _without_clutter(placed: list[Placed], notes: list[str], split: bool) -> list[Placed]:
    """Without what Caltech ships as images of no class."""
    kept = [image for image in placed if len(image.parts) < 2 + split or not CLUTTER.fullmatch(image.parts[split])]
    if len(kept) < len(placed):
        names = {image.parts[split] for image in placed} - {image.parts[split] for image in kept if len(image.parts) > split}
        notes.append(f"{', '.join(sorted(names))} is no class, as Caltech says, and left out: rename it to train on it")
    return kept


def _by_depth(folder: Path, images: Sequence[Entry], ignored: Counter[str], depth: int) -> Listing:
    """The class is the folder at `depth`, from 1; the split is a folder above it that is called like a part of one."""
    placed = [entry for entry in images if len(entry.parts) > depth]
    if depth < 1 or not placed:
        deepest = max(len(entry.parts) for entry in images) - 1
        raise Refused(f"{folder}: --classes-at {depth} is below all images; it takes 1 to {deepest}", 2)
    ignored["images above the classes"] += len(images) - len(placed)
    classes, notes = labels.of_folders(entry.parts[depth - 1] for entry in placed)
    found = []
    for level in range(depth - 1):
        splits = {entry.parts[level]: part_of(entry.parts[level])[0] for entry in placed}
        if all(part in ("train", "validation", "test") for part in splits.values()) and len({*splits.values()}) > 1:
            found = [splits[entry.parts[level]] for entry in placed]
            notes.append(f"read as a split: {', '.join(f'{name} {part}' for name, part in sorted(splits.items()))}")
            break
    listing = [
        _listed(entry, classes[entry.parts[depth - 1]], split)
        for entry, split in zip(placed, found or [""] * len(placed), strict=True)
    ]
    return _checked(Listing(folder, folder, listing, +ignored, notes=tuple(notes)))


def _by_name(folder: Path, images: Sequence[Entry], ignored: Counter[str], expression: str) -> Listing:
    """The class is the first group of `expression` where it matches the name without its suffix (the path, if it has a /)."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise Refused(f"--label-from {expression}: {error}", 2) from error
    if pattern.groups < 1:
        raise Refused(f"--label-from {expression} has no group: put the class into brackets, as ^(.+)_[0-9]+$", 2)
    names = {}
    for entry in images:
        stem = os.path.splitext(entry.name if "/" in expression else entry.parts[-1])[0]
        match = pattern.search(stem)
        if match and match[1]:
            names[entry.name] = match[1]
    if not names:
        raise Refused(f"{folder}: --label-from {expression} matches no name, such as {shown(images[0].parts[-1])}", 2)
    placed = [entry for entry in images if entry.name in names]
    ignored["images whose name does not match"] += len(images) - len(placed)
    classes, notes = labels.of_folders(names.values())
    splits = {entry.parts[0]: part_of(entry.parts[0])[0] if len(entry.parts) > 1 else "" for entry in placed}
    if {*splits.values()} - {"train", "validation", "test"} or len({*splits.values()}) < 2:
        splits = dict.fromkeys(splits, "")
    listing = [_listed(entry, classes[names[entry.name]], splits[entry.parts[0]]) for entry in placed]
    return _checked(Listing(folder, folder, listing, +ignored, notes=tuple(notes)))


def _listed(entry: Entry, label: str, split: str) -> ListedImage:
    size, time = (entry.status.st_size, entry.status.st_mtime_ns) if entry.status else (0, 0)
    return ListedImage(entry.name, label, split, size, time)


def _checked(listing: Listing) -> Listing:
    """`listing` if it has several classes. Raises Refused (4)."""
    if len(listing.classes) == 1:
        raise Refused(f"{listing.source}: {doubt.one(listing.classes[0])}", 4)
    return listing
