"""Decoded images on disk: one safetensors file for each data set, in $ONELOOP_CACHE, else ~/.cache/oneloop.

A file is written under a temporary name and renamed, and holds the fingerprint of its data, which is checked each time it is
read. A data set of the hub that is cached is never asked for again: delete its file to download it again. Only this file knows
the format; a slug is the name of a data set here.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch

from ..cache import cache_folder, locked, unwritable
from ..data.dataset import DataSet, Split
from ..errors import Refused


def read_or_decode(slug: str, decode: Callable[[], DataSet], state: str = "") -> DataSet:
    """The cached data set, else what `decode` returns, which is then cached in place of older ones of this slug.

    `state` identifies the files that a data set was decoded from; without it, whatever is cached is used. When several processes
    need the same data set, one decodes it and the others wait.
    """
    if cached := read(slug, state):
        return cached
    with locked(slug):
        return read(slug, state) or _write(slug, decode(), state)


def read(slug: str, state: str = "") -> DataSet | None:
    """The cached data set, or None. Raises Refused: 1 if you may not read it, 4 if it is damaged."""
    path = _newest(slug, state or "*")
    if path is None:
        return None
    try:
        path.open("rb").close()  # safetensors reports a file without permission as missing
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["oneloop"])
            train, test = (Split(*(file.get_tensor(f"{name}.{part}") for part in Split._fields)) for name in ("train", "test"))
        data_set, recorded = DataSet(facts["source"], tuple(facts["classes"]), train, test), facts["fingerprint"]
    except PermissionError as error:
        raise Refused(f"no permission to read the cached data {path}; choose another cache with ONELOOP_CACHE") from error
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"the cached data {path} cannot be read ({error}); delete it to rebuild it", 4) from error
    if (now := data_set.fingerprint) != recorded:
        wrong = f"sha256 {now[:16]}, recorded {recorded[:16]}"
        raise Refused(f"the cached data {path} is damaged ({wrong}); delete it to rebuild it", 4)
    return data_set


def _write(slug: str, decoded: DataSet, state: str) -> DataSet:
    folder = cache_folder()
    path = folder / f"{slug}.{state or decoded.fingerprint[:16]}.safetensors"
    splits = {"train": decoded.train, "test": decoded.test}
    tensors = {f"{name}.{part}": getattr(split, part) for name, split in splits.items() for part in Split._fields}
    facts = {"source": decoded.source, "classes": decoded.classes, "fingerprint": decoded.fingerprint}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask says; safetensors would let only the owner read it
        safetensors.torch.save_file(tensors, temporary, metadata={"oneloop": json.dumps(facts)})
        temporary.chmod(mode)
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:  # the latter when the disk is full
        temporary.unlink(missing_ok=True)
        raise unwritable(folder, error) from error
    for older in folder.glob(f"{slug}.*.safetensors"):
        if older != path:
            with contextlib.suppress(OSError):  # it may belong to another user
                older.unlink()
    return decoded


def _newest(slug: str, state: str) -> Path | None:
    folder = cache_folder()
    try:
        return max(folder.glob(f"{slug}.{state}.safetensors"), key=lambda path: path.stat().st_mtime_ns, default=None)
    except FileNotFoundError:  # another process has just replaced it
        return None
    except OSError as error:
        raise unwritable(folder, error) from error
