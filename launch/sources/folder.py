"""A folder of image files `train/<class>/…`, `test/<class>/…`, or else of files that `datasets` can read. Decoded once.

It is decoded again when the name, size or modification time of a file in it has changed. Contents are not compared: a file
replaced by another one of the same size and modification time goes unnoticed.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from ..cache import digest, slug
from ..data import decode, image_file
from ..data.dataset import DataSet, Shape, Split, split_name
from ..errors import Refused
from . import decoded, table
from .walk import NO_CLASSES, walk


def read(folder: Path, shape: Shape) -> DataSet:
    """The images of a folder (an absolute path), all of `shape`. Raises Refused: 1 if it is empty, 4 if its content is wrong."""
    files = sorted(_files(folder), key=str)
    facts = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if not facts:
        raise Refused(f"--data {folder}: the folder is empty")
    state = digest(json.dumps([decode.VERSION, shape[0], facts]))
    return decoded.read_or_decode(slug("folder", folder), lambda: _decode(folder, files, shape), state)


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders, except hidden ones. Raises Refused (4) for a broken link."""
    for entry in walk(folder):
        if entry.kind == "broken link":
            raise Refused(f"--data {entry.path}: broken link to {os.readlink(entry.path)}; remove or repair it", 4)
        if entry.kind == "file":
            yield Path(entry.path)


def _decode(folder: Path, files: list[Path], shape: Shape) -> DataSet:
    """`files` as an image folder if one of them is train/<class>/… and an image, else as what `datasets` makes of them.

    Image folders are not left to `datasets`: it takes train/bird/test-1.png for a test image, and fails at links and brackets.
    """
    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    parts = {path: path.relative_to(folder).parts for path in files if path.suffix.lower() in extensions}
    if any(len(part) > 2 and part[0] == "train" for part in parts.values()):
        return _image_folder(folder, parts, shape)
    return table.read(folder, files, shape)


def _image_folder(folder: Path, parts: dict[Path, tuple[str, ...]], shape: Shape) -> DataSet:
    """`parts` are the image files, each with the parts of its path below `folder`."""
    paths, found = {}, set()
    for split in ("train", "test"):
        name = split_name(split, {part[0] for part in parts.values()}, str(folder))
        paths[split] = [path for path, part in parts.items() if part[0] == name]
        if stray := [path for path in paths[split] if len(parts[path]) == 2]:
            raise Refused(f"{stray[0]} is not in a class folder; move it to {folder / name / '<class>'}", 4)
        inside = [path for path in (folder / name).iterdir() if path.is_dir() and not path.name.startswith(".")]
        found |= {path.name for path in inside if path.name not in NO_CLASSES}
    classes, splits = tuple(sorted(found)), {}
    for split in paths:
        labels = torch.tensor([classes.index(parts[path][1]) for path in paths[split]])
        splits[split] = Split(image_file.stack(((str(path), path) for path in paths[split]), len(labels), shape), labels)
    return DataSet(str(folder), classes, **splits)
