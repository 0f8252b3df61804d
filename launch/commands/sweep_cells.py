"""The runs of a sweep on this machine: started, watched and ended as processes of their own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Refused, printable
from ..report.runs import describe, in_use, read, read_result

POLL_SECONDS = 0.1
END_SECONDS = 90  # after a signal: for the runs to save and for W&B to finish


@dataclass(frozen=True)
class Cell:
    """One run of the grid: its flags, its name among the others, its folder.

    `stale`: it is finished, but has other data now. It is started like one that is not finished, and says what is wrong.
    """

    flags: tuple[str, ...]
    name: str
    folder: Path
    stale: bool = False

    def result(self) -> dict | None:
        return None if self.stale else read_result(self.folder)


def run(cells: Sequence[Cell], launch: Sequence[str], at_once: int, gpus: Sequence[str] = ()) -> dict[Cell, str]:
    """Run the cells that are not finished, `at_once` at a time, each on the next free one of `gpus` if there are several.

    Returns what became of each that did not finish: "failed: why", "interrupted: why" (a signal or a kill), or "running: …" if
    another command is working on it. After SIGINT or SIGTERM, waits until the runs have saved, then raises Refused (130, 143).
    """
    waiting = [cell for cell in cells if not cell.result()]
    number = numbered(cells)
    print(f"{len(cells)} runs, {len(cells) - len(waiting)} of them already finished", flush=True)
    running: dict[Cell, subprocess.Popen] = {}
    left: dict[Cell, str] = {}
    places = {slot: {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {} for slot in range(at_once)}
    slots: dict[Cell, int] = {}
    with signals_noted() as signals, tempfile.TemporaryDirectory() as place:
        errors = {cell: Path(place, str(index)) for index, cell in enumerate(cells)}  # standard error of each
        try:
            while (waiting or running) and not signals:
                while waiting and len(running) < at_once:
                    cell = waiting.pop(0)
                    if in_use(cell.folder):  # for example after a sweep was killed: its runs continue
                        left[cell] = f"running: another command is working on {cell.folder}"
                        print(f"{number[cell]} {cell.name}: {printable(left[cell])}", flush=True)
                        continue
                    print(f"{number[cell]} {cell.name} …", flush=True)
                    slots[cell] = min(places.keys() - {slots[other] for other in running})
                    running[cell] = _start([*launch, *cell.flags], errors[cell], places[slots[cell]])
                time.sleep(POLL_SECONDS)
                ended = [] if signals else [cell for cell, process in running.items() if process.poll() is not None]
                for cell in ended:
                    if what := unfinished(cell, running.pop(cell).returncode, errors[cell].read_text(errors="replace")):
                        left[cell] = what
                    print(f"{number[cell]} {cell.name}: {printable(what or describe(cell.result() or {}))}", flush=True)
        finally:  # after a signal, or an error in this process
            if running:
                end(running)
        if signals:
            raise stopped(running, number, signals[0])
    return left


def numbered(cells: Sequence[Cell]) -> dict[Cell, str]:
    """The place of each among all, as it is shown: [1/12]."""
    return {cell: f"[{place:>{len(str(len(cells)))}}/{len(cells)}]" for place, cell in enumerate(cells, 1)}


def stopped(running: Iterable[Cell], number: dict[Cell, str], by: int) -> Refused:
    """Say what became of the runs that were told to stop, whatever their exit codes; the error to raise after the signal `by`."""
    for cell in running:
        done = cell.result()
        print(f"{number[cell]} {cell.name}: {printable(describe(done)) if done else 'interrupted'}", flush=True)
    return Refused(f"stopped by {signal.Signals(by).name}; run the same command to resume", 128 + by)


def unfinished(cell: Cell, code: int, errors: str) -> str:
    """State of a run whose launcher ended with `code` and wrote `errors`; "" if it finished."""
    why = _why(errors) or f"exit code {code}, and no result in {cell.folder}"
    try:
        if code == 0 and cell.result():
            return ""
        state = read(cell.folder).state if (cell.folder / "config.json").exists() else "failed"
    except Refused as error:  # the folder is damaged
        return f"failed: {error}"
    return f"{'interrupted' if code < 0 else state if state != 'finished' else 'failed'}: {why}"


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """A list that gets the SIGINTs and SIGTERMs that arrive inside the block."""
    got: list[int] = []
    before = {each: signal.signal(each, lambda number, _: got.append(number)) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield got
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _start(command: Sequence[str], errors: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start accelerate's `command` in a process of its own, which the terminal's Ctrl-C does not reach."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *command]
    with open(errors, "w") as file:
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True, env=os.environ | environment
        )


def end(running: dict[Cell, subprocess.Popen]) -> None:
    """Have the runs save and end. A launcher may end before its run: a run has ended when it holds no lock."""
    print(f"stopping {len(running)} run{'s' * (len(running) > 1)}", flush=True)
    for process in running.values():
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while any(process.poll() is None or in_use(cell.folder) for cell, process in running.items()):
        if time.monotonic() > deadline:
            for process in running.values():
                _signal(process, signal.SIGKILL)
                process.wait()
            break
        time.sleep(POLL_SECONDS)


def _signal(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # they have all ended
        os.killpg(process.pid, number)


def _why(errors: str) -> str:
    """The last line that the run itself wrote, which comes before its launcher's traceback and log."""
    own, _, rest = errors.rpartition("Traceback (most recent call last):")
    lines = (own if re.search("CalledProcessError|ChildFailedError", rest) else errors).splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip() and not re.match(r"[EWI]\d{4} ", line)), "")
