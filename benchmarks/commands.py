"""Whole commands, start and end and all their processes included: for benchmarks/predict.py and train_wall.py."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """Seconds on the clock, seconds of the cores, and the most MiB of a process, of a whole command."""

    seconds: float
    cores: float
    memory: float


def cost(words: Sequence[str], environment: Mapping[str, str], folder: str | None = None) -> Cost:
    """What a command costs that runs in `folder`. Raises RuntimeError with the last line that it says if it fails."""
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        process = subprocess.Popen(words, env=environment, cwd=folder, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(words)}: {(output.read().strip().splitlines() or ['it says nothing'])[-1]}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def recipe(checkout: Path) -> Path:
    """The recipe for one's own images, by its name today or in version 0.2."""
    return next(path for name in ("custom", "pictures") if (path := checkout.resolve() / f"recipes/{name}.py").exists())
