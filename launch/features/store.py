"""Features kept on the disk: rows of float32 in one file of the cache folder, which all processes of a machine map.

    features-<data>-<digest of `about`>.f32
        about     one line of JSON, padded to a multiple of 64 bytes: what computed the rows, and their width
        records   key (32 bytes), crc32 of the key and the row (4), the row (4 × width), in the order in which they were computed

A record is appended whole, and counts only if its checksum is right: whatever ends the process keeps what was finished.
"""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cache import cache_folder, digest, locked, slug, unwritable
from ..data.store import LIMIT, allowance
from ..errors import Refused
from ..files import write_atomically

FORMAT = 1
ALIGNED = 64  # bytes, of the first line


def key_of(sha256: str, seen: str = "") -> bytes:
    """What the features of an image are kept under, 32 bytes: by the digest of its content, and how it is `seen`."""
    return hashlib.sha256(f"{sha256}{seen}".encode()).digest()


class FeatureStore:
    """The features that a net computes of the images of `source`; `about` is all that they depend on besides the image.

    Several processes may add to it. `rows` is what there is, by key: the row in `table`. Raises Refused (1) if the cache cannot
    be read or written.
    """

    def __init__(self, source: Path, about: dict, width: int):
        line = json.dumps({"oneloop": "features", "format": FORMAT, "width": width} | about, sort_keys=True)
        self.head = (line + " " * (-(len(line) + 1) % ALIGNED) + "\n").encode()
        self.name, self.width = f"{slug('features', source)}-{digest(line)}", width
        self.path = cache_folder() / f"{self.name}.f32"
        self.record = np.dtype([("key", "V32"), ("crc", "<u4"), ("row", "<f4", (width,))])
        self.rows: dict[bytes, int] = {}
        self.count = 0  # records that were read, sound or not
        self.refresh()

    def refresh(self) -> None:
        """Take in what this and other processes have added."""
        try:
            with open(self.path, "rb") as file:
                if file.read(len(self.head)) != self.head:
                    return self._forget()
                file.seek(len(self.head) + self.count * self.record.itemsize)
                while len(record := file.read(self.record.itemsize)) == self.record.itemsize:
                    key, crc = record[:32], int.from_bytes(record[32:36], "little")
                    if crc == zlib.crc32(record[36:], zlib.crc32(key)):
                        self.rows[key] = self.count
                    self.count += 1
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            why = error.strerror or error
            raise Refused(f"cannot read {self.path} ({why}); delete it to compute the features again") from error

    def _forget(self) -> None:
        self.rows.clear()
        self.count = 0

    def reserve(self, images: int) -> None:
        """Raise Refused (1) if the disk allowance has no room for so many more rows."""
        needed, left = images * self.record.itemsize, allowance(self.path.parent)
        if needed > left:
            raise Refused(
                f"the features take {needed / 2**20:,.2f} MiB more on the disk, whose allowance has {max(left, 0) / 2**20:,.2f}: "
                f"raise {LIMIT}, or delete what is kept of other data (oneloop data PATH --clear)"
            )

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Append `features` float32 (n, width), each under its key of 32 bytes, unless another process has added it."""
        with locked(self.name):
            self.refresh()
            new = {key: row for key, row in zip(keys, features.numpy(), strict=True) if key not in self.rows}
            try:
                if not self.count:  # none is there, or one of other code
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(self.path, self.head)
                with open(self.path, "r+b") as file:
                    end = len(self.head) + self.count * self.record.itemsize
                    file.truncate(end)  # what was cut off
                    file.seek(end)
                    for key, row in new.items():
                        values = np.ascontiguousarray(row, "<f4").tobytes()
                        file.write(key + zlib.crc32(values, zlib.crc32(key)).to_bytes(4, "little") + values)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, len(self.head) + self.count * self.record.itemsize)
                raise unwritable(self.path.parent, error) from error
            self.refresh()

    def table(self) -> Tensor:
        """All rows as they lie on the disk, mapped: float32 (count, width). What is written to it does not get into the file."""
        if not self.count:
            return torch.zeros(0, self.width)
        records = np.memmap(self.path, self.record, "c", offset=len(self.head), shape=(self.count,))
        return torch.from_numpy(records["row"])
