"""What lies in a folder of images, as people have it: a folder for each class, split or not.

    photos/<class>/…                    not split
    photos/train/<class>/…, val/…, test/…   split; validation may be called val, valid or validation
    photos/train/<class>/…              alone: not split

The class is the first folder; what is below it belongs to it, in folders or not.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import NamedTuple

from ..errors import Refused
from . import labels
from .walk import Entry, walk

SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

# What people call images. HEIC is among them although Pillow cannot read it: such files are named, not passed over.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".avif", ".jp2", ".j2k",
     ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif")
)  # fmt: skip

DIGITS = 1000  # of a label that is a number: of more, Python makes no int


class ListedImage(NamedTuple):
    """A file that should be an image. `size` in bytes and `time` of its last change in ns; both 0 if the file is missing."""

    path: str  # below the listing's root, or absolute
    label: str
    split: str  # train, validation, test; empty where nobody has said
    size: int
    time: int


@dataclass(frozen=True)
class Listing:
    """What was found, before any file is opened. `images` are sorted by path, those of a table in its order."""

    source: Path  # absolute: the folder or the table; or owner/name of the hub
    root: Path  # absolute: what the paths of images are relative to
    images: list[ListedImage]
    ignored: Counter[str] = field(default_factory=Counter)  # kind of file -> number
    row: Callable[[str], BufferedReader | BytesIO] | None = None  # opens what a table holds, by its path; None for files
    names: tuple[str, ...] = ()  # of classes, in their order, if a table says them
    revision: str = ""  # of the hub: the commit
    notes: tuple[str, ...] = ()  # lines about what was guessed

    @property
    def classes(self) -> tuple[str, ...]:
        """Those with images, as the table has them, else sorted: by number if all names are whole numbers, else by name."""
        names = {image.label for image in self.images}
        if names <= {*self.names}:
            return tuple(name for name in self.names if name in names)
        numbers = all(name.isdecimal() and len(name) < DIGITS for name in names)
        return tuple(sorted(names, key=(lambda name: (int(name), name)) if numbers else None))


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


def entries(folder: Path) -> list[tuple[Entry, list[str]]]:
    """What is in `folder`, an absolute path, with the parts of its path below it. Raises Refused (1)."""
    prefix = len(os.path.join(folder, ""))
    try:
        return [(entry, entry.path[prefix:].split(os.sep)) for entry in walk(folder)]
    except OSError as error:
        raise Refused(f"{error.filename or folder}: {error.strerror or error}") from error


def is_image(entry: Entry) -> bool:
    """Whether it should be an image. A broken link is named with the bad files."""
    return entry.kind in ("file", "broken link") and os.path.splitext(entry.path)[1].lower() in SUFFIXES


def kind_of(entry: Entry, parts: list[str]) -> str:
    """What to call an entry that is neither an image nor a folder: by its extension, if it is a file."""
    suffix = os.path.splitext(parts[-1])[1].lower()
    return suffix or "no extension" if entry.kind == "file" else entry.kind


def class_folders(folder: Path, found: list[tuple[Entry, list[str]]]) -> Listing:
    """The images in `folder`, whose `entries` are `found`. Raises Refused: 1 if it has none, 4 without class folders."""
    files: list[tuple[Entry, list[str]]] = []
    ignored: Counter[str] = Counter()
    for entry, parts in found:
        if is_image(entry):
            files.append((entry, parts))
        elif entry.kind != "folder":
            ignored[kind_of(entry, parts)] += 1
    if not files:
        raise Refused(f"{folder}: no images in it{_listed(ignored)}; name a folder with a folder for each class, or a table")
    splits = splits_of([parts for _, parts in files])
    images = []
    classes, notes = labels.of_folders(parts[bool(splits)] for _, parts in files if len(parts) > 1 + bool(splits))
    for entry, parts in files:
        if splits and parts[0] not in splits:
            ignored["images outside " + " ".join(f"{name}/" for name in splits)] += 1
        elif len(parts) < 2 + bool(splits):
            ignored["images outside a class folder"] += 1
        else:
            size, time = (entry.status.st_size, entry.status.st_mtime_ns) if entry.status else (0, 0)
            label, split = (parts[1], splits[parts[0]]) if splits else (parts[0], "")
            images.append(ListedImage(os.sep.join(parts), classes[label], split, size, time))
    if not images:
        raise Refused(f"{folder}: no class folders; put the images of each class into a folder of its own, or give a table", 4)
    level = 2 if splits else 1
    named = {(parts[0], parts[level - 1]) for _, parts in files if len(parts) > level}
    empty = [p for entry, p in found if entry.kind == "folder" and len(p) == level and (p[0], p[-1]) not in named]
    ignored["class folders without images"] += sum(level == 1 or parts[0] in splits for parts in empty)
    return Listing(folder, folder, images, +ignored, notes=tuple(notes))


def splits_of(images: Sequence[Sequence[str]]) -> dict[str, str]:
    """What the top folders are called -> the split they are; empty if they are classes. `images` are the parts of paths.

    They are splits if train/ has another beside it, in which there are class folders, too; train/ alone has to be split like any
    other folder.
    """
    above, top = {parts[0] for parts in images if len(parts) > 2}, {parts[0] for parts in images}
    found = {name: SPLITS[name.casefold()] for name in sorted(above) if name.casefold() in SPLITS}
    if "train" in found.values() and len({*found.values()}) > 1:
        return found
    return dict.fromkeys(found, "") if found and top == found.keys() and {*found.values()} == {"train"} else {}


def _listed(ignored: Counter[str]) -> str:
    return f" ({', '.join(f'{count} {kind}' for kind, count in ignored.most_common(5))})" if ignored else ""
