"""Files that a crash at any moment leaves whole: the old content or the new. Loads no torch."""

import os
import zlib
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file `path`: readers, and a crash at any moment, see the old content or the new. A device is written to."""
    if path.is_char_device():  # /dev/stdout, /dev/null: root could rename a file over it
        path.write_bytes(content)
        return
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        write_synced(temporary, content)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file, in place of one of this name, and have the disk hold it. Raises OSError."""
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:  # a file of its own: never through a link that somebody left there
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in `folder`. Raises OSError."""
    if os.name == "nt":  # Windows cannot open a folder, and needs no sync of one
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def with_checksum(text: str) -> str:
    """A line of `text`, which is ASCII, and its checksum."""
    return f"{text}\t{zlib.crc32(text.encode()):08x}\n"


def checked(line: bytes) -> bytes:
    """The text of a line `with_checksum`; empty if it is damaged or was cut off."""
    text, _, checksum = line.partition(b"\t")
    return text if checksum.rstrip() == b"%08x" % zlib.crc32(text) else b""
