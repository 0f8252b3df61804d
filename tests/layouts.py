"""Tiny replicas of data sets as their publishers, and tools, ship them: what lies where, and what is right of each image.

`tests/test_layouts.py` reads each of `layout_folders.py` and `layout_tables.py`; `benchmarks/layouts.py` shows what other
libraries make of the same replica.
"""

import io
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

TRAIN, VAL, TEST = "train", "validation", "test"
CD = ("cat", "dog")
Truth = dict[str, tuple[str, str] | None]  # path -> class and split (empty: to be made); None: no image to train on


@dataclass(frozen=True)
class Layout:
    """`truth` of each image; `texts` beside them. `data` is what is named, of the replica; `flags` what is to be told.

    `refused`: what the message has, where the folder alone is refused; `flags` then are those that it names.
    """

    name: str
    ships: str
    rule: str
    truth: Truth
    texts: dict[str, str] = field(default_factory=dict)
    data: str = ""
    flags: tuple[str, ...] = ()
    refused: str = ""
    code: int = 4
    left_out: int = 0
    archive: str = ""
    says: str = ""


def image(number: int) -> bytes:
    """An image of its own, in a format that needs no encoder."""
    return b"P6 4 4 255\n" + bytes((number * 7 + place * 31 + number // 256 * place) % 256 for place in range(48))


def write(layout: Layout, place: Path) -> Path:
    """The replica in `place`. Returns what is to be named."""
    contents = {path: image(number) for number, path in enumerate(layout.truth)}
    contents |= {path: text.encode() for path, text in layout.texts.items()}
    if layout.archive.endswith(".zip"):
        place.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(place / layout.archive, "w") as archive:
            for path, content in contents.items():
                archive.writestr(path, content)
        return place / layout.data
    if layout.archive:
        place.mkdir(parents=True, exist_ok=True)
        with tarfile.open(place / layout.archive, "w:gz") as archive:
            for path, content in contents.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return place / layout.data
    for path, content in contents.items():
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return place / layout.data


def grid(
    where: str, classes: Iterable[str], count: int = 3, split: str = "", start: int = 0, names: dict[str, str] | None = None
) -> Truth:
    """`count` images of each class; `where` has {c} for it and {n} for the number."""
    return {
        where.format(c=label, n=number): ((names or {}).get(label, label), split)
        for label in classes
        for number in range(start, start + count)
    }


def none(where: str, count: int = 3) -> Truth:
    return {where.format(n=number): None for number in range(count)}


def rows(head: str, lines: Iterable[str]) -> str:
    return "\n".join([*filter(None, [head]), *lines]) + "\n"
