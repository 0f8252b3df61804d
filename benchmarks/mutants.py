"""Which faults the tests notice: each mutant of tests/mutants/*.toml in a copy of the tree, with the tests named for it.

    make mutants                                        all of them
    python benchmarks/mutants.py --jobs 2 --only nets   those of tests/mutants/nets.toml; or of a file: --only nets/zoo.py

    [[mutant]]
    file = "nets/zoo.py"
    old = "text that occurs once in the file"
    new = "what takes its place: small, realistic, wrong"
    tests = ["tests/test_zoo.py::test_addresses"]       as narrow and fast as notices it

A mutant stands for a promise, which a comment above the first of several names: a few for each row of docs/guarantees.md and for
each kind of number of a net or recipe, not one for each line. `old` is short and distinctive, so that few renamings touch it.

Noticed is what makes a test fail, or hang. First the tests have to pass on a copy without a fault.
"""

import contextlib
import importlib
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import tyro
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
SLOW = ("torch._dynamo", "torchvision", "accelerate", "matplotlib.backends.backend_agg")  # imported once, before the forks
ENOUGH = 95  # percent that must be noticed
UNMUTATED_SECONDS = 600  # for the tests of one file


@dataclass(frozen=True)
class Mutant:
    part: str  # the stem of its toml file
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        """Its file and the first lines that differ."""
        pairs = itertools.zip_longest(self.old.splitlines(), self.new.splitlines(), fillvalue="")
        old, new = next(((old, new) for old, new in pairs if old != new), ("", ""))
        return f"{self.file}: {old.strip() or '(nothing)'} → {new.strip() or '(nothing)'}"

    def apply(self, root: Path) -> None:
        path = root / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


def read(root: Path) -> list[Mutant]:
    """All mutants of the tree `root`. Raises TypeError for an entry with other keys than those above."""
    entries = {path.stem: tomllib.loads(path.read_text())["mutant"] for path in sorted((root / "tests/mutants").glob("*.toml"))}
    return [Mutant(part, **entry | {"tests": tuple(entry["tests"])}) for part, of_part in entries.items() for entry in of_part]


def faults(root: Path, mutants: Iterable[Mutant]) -> list[str]:
    """A line for each mutant that cannot be put in, or whose tests do not exist."""
    lines = []
    for mutant in mutants:
        path = root / mutant.file
        times = path.read_text().count(mutant.old) if path.is_file() else 0
        if times != 1 or mutant.new == mutant.old:
            lines.append(f"{mutant}: what it replaces is there {times} times" if times != 1 else f"{mutant}: changes nothing")
        if not mutant.tests:
            lines.append(f"{mutant}: names no test")
        for test in mutant.tests:
            file, _, name = test.partition("::")
            text = (root / file).read_text() if (root / file).is_file() else ""
            if not text or (name and f"def {name.partition('[')[0]}(" not in text):
                lines.append(f"{mutant}: no test {test}")
    return lines


@dataclass
class Attempt:
    """Tests that run in a process of their own, on a copy of the tree."""

    tests: tuple[str, ...]
    mutant: Mutant | None  # None: the tree as it is
    seconds: float  # that it may take
    code: int | None = None  # pytest's, negative after a signal
    output: str = ""
    took: float = 0.0

    def start(self, root: Path, place: Path) -> None:
        self.place, self.began = place, time.monotonic()
        shutil.copytree(root, place / "tree")
        if self.mutant:
            self.mutant.apply(place / "tree")
        self.process = multiprocessing.get_context("fork").Process(
            target=_test, args=(place, self.tests, self.mutant is not None)
        )
        self.process.start()

    def over(self) -> bool:
        """Return whether it has ended; one that takes too long is ended, first with a chance to end what it started."""
        late = time.monotonic() - self.began - self.seconds
        if late > 0 and self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL if late > 10 else signal.SIGINT)
            self.process.join(1)
        if self.process.is_alive():
            return False
        self.process.join()
        self.code, self.took = self.process.exitcode, time.monotonic() - self.began
        self.output = (self.place / "log").read_text(errors="replace")
        shutil.rmtree(self.place, ignore_errors=True)
        return True


