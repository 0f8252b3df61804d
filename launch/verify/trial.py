"""Runs of one recipe in a temporary folder: real processes, a few steps each."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ..errors import Refused
from ..recipe import flag_names
from ..report.runs import read_metrics, recorded_json, trainings, without_clock

# Training and test images to try in turn, until the run is short enough. They are primes, so that no batch, cut or number of
# processes divides them; of 503 test images each of two processes evaluates a batch.
SIZES = ((251, 503), (61, 127), (23, 29))
EPOCHS = 3
SHORT_SECONDS = 30  # that the first run may train; with the last of SIZES there is no limit
FIRST_SECONDS = 3600  # for the first run and its data, which may have to be downloaded


@dataclass
class Trial:
    """The recipe, its flags, the folder of its runs, and how long one may take."""

    recipe: Path
    flags: list[str]
    place: Path
    tests: int = SIZES[0][1]  # test images, at most
    seconds: float = FIRST_SECONDS  # for each run
    signals: list[int] = field(default_factory=list)  # SIGINT and SIGTERM, as they arrive

    def begin(self, name: str, processes: int = 1, micro_batches: int = 2, gpus: bool = False) -> subprocess.Popen:
        """Start or resume the run in the folder `name`; its output is appended to `name`.log."""
        # PYTHONSAFEPATH: modules are not looked up in the current folder, so the package is the installed one, as here.
        environment = os.environ | {"WANDB_MODE": "disabled", "PYTHONSAFEPATH": "1"}
        environment |= {} if gpus else {"ACCELERATE_USE_CPU": "true"}
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        recipe = ["-m", "launch.verify.few_tests", str(self.tests), str(self.recipe), *self.flags]
        fixed = ["--micro-batches", str(micro_batches), "--threads", "1", "--log-every", "1", "--save-every", "1"]
        command = [sys.executable, *launcher, *recipe, *fixed, "--out", str(self.place / name)]
        with open(self.place / f"{name}.log", "a") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def first(self) -> int:
        """Finish the run `one` with the first of SIZES that makes it short; returns its exit code.

        Sets `flags`, `tests` and, from the time that this run took, `seconds`. Raises Refused.
        """
        flags = _short(self.flags)
        opened = self.place / "one/config.json"

        def too_long() -> bool:
            return opened.exists() and time.time() - opened.stat().st_mtime > SHORT_SECONDS

        sizes = SIZES[:1] if "--limit" in flag_names(flags) else SIZES
        for limit, tests in sizes:
            shutil.rmtree(self.place / "one", ignore_errors=True)
            self.flags = flags if len(sizes) == 1 else [*flags, "--limit", str(limit)]
            self.tests, began = tests, time.monotonic()
            last = (limit, tests) == sizes[-1]
            code = self.run("one") if last else self._until("one", too_long)
            if code is not None and (code != 2 or last):  # 2: the recipe refuses this number of images, as one that leaves 1 over
                break
        self.seconds = 10 * (time.monotonic() - began) + 60
        assert code is not None  # nothing kills the last one
        return code

    def run(self, name: str, **options: Any) -> int:
        """Start or resume the run and wait for its end; returns its exit code. Raises Refused after `seconds`."""
        code = self._until(name, lambda: False, **options)
        assert code is not None  # nothing kills it
        return code

    def kill_when(self, condition: Callable[[], bool], name: str, **options: Any) -> None:
        """Start the run and SIGKILL it once `condition` holds, unless it has ended before."""
        self._until(name, condition, **options)

    def _until(self, name: str, over: Callable[[], bool], **options: Any) -> int | None:
        """Start the run and wait for its end; returns its exit code, or None if it was killed because `over` held first."""
        process, deadline = self.begin(name, **options), time.monotonic() + self.seconds
        try:
            while (code := process.poll()) is None and not over():
                self.stop_if_told()
                if time.monotonic() > deadline:
                    raise Refused(f"a run took more than {self.seconds:.0f} s; try a smaller --limit")
                time.sleep(0.005)
            return code
        finally:
            _kill(process)

    def stop_if_told(self) -> None:
        """Raise Refused (130, 143) after a signal."""
        if self.signals:
            raise Refused(f"stopped by {signal.Signals(self.signals[0]).name}; nothing was written", 128 + self.signals[0])

    def last_line(self, name: str) -> str:
        """The last line that the run itself wrote, before the report of its launcher."""
        lines = [line for line in self.log(name).splitlines() if line.strip()]
        own = [line for line in lines if not line.startswith(("W1", "E1", "W0", "E0", " ", "===", "---"))]
        return own[-1] if own else "no output"

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text()

    def records(self, name: str) -> dict[str, list[dict]]:
        """The lines of every metrics.jsonl, without the clock, by stage; stages in the order in which they ended."""
        found = [place / "metrics.jsonl" for place in trainings(self.place / name)]
        files = sorted(found, key=lambda file: file.stat().st_mtime_ns)
        return {str(file.parent.relative_to(self.place / name)): without_clock(read_metrics(file)) for file in files}

    def digest(self, name: str) -> str:
        """The sha256 of the run's last weights, of each stage in turn; "" if there are none."""
        results = [recorded_json(file) for file in sorted((self.place / name).rglob("result.json"))]
        return " ".join(result["weights_sha256"] for result in results if "weights_sha256" in result)


def _short(flags: Sequence[str]) -> list[str]:
    """The flags, with --epochs EPOCHS unless given. Raises Refused (2) for flags that the trial sets itself."""
    if fixed := flag_names(flags) & {"--micro-batches", "--threads", "--log-every", "--save-every", "--fresh"}:
        raise Refused(f"oneloop verify sets {', '.join(sorted(fixed))} itself: leave it out", 2)
    return [*flags, *(() if "--epochs" in flag_names(flags) else ("--epochs", str(EPOCHS)))]


def _kill(process: subprocess.Popen) -> None:
    """Kill the process and all its descendants, also those in sessions of their own, as torch's launcher starts them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGSTOP)  # so that it starts no more
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)
