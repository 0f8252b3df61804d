"""Reduced images, kept as they are decoded: uint8 RGB in one file of the cache folder, which all processes of a machine map.

An image is known by the sha256 of its file, `cache_size` and `white` (see resize.py). An index beside the pixels has a line for
each image, written after its pixels, so whatever ends the process keeps the finished part. What the disk allowance does not
hold is decoded each time, and what a slow disk has not taken in this epoch is stored in a later one.
"""

import contextlib
import hashlib
import io
import json
import mmap
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import IO, TYPE_CHECKING, NamedTuple

import PIL

from ..cache import cache_folder, locked, slug, unwritable
from ..errors import Refused, first_line
from ..files import checked, with_checksum
from . import decode, formats, resize

if TYPE_CHECKING:
    import numpy as np

LIMIT = "ONELOOP_STORED_GIB"  # the disk allowance of all stores; without it, half of what the disk has left
KEPT = ("stored-*.rgb", "features-*.f32")  # what it counts
FORMAT = 2
TOUCHED = 16 << 20  # bytes of the mapped file that may count as a process's memory
CHUNK, CHUNK_BYTES = 16, 16 << 20  # images, and bytes of them, that are written at a time
# Writing may take this part of the time that decoding takes, and so many seconds more: enough for all images in the first epoch
# where the disk takes 3 GB/s. Each is then read in a sixth of the time in all others.
SHARE, SLACK = 0.3, 0.1


class StoredImage(NamedTuple):
    """An image: the sha256 of its file, its reduced width and height, and what opens it."""

    sha256: str
    width: int
    height: int
    name: str  # in messages
    open: Callable[[], IO[bytes]]


def image_of(content: bytes, width: int, height: int, name: str) -> StoredImage:
    """An image whose file is `content`; `width` and `height` as it is reduced."""
    return StoredImage(hashlib.sha256(content).hexdigest(), width, height, name, partial(io.BytesIO, content))


class Span(NamedTuple):
    """Where the pixels of an image are: uint8 (height, width, 3) from byte `offset` on."""

    offset: int
    height: int
    width: int

    @property
    def end(self) -> int:
        return self.offset + 3 * self.height * self.width


