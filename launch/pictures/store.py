"""Reduced pictures, decoded once: uint8 RGB in one file of the cache folder, which all processes of a machine map into memory.

A picture is known by the sha256 of its file and by `stored` (see rule.py). An index beside the pixels has a line for each
picture, written after its pixels, so whatever ends the process keeps the finished part. What the disk allowance does not hold is
not stored.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import PIL
from PIL import Image

from ..cache_folder import cache_folder, locked, slug, unwritable
from ..errors import Refused, first_line
from . import decode, rule

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress

LIMIT = "ONELOOP_STORED_GIB"  # the disk allowance of all stores; without it, half of what the disk has left
CHUNK = 16  # pictures that a thread takes at a time


class Wanted(NamedTuple):
    """A picture to be stored: the sha256 of its file, its reduced width and height, and what opens it."""

    sha256: str
    width: int
    height: int
    name: str  # in messages
    open: Callable[[], IO[bytes]]


class Place(NamedTuple):
    """Where the pixels of a picture are: uint8 (height, width, 3) from byte `offset` on."""

    offset: int
    height: int
    width: int


class Store(NamedTuple):
    """`places` in the file `path`, by the sha256 of the pictures' files."""

    path: Path
    places: dict[str, Place]


def store(source: Path, pictures: Sequence[Wanted], size_rule: rule.Rule, bar: "Progress") -> Store:
    """Those of `pictures`, of the folder or table `source`, that are stored or that the allowance still holds.

    They are decoded in parallel, while `bar` shows how far it is. Another process that does the same is waited for. Raises
    Refused: 1 if the cache cannot be written, 4 for a picture that cannot be decoded any more.
    """
    name = f"{slug('stored', source)}-{size_rule.stored}"
    path = cache_folder() / f"{name}.rgb"
    places = _read(path)
    if _todo(pictures, places, path):
        with locked(name):
            places = _read(path)
            if todo := _todo(pictures, places, path):
                _add(path, todo, places, size_rule, bar)
    return Store(path, places)


def clear(source: Path) -> list[Path]:
    """Delete what is stored of `source`. Returns the paths of what was there. Raises Refused (1)."""
    folder, gone = cache_folder(), []
    try:
        for path in sorted(folder.glob(f"{slug('stored', source)}-*.rgb*")):
            path.unlink(missing_ok=True)
            gone.append(path)
    except OSError as error:
        raise unwritable(folder, error) from error
    return gone


def _index(path: Path) -> Path:
    return path.with_suffix(".rgb.jsonl")


def _head() -> str:
    return json.dumps({"oneloop": "stored", "decode": decode.VERSION, "pillow": PIL.__version__}) + "\n"


def _read(path: Path) -> dict[str, Place]:
    """What is stored in `path`: nothing, if another Pillow or other code decoded it. Raises Refused (1)."""
    places = {}
    try:
        size = path.stat().st_size
        with open(_index(path), encoding="utf-8") as file:
            if file.readline() == _head():
                for line in file:
                    with contextlib.suppress(ValueError, TypeError):  # cut off
                        sha256, *place = json.loads(line)
                        place = Place(*place)
                        if place.offset + 3 * place.height * place.width <= size:
                            places[sha256] = place
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"cannot read {_index(path)} ({error}); delete it to decode the pictures again") from error
    return places


def _todo(pictures: Sequence[Wanted], places: Mapping[str, Place], path: Path) -> list[Wanted]:
    """The pictures to be stored, each content once, as far as the allowance goes."""
    missing = {each.sha256: each for each in pictures if each.sha256 not in places}
    left = _allowance(path) if missing else 0
    todo = []
    for each in missing.values():
        left -= 3 * each.width * each.height
        if left < 0:
            break
        todo.append(each)
    return todo


def _allowance(path: Path) -> int:
    """Bytes that may be added to `path`. Raises Refused (2) if the environment's is no number."""
    given = os.environ.get(LIMIT)
    folder = next(parent for parent in path.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if given is None:
        return free // 2
    try:
        limit = int(float(given) * 2**30)
    except (ValueError, OverflowError) as error:
        raise Refused(f"{LIMIT} is {given!r}; it takes a number of GiB, 0 to store nothing", 2) from error
    used = sum(each.stat().st_size for each in path.parent.glob("stored-*.rgb"))
    return min(limit - used, free)


def _add(path: Path, todo: Sequence[Wanted], places: dict[str, Place], size_rule: rule.Rule, bar: "Progress") -> None:
    """Decode `todo` and append it to `path`, its index and `places`."""
    end = max((place.offset + 3 * place.height * place.width for place in places.values()), default=0)
    try:
        if not places:
            path.unlink(missing_ok=True)
            _index(path).write_text(_head(), encoding="utf-8")
        with open(path, "ab") as pixels, open(_index(path), "a", encoding="utf-8") as lines:
            pixels.truncate(end)  # what was cut off
            task = bar.add_task("decoding pictures", total=len(todo))
            for some in _decoded(todo, size_rule):
                text = ""
                for sha256, picture in some:
                    pixels.write(picture.data if picture.flags.c_contiguous else picture.tobytes())
                    places[sha256] = Place(end, *picture.shape[:2])
                    text += json.dumps([sha256, *places[sha256]]) + "\n"
                    end += picture.size
                pixels.flush()
                lines.write(text)
                lines.flush()
                bar.advance(task, len(some))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, max((p.offset + 3 * p.height * p.width for p in _read(path).values()), default=0))
        raise unwritable(path.parent, error) from error


def _decoded(todo: Sequence[Wanted], size_rule: rule.Rule) -> Iterator[list[tuple[str, "np.ndarray"]]]:
    """`todo`, in its order, some at a time, each with its reduced picture."""

    def work(some: Sequence[Wanted]) -> list[tuple[str, "np.ndarray"]]:
        return [(each.sha256, decoded(each, size_rule)) for each in some]

    Image.init()  # once, not by several threads at a time
    threads = os.cpu_count() or 1
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        try:
            ahead = [pool.submit(work, chunk) for chunk in chunks[: 3 * threads]]
            for number in range(len(chunks)):
                yield ahead[number].result()
                ahead[number] = None  # type: ignore[call-overload]  # its pictures are written
                if len(ahead) < len(chunks):
                    ahead.append(pool.submit(work, chunks[len(ahead)]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def decoded(picture: Wanted, size_rule: rule.Rule) -> "np.ndarray":
    """The reduced picture, uint8 (h, w, 3). Raises Refused (4), naming it, if it is no longer what it was."""
    try:
        with picture.open() as file:
            found = rule.read(file, size_rule)
    except Exception as error:  # PIL raises a dozen kinds for broken files
        raise Refused(f"{picture.name} cannot be decoded any more: {first_line(error)}; run the command again", 4) from error
    if found.shape[:2] != (picture.height, picture.width):
        raise Refused(f"{picture.name} has changed since it was examined; run the command again", 4)
    return found
