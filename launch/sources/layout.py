"""How the images in a folder are laid out: wrapper folders, the parts of a split by other names, classes at another depth.

The first that fits:
    --label-from REGEX, --classes-at DEPTH    as told
    published.py                              lists of classes and splits that the publisher ships
    metadata.py                               metadata.csv or metadata.jsonl beside the images, as the hub's imagefolder has them
    places.py                                 folders alone; where two readings are possible, doubt.py refuses
What is not said by the names train/, val/ and test/ is said in a line.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import Refused
from . import doubt, labels, metadata, places, published, roboflow
from .folder import Entry, class_folders, is_image, kind_of, listed, one_per_folder, splits_of
from .labels import shown
from .listing import ListedImage, Listing, Reading
from .part_names import part_of


def read(folder: Path, content: Sequence[Entry], reading: Reading) -> Listing:
    """The images in `folder`, whose `entries` are `content`.

    Raises Refused: 1 if there are none, 2 for a depth or expression that fits none, 4 if it is not clear which are the classes,
    naming what would be right.
    """
    images, ignored = [], Counter[str]()
    for entry in content:
        if is_image(entry):
            images.append(entry)
        elif entry.kind != "folder":
            ignored[kind_of(entry)] += 1
    if not images:
        raise Refused(f"{folder}: no images in it{listed(ignored)}; {doubt.archive_in(content) or doubt.NO_IMAGES}")
    if (group := reading.columns.get("group", "")) and not any(entry.parts[-1] in metadata.NAMES for entry in content):
        raise Refused(
            f"{folder}: --group {group} names a column, and a folder has none; give a table of path, label and {group}", 2
        )
    if reading.label_from:
        return _by_name(folder, images, ignored, reading.label_from)
    if reading.classes_at:
        return _by_depth(folder, images, ignored, reading.classes_at)
    for reader in (published, metadata, roboflow):
        if listing := reader.read(folder, content, images, reading):
            listing.ignored.update(ignored)
            return listing
    return _by_folders(folder, content, images, ignored, reading)


def _by_folders(
    folder: Path, content: Sequence[Entry], images: Sequence[Entry], others: Counter[str], reading: Reading
) -> Listing:
    """The class is a folder: below wrappers, and below the parts of a split or above them; `others` are no images."""
    notes: list[str] = []
    ignored = Counter[str]()
    # One image of each folder tells whether all are where their paths say. Else each is looked at.
    kept, splits = _placed(content, one_per_folder(images), notes, ignored)
    plain = not notes and not +ignored and not any(map(places.perhaps_drawn, images))
    if not plain or doubt.doubtful([image.parts for image in kept], splits):
        plain = False
        notes.clear()
        ignored.clear()
        kept, splits = _placed(content, images, notes, ignored)
    for part in sorted({*splits.values()} - {""}):
        if len(folders := [f"{name}{os.sep}" for name in sorted(splits) if splits[name] == part]) > 1:
            notes.append(f"{' and '.join(folders)} are all read as {part} images")
    if reading.columns:
        unused = ", ".join(f"{what}={name}" for what, name in reading.columns.items())
        notes.append(f"columns are not used ({unused}): the folders are the classes")
    parts, paths = [image.parts for image in kept], [image.entry.parts for image in kept]
    if not any(len(place) > 1 + bool(splits) for place in parts):
        doubt.refuse(folder, parts, splits, paths)
    if plain:
        listing = class_folders(folder, content, splits, images=images)
        ignored += others
    else:
        listing = class_folders(folder, content, splits, places={image.entry.name: image.parts for image in kept})
    classes = {image.label for image in listing.images}
    if not classes <= {*reading.known}:
        doubt.refuse(folder, parts, splits, paths)
    inner = {image.parts[1 + bool(splits)] for image in kept if len(image.parts) > 2 + bool(splits)}
    if len(inner) > 1 and not any(len(image.parts) == 2 + bool(splits) for image in kept):
        example = next(image.entry.name for image in kept if len(image.parts) > 2 + bool(splits))
        at = next(image for image in kept if image.entry.name == example)
        level = len(at.entry.parts) - len(at.parts) + bool(splits) + 2
        notes.append(
            f"folders inside the classes, as {shown(example)}, are part of them; --classes-at {level} makes them the classes"
        )
    notes += metadata.unused(folder, content)
    return Listing(folder, folder, listing.images, +(listing.ignored + ignored), notes=(*notes, *listing.notes))


def _placed(
    content: Sequence[Entry], images: Sequence[Entry], notes: list[str], ignored: Counter[str]
) -> tuple[list[places.Placed], dict[str, str]]:
    """The places of `images`, and the top folders that are parts of a split; `notes` and `ignored` say what was done to them."""
    depth = places.wrappers(images)
    if depth:
        notes.append(f"the classes are in {os.sep.join(places.images_below(images, depth)[0].parts[:depth])}{os.sep}")
    placed = [places.Placed(entry, entry.parts[depth:]) for entry in places.images_below(images, depth)]
    placed = places.without_inner_wrappers(placed, notes)
    splits = splits_of([image.parts for image in placed])
    if not splits:
        splits = places.parts_of_a_split(placed, notes)
    if not splits:
        placed = places.split_inside(placed, notes)
        splits = splits_of([image.parts for image in placed])
        if not splits:
            placed = places.without_unlabelled(placed, notes)
            splits = splits_of([image.parts for image in placed])
    placed = places.without_clutter(placed, notes, bool(splits))
    placed, splits = places.with_labels_of_flat_parts(content, placed, splits, notes)
    kept = places.without_masks(places.without_flat_parts(placed, splits, ignored), notes)
    ignored["images outside a class folder"] += len(images) - len(places.images_below(images, depth))
    return kept, dict.fromkeys(splits, "") if len({*splits.values()}) == 1 else splits


def _by_depth(folder: Path, images: Sequence[Entry], ignored: Counter[str], depth: int) -> Listing:
    """The class is the folder at `depth`, from 1; the split is a folder above it that is called like a part of one."""
    placed = [entry for entry in images if len(entry.parts) > depth]
    if depth < 1 or not placed:
        deepest = max(len(entry.parts) for entry in images) - 1
        raise Refused(f"{folder}: --classes-at {depth} is below all images; it takes 1 to {deepest}", 2)
    ignored["images above the classes"] += len(images) - len(placed)
    classes, notes = labels.of_folders(entry.parts[depth - 1] for entry in placed)
    sides = []
    for level in range(depth - 1):
        splits = {entry.parts[level]: part_of(entry.parts[level])[0] for entry in placed}
        if all(part in ("train", "validation", "test") for part in splits.values()) and len({*splits.values()}) > 1:
            sides = [splits[entry.parts[level]] for entry in placed]
            notes.append(f"read as a split: {', '.join(f'{name} {part}' for name, part in sorted(splits.items()))}")
            break
    listing = [
        _listed(entry, classes[entry.parts[depth - 1]], split)
        for entry, split in zip(placed, sides or [""] * len(placed), strict=True)
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
    return ListedImage(entry.name, label, split, entry.size, entry.time)


def _checked(listing: Listing) -> Listing:
    """`listing` if it has several classes. Raises Refused (4)."""
    if len(listing.classes) == 1:
        raise Refused(f"{listing.source}: {doubt.one(listing.classes[0])}", 4)
    return listing
