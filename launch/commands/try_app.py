"""The web application of `oneloop try`: whom it answers, how much it takes, and the page.

It answers this machine only, and there only who knows the token in the address: other pages in the same browser do not, and
neither do other users. A request writes no file and names none: training images have numbers.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..console import complain
from ..errors import Refused, first_line
from ..templates.render import render
from .try_answers import MOST_BYTES, Unusable, answer
from .try_nearest import TrainingImages

if TYPE_CHECKING:
    from oneloop import Model

# The names by which a browser may know this machine, and where the page is then from: a name that was pointed at it is another.
HOSTS = {"127.0.0.1": "http://127.0.0.1", "localhost": "http://localhost"}
WAITING = 8  # images that are sent or wait at a time
SECONDS = 30  # for an image to arrive
POLICY = "; ".join((
    "default-src 'none'", "script-src 'nonce-{0}'", "style-src 'nonce-{0}'", "img-src 'self' data:", "connect-src 'self'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
))  # fmt: skip
REFUSALS = {403: "only the page itself may ask", 404: "not found: the address is the one that oneloop try printed"}
HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def app(model: "Model", training: TrainingImages | str, token: str, title: str, unsure: float = 0.0) -> ASGIApp:
    """The application under /TOKEN/. Images are computed one at a time, in one thread."""
    one_thread = ThreadPoolExecutor(1, "try")
    waiting = asyncio.Semaphore(WAITING)

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe()
        content = {"title": title, "nonce": nonce, "megabytes": MOST_BYTES >> 20, "unsure": unsure}
        policy = {"content-security-policy": POLICY.format(nonce)}
        return Response(render("try.html", content), media_type="text/html", headers=policy)

    async def classify(request: Request) -> Response:
        if waiting.locked():
            return _error(503, f"busy: {WAITING} images wait already; try again", {"retry-after": "1"})
        async with waiting:
            try:
                async with asyncio.timeout(SECONDS):
                    content = await _content(request)
                found = await asyncio.get_running_loop().run_in_executor(one_thread, answer, model, training, unsure, content)
            except ClientDisconnect:
                return _error(400, "the image did not arrive")  # which nobody reads
            except TimeoutError:
                return _error(408, f"the image did not arrive within {SECONDS} seconds")
            except Unusable as error:
                return _error(error.status, str(error))
            except Exception as error:  # of any kind: the net is anybody's
                complain(f"{type(error).__name__}: {first_line(error)}")
                return _error(500, f"the net fails with this image: {first_line(error)}")
        return JSONResponse(found)

    async def training_image(request: Request) -> Response:
        number = _number(request.path_params["number"])
        if isinstance(training, str) or not 0 <= number < len(training):
            return _error(404, "no such training image")
        try:
            content = await asyncio.get_running_loop().run_in_executor(one_thread, training.png, number)
        except Refused as error:
            return _error(404, str(error))
        return Response(content, media_type="image/png")

    async def compare() -> None:
        """Compute the features of the training images, a few at a time, between the requests."""
        assert not isinstance(training, str)
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("features of training images", total=len(training.missing))
            while training.missing and not training.failed:
                bar.advance(task, await asyncio.get_running_loop().run_in_executor(one_thread, training.compute_some))
        if training.failed:
            complain(f"no nearest training images: {training.failed}")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        comparing = None if isinstance(training, str) else asyncio.create_task(compare())
        try:
            yield
        finally:
            if comparing:
                comparing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await comparing
            one_thread.shutdown(wait=False, cancel_futures=True)

    routes = [
        Route("/{token}/", page),
        Route("/{token}/classify", classify, methods=["POST"]),
        Route("/{token}/training/{number}", training_image),
    ]
    return _guarded(Starlette(routes=routes, lifespan=lifespan), token)


def _guarded(inner: ASGIApp, token: str) -> ASGIApp:
    """`inner` for those who know the token and come from no other page; the others learn nothing."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
            await send(message)

        if scope["type"] == "http" and (status := _refusal(scope, token)):
            return await PlainTextResponse(REFUSALS[status], status)(scope, receive, send_with_headers)
        await inner(scope, receive, send_with_headers)

    return guarded


def _refusal(scope: Scope, token: str) -> int:
    """The HTTP status for a request that comes from elsewhere (403), or does not know the token (404); 0 for a right one."""
    headers = Headers(scope=scope)
    hosts, origins = headers.getlist("host"), headers.getlist("origin")
    name, _, port = hosts[0].rpartition(":") if len(hosts) == 1 else ("", "", "")
    if name not in HOSTS or any(origin != f"{HOSTS[name]}:{port}" for origin in origins):
        return 403
    if not origins and scope["method"] != "GET":
        return 403
    known = scope["path"].split("/")[1] if scope["path"].startswith("/") else ""
    return 0 if secrets.compare_digest(known.encode(errors="surrogateescape"), token.encode()) else 404


async def _content(request: Request) -> bytes:
    """The body, in memory. Raises Unusable before there is more of it than MOST_BYTES."""
    too_large = Unusable(413, f"the file has more than {MOST_BYTES >> 20} MiB")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MOST_BYTES:
        raise too_large
    content = bytearray()
    async for chunk in request.stream():
        if len(content) + len(chunk) > MOST_BYTES:
            raise too_large
        content += chunk
    return bytes(content)


def _number(text: str) -> int:
    """A number from 0 on, as a part of an address; -1 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def _error(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": why}, status, headers)