def _test(place: Path, tests: tuple[str, ...], first_only: bool) -> None:
    """Run pytest in this forked process, as if it had been started in the copy, and end with its code."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(place / "tree")
    for stream in (1, 2):
        os.dup2(os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    # Compiled files are trusted by size and second: a fault of equal length, put in at once, would not be seen.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(place / "tree"), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(place / "tree"))
    flags = ["-n", "0", "-q", "-p", "no:cacheprovider", "--basetemp", str(place / "tmp"), *(["-x"] if first_only else [])]
    code = pytest.main([*flags, *tests])
    sys.stdout.flush()
    os._exit(code)


def run(root: Path, attempts: Iterable[Attempt], jobs: int) -> Iterator[Attempt]:
    """The attempts as they end, `jobs` at a time, all on the tree as it is now."""
    waiting, running = list(attempts), []
    hidden = shutil.ignore_patterns(".*", "__pycache__", "runs", "wandb", "*.egg-info")
    with tempfile.TemporaryDirectory(prefix="oneloop-mutants-") as folder:
        shutil.copytree(root, tree := Path(folder) / "tree", ignore=hidden)
        while waiting or running:
            while waiting and len(running) < jobs:
                attempt = waiting.pop(0)
                attempt.start(tree, Path(tempfile.mkdtemp(dir=folder)))
                running.append(attempt)
            wait([attempt.process.sentinel for attempt in running], timeout=1)
            ended = [attempt for attempt in running if attempt.over()]
            running = [attempt for attempt in running if attempt not in ended]
            yield from ended


def unsound(root: Path, mutants: list[Mutant], jobs: int) -> list[str]:
    """Messages of the named tests that do not pass without a fault; each runs once."""
    by_file = defaultdict(dict)
    for test in (test for mutant in mutants for test in mutant.tests):
        by_file[test.partition("::")[0]][test] = None
    attempts = [Attempt(tuple(tests), None, UNMUTATED_SECONDS) for tests in by_file.values()]
    return [attempt.output for attempt in run(root, attempts, jobs) if attempt.code]


def judge(root: Path, mutants: list[Mutant], jobs: int, seconds: float, say: Callable[[str], None]) -> dict[Mutant, str]:
    """For each mutant "noticed" or "NOT NOTICED"."""
    verdicts = {}
    for attempt in run(root, [Attempt(mutant.tests, mutant, seconds) for mutant in mutants], jobs):
        verdict = "noticed" if attempt.code else "NOT NOTICED"
        verdicts[attempt.mutant] = verdict
        say(f"{verdict:<11} {attempt.took:5.1f} s  {attempt.mutant}")
    return verdicts


def table(verdicts: dict[Mutant, str]) -> Table:
    shown = Table("file", *(f"[not bold]{name}" for name in ("mutants", "noticed", "percent")))
    by_file = defaultdict(list)
    for mutant, verdict in verdicts.items():
        by_file[mutant.file].append(verdict)
    for file, found in [*sorted(by_file.items()), ("all", list(verdicts.values()))]:
        shown.add_row(file, str(len(found)), str(found.count("noticed")), f"{percent(found):.0f}")
    return shown


def percent(verdicts: Iterable[str]) -> float:
    found = list(verdicts)
    return 100 * found.count("noticed") / len(found)


def main(jobs: int = os.cpu_count() or 1, only: str = "", seconds: float = 120) -> None:
    """Put in one fault after the other and see whether the tests notice.

    Exits with 1 if fewer than 95 % are noticed; with 2 if nothing can be said.

    Args:
        jobs: mutants at a time.
        only: a part (nets: tests/mutants/nets.toml) or a file (nets/zoo.py).
        seconds: that the tests of one mutant may take; more is a hang, which is noticed.
    """
    mutants = [mutant for mutant in read(ROOT) if only in ("", mutant.part, mutant.file)]
    if not mutants:
        sys.exit(f"no mutant of {only}: neither a part nor a file")
    if lines := faults(ROOT, mutants):
        print("\n".join(lines), file=sys.stderr)
        sys.exit(2)
    for module in SLOW:
        importlib.import_module(module)
    if outputs := unsound(ROOT, mutants, jobs):
        print("\n".join(outputs) + "\nthese tests do not pass as they are", file=sys.stderr)
        sys.exit(2)
    verdicts = judge(ROOT, mutants, jobs, seconds, lambda line: print(line, flush=True))
    Console().print(table(verdicts))
    if percent(verdicts.values()) < ENOUGH:
        sys.exit(1)


if __name__ == "__main__":
    tyro.cli(main)
