"""What a listing is: the images that a folder, a table or the hub has, before any of them is opened."""

import contextlib
import gc
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import NamedTuple

from ..errors import Refused, first_line
from .labels import shown
from .several import AS_FOUND, Rules, parts

SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?")
DIGITS = 1000  # of a label that is a number: of more, Python makes no int


class ListedImage(NamedTuple):
    """A file that should be an image. `size` in bytes and `time` of its last change in ns; both 0 if the file is missing."""

    path: str  # below the listing's root, or absolute
    label: str  # of several ones, see several.py
    split: str  # train, validation, test; empty if not given
    size: int
    time: int


@dataclass(frozen=True)
class Listing:
    """What was listed, before any file is opened. `images` are sorted by path, those of a table in its order."""

    source: Path  # absolute: the folder or the table; or owner/name of the hub
    root: Path  # absolute: what the paths of images are relative to
    images: list[ListedImage]
    ignored: Counter[str] = field(default_factory=Counter)  # kind of file -> number
    row: Callable[[str], BufferedReader | BytesIO] | None = None  # opens what a table holds, by its path; None for files
    names: tuple[str, ...] = ()  # of classes, in their order, if a table says them
    revision: str = ""  # of the hub: the commit
    notes: tuple[str, ...] = ()  # lines about what was guessed
    groups: Mapping[str, str] = field(default_factory=dict)  # path -> what it has in common with others, such as the patient
    multi_label: bool = False

    def labels_of(self, image: ListedImage) -> list[str]:
        """The classes that an image has: one, or any number of them."""
        return parts(image.label)[0] if self.multi_label else [image.label]

    @property
    def classes(self) -> tuple[str, ...]:
        """Those with images, as the table has them, else sorted: by number if all names are whole numbers, else by name."""
        names = {image.label for image in self.images}
        if self.multi_label:
            names = {name for text in names for name in parts(text)[0]}
        if names <= {*self.names}:
            return tuple(name for name in self.names if name in names)
        numbers = all(name.isdecimal() and len(name) < DIGITS for name in names)
        return tuple(sorted(names, key=(lambda name: (int(name), name)) if numbers else None))


@dataclass(frozen=True)
class Reading:
    """How to read what is there, as far as that is told."""

    columns: Mapping[str, str] = field(default_factory=dict)  # image, label, split, group -> the name of a table's column
    label_from: str = ""  # a regular expression, of which the first group is the class in a file's name
    classes_at: int = 0  # the depth of the class folders, from 1; 0: to be found
    relabel: str = ""  # a table of path and label: labels to correct
    rules: Rules = AS_FOUND  # of several labels of an image
    known: Collection[str] = ()  # classes that need not be doubted, those of a trained net
    bands: tuple[int, ...] = ()  # of TIFF files, see data/formats.py


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Context manager: no garbage is collected while many small tuples are made, which are in no circles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def open_image(listing: Listing, image: ListedImage) -> BufferedReader | BytesIO:
    """The encoded content of an image: of its file, or of its row in a table. Several threads may call it at a time.

    Raises OSError (FileNotFoundError if there is no such file, or nothing in the row), and ValueError for a path that cannot be
    one.
    """
    if listing.row:
        return listing.row(image.path)
    return open_file(os.path.join(listing.root, image.path))


def open_file(path: str) -> BufferedReader:
    """An open file. Raises OSError, also for a pipe or a device, which may never end."""
    if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{path} is not a file")
    return open(path, "rb")


def is_hub_name(path: Path) -> bool:
    """Whether `path` may be a data set of the hub: owner/name or owner/name:config, and no such file or folder is here."""
    return HUB_NAME.fullmatch(str(path)) is not None and not path.exists()


def located(path: Path) -> Path:
    """`path` as an absolute one: the same folder has the same index from wherever it is named; owner/name of the hub as it is.

    Raises Refused (2).
    """
    try:
        if is_hub_name(path):
            return path
        absolute = path.expanduser().resolve()
        absolute.exists()
        return absolute
    except (OSError, RuntimeError, ValueError) as error:  # an unknown ~user, a circle of links, a name that is too long
        raise Refused(f"{shown(str(path))}: {getattr(error, 'strerror', None) or first_line(error)}", 2) from error
