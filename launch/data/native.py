"""The C code of native.c and native_x86.h, compiled when it is first needed and kept in the cache folder. Loads no torch.

Without a C compiler, or where the cache folder cannot be used, torch does the same, with the same bits, at about half the speed.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import cache_folder, locked
from ..errors import Refused

if TYPE_CHECKING:
    import numpy as np

SOURCE = Path(__file__).with_name("native.c")
INCLUDED = SOURCE.with_name("native_x86.h")
COMPILERS = ("cc", "gcc", "clang")
# No operation may be fused with another one: it would be rounded once instead of twice.
FLAGS = ("-O3", "-shared", "-fPIC", "-ffp-contract=off")
SECONDS = 60  # that a compiler may take: it takes one


def resize(
    images: Sequence["np.ndarray"], views: Sequence[Sequence[int]], out: "np.ndarray", scale: int = 0, shift: int = 0
) -> bool:
    """Resize and mirror parts of `images`, uint8 (h, w, 3), into `out` (n, height, width, 3), without Python's lock.

    A view is (top, left, height, width, mirrored). `scale` and `shift` are the addresses of float32 factors for each value of a
    row of `out`, which is float32 then, and uint8 without. Returns whether it was done; if not, there is no native code.
    """
    import numpy as np

    if (code := library()) is None:
        return False
    parts = []
    for image, (top, left, height, width, mirrored) in zip(images, views, strict=True):
        begin, (down, across, _) = image.__array_interface__["data"][0], image.strides
        end = begin + (image.shape[0] - 1) * down + image.shape[1] * across
        parts.append((begin + top * down + left * across, end, down, height, width, mirrored))
    table = np.array(parts, np.int64)
    if code.oneloop_resize(table.ctypes.data, len(parts), *out.shape[1:3], scale or None, shift or None, out.ctypes.data):
        raise MemoryError
    return True


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled code, or None."""
    if not (compiler := _compiler()):
        return None
    with contextlib.suppress(OSError, Refused, subprocess.SubprocessError):
        code = ctypes.CDLL(str(_compiled(compiler)))
        size, address = ctypes.c_int64, ctypes.c_void_p
        code.oneloop_resize.argtypes = address, size, size, size, address, address, address
        return code
    return None


def _compiler() -> str | None:
    chosen = [os.environ["CC"]] if os.environ.get("CC") else COMPILERS
    return next(filter(None, map(shutil.which, chosen)), None)


def _compiled(compiler: str) -> Path:
    """The library in the cache folder. Raises OSError or Refused where it cannot be written, or its owner is somebody else."""
    made_of = SOURCE.read_bytes() + INCLUDED.read_bytes() + repr((FLAGS, sys.platform, platform.machine())).encode()
    known = hashlib.sha256(made_of).hexdigest()[:16]
    path = cache_folder() / f"native-{known}.so"
    if not path.exists():
        with locked(f"native-{known}"):
            if not path.exists():
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                try:
                    command = [compiler, *FLAGS, str(SOURCE), "-lm", "-o", str(temporary)]
                    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():  # whoever writes there would run code here
        raise PermissionError(path)
    return path
