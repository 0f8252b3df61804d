"""How a run ends when it does not end well: one clear line and an exit code.

Exit codes  0 done, 1 data or disk cannot be had, 2 wrong usage, 3 non-finite loss, 4 configuration, data or checkpoint
            mismatch, 5 run folder in use, 130 / 138 / 143 stopped by SIGINT / SIGUSR1 / SIGTERM after saving
"""

import unicodedata


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
    """`text` as a terminal may be given it: in one line, and with nothing in it that steers the terminal.

    Names come from files, folders and runs of others. Control characters, line ends, marks that turn the direction of writing,
    and what is not UTF-8 in the name of a file become escapes, such as \\x1b or \\udcff; all else stays as it is.
    """
    escaped = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, surrogate, line and paragraph separator
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in escaped else character
        for character in text
    )
