"""What a user sees: standard output that may break, and one line on standard error."""

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from .errors import printable


class Screen:
    """Standard output that may end before the run, as with `| head` or on a full disk: that is said once and ends nothing."""

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
            complain(f"standard output cannot be written ({error.strerror or error}): no more lines; the run goes on")
            _silence(self.stream)


def complain(line: str) -> None:
    """One line on standard error, if there is one."""
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Have what is written to `stream`, and what waits in its buffer, go nowhere: the process can end in peace."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
