"""Weights from a URL: downloaded once into the cache's folder `weights`, under their sha256, which is checked on every load.

Every process of a job may ask: one downloads, the others wait. No message shows the user, password or query of a URL.
"""

import base64
import hashlib
import http.client
import os
import re
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

import filelock

from ..cache import cache_folder
from ..errors import Refused, first_line, without_secrets

ANSWER_SECONDS = 30  # until the file begins, connection and redirects included; then for each silence
DOWNLOAD_SECONDS = 3600  # for a whole file
DOWNLOAD_BYTES = 4 << 30  # torchvision's largest file has 2.6e9
ANOTHER_WAY = "download it another way and pass the file"


def sha256_in_name(address: SplitResult) -> str:
    """The first digits of the sha256 at the end of a file's name, as torchvision has them. Raises Refused (2)."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", address.path)
    if not found:
        raise Refused(f"{without_secrets(address.geturl())}: weights from a URL need a sha256", 2)
    return found[1]


def fetch(address: SplitResult, sha256: str) -> tuple[str, bytes]:
    """A name for messages, and the bytes with this sha256 (or these first digits of it): from the cache, else downloaded.

    Raises Refused: not available (1), wrong bytes (4).
    """
    folder = cache_folder() / "weights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".lock-{sha256}"):
            path = next(folder.glob(f"{sha256}*"), None) or _download(address, sha256, folder)
            content = path.read_bytes()
    except OSError as error:
        raise Refused(f"cannot use the cache {folder}: {error.strerror or error}; ONELOOP_CACHE names another") from error
    check_sha256(content, path.name, f"the cached file {path}", "delete it to download it again")
    return f"{without_secrets(address.geturl())} (cached as {path})", content


def _download(address: SplitResult, sha256: str, folder: Path) -> Path:
    """Download into `folder`. Only a complete file with the right sha256 gets its name, the full digest."""
    shown, temporary = without_secrets(address.geturl()), folder / f".tmp-{sha256}"  # the caller holds the lock
    deadline, answered = time.monotonic() + DOWNLOAD_SECONDS, threading.Event()
    outcome: Future[tuple[str, int, str | None]] = Future()

    def receive() -> None:
        try:
            with _opener().open(_request(address), timeout=ANSWER_SECONDS) as response:
                answered.set()
                outcome.set_result(_copy(response, file, shown, deadline))
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            answered.set()

    try:
        with open(temporary, "wb") as file:
            # A server that sends a byte now and then, in its headers or between chunks, blocks its reader forever. So the reader
            # is a daemon thread, which cannot outlive the process.
            thread = threading.Thread(target=receive, daemon=True)
            thread.start()
            if answered.wait(min(ANSWER_SECONDS, DOWNLOAD_SECONDS)):
                thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                if answered.is_set() or time.monotonic() > deadline:
                    raise _beyond(shown)
                raise TimeoutError(f"timed out: no answer within {ANSWER_SECONDS} s")
            digest, size, promised = outcome.result()
            file.flush()
            os.fsync(file.fileno())
        if promised is not None and size != int(promised):
            raise Refused(f"{shown} ended after {size:,} of {int(promised):,} bytes; run the same command to try again", 1)
        if not digest.startswith(sha256):
            raise Refused(f"sha256 mismatch for {shown}: expected {sha256}, got {digest}; nothing was kept", 4)
        return temporary.replace(folder / digest)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Refused(f"cannot download {shown}: {_reason(error)}; {ANOTHER_WAY}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, shown: str, deadline: float) -> tuple[str, int, str | None]:
    """Write the response to the file. Returns its sha256, its bytes and the Content-Length header. Raises Refused (1)."""
    digest, size = hashlib.sha256(), 0
    while chunk := response.read1(1 << 20):  # read1 returns what has arrived, without waiting for more
        size += len(chunk)
        if size > DOWNLOAD_BYTES or time.monotonic() > deadline:
            raise _beyond(shown)
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest(), size, response.headers.get("Content-Length")


def _beyond(shown: str) -> Refused:
    limits = f"{DOWNLOAD_BYTES / 1e9:.1f} GB and {DOWNLOAD_SECONDS:,} s"
    return Refused(f"{shown} exceeds the download limits of {limits}; {ANOTHER_WAY}", 1)


def _request(address: SplitResult) -> urllib.request.Request:
    """The request. User and password go into a header for this server, and never to one that it redirects to."""
    url = address._replace(netloc=address.netloc.rpartition("@")[2], fragment="").geturl()
    request = urllib.request.Request(url, headers={"User-Agent": "oneloop"})
    if address.username is not None:
        both = f"{unquote(address.username)}:{unquote(address.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(both.encode()).decode()}")
    return request


def _reason(error: Exception) -> str:
    """Why a download failed, in words without a URL: the one that a server redirects to may be signed."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it holds the connection open
        if 300 <= error.code < 400:
            return "it redirects in a circle, or to something other than http or https"
        return f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip()
    if isinstance(error, OSError):
        return first_line(error)
    return f"the URL or the server's response is malformed ({type(error).__name__})"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but never from https to http: a URL may be a secret."""

    def redirect_request(
        self,
        request: urllib.request.Request,
        answer: IO[bytes],
        code: int,
        message: str,
        headers: http.client.HTTPMessage,
        url: str,
    ) -> urllib.request.Request | None:
        if request.type == "https" and urlsplit(url).scheme != "https":
            answer.close()
            here, there = without_secrets(request.full_url), without_secrets(url)
            raise Refused(f"{here} redirects to {there}, which is not encrypted; it is not followed", 4)
        return super().redirect_request(request, answer, code, message, headers, url)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https and nothing else: a redirect to file:// or ftp:// has no handler."""
    opener = urllib.request.OpenerDirector()
    for part in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        _Redirects,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(part())
    return opener


def check_sha256(content: bytes, sha256: str, where: str, remedy: str) -> None:
    """Raises Refused (4) unless the content's digest starts with `sha256`; `remedy` says what to do."""
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(sha256):
        raise Refused(f"sha256 mismatch for {where}: expected {sha256}, got {digest}; {remedy}", 4)
