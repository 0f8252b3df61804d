"""Standard output that may break, and single lines on standard error."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from .errors import printable

SHOWN_FROM = 100  # images: fewer are done before a bar could be read


class Screen:
    """Standard output that may break during the run, as with `| head` or on a full disk: reported once, the run continues."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        self._try(lambda: self.stream.write(text))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            complain(f"cannot write to standard output ({error.strerror or error}): no more output; the run continues")
            _silence(self.stream)


def say(text: str) -> None:
    """Print to standard output, if it is open: a reader that is gone ends no training."""
    print(text, file=Screen(sys.stdout), flush=True)  # it passes on what it does not have


def complain(line: str) -> None:
    """Print one line to standard error, if it is open."""
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table: the cells of each row, those of a column below each other."""
    rows = [*rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], Any]]:
    """On a terminal, a bar with the time that is left for `total` images. Yields what is to be called with the number done."""
    if not (sys.stderr.isatty() and total > SHOWN_FROM):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    both = sys.stdout.isatty()  # then results go above the bar
    with Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=Console(stderr=not both),
        redirect_stdout=both,
        transient=True,
    ) as bar:
        task = bar.add_task("images", total=total)
        yield lambda done: bar.advance(task, done)


def _silence(stream: TextIO) -> None:
    """Redirect `stream` to os.devnull, buffered text included, so that flushing it at exit cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