class Store:
    """The reduced images of a folder, table or data set `source`; without one, nothing is kept.

    Several threads may read at a time, and several processes may add to it. `places` is what is kept, by the sha256 of the
    images' files. Raises Refused: 1 if the cache cannot be read or written, 2 for a wrong allowance.
    """

    def __init__(self, size_rule: resize.ResizeRule, source: Path | None = None, images: Sequence[StoredImage] = ()):
        self.rule, self.source, self.places, self.allowed = size_rule, source, dict[str, Span](), set[str]()
        self.lock, self.new = threading.Lock(), list[tuple[str, "np.ndarray"]]()
        self.busy = threading.Lock()  # held by the thread that writes
        self.head, self.position = b"", 0  # the first line of the index, and the bytes of it that were read
        self.end = 0  # of the last image that the index names
        self.mapped: np.ndarray | None = None
        self.mapping: mmap.mmap
        self.touched = 0  # bytes of the mapped file, since they last counted as this process's memory
        self.decoding, self.writing = 0.0, 0.0  # seconds
        self.waiting = 0  # bytes of what is decoded and not written
        self.room = 0  # bytes that `keep_first` may add
        if source is not None:
            self.name = f"{slug('stored', source)}-{size_rule.cache_size}" + f"-{size_rule.white}" * (size_rule.white > 0)
            self.name += f"-bands{'-'.join(map(str, size_rule.bands))}" * bool(size_rule.bands)
            self.path = cache_folder() / f"{self.name}.rgb"
            self.index = self.path.with_suffix(".rgb.jsonl")
            self.allow(images)
            self.room = allowance(self.path.parent)

    def read(self, image: StoredImage) -> "np.ndarray":
        """The reduced image, uint8 (h, w, 3), not to be written to. Raises Refused (4), naming it, if it has changed."""
        places = self.places
        if place := places.get(image.sha256):
            with contextlib.suppress(OSError, ValueError):  # somebody has deleted it meanwhile
                return self._at(place, places)
        began = perf_counter()
        pixels = decoded(image, self.rule)
        if image.sha256 in self.allowed:
            self._keep(image.sha256, pixels, perf_counter() - began)
        return pixels

    def keep_first(self, sha256: str, pixels: "np.ndarray", seconds: float) -> None:
        """Keep an image, which took `seconds` to decode, before it is known which ones are wanted, if there is room."""
        with self.lock:
            if sha256 in self.places or pixels.nbytes > self.room:
                return
            self.room -= pixels.nbytes
        self._keep(sha256, pixels, seconds)

    def _keep(self, sha256: str, pixels: "np.ndarray", seconds: float) -> None:
        with self.lock:
            self.decoding += seconds
            behind = len(self.new) >= 2 * CHUNK or self.waiting > 2 * CHUNK_BYTES
            if self.writing <= SHARE * self.decoding + SLACK and not behind:  # else the disk is too slow
                self.new.append((sha256, pixels))
                self.waiting += pixels.nbytes
            full = (len(self.new) >= CHUNK or self.waiting >= CHUNK_BYTES) and not self.busy.locked()
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what was decoded. Raises Refused (1) if that fails, and leaves nothing half-written."""
        with self.busy:
            with self.lock:
                new, self.new, self.waiting = self.new, [], 0
            if new:
                self._write(new)

    def _write(self, new: Sequence[tuple[str, "np.ndarray"]]) -> None:
        with locked(self.name):
            try:
                self._read_index()  # what other processes have added
                self._add([each for each in dict(new).items() if each[0] not in self.places])
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self.end)
                raise unwritable(self.path.parent, error) from error

    def _at(self, place: Span, places: dict[str, Span]) -> "np.ndarray":
        """What is at `place` of the file that `places` are of. Raises OSError, ValueError if there is another one by now."""
        mapped = self.mapped
        if mapped is None or place.end > len(mapped):
            with self.lock:
                mapped = self._map()
        if places is not self.places:  # looked up last: until now `mapped` was of the same file
            raise FileNotFoundError
        self.touched += place.end - place.offset
        if self.touched > TOUCHED and hasattr(self.mapping, "madvise"):
            self.touched = 0
            self.mapping.madvise(mmap.MADV_DONTNEED)  # what is needed again is still in the system's cache of files
        return mapped[place.offset : place.end].reshape(place.height, place.width, 3)

    def _map(self) -> "np.ndarray":
        """Map the file anew. Call it with the lock, which `_forget` takes, too: it is the file whose index has this head."""
        import numpy as np

        with open(self.path, "rb") as pixels, open(self.index, "rb") as file:  # in this order: a new index is there first
            if file.readline() != self.head:
                raise FileNotFoundError
            self.mapping = mmap.mmap(pixels.fileno(), 0, access=mmap.ACCESS_COPY)  # whoever writes there does not change it
        self.mapped = np.frombuffer(self.mapping, np.uint8)
        return self.mapped

    def _add(self, new: Sequence[tuple[str, "np.ndarray"]]) -> None:
        import numpy as np

        if not self.position:
            self.path.unlink(missing_ok=True)
            self.head = _head()
            self.index.write_bytes(self.head)
            self.position = len(self.head)
        began, end, text, added = perf_counter(), self.end, "", {}
        with open(self.path, "ab") as pixels, open(self.index, "r+b") as lines:
            pixels.truncate(end)  # what was cut off, here and in the index
            lines.truncate(self.position)
            lines.seek(self.position)
            for sha256, image in new:
                pixels.write(np.ascontiguousarray(image).data)
                added[sha256] = place = Span(end, *image.shape[:2])
                text += with_checksum(json.dumps([sha256, *place]))
                end = place.end
            pixels.flush()
            lines.write(text.encode())
            lines.flush()
        self.writing += perf_counter() - began
        self.position, self.end = self.position + len(text), end
        self.places.update(added)

    def _read_index(self) -> None:
        """Add to `places` what the index has from `position` on: nothing, if another Pillow or other code decoded it."""
        try:
            size = self.path.stat().st_size
            with open(self.index, "rb") as file:
                head = file.readline()
                if head != self.head:  # the first time, or it was deleted meanwhile and begun anew
                    self._forget(head)
                if not _readable(head):
                    return
                self.position = self.position or len(head)
                file.seek(self.position)
                for line in file:
                    if not line.endswith(b"\n"):  # cut off
                        break
                    if not (text := checked(line)):  # damaged: all is decoded again, as others may count on that image's place
                        return self._forget(b"")
                    sha256, *numbers = json.loads(text)
                    if (place := Span(*numbers)).end > size:
                        break
                    self.places[sha256], self.end = place, max(self.end, place.end)
                    self.position += len(line)
        except FileNotFoundError:
            self._forget(self.head)
        except OSError as error:
            raise Refused(f"cannot read {self.index} ({error}); delete it to decode the images again") from error

    def _forget(self, head: bytes) -> None:
        """Begin anew with an index whose first line is `head`; none is there if it is empty."""
        with self.lock:  # threads read meanwhile, which find either all of the old file or nothing
            self.places, self.mapped = {}, None
            self.head, self.position, self.end = head, 0, 0

    def allow(self, images: Sequence[StoredImage]) -> None:
        """From now on `read` keeps those of `images` that nobody has kept yet, as far as the allowance goes."""
        if self.source is None:
            return
        self._read_index()
        missing = {each.sha256: each for each in images if each.sha256 not in self.places}
        left = allowance(self.path.parent) if missing else 0
        self.allowed = set()
        for each in missing.values():
            left -= 3 * each.width * each.height
            if left < 0:
                break
            self.allowed.add(each.sha256)


def allowance(folder: Path) -> int:
    """Bytes that may be added to what the cache `folder` keeps. Raises Refused (2) if the environment's is no number."""
    given = os.environ.get(LIMIT)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if given is None:
        return free // 2
    try:
        limit = int(float(given) * 2**30)
    except (ValueError, OverflowError) as error:
        raise Refused(f"{LIMIT} is {given!r}; it takes a number of GiB, 0 to store nothing", 2) from error
    used = sum(path.stat().st_size for pattern in KEPT for path in folder.glob(pattern))
    return min(limit - used, free)


