"""What is in a folder and its subfolders."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NO_CLASSES = ("__MACOSX", "__pycache__")  # folders that a program has left there


class Entry(NamedTuple):
    """`kind` is file, folder, hidden, broken link, link in a circle, or special (a device, a pipe)."""

    path: str
    kind: str
    status: os.stat_result | None = None  # of a file


def walk(folder: Path | str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Entry]:
    """Everything in a folder and its subfolders, sorted by name, a folder before what is in it.

    Follows links, but not in circles. Of hidden files and folders (.git, __MACOSX, __pycache__) only the name is given. Raises
    OSError.
    """
    here = os.stat(folder)
    above = (*above, (here.st_dev, here.st_ino))
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            yield Entry(entry.path, "hidden")
            continue
        try:
            status = entry.stat()
        except OSError:
            if not entry.is_symlink():
                raise
            yield Entry(entry.path, "broken link")
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield Entry(entry.path, "file" if stat.S_ISREG(status.st_mode) else "special", status)
        elif entry.name in NO_CLASSES:
            yield Entry(entry.path, "hidden")
        elif (status.st_dev, status.st_ino) in above:
            yield Entry(entry.path, "link in a circle")
        else:
            yield Entry(entry.path, "folder")
            yield from walk(entry.path, above)
