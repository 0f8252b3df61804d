"""Each file of a listing, opened once: what it is, or what is wrong with it.

Threads share the work, as Pillow decodes and hashlib hashes outside of Python's lock. What is found is kept in the index and used
again for a file whose size and time of change are the same; the content of such a file is not compared.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from ..cache import locked
from ..data import decode, resize
from ..data.formats import HIGHEST, MODE_16, Bands
from ..data.store import Store
from ..errors import Refused, first_line
from . import index
from .index import FileInfo
from .listing import ListedImage, Listing, no_collections, open_image

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress

CHUNK = 16  # files: what a thread takes at a time, and what an interruption loses of each thread at most
IN_MEMORY = 2**24  # bytes of a file that is read at once
LOST = "no such file"


class Checked(NamedTuple):
    """What is known of each path, and how many files were opened for it: the others are as the index has them."""

    files: dict[str, FileInfo]
    opened: int


def check(listing: Listing, bar: "Progress", store: Store | None = None, bands: Bands = ()) -> Checked:
    """Open each image of `listing` of which the index does not know; `bar` shows how many, while it runs.

    They are decoded for the `store`, if there is one, and kept there in the same pass, as far as it has room. Another process
    that checks the same is waited for. Raises Refused (1) if the index or the store cannot be read or written.
    """
    name = index.named(listing.source, bands)
    with no_collections():
        known = index.read(name)
        files = _of(listing, known)
    if len(files) == len(listing.images) or not _unknown(listing, files):
        return Checked(files, 0)
    del known, files
    with locked(name):
        known = index.read(name)
        todo = _unknown(listing, known)
        known = _of(listing, known)
        with index.writer(name, known) as write:
            task = bar.add_task("checking images", total=len(todo))
            for files in _in_parallel(listing, todo, store, bands):
                known.update(files)
                write({path: info for path, info in files.items() if info.sha256})
                bar.advance(task, len(files))
        if store:
            store.flush()
    return Checked(known, len(todo))


def _unknown(listing: Listing, known: dict[str, FileInfo]) -> list[ListedImage]:
    """Those, each path once, of which nothing is known, or that have changed since."""
    same = {path: info[:2] for path, info in known.items()}
    return [*{image.path: image for image in listing.images if same.get(image.path) != (image.size, image.time)}.values()]


def _of(listing: Listing, known: dict[str, FileInfo]) -> dict[str, FileInfo]:
    """What of `known`, which is emptied, still holds for the images of `listing`."""
    files = {}
    for path, _, _, size, time in listing.images:
        info = known.pop(path, None)  # a million of them take their memory once
        if info and info[0] == size and info[1] == time:
            files[path] = info
    return files


def _in_parallel(
    listing: Listing, images: Sequence[ListedImage], store: Store | None, bands: Bands
) -> Iterator[dict[str, FileInfo]]:
    """What is known of `images`, some at a time, as they get ready."""

    def work(some: Sequence[ListedImage]) -> dict[str, FileInfo]:
        return {image.path: _look(listing, image, store, bands) for image in some}

    Image.preinit()  # first, so that a JPEG is not taken for rarer formats before it is opened
    Image.init()  # once, not by several threads at a time
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # broken EXIF data, images that are only rather large
        try:
            waiting = [pool.submit(work, images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an interruption, only what has begun is finished


def _look(listing: Listing, image: ListedImage, store: Store | None, bands: Bands) -> FileInfo:
    """Open one image."""
    try:
        with open_image(listing, image) as file:
            size, time = image.size, image.time
            if not listing.row:  # a file may have changed since it was listed
                status = os.fstat(file.fileno())
                size, time = status.st_size, status.st_mtime_ns
            if size <= IN_MEMORY:  # read once, for the hash and for Pillow, which reads a few bytes at a time
                content = file.read()
                return _decoded(BytesIO(content), FileInfo(size, time, hashlib.sha256(content).hexdigest()), store, bands)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return _decoded(file, FileInfo(size, time, sha256), store, bands)
    except (FileNotFoundError, ValueError):  # the latter for a path that cannot be one
        return FileInfo(0, 0, problem="no image in this row" if listing.row else LOST)
    except OSError as error:
        return FileInfo(0, 0, problem=f"cannot be read: {error.strerror or error}")


def _decoded(file: BinaryIO, info: FileInfo, store: Store | None, bands: Bands) -> FileInfo:
    """`info` with what decoding `file` tells. Its pixels go to `store` if that has room, else a JPEG is decoded at an eighth."""
    if not info.size:
        return info._replace(problem="empty file: 0 bytes")
    try:
        began = perf_counter()
        white = max(store.rule.white, 0) if store else 0
        with decode.open_image(file, bands, white) as opened:
            of_bands: int = opened.info.get(HIGHEST, -1)
            mode, frames = MODE_16 if of_bands >= 0 else opened.mode, False
            tiles = getattr(opened, "tile", ())  # DICOM has none
            ranged = mode[0] == "I" or mode == MODE_16
            deep = ranged or any(";16" in str(tile[3]) for tile in tiles)  # of colours, only the file has 16
            shown: Image.Image | np.ndarray
            known = store and (store.rule.white >= 0 or not ranged)  # which of its levels is white
            kept = store if store and known and store.room > 0 else None
            if kept:
                shown, size = decode.pixels_of(opened, kept.rule.cache_size, kept.rule.white)
                kept.keep_first(info.sha256, resize.reduced(shown, size, kept.rule), perf_counter() - began)
            else:
                shown, size = _reduced(opened) if opened.format in decode.JPEG else _whole(opened)
            flat, highest = _levels(opened, shown) if deep else (_is_flat(shown), 0)
            highest = of_bands if of_bands >= 0 else highest
            with contextlib.suppress(Exception):  # whether the second frame can be decoded does not matter
                frames = bool(getattr(opened, "is_animated", False))
            bits, others = 16 if deep else 8, decode.bands(opened)
        width, height = size
        if flat and opened.format in decode.JPEG:  # perhaps only at a part of its size
            file.seek(0)
            flat = _is_flat(decode.decode(file, 3))
        return FileInfo(*info[:3], width, height, mode, frames, "", bits, highest, flat, others)
    except MemoryError:
        return info._replace(sha256="", problem="out of memory while decoding it")
    except Refused:  # the store cannot be written
        raise
    except Exception as error:  # PIL raises a dozen kinds for broken files
        return info._replace(problem=_reason(error, file))


def _reduced(opened: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    """A JPEG file at an eighth of its size: all of it is read, in half the time. And its width and height, upright."""
    width, height = opened.size
    turned = decode.orientation(opened) in decode.TURNED
    decode.draft(opened, 1)
    return opened, ((height, width) if turned else (width, height))


def _whole(opened: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    image = decode.converted(opened, 3)
    return image, image.size


def _is_flat(shown: "Image.Image | np.ndarray") -> bool:
    if isinstance(shown, Image.Image):
        return shown.getcolors(1) is not None
    first = shown[0, 0]
    return bool((shown[0] == first).all() and (shown == first).all())  # the first row is enough for most


def _levels(opened: Image.Image, shown: "Image.Image | np.ndarray") -> tuple[bool, int]:
    """Whether all pixels of a 16-bit image, which is `shown` in 8 bits, are the same, and its highest value.

    Of colours, Pillow keeps 8 bits.
    """
    import numpy as np

    if opened.mode[0] != "I":
        return _is_flat(shown), int(np.asarray(shown).max()) * 257
    levels = np.asarray(opened)
    return bool(levels.min() == levels.max()), int(levels.max())


def _reason(error: Exception, file: BinaryIO) -> str:
    """Why a file is no image, in a few words."""
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    message = first_line(error)
    if isinstance(error, UnidentifiedImageError):
        with contextlib.suppress(OSError, ValueError):
            file.seek(0)
            start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
            if start.startswith((b"<!doctype html", b"<html")):
                return "a web page (HTML), not an image"
        return "not an image in a format that Pillow reads"
    if "truncated" in message.lower() or isinstance(error, EOFError):
        return "truncated: the end of the file is missing"
    return message if "pip install" in message or "--bands" in message else f"cannot be decoded: {message}"
