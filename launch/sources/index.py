"""What is known about each file of a folder: JSON in the cache folder, a line for each file after a header.

Lines are added as files are examined, so whatever ends the process keeps the finished part. Each ends with its checksum; one that
was cut off or damaged is ignored, and its file examined again. Before lines are added, those that still hold are written to a new
file, which is renamed into place.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import PIL

from ..cache import cache_folder, deleted, slug, unwritable
from ..data import decode, formats
from ..errors import Refused
from ..files import checked, with_checksum

FORMAT = 3
TOGETHER = 4096  # lines that are read as one piece of JSON: a third of the time


class FileInfo(NamedTuple):
    """A file as it was when it was opened. `width` and `height` are those of the decoded image, 0 if it is bad.

    `problem` is empty for a good one. `sha256`, of the whole content, is empty if the file could not be read: that may pass, so
    it is not kept.
    """

    size: int  # bytes
    time: int  # of the last change, ns
    sha256: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""  # Pillow's: RGB, L, CMYK, …
    frames: bool = False  # whether it has more than one, of which the first is taken
    problem: str = ""
    bits: int = 8  # of each value in the file: 16 if it has so many
    highest: int = 0  # value of the levels of grey, or of the colours, if `bits` is 16
    flat: bool = False  # whether it is of one colour
    bands: str = ""  # what is made of other bands than colours, as decode.bands says


def read(name: str) -> dict[str, FileInfo]:
    """What is known, by path. Nothing if it was found by another Pillow or other code, which may decode other files.

    Raises Refused (1) if the file cannot be read.
    """
    known: dict[str, FileInfo] = {}
    try:
        with open(_path(name), "rb") as file:
            if file.readline() == _head().encode():
                make = partial(tuple.__new__, FileInfo)  # as FileInfo._make, in half the time
                while lines := [*itertools.islice(file, TOGETHER)]:
                    sound = b",".join(filter(None, map(checked, lines)))
                    known.update((row[0], make(row[1:])) for row in json.loads(b"[" + sound + b"]"))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Refused(f"cannot read the index {_path(name)} ({error}); delete it to rebuild it") from error
    return known


@contextlib.contextmanager
def writer(name: str, known: Mapping[str, FileInfo]) -> Iterator[Callable[[Mapping[str, FileInfo]], None]]:
    """Replace the index by what is `known`; inside, call what this gives with more of it. Raises Refused (1) if that fails."""
    path = _path(name)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")

    def lines(files: Mapping[str, FileInfo]) -> str:
        return "".join(with_checksum(json.dumps([path, *info])) for path, info in files.items())

    def write(files: Mapping[str, FileInfo]) -> None:
        file.write(lines(files))
        file.flush()

    try:
        temporary.write_text(_head() + lines({path: info for path, info in known.items() if info.sha256}), encoding="utf-8")
        temporary.replace(path)
        with open(path, "a", encoding="utf-8") as file:
            yield write
    except OSError as error:
        raise unwritable(path.parent, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def named(source: Path, bands: Sequence[int] = ()) -> str:
    """The name of the index of `source`, of which these `bands` are looked at."""
    return slug("images", source) + f"-bands{'-'.join(map(str, bands))}" * bool(bands)


def clear(source: Path) -> list[Path]:
    """Delete what is known of `source`. Returns the paths of what was there. Raises Refused (1)."""
    known = [path.stem for path in cache_folder().glob(f"{named(source)}-bands*.jsonl")]
    return [gone for name in (named(source), *sorted(known)) if (gone := deleted(_path(name)))]


def _path(name: str) -> Path:
    return cache_folder() / f"{name}.jsonl"


def _head() -> str:
    known = {"oneloop": "images", "format": FORMAT, "decode": decode.VERSION, "pillow": PIL.__version__}
    return json.dumps(known | formats.versions()) + "\n"
