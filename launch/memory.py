"""Memory of this process. Imports no torch."""

import contextlib
import ctypes
import gc
import platform
from collections.abc import Iterator


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving each activation back to the system and faulting it in anew.

    Measured on a 2-core CPU: a step of `Net` with 64 images takes about two thirds of the time, one of `FastNet` with 2,000,
    whose activations take 100 MB and more each, three quarters. The most memory is 10 to 20 % more. Elsewhere a no-op.
    """
    if platform.libc_ver()[0] == "glibc":
        m_mmap_max, m_mmap_threshold, m_trim_threshold = -4, -3, -1
        with contextlib.suppress(AttributeError, OSError):
            libc = ctypes.CDLL(None)
            libc.mallopt(m_mmap_max, 0)  # blocks above the largest threshold that there is, 32 MiB, stay, too
            libc.mallopt(m_mmap_threshold, 32 << 20)
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Have glibc give back the memory that it has kept so far. Elsewhere a no-op.

    Steps and evaluations need blocks of different sizes, which it does not fit into each other's holes: what it keeps grows.
    """
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def nothing_is_garbage() -> Iterator[None]:
    """Context manager: what is made within, as by imports, stays until the process ends, and Python looks for no garbage in it.

    It would search half a million objects several times meanwhile, 0.3 s, and once more at the end, 0.3 s.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
