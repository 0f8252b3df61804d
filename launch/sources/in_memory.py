"""Images of one size, decoded into memory: the named data sets, of the hub or of a folder. Decoded once, then kept.

A folder is decoded again when the name, size or modification time of a file in it has changed. Contents are not compared: a file
replaced by another one of the same size and modification time goes unnoticed.
"""

import contextlib
import glob
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path

import torch
from PIL import Image
from rich.progress import Progress

from ..cache import digest, slug
from ..data import decode, image_file
from ..data.dataset import DataSet, Shape, Split, split_name
from ..errors import Refused, first_line
from . import decoded, hub, parquet
from .folder import Entry, class_folders, is_image, walk
from .listing import ListedImage, Listing, open_image

WAYS_OUT = "--data PATH for a folder, or --data synthetic"


def read_hub(name: str, shape: Shape) -> DataSet:
    """The data set `name` ("owner/name") of the hub, images of `shape`. Once decoded, it is never asked for again.

    Raises Refused: 1 if it cannot be downloaded, 4 if its images or labels are not as expected.
    """
    key = "hub-" + name.replace("/", "--")
    if cached := decoded.read(key):
        return cached
    answer = hub.ask(name)  # before the cache's lock, so that processes do not wait for each other's timeouts
    return decoded.read_or_decode(key, lambda: in_memory(hub.rows(Path(name), hub.download(name, answer, WAYS_OUT)), shape))


def read_folder(folder: Path, shape: Shape) -> DataSet:
    """The images of a folder (an absolute path), all of `shape`. Raises Refused: 1 if it is empty, 4 if its content is wrong.

    The images are files below train/<class>/, or else in what `datasets` can read, such as parquet files.
    """
    content = sorted(walk(folder), key=lambda entry: entry.name)
    for entry in content:
        if entry.kind == "broken link":
            raise Refused(f"--data {entry.path}: broken link to {os.readlink(entry.path)}; remove or repair it", 4)
    facts = [(entry.name, entry.size, entry.time) for entry in content if entry.kind == "file"]
    if not facts:
        raise Refused(f"--data {folder}: the folder is empty")
    state = digest(json.dumps([decode.VERSION, shape[0], facts]))
    return decoded.read_or_decode(slug("folder", folder), lambda: _decoded(folder, content, shape), state)


def _decoded(folder: Path, content: Sequence[Entry], shape: Shape) -> DataSet:
    """The images of the folder, whose `content` is sorted by path.

    Class folders are not left to `datasets`: it takes train/bird/test-1.png for a test image, and fails at links and brackets.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images = [entry for entry in content if is_image(entry, suffixes)]
    files = [Path(entry.path) for entry in content if entry.kind == "file"]
    if not any(len(entry.parts) > 2 and entry.parts[0] == "train" for entry in images):
        return in_memory(_tables(folder, files), shape)
    splits = {split_name(split, {entry.parts[0] for entry in images}, str(folder)): split for split in ("train", "test")}
    if stray := [entry for entry in images if len(entry.parts) == 2 and entry.parts[0] in splits]:
        raise Refused(f"{stray[0].path} is not in a class folder; move it to {folder / stray[0].parts[0] / '<class>'}", 4)
    listing = class_folders(folder, content, splits, suffixes)
    below = {entry.parts[1] for entry in content if entry.kind == "folder" and len(entry.parts) == 2 and entry.parts[0] in splits}
    return in_memory(listing, shape, tuple(sorted(below)))


def _tables(folder: Path, files: list[Path]) -> Listing:
    """The rows of `files`, which `datasets` recognises by their names. Raises Refused (4) if it cannot read them."""
    try:
        if all(file.suffix == ".parquet" for file in files):
            with Progress(disable=True) as bar:
                return parquet.read(folder, files, {}, bar)
        with _plain(folder, files) as place:
            try:
                tables = hub.load(str(place))
            except Exception as error:  # `datasets` raises many kinds of errors for files that are not data
                reason = first_line(error).replace(str(place), str(folder))
                raise Refused(f"--data {folder}: `datasets` cannot read it: {reason}", 4) from error
            return hub.rows(folder, tables)
    except Refused as error:
        if error.code != 2:
            raise
        columns = str(error).rpartition("; ")[2]
        raise Refused(
            f"{folder}: one column must hold the images and one the labels, called image and label; {columns}", 4
        ) from error


@contextlib.contextmanager
def _plain(folder: Path, files: list[Path]) -> Iterator[Path]:
    """A folder with the same `files`, without linked folders and with a path that `datasets` does not take for a pattern."""
    folders = {above for file in files for above in file.parents}
    if not glob.has_magic(str(folder)) and not any(above.is_symlink() for above in folders):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="oneloop-") as place:
        for file in files:
            link = Path(place, file.relative_to(folder))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        yield Path(place)


def in_memory(listing: Listing, shape: Shape, classes: tuple[str, ...] = ()) -> DataSet:
    """The train and test images of `listing` as tensors, all of `shape`; where there are no test images, those for validation.

    `classes`: the names if some may have no image. Raises Refused (4) for a missing split, for a missing or broken image, and
    for one of another size.
    """
    names = classes or listing.names or listing.classes
    numbers = {name: number for number, name in enumerate(names)}
    sides = {image.split or "train" for image in listing.images}
    splits = {}
    for split in ("train", "test"):
        side = split_name(split, sides, str(listing.source))
        images = [image for image in listing.images if (image.split or "train") == side]
        splits[split] = Split(stacked(listing, images, shape), torch.tensor([numbers[image.label] for image in images]))
    return DataSet(str(listing.source), names, **splits)


def stacked(listing: Listing, images: Sequence[ListedImage], shape: Shape) -> torch.Tensor:
    """Images of `listing`, decoded: uint8 (n, C, H, W). Raises Refused (4), naming the image."""

    def opened() -> Iterator[tuple[str, BufferedReader | BytesIO]]:
        for image in images:
            name = f"{listing.source}: {image.path}" if listing.row else str(listing.root / image.path)
            try:
                file = open_image(listing, image)
            except (OSError, ValueError) as error:
                raise Refused(f"{name}: {getattr(error, 'strerror', None) or error}", 4) from error
            with file:
                yield name, file

    return image_file.stack(opened(), len(images), shape)
