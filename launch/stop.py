"""What ends a run from outside: signals, its time, its launcher's death."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil
import torch.distributed

from .errors import Refused
from .processes import LAUNCHERS

OUT_OF_TIME = 75  # the exit code: EX_TEMPFAIL of sysexits.h, "try again"
CLOCKS_APART = 10  # seconds between the starts of two processes of a job

StopWhen = Callable[[int, int | None], bool]


class Stop:
    """Notices SIGINT, SIGTERM and SIGUSR1 (a queue's last warning); asked between steps and between evaluation batches.

    After `seconds` of this process, if they are not 0, it stops a run by itself. `when(step, batch)` may, too: `step` is the
    number of steps made, `batch` None between two steps, and in an evaluation the number of the batch that was evaluated, from 0.
    A run stopped so ends and resumes as one that got a SIGTERM.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

    def __init__(self, when: StopWhen | None = None, seconds: int = 0) -> None:
        self.when, self.signal, self.seconds = when, 0, seconds
        self.end = psutil.Process().create_time() + seconds if seconds else math.inf  # on the wall clock

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if error and (self.signal or torch.distributed.is_initialized()):
            # The process is ending, and still has to say why: neither its launcher's death nor its SIGTERM changes that.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def requested(self, step: int, batch: int | None = None) -> bool:
        return bool(self.when and self.when(step, batch)) or self.signal != 0 or time.time() > self.end

    def refusal(self, folder: Path, step: int) -> Refused:
        if not self.signal and time.time() > self.end - CLOCKS_APART:  # here, or on another process
            saved = f"checkpoint saved in {folder}: run the same command to resume"
            return Refused(f"stopped after --max-seconds {self.seconds} at step {step:,}; {saved}", OUT_OF_TIME, everywhere=True)
        number = signal.Signals(self.signal or signal.SIGTERM)  # another process may have got it
        saved = f"checkpoint saved in {folder}: run the same command to resume"
        return Refused(f"stopped by {number.name} at step {step:,}; {saved}", 128 + number, everywhere=True)


def follow_launcher() -> None:
    """Turn a launcher's death into a SIGTERM to this process, which would otherwise keep the run folder's lock.

    torch's launcher gives its processes sessions of their own, so that what kills its group misses them; accelerate's for one
    process does not pass signals on.
    """
    if not LAUNCHERS & os.environ.keys():
        return
    launcher, adopted = os.getppid(), _adopted()

    def watch() -> None:
        while os.getppid() == launcher and not adopted:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _adopted() -> bool:
    """Return whether the launcher died during the imports: the parent is process 1, and not because of a container."""
    try:
        return os.getppid() == 1 and not os.path.samefile("/proc/1/exe", sys.executable)
    except OSError:  # not ours to see, or no Linux
        return True
