"""A torch device named "pseudo" that computes on the CPU, for tests of what the loop does on a device that is not one.

Its memory is the host's and its kernels are the CPU's, so nets and losses have the CPU's bits; the loop sees a device that
it polls every POLL_STEPS steps, whose tensors do not mix with the CPU's, under autocast. Nothing on it is asynchronous, and there
is no DDP over it.
"""

import hashlib
import os
import shutil
import types
from pathlib import Path
from typing import NamedTuple

import filelock
import torch

SOURCE = Path(__file__).with_suffix(".cpp")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oneloop-tests"  # the user's: HOME is not, in tests
MISSING = [tool for tool in ("ninja", os.environ.get("CXX", "c++")) if not shutil.which(tool)]


class Counts(NamedTuple):
    """Since the process began: copies from the device to the host, other reads that a host waits for."""

    copies: int
    reads: int


def built() -> Path:
    """The shared library, compiled once for each version of its source and of torch: 20 s of one core."""
    version = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = CACHE / version / "pseudo_device.so"
    CACHE.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(CACHE / f"{version}.lock"):
        if not library.exists():
            from torch.utils import cpp_extension  # takes a moment

            place = CACHE / f"{version}.tmp"
            shutil.rmtree(place, ignore_errors=True)  # of a build that was killed, with the lock of its own
            place.mkdir()
            flags = ["-O1", "-w"]
            cpp_extension.load("pseudo_device", [str(SOURCE)], flags, build_directory=str(place), is_python_module=False)
            place.rename(library.parent)
    return library


def begin(library: str) -> None:
    """Make the device part of this process, for good."""
    torch.utils.rename_privateuse1_backend("pseudo")
    torch.ops.load_library(library)
    torch.ops.pseudo_device.begin()
    module = types.ModuleType("torch.pseudo")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = module.manual_seed_all = module.synchronize = lambda *_: None  # draws are the CPU generator's
    module._is_in_bad_fork = lambda: False
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch._register_device_module("pseudo", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    # Module.to would replace the parameters, which on a GPU it keeps, and the optimizer would have the old ones.
    torch.__future__.set_swap_module_params_on_conversion(True)


def counts() -> Counts:
    return Counts(*torch.ops.pseudo_device.counts())
