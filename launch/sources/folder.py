"""Folders of images as people have them, a folder for each class, split or not. The one reader of class folders.

    photos/<class>/…                    not split
    photos/train/<class>/…, val/…, test/…   split; validation may be called val, valid or validation
    photos/train/<class>/…              alone: not split

The class is the first folder; what is below it belongs to it, in folders or not.
"""

import functools
import itertools
import operator
import os
import stat
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import Refused
from . import labels
from .listing import SPLITS, ListedImage, Listing

NO_CLASSES = ("__MACOSX", "__pycache__")  # folders that a program has left there

# What people call images. DICOM and HEIC are among them also where nothing reads them: such files are named, not passed over.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".avif", ".jp2", ".j2k",
     ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".hif", ".dcm", ".dicom")
)  # fmt: skip


class Folder(NamedTuple):
    """A folder that was walked: its path, and the parts of its name below the first one."""

    path: str
    parts: tuple[str, ...]


class Entry(NamedTuple):
    """Something in a folder. `kind` is file, folder, hidden, broken link, link in a circle, or special (a device, a pipe)."""

    name: str  # its path below the first folder
    kind: str
    folder: Folder  # which it lies in: one object for all of them
    size: int = 0  # bytes of a file
    time: int = 0  # of its last change, ns

    @property
    def last(self) -> str:
        """Its name in its folder."""
        return self.name.rpartition(os.sep)[2]

    @property
    def parts(self) -> list[str]:
        """The parts of its name."""
        return [*self.folder.parts, self.last]

    @property
    def path(self) -> str:
        return os.path.join(self.folder.path, self.last)


def entries(folder: Path) -> list[Entry]:
    """Everything in `folder`, an absolute path, and in its subfolders, as `walk` has it. Raises Refused (1)."""
    try:
        return walk(folder)
    except OSError as error:
        raise Refused(f"{error.filename or folder}: {error.strerror or error}") from error


def walk(folder: Path | str) -> list[Entry]:
    """Everything in a folder and its subfolders, sorted by name, a folder before what is in it.

    Follows links, but not in circles. Of hidden files and folders (.git, __MACOSX, __pycache__) only the name is given. Raises
    OSError.
    """
    found: list[Entry] = []
    _walk(Folder(os.fspath(folder), ()), (), found)
    return found


def _walk(folder: Folder, above: tuple[tuple[int, int], ...], found: list[Entry]) -> None:
    """Add what is in `folder`; the folders `above` it are known by device and inode."""
    here = os.stat(folder.path)
    above = (*above, (here.st_dev, here.st_ino))
    with os.scandir(folder.path) as scan:
        items = sorted(scan, key=operator.attrgetter("name"))
    prefix = "".join(part + os.sep for part in folder.parts)
    for item in items:
        name = prefix + item.name
        if item.name[0] == ".":
            found.append(Entry(name, "hidden", folder))
            continue
        try:
            status = item.stat()
        except OSError:
            if not item.is_symlink():
                raise
            found.append(Entry(name, "broken link", folder))
            continue
        if stat.S_ISREG(status.st_mode):
            found.append(Entry(name, "file", folder, status.st_size, status.st_mtime_ns))
        elif not stat.S_ISDIR(status.st_mode):
            found.append(Entry(name, "special", folder, status.st_size, status.st_mtime_ns))
        elif item.name in NO_CLASSES:
            found.append(Entry(name, "hidden", folder))
        elif (status.st_dev, status.st_ino) in above:
            found.append(Entry(name, "link in a circle", folder))
        else:
            found.append(Entry(name, "folder", folder))
            _walk(Folder(item.path, (*folder.parts, item.name)), above, found)


def one_per_folder(images: Sequence[Entry]) -> list[Entry]:
    """The first of `images` in each folder that has some."""
    return [*{id(entry.folder): entry for entry in reversed(images)}.values()][::-1]


