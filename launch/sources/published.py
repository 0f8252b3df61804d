"""Lists of classes and splits that publishers ship with their images, read by name where they lie.

CUB                images.txt, image_class_labels.txt, classes.txt, train_test_split.txt
SUN397             ClassName.txt
Food-101, DTD, MIT Indoor, Pet, Aircraft …     train.txt, test.txt and such: an image a line, perhaps its label
Tiny ImageNet, ImageNet, GTSRB …     val_annotations.txt, LOC_val_solution.csv, Test.csv: the labels of a flat part of a split
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import Refused
from . import cells, labels
from .find import Finder
from .folder import Entry
from .labels import shown, tidy
from .listing import ListedImage, Listing, Reading
from .part_names import KINDS, is_images, is_masks, part_of

LIMIT = 2**27  # bytes of a list
DEPTH = 3  # folders above which lists are looked for
TRIALS = ("sample", "submission")  # words in the names of tables whose labels are none
SHOWN = 4  # names in a line


class Line(NamedTuple):
    """An image of a list, by its path in the folder, and the label that stands beside it, if any."""

    path: str
    label: str


def read(folder: Path, content: Sequence[Entry], images: Sequence[Entry], reading: Reading) -> Listing | None:
    """What lists say of the images in `folder`; None if there are none. Raises Refused: 2 to choose one of several lists."""
    files = [entry for entry in content if entry.name[-4:].casefold() == ".txt" and entry.kind == "file"]
    texts = {entry.name: entry for entry in files if len(entry.parts) <= DEPTH}
    by_name = {entry.parts[-1]: entry for entry in texts.values()}
    if {"images.txt", "image_class_labels.txt", "train_test_split.txt"} <= by_name.keys():
        return _cub(folder, images, by_name)
    if "ClassName.txt" in by_name:
        return _class_names(folder, images, by_name["ClassName.txt"])
    if not any(part_of(re.sub(r"\d+", "_", os.path.splitext(name)[0]))[0] for name in by_name):
        return None
    plain = [image for image in images if not any(map(is_masks, image.parts[:-1]))]
    listing = _lists(folder, plain, texts, reading)
    if listing and len(plain) < len(images):
        listing.ignored["images in no list"] += len(images) - len(plain)
    return listing


def _rows(entry: Entry) -> list[list[str]]:
    """The lines of a list in two: what is before the first blank, and the rest."""
    if entry.size > LIMIT:
        return []
    with open(entry.path, encoding="utf-8-sig", errors="surrogateescape") as file:
        return [line.strip().split(None, 1) for line in file if line.strip()]


def _cub(folder: Path, images: Sequence[Entry], lists: Mapping[str, Entry]) -> Listing:
    """CUB-200-2011: four lists of numbers."""
    paths, numbers, train = (
        {row[0]: row[1] for row in _rows(lists[name]) if len(row) == 2}
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    names = {row[0]: row[1] for row in _rows(lists["classes.txt"]) if len(row) == 2} if "classes.txt" in lists else {}
    finder = Finder(folder, images)
    names_there = finder.find([*paths.values()], "images.txt")
    labels_of = {number: names.get(numbers.get(number, ""), numbers.get(number, "")) for number in paths}
    listing = []
    for number, path in zip(paths, names_there, strict=True):
        if not labels_of[number] or number not in train:
            raise Refused(f"{folder}: image {number} of images.txt is not in image_class_labels.txt and train_test_split.txt", 4)
        listing.append(finder.listed(path, labels_of[number], "train" if train[number] == "1" else "test"))
    order = tuple(dict.fromkeys(names.values()))
    note = "classes and split of images.txt, image_class_labels.txt and train_test_split.txt"
    return _listing(folder, images, listing, [note], order)


def _class_names(folder: Path, images: Sequence[Entry], entry: Entry) -> Listing | None:
    """SUN397: the classes are paths of folders, as /c/control_tower/outdoor."""
    names = {tuple(name.strip("/").split("/")) for row in _rows(entry) for name in [" ".join(row)]}
    base = len(entry.parts) - 1
    placed = []
    for image in images:
        parts = tuple(image.parts[base:-1])
        if label := next((parts[:size] for size in range(len(parts), 0, -1) if parts[:size] in names), ()):
            placed.append(_image(image, "/".join(label[1:] if len(label[0]) == 1 and len(label) > 1 else label), ""))
    return _listing(folder, images, placed, [f"classes of {entry.name}"]) if placed else None


def _image(entry: Entry, label: str, split: str) -> ListedImage:
    return ListedImage(entry.name, label, split, entry.size, entry.time)


def _listing(
    folder: Path, images: Sequence[Entry], listed: list[ListedImage], notes: list[str], names: tuple[str, ...] = ()
) -> Listing:
    classes, more = labels.of_folders(image.label for image in listed)
    listed = sorted((image._replace(label=classes[image.label]) for image in listed), key=lambda image: image.path)
    listing = Listing(folder, folder, listed, names=names, notes=(*notes, *more))
    if rest := len(images) - len(listed):
        listing.ignored["images in no list"] += rest
    return listing


def _lists(folder: Path, images: Sequence[Entry], texts: Mapping[str, Entry], reading: Reading) -> Listing | None:
    """Lists called train.txt, val.txt, test.txt, trainval.txt, train1.txt, images_variant_train.txt and such."""
    groups = defaultdict[str, dict[str, Entry]](dict)  # what else the name says -> part and its words -> list
    for entry in texts.values():
        stem = os.path.splitext(entry.parts[-1])[0]
        part, _ = part_of(re.sub(r"[\d]+", "_", stem))
        if part in ("train", "validation", "test"):
            words = [word for word in re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", stem).casefold())]
            rest = [word for word in words if not part_of(word)[0] and not re.fullmatch(KINDS, word)]
            number = re.findall(r"\d+", stem)
            kind = "trainval" if "trainval" in "".join(words) else part
            groups[" ".join([*rest, *number])].setdefault(kind, entry)
    finder = Finder(folder, images)
    usable: dict[str, dict[str, list[Line]]] = {}
    for key, lists in groups.items():
        if "train" in lists and ("validation" in lists or "test" in lists):
            lists.pop("trainval", None)
        if len(lists) < 2 or not {"train", "trainval"} & lists.keys():
            continue
        sides = {part: lines for part, entry in lists.items() if (lines := _lines(finder, entry))}
        if len(sides) == len(lists):
            usable[key] = sides
    if not usable:
        return None
    notes = []
    plain = [entry for entry in images if any(part_of(part)[0] for part in entry.parts[:1])]
    if len(plain) == len(images):  # train/… and val/…: the folders say the same
        return None
    labelled = {key: sides for key, sides in usable.items() if all(line.label for lines in sides.values() for line in lines)}
    several = {re.sub(r"[ \d]+$", "", key): key for key in sorted(labelled, reverse=True)}
    if len(several) > 1 and (wanted := reading.columns.get("label", "")) not in several:
        names = ", ".join(sorted(several))
        raise Refused(f"{folder}: lists of {names}: which is the label? --columns label={sorted(several)[0]}", 2)
    if labelled:
        wanted = reading.columns.get("label", "") if len(several) > 1 else next(iter(several))
        key = several[wanted]
        usable = labelled
    else:
        key = min(usable, key=lambda name: [int(word) if word.isdigit() else -1 for word in name.split()] or [-1])
    sides = usable[key]
    files = ", ".join(groups[key][part].name for part in sides)
    others = len(usable) - 1 if re.search(r"\d", key) else 0
    notes.append(f"split of {files}" + f"; {others} more such splits are not used" * (others > 0))
    return _from_lists(folder, images, finder, sides, groups[key], notes)


def _from_lists(
    folder: Path,
    images: Sequence[Entry],
    finder: Finder,
    sides: Mapping[str, list[Line]],
    lists: Mapping[str, Entry],
    notes: list[str],
) -> Listing | None:
    """The images of `lists`: their labels are those of the lists, else the folders that they lie in."""
    listed, seen, twice = list[ListedImage](), dict[str, str](), 0
    there = [finder.entries[line.path].parts for lines in sides.values() for line in lines if line.path in finder.entries]
    in_folders = all(len(parts) > 1 and not is_images(parts[-2]) for parts in there) and len({parts[-2] for parts in there}) > 1
    with_labels = all(line.label for lines in sides.values() for line in lines)
    if not in_folders and not with_labels:
        return None
    folders = {tuple(part for part in parts[:-1] if not part_of(part)[0]) for parts in there}
    if in_folders and len({path[-1] for path in folders}) < len(folders):
        return None  # church/indoor and restaurant/indoor
    names = {} if in_folders else _names(sides) or _named(folder, lists, sides)
    for part, lines in sides.items():
        split = "train" if part == "trainval" else part
        for line in lines:
            twice += line.path in seen
            if seen.setdefault(line.path, split) != split:
                raise Refused(f"{folder}: {line.path} is in the lists of {seen[line.path]} and of {split}", 4)
            above = line.path.replace("\\", "/").split("/")[:-1]
            label = above[-1] if in_folders and above else names.get(line.label, line.label)
            if not label:
                raise Refused(
                    f"{folder}: {line.path} of {lists[part].name} is not there, and has no class; take it out of the list", 4
                )
            listed.append(finder.listed(line.path, label, split))
    listed = [*dict.fromkeys(listed)]
    if len(listed) > len(seen):
        paths = Counter(image.path for image in listed)
        raise Refused(f"{folder}: the lists give {next(path for path in paths if paths[path] > 1)} two labels; take one out", 4)
    if twice:
        notes.append(f"the lists name {twice:,} image{'s' * (twice > 1)} again, which {'are' if twice > 1 else 'is'} there once")
    return _listing(folder, images, listed, notes)


def _names(sides: Mapping[str, list[Line]]) -> dict[str, str]:
    """Numbers of classes -> what all names of their images begin with, as Abyssinian_1.jpg; empty if they do not."""
    starts = defaultdict[str, set[str]](set)
    for lines in sides.values():
        for line in lines:
            match = re.fullmatch(r"(.+?)_\d+", os.path.splitext(os.path.basename(line.path))[0])
            starts[line.label].add(match[1] if match else "")
    names = {label: next(iter(names)) for label, names in starts.items() if len(names) == 1}
    whole = len(names) == len(starts) and len({*names.values()}) == len(names) and "" not in names.values()
    return names if whole and all(label.isdecimal() for label in names) else {}


def _named(folder: Path, lists: Mapping[str, Entry], sides: Mapping[str, list[Line]]) -> dict[str, str]:
    """Numbers of classes -> their names in a file beside a list, such as classes.txt."""
    numbers = [line.label for lines in sides.values() for line in lines]
    if not all(number.isdecimal() for number in numbers):
        return {}
    names = cells.named(Path(next(iter(lists.values())).path), numbers)
    return dict(zip(numbers, names, strict=True))


def _lines(finder: Finder, entry: Entry) -> list[Line] | None:
    """The images that a list names; None if half of its lines name none."""
    rows = [row for row in _rows(entry) if not row[0].startswith("#")]
    if whole := finder.try_most([" ".join(row) for row in rows]):
        return [Line(path, "") for path in whole]
    first = finder.try_most([row[0] for row in rows])
    if not first:
        return None
    rest = [row[1].strip() if len(row) > 1 else "" for row in rows]
    if all(re.fullmatch(r"-?\d+( +-?\d+)*", label) for label in rest):
        rest = [label.split()[0] for label in rest]
    return [Line(path, label) for path, label in zip(first, rest, strict=True)]


def flat_side(content: Sequence[Entry], images: Sequence[Entry], classes: set[str]) -> tuple[dict[str, str], str]:
    """name -> class of each of `images`, which lie in no class folder, and the table that says so; empty if none does.

    The table names all of them, and only `classes`.
    """
    stems = {os.path.splitext(entry.parts[-1])[0] for entry in images}
    for entry in content:
        suffix = os.path.splitext(entry.name)[1].casefold()
        if entry.kind != "file" or suffix not in (".csv", ".tsv", ".txt") or entry.size > LIMIT or len(entry.parts) > DEPTH + 3:
            continue
        if any(word in entry.parts[-1].casefold() for word in TRIALS):
            continue
        try:
            rows = cells.lines(Path(entry.path))
        except (OSError, ValueError):
            continue
        named = {}
        for row in rows:
            match = [
                number for number, cell in enumerate(row) if os.path.splitext(cell.replace("\\", "/").split("/")[-1])[0] in stems
            ]
            if match:
                stem = os.path.splitext(row[match[0]].replace("\\", "/").split("/")[-1])[0]
                named[stem] = [tidy(cell) for number, cell in enumerate(row) if number != match[0]]
        if named.keys() != stems:
            continue
        columns = [
            number for number in range(min(map(len, named.values())))
            if all(_class(row[number], classes) for row in named.values())
        ]  # fmt: skip
        if len(columns) == 1:
            by_stem = {stem: _class(row[columns[0]], classes) for stem, row in named.items()}
            return {image.name: by_stem[os.path.splitext(image.parts[-1])[0]] for image in images}, entry.name
    return {}, ""


def _class(cell: str, classes: set[str]) -> str:
    """The class that a cell is, or that it begins with; as a number, 3 is also 00003."""
    first = cell.split(" ")[0] if cell else ""
    for name in (cell, first):
        if name in classes:
            return name
    if first.isdecimal():
        return next((name for name in classes if name.isdecimal() and int(name) == int(first)), "")
    return ""


def shown_names(names: Sequence[str]) -> str:
    """A few names for a line."""
    return ", ".join(map(shown, names[:SHOWN])) + f" and {len(names) - SHOWN:,} more" * (len(names) > SHOWN)
