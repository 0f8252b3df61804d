"""A real browser, Chromium, driven by its own protocol over two pipes: what a page does, needs and loads."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """A page in a window; `complaints` is what its console had to say."""

    def __init__(self, answers: BinaryIO, writes: int):
        self.answers, self.writes, self.session, self.number = answers, writes, "", 0
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "DOM", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params) -> dict:
        self.number += 1
        request = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.writes, json.dumps(request).encode() + b"\0")
        while True:
            answer = b""
            while not answer.endswith(b"\0"):
                if not (byte := self.answers.read(1)):
                    raise RuntimeError("the browser has ended")
                answer += byte
            found = json.loads(answer[:-1])
            if found.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(found["params"]))
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]

    def open(self, address: str, width: int, dark: bool = False) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script: str):
        """What `script` is in the page; a promise is waited for."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    def until(self, condition: str, seconds: int = 30) -> None:
        waiting = f"new Promise(done => {{ const look = n => ({condition}) || !n ? done(!!n) : setTimeout(look, 50, n - 1);"
        assert self.value(f"{waiting} look({20 * seconds}) }})"), condition

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Choose `files` in a file input."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[*map(str, files)])

    def screenshot(self, path: Path) -> None:
        shown = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(shown))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A Page of a browser whose profile is in `folder`."""
    theirs, writes = os.pipe()
    reads, answers = os.pipe()
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--remote-debugging-pipe")
    command = [BROWSER, *flags, f"--user-data-dir={folder / 'browser'}"]
    code = "import os, sys; [os.dup2(int(sys.argv[n + 1]), n + 3) for n in (0, 1)]; os.execv(sys.argv[3], sys.argv[3:])"
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, answers)]  # the protocol's own numbers are 3 and 4
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, high), *command],
        pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (theirs, answers, *high):
        os.close(end)
    try:
        with os.fdopen(reads, "rb") as said:
            page = Page(said, writes)
            yield page
            page.session = ""
            page.ask("Browser.close")
            process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(writes)
