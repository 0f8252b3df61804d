"""Folders of images as people have them, a folder for each class, split or not. The one reader of class folders.

    photos/<class>/…                    not split
    photos/train/<class>/…, val/…, test/…   split; validation may be called val, valid or validation
    photos/train/<class>/…              alone: not split

The class is the first folder; what is below it belongs to it, in folders or not.
"""

import functools
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.formats import is_dicom
from ..errors import Refused
from . import labels
from .listing import SPLITS, ListedImage, Listing

NO_CLASSES = ("__MACOSX", "__pycache__")  # folders that a program has left there

# What people call images. DICOM and HEIC are among them also where nothing reads them: such files are named, not passed over.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".avif", ".jp2", ".j2k",
     ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".hif", ".dcm", ".dicom")
)  # fmt: skip


class Entry(NamedTuple):
    """Something in a folder. `kind` is file, folder, hidden, broken link, link in a circle, or special (a device, a pipe)."""

    path: str
    kind: str
    name: str  # its path below the folder
    parts: list[str]  # of its name
    size: int = 0  # bytes of a file
    time: int = 0  # of its last change, ns


def entries(folder: Path) -> list[Entry]:
    """Everything in `folder`, an absolute path, and in its subfolders, as `walk` has it. Raises Refused (1)."""
    try:
        return [*walk(folder)]
    except OSError as error:
        raise Refused(f"{error.filename or folder}: {error.strerror or error}") from error


def walk(folder: Path | str, parts: Sequence[str] = (), above: tuple[tuple[int, int], ...] = ()) -> Iterator[Entry]:
    """Everything in a folder and its subfolders, sorted by name, a folder before what is in it.

    Follows links, but not in circles. Of hidden files and folders (.git, __MACOSX, __pycache__) only the name is given. Raises
    OSError.
    """
    here = os.stat(folder)
    above = (*above, (here.st_dev, here.st_ino))
    with os.scandir(folder) as scan:
        items = sorted(scan, key=lambda item: item.name)
    prefix = "".join(part + os.sep for part in parts)
    for item in items:
        below = [*parts, item.name]
        name = prefix + item.name
        if item.name.startswith("."):
            yield Entry(item.path, "hidden", name, below)
            continue
        try:
            status = item.stat()
        except OSError:
            if not item.is_symlink():
                raise
            yield Entry(item.path, "broken link", name, below)
            continue
        if not stat.S_ISDIR(status.st_mode):
            kind = "file" if stat.S_ISREG(status.st_mode) else "special"
            yield Entry(item.path, kind, name, below, status.st_size, status.st_mtime_ns)
        elif item.name in NO_CLASSES:
            yield Entry(item.path, "hidden", name, below)
        elif (status.st_dev, status.st_ino) in above:
            yield Entry(item.path, "link in a circle", name, below)
        else:
            yield Entry(item.path, "folder", name, below)
            yield from walk(item.path, below, above)


def is_image(entry: Entry, suffixes: Collection[str] = SUFFIXES) -> bool:
    """Whether it should be an image. A broken link is named with the bad files."""
    name = entry.parts[-1]
    suffix = name[max(name.rfind("."), 0) :].lower()  # .jpg is hidden
    if suffix in suffixes:
        return entry.kind in ("file", "broken link")
    # DICOM has names without a suffix, as IM000012, or numbers with points, as 1.2.840.10008.
    nameless = suffix == name.lower() or suffix[1:].isdecimal()
    return nameless and entry.kind == "file" and suffixes is SUFFIXES and _is_dicom(entry.path, entry.time)


@functools.lru_cache(maxsize=1 << 16)  # files: asked several times while a folder is listed
def _is_dicom(path: str, _time: int) -> bool:
    return is_dicom(path)


def kind_of(entry: Entry) -> str:
    """What to call an entry that is neither an image nor a folder: by its extension, if it is a file."""
    suffix = os.path.splitext(entry.parts[-1])[1].lower()
    return suffix or "no extension" if entry.kind == "file" else entry.kind


def class_folders(
    folder: Path,
    content: Sequence[Entry],
    splits: Mapping[str, str] | None = None,
    suffixes: Collection[str] = SUFFIXES,
    places: Mapping[str, Sequence[str]] | None = None,
) -> Listing:
    """The images in `folder`, whose `entries` are `content`: files with one of the `suffixes`.

    `splits` maps top folders to the split they are (None: as `splits_of` says). `places` are the parts of images by name, as
    layout.py has them; others are left out. Raises Refused: 1 if there are no images, 4 without class folders.
    """
    files: list[tuple[Entry, Sequence[str]]] = []
    ignored: Counter[str] = Counter()
    for entry in content:
        if places and entry.name in places:
            files.append((entry, places[entry.name]))
        elif is_image(entry, suffixes):
            if places is None:
                files.append((entry, entry.parts))
        elif entry.kind != "folder":
            ignored[kind_of(entry)] += 1
    if not files:
        raise Refused(f"{folder}: no images in it{listed(ignored)}; name a folder with a folder for each class, or a table")
    splits = splits_of([parts for _, parts in files]) if splits is None else splits
    level = 1 + bool(splits)  # of the parts: those of folders
    classes, notes = labels.of_folders(parts[level - 1] for _, parts in files if len(parts) > level)
    images, used = [], set[tuple[str, ...]]()
    for entry, parts in files:
        if splits and parts[0] not in splits:
            ignored["images outside " + " ".join(f"{name}/" for name in splits)] += 1
        elif len(parts) <= level:
            ignored["images outside a class folder"] += 1
        else:
            split = splits[parts[0]] if splits else ""
            images.append(ListedImage(entry.name, classes[parts[level - 1]], split, entry.size, entry.time))
            used.add((*entry.parts[: len(entry.parts) - len(parts) + level],))
    if not images:
        raise Refused(f"{folder}: no class folders; put the images of each class into a folder of its own, or give a table", 4)
    around = {path[:-1] for path in used}
    there = [tuple(entry.parts) for entry in content if entry.kind == "folder"]
    ignored["class folders without images"] += sum(path[:-1] in around and path not in used for path in there)
    return Listing(folder, folder, images, +ignored, notes=tuple(notes))


def splits_of(images: Sequence[Sequence[str]]) -> dict[str, str]:
    """What the top folders are called -> the split they are; empty if they are classes. `images` are the parts of paths.

    They are splits if train/ has another beside it, in which there are class folders, too; train/ alone has to be split like any
    other folder.
    """
    above, top = {parts[0] for parts in images if len(parts) > 2}, {parts[0] for parts in images}
    splits = {name: SPLITS[name.casefold()] for name in sorted(above) if name.casefold() in SPLITS}
    if "train" in splits.values() and len({*splits.values()}) > 1:
        return splits
    return dict.fromkeys(splits, "") if splits and top == splits.keys() and {*splits.values()} == {"train"} else {}


def listed(ignored: Counter[str]) -> str:
    """What to say of other files, in brackets."""
    return f" ({', '.join(f'{count} {kind}' for kind, count in ignored.most_common(5))})" if ignored else ""