def is_image(entry: Entry, suffixes: Collection[str] = SUFFIXES) -> bool:
    """Whether it should be an image. A broken link is named with the bad files."""
    suffix = entry.name[entry.name.rfind(".") :].lower()
    if suffix in suffixes:
        return entry.kind == "file" or entry.kind == "broken link"
    name = entry.last
    suffix = name[max(name.rfind("."), 0) :].lower()
    # DICOM has names without a suffix, as IM000012, or numbers with points, as 1.2.840.10008.
    nameless = suffix == name.lower() or suffix[1:].isdecimal()
    return nameless and entry.kind == "file" and suffixes is SUFFIXES and _is_dicom(entry.path, entry.time)


@functools.lru_cache(maxsize=1 << 16)  # files: asked several times while a folder is listed
def _is_dicom(path: str, _time: int) -> bool:
    from ..data.formats import is_dicom  # imports PIL

    return is_dicom(path)


def kind_of(entry: Entry) -> str:
    """What to call an entry that is neither an image nor a folder: by its extension, if it is a file."""
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix or "no extension" if entry.kind == "file" else entry.kind


def class_folders(
    folder: Path,
    content: Sequence[Entry],
    splits: Mapping[str, str] | None = None,
    suffixes: Collection[str] = SUFFIXES,
    places: Mapping[str, Sequence[str]] | None = None,
    images: Sequence[Entry] | None = None,
) -> Listing:
    """The images in `folder`, whose `entries` are `content`: files with one of the `suffixes`, or those that are named.

    `splits` maps top folders to the split they are (None: as `splits_of` says). `places` are the parts of images by name, as
    layout.py has them; others are left out. `images` are all of them, with the parts that they have: other files are not
    counted. Raises Refused: 1 if there
    are no images, 4 without class folders.
    """
    ignored: Counter[str] = Counter()
    if images is None:
        images = []
        for entry in content:
            if is_image(entry, suffixes) if places is None else entry.name in places:
                images.append(entry)
            elif entry.kind != "folder" and not (places and is_image(entry, suffixes)):
                ignored[kind_of(entry)] += 1
    if not images:
        raise Refused(f"{folder}: no images in it{listed(ignored)}; name a folder with a folder for each class, or a table")
    # What lies in one folder has the same parts but the last, unless its place is another.
    together = [(entry.parts, [entry]) for entry in images] if places else _by_folder(images)
    groups = [(places[some[0].name] if places else parts, some) for parts, some in together]
    splits = splits_of([parts for parts, _ in groups]) if splits is None else splits
    level = 1 + bool(splits)  # of the parts: those of folders
    classes, notes = labels.of_folders(dict.fromkeys(parts[level - 1] for parts, _ in groups if len(parts) > level))
    found, used = list[ListedImage](), set[tuple[str, ...]]()
    for parts, some in groups:
        if splits and parts[0] not in splits:
            ignored["images outside " + " ".join(f"{name}/" for name in splits)] += len(some)
        elif len(parts) <= level:
            ignored["images outside a class folder"] += len(some)
        else:
            label, split = classes[parts[level - 1]], splits[parts[0]] if splits else ""
            found += [ListedImage(entry.name, label, split, entry.size, entry.time) for entry in some]
            own = some[0].parts
            used.add((*own[: len(own) - len(parts) + level],))
    if not found:
        raise Refused(f"{folder}: no class folders; put the images of each class into a folder of its own, or give a table", 4)
    around = {path[:-1] for path in used}
    there = [tuple(entry.parts) for entry in content if entry.kind == "folder"]
    ignored["class folders without images"] += sum(path[:-1] in around and path not in used for path in there)
    return Listing(folder, folder, found, +ignored, notes=tuple(notes))


def _by_folder(images: Sequence[Entry]) -> list[tuple[list[str], list[Entry]]]:
    """Neighbours in a folder, with the parts of the first: the last part is its own."""
    groups = ([*some] for _, some in itertools.groupby(images, key=lambda entry: id(entry.folder)))
    return [(some[0].parts, some) for some in groups]


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