def clear(source: Path) -> list[Path]:
    """Delete the images and features that are kept of `source`. Returns the paths of what was there. Raises Refused (1)."""
    folder, gone = cache_folder(), []
    try:
        for pattern in (f"{slug('stored', source)}-*.rgb*", f"{slug('features', source)}-*.f32"):
            for path in sorted(folder.glob(pattern)):
                path.unlink(missing_ok=True)
                gone.append(path)
    except OSError as error:
        raise unwritable(folder, error) from error
    return gone


def _head() -> bytes:
    """The first line of a new index: what decodes, and a number that no other index has."""
    return json.dumps({"oneloop": "stored"} | _versions() | {"id": os.urandom(8).hex()}).encode() + b"\n"


def _versions() -> dict[str, object]:
    """What the pixels depend on."""
    return {"format": FORMAT, "decode": decode.VERSION, "pillow": PIL.__version__} | formats.versions()


def _readable(head: bytes) -> bool:
    try:
        known = json.loads(head)
        return isinstance(known, dict) and {name: known[name] for name in known if name not in ("oneloop", "id")} == _versions()
    except (ValueError, KeyError, TypeError):
        return False


def decoded(image: StoredImage, size_rule: resize.ResizeRule) -> "np.ndarray":
    """The reduced image, uint8 (h, w, 3). Raises Refused (4), naming it, if it is no longer what it was."""
    try:
        with image.open() as file:
            content = file.read()
        same = hashlib.sha256(content).hexdigest() == image.sha256  # 2 to 3 % of the time to decode it
        found = resize.read(io.BytesIO(content), size_rule)
    except Exception as error:  # PIL raises a dozen kinds for broken files
        raise Refused(f"{image.name} cannot be decoded any more: {first_line(error)}; run the command again", 4) from error
    if not same or found.shape[:2] != (image.height, image.width):
        raise Refused(f"{image.name} has changed since it was examined; run the command again", 4)
    return found
