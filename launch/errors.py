"""How a run ends when it does not end well: one clear line and an exit code.

Exit codes  0 done, 1 data or disk cannot be had, 2 wrong usage, 3 non-finite loss, 4 configuration, data or checkpoint
            mismatch, 5 run folder in use, 130 / 138 / 143 stopped by SIGINT / SIGUSR1 / SIGTERM after saving
"""

import re


class Refused(Exception):
    """The run cannot go on; `str(error)` is one line that says why and the way out, `code` the exit code."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message, code)
        self.code = code
        self.said = False  # whether the user has seen it

    def __str__(self) -> str:
        return self.args[0]


def first_line(error: Exception) -> str:
    """What an error says, in one line; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """`text` for a terminal: control characters, line separators and what is no character at all as visible escapes."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", _escape, text)


def _escape(found: re.Match) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
