"""The cache folder: $ONELOOP_CACHE, else ~/.cache/oneloop. Loads no torch."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from .errors import Refused, first_line


def cache_folder() -> Path:
    """$ONELOOP_CACHE, else $XDG_CACHE_HOME/oneloop, else ~/.cache/oneloop. Raises Refused (1) if there is no home folder."""
    if given := os.environ.get("ONELOOP_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oneloop"
    except RuntimeError as error:
        raise Refused("no home folder to cache decoded images in; choose a folder with ONELOOP_CACHE=FOLDER") from error


def slug(kind: str, path: Path) -> str:
    """Name in the cache for `path`, an absolute path: a part of it for people to recognise, and its digest.

    All of it may be too long for a file name, or contain a pattern's characters.
    """
    name = re.sub(r"[^\w.-]", "_", path.name)[:40]
    return f"{kind}-{name}-{digest(str(path))}"


def digest(text: str) -> str:
    """The first 16 digits of its sha256."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


@contextlib.contextmanager
def locked(slug: str) -> Iterator[None]:
    """Lock for the one process that fills the cache entry `slug`. Creates the folder; raises Refused (1) if it cannot."""
    folder = cache_folder()
    lock = filelock.FileLock(folder / f"{slug}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(poll_interval=0.01)  # seconds; a store holds it for milliseconds
    except (OSError, NotImplementedError) as error:  # the latter on file systems without locks
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def deleted(path: Path) -> Path | None:
    """Delete a file or folder of the cache. Returns its path, or None if there was none. Raises Refused (1)."""
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unwritable(path.parent, error) from error
    return path


def unwritable(folder: Path, error: Exception) -> Refused:
    """The error to raise, exit code 1, when the cache in `folder` cannot be written."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return Refused(f"cannot write the cache {folder}: {reason}; choose another with ONELOOP_CACHE")
