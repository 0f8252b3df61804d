"""Train, validation and test where images are not split: by content, and `split.csv`.

The sha256 of a file's content decides, not its name, its place or what lies beside it. A folder can be moved and files can be
added without any other image changing sides, and exact duplicates land on one side. Each class has the same proportions,
up to chance. The exception is a class so small that chance leaves a side empty: see `split_by_content`.
"""

import csv
import hashlib
import io
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ..errors import Refused
from . import table
from .labels import tidy
from .listing import SPLITS, Listing

NAMES = ("train", "validation", "test")
FOLDED = slice(13, 26)  # of a digest: the hexadecimal digits that draw its fold, which are others than those of its split


def split_by_content(contents: Mapping[str, Sequence[str]], validation: float, test: float) -> dict[str, str]:
    """Which of NAMES each content belongs to. `contents` maps each class to the sha256 digests of its images.

    A class of one image has it in train; of two, the other one in validation; from three on it has at least one in each (in
    those whose fraction is not 0): the image nearest to an empty side is moved there. A content of several classes goes where
    the first of them puts it. Raises Refused (2) for fractions that leave nothing to train on.
    """
    for flag, fraction in (("--validation", validation), ("--test", test)):
        if not 0 <= fraction < 1:
            raise Refused(f"{flag} must be at least 0 and less than 1, got {fraction:g}", 2)
    if validation + test >= 1:
        raise Refused(f"--validation {validation:g} and --test {test:g} leave nothing to train on", 2)
    placed: dict[str, str] = {}
    for label in sorted(contents):
        ordered = sorted({*contents[label]})  # a digest, read as a fraction, is a random draw from 0 to 1
        fractions, count = [*map(_fraction, ordered)], len(ordered)
        wanted = [1, int(validation > 0), int(test > 0)]
        while sum(wanted) > count:
            wanted[max(side for side in range(3) if wanted[side])] = 0
        ends = [bisect_left(fractions, share) for share in (1 - validation - test, 1 - test)]
        first = min(max(ends[0], wanted[0]), count - wanted[1] - wanted[2])
        second = min(max(ends[1], first + wanted[1]), count - wanted[2])
        for number, content in enumerate(ordered):
            placed.setdefault(content, NAMES[(number >= first) + (number >= second)])
    return placed


def folds_by_content(contents: Mapping[str, Sequence[str]], k: int) -> dict[str, int]:
    """Which of the folds 1 to `k` each content belongs to; `contents` as for `split_by_content`, whose rules are the same.

    What is drawn does not depend on what `split_by_content` draws, so that folds of what it leaves are of one size up to chance.
    Raises Refused (4) for a class of fewer than `k` images.
    """
    placed: dict[str, int] = {}
    for label in sorted(contents):
        ordered = sorted({*contents[label]}, key=lambda digest: digest[FOLDED])
        fractions, count = [_fraction(digest[FOLDED]) for digest in ordered], len(ordered)
        if count < k:
            raise Refused(
                f"{k} folds need {k} different images, or groups, of each class; {label} has {count}: take fewer folds", 4
            )
        first = 0
        for fold in range(1, k + 1):
            end = min(max(bisect_left(fractions, fold / k), first + 1), count - (k - fold)) if fold < k else count
            for content in ordered[first:end]:
                placed.setdefault(content, fold)
            first = end
    return placed


def units(contents: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, str]:
    """path -> what has to stay on one side, as a digest: its content, or its group with all that have a content in common.

    `contents` are the sha256 digests of images by path, `groups` names of groups by path; an image without a name is its own.
    """
    if not groups:
        return {**contents}
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := above.setdefault(name, name)) != name:
            above[name] = above[parent]
            name = parent
        return name

    for path, content in contents.items():
        if group := groups.get(path):
            first, second = sorted(
                (root(content), root(f"group {group}")), key=lambda name: (not name.startswith("group "), name)
            )
            above[second] = first  # a group's name, which does not change with what is added
    return {
        path: hashlib.sha256(os.fsencode(unit)).hexdigest() if (unit := root(content)).startswith("group ") else unit
        for path, content in contents.items()
    }


def straddling(splits: Mapping[str, str], groups: Mapping[str, str]) -> list[str]:
    """The groups that have images in several splits."""
    sides = defaultdict[str, set[str]](set)
    for path, side in splits.items():
        if group := groups.get(path):
            sides[group].add(side)
    return [group for group, names in sides.items() if len(names) > 1]


def mended(splits: Mapping[str, str], unit: Mapping[str, str]) -> dict[str, str]:
    """`splits` with all of a unit, as `units` has them, on one side: on that which is held out the longest, the test's first."""
    last: dict[str, str] = {}
    for path, side in splits.items():
        last[unit[path]] = max(last.get(unit[path], side), side, key=NAMES.index)
    return {path: last[unit[path]] for path in splits}


def _fraction(digest: str) -> float:
    return int(digest[:13], 16) / 16**13  # 52 bits, which a float holds


def as_csv(rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ("path", "label", "split", "sha256")) -> bytes:
    """split.csv, or another table with this `head`."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return os.fsencode(file.getvalue())


def read(path: Path, listing: Listing, good: Collection[str]) -> dict[str, str]:
    """The split of paths of `listing` as the file says: a table with the columns path and split; others are not read.

    Raises Refused: 1 if the file cannot be read, 4 if it lacks one of the paths `good`, names one that `listing` lacks, or names
    no split or two for one.
    """
    splits: dict[str, str] = {}
    paths = {image.path for image in listing.images}
    for number, (name, side) in enumerate(table.rows(path, ("path", "split")), 1):
        split = SPLITS.get(tidy(side).casefold())
        if not split:
            raise Refused(f"{path}: row {number} has the split {side!r}; it takes train, validation or test", 4)
        name = name if name in paths else name.strip()
        if splits.setdefault(name, split) != split:
            raise Refused(f"{path}: {name} is in {splits[name]} and, in row {number}, in {split}", 4)
    for lost, where in (
        ({*good} - splits.keys(), f"not in {path}"),
        (splits.keys() - paths, f"in {path}, not in {listing.source}"),
    ):
        if lost:
            more = f" and {len(lost) - 1} more are" if len(lost) > 1 else " is"
            raise Refused(f"{min(lost)}{more} {where}; a split file names each image once", 4)
    return splits
