"""Errors of a run: one clear line and an exit code.

Exit codes  0 done, 1 data or disk unavailable, 2 wrong usage, 3 non-finite loss or gradient, 4 configuration, data or checkpoint
            mismatch, 5 run folder in use, 75 out of --max-seconds, 130 / 138 / 143 stopped by SIGINT / SIGUSR1 /
            SIGTERM after saving
"""

import re
import unicodedata


class Refused(Exception):
    """Error that ends a run. `str(error)` is one line that says what is wrong and what to do, `code` is the exit code.

    `everywhere`: all processes of the job raise it, at the same point, as it comes from what all of them know alike.
    """

    def __init__(self, message: str, code: int = 1, everywhere: bool = False):
        super().__init__(message, code)
        self.code, self.everywhere = code, everywhere
        self.said = False  # whether the user has already seen it

    def __str__(self) -> str:
        return str(self.args[0])


class Finished(Exception):
    """Exception that ends a recipe's `main`: its run was already finished, on the data that it has now."""


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def exhausted(error: Exception) -> str:
    """The message for an error that means that this process may be out of memory or threads; "" for other errors."""
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "no more threads can be started: raise the limits (ulimit -u, ulimit -v, a container's), or use fewer --threads"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return "out of memory: raise the limit (ulimit -v, a container's), or use a smaller --batch, --size or --limit"
    return ""


def printable(text: str) -> str:
    """`text` made safe for a terminal: one line, without escape sequences.

    Names may come from other people's files, folders and runs. Control characters, line breaks, marks that change the direction
    of writing and bytes of a file name that are not UTF-8 become escapes such as \\x1b or \\udcff; everything else is kept.
    """
    escaped = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, surrogate, line and paragraph separator
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in escaped else character
        for character in text
    )


def public_address(text: str) -> str:
    """An http or https URL without user, password, query and fragment, which may be secrets; any other text unchanged."""
    return without_secrets(text) if re.match(r"\s*https?://", text, re.IGNORECASE) else text


def without_secrets(address: str) -> str:
    """A URL of any scheme as a message may show it: without what may be secret, only its scheme if the host is unclear."""
    found = re.match(r"\s*([a-z][a-z0-9+.-]*)://([^/?#]*)([^?#]*)", address, re.IGNORECASE | re.ASCII)
    if not found:
        return address
    scheme, (host, path) = found[1].lower(), (found[2].rpartition("@")[2], found[3])
    # A password with an unescaped / or ? in it would look like host and path.
    sound = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\s:@\[\]]*)(:\d*)?", host, re.IGNORECASE)
    return f"{scheme}://{host}{path}".rstrip() if sound else f"{scheme}://…"
