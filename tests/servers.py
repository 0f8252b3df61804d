"""Loopback servers for the tests: a hub with one small data set, any other with or without encryption, two that hold one up."""

import contextlib
import hashlib
import json
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

COMMIT = "0" * 40
# A key and a certificate of nothing but 127.0.0.1 in these tests, until 2120.
CERTIFICATE = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgRJCFH+NhLeI0HNZC
zj7d6VkRUwLWHZdaEJT9wx9WisChRANCAARp0Pef2pW+CSJ3XIT3WFtYGK34x3PK
DwSfY9PtI0eg4DVFVl8nFWEQfLRbVxUQnHEzrFpo5EwgQ73Xc1ujVtxk
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBZTCCAQqgAwIBAgIBATAKBggqhkjOPQQDAjAYMRYwFAYDVQQDDA1vbmVsb29w
LXRlc3RzMCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAYMRYwFAYD
VQQDDA1vbmVsb29wLXRlc3RzMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEadD3
n9qVvgkid1yE91hbWBit+Mdzyg8En2PT7SNHoOA1RVZfJxVhEHy0W1cVEJxxM6xa
aORMIEO913Nbo1bcZKNDMEEwDwYDVR0RBAgwBocEfwAAATAPBgNVHRMBAf8EBTAD
AQH/MB0GA1UdDgQWBBRVy9rJkisOVt8BeFZn6j28q8Ev2TAKBggqhkjOPQQDAgNJ
ADBGAiEA2+L3PnNpgmXRCjIzpzNiqbAUISJ9rPVL5mBjk+cUudkCIQD3Ni8HNot/
PX1uaUJeh1dssuJ/vbjHZtuFJb1M4aZwdQ==
-----END CERTIFICATE-----
"""


@contextlib.contextmanager
def hub(root: Path, *names: str) -> Iterator[tuple[str, list[str]]]:
    """Serve the folder `root` as the data set repository of that name, or of several names its folders that are called so.

    Yields the address and the growing list of requests.
    """
    requests: list[str] = []
    trees = {}
    for name in names:
        place = root / name if len(names) > 1 else root
        trees[name] = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*"))}

    def described(path: str, paths: dict[str, Path]) -> dict:
        if paths[path].is_file():
            content = paths[path].read_bytes()
            return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        return {"type": "directory", "path": path, "oid": COMMIT}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            path = self.path.partition("?")[0]
            name = next((name for name in names if f"/datasets/{name}/" in f"{path}/"), "")
            paths = trees.get(name, {})
            files = {path: place for path, place in paths.items() if place.is_file()}
            api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            if path.startswith(resolve) and (file := path.removeprefix(resolve).partition("/")[2]) in files:
                content = files[file].read_bytes()
                start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if self.headers.get("Range") else 0
                self.send(206 if start else 200, content[start:], ETag=f'"{described(file, paths)["oid"]}"')
            elif path == api or path.startswith(f"{api}/revision/"):
                self.send(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})
            elif path.startswith(f"{api}/tree/"):
                folder = Path(path.removeprefix(f"{api}/tree/").partition("/")[2])
                below = [path for path in paths if folder in Path(path).parents]
                deep = "recursive=true" in self.path.lower()
                self.send(200, [described(path, paths) for path in below if deep or Path(path).parent == folder])
            elif path.startswith(f"{api}/paths-info/"):
                self.send(200, [described(path, paths) for path in parse_qs(body).get("paths", []) if path in paths])
            else:
                missing = "EntryNotFound" if name else "RepoNotFound"
                self.send(404, {"error": missing}, **{"X-Error-Code": missing})

        do_GET = do_HEAD = do_POST = answer

        def send(self, status: int, content: bytes | list | dict, **headers: str) -> None:
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(raw)), "X-Repo-Commit": COMMIT}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

        def log_message(self, *_) -> None:
            pass

    with serving(Handler) as address:
        yield address, requests


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], encrypted: bool = False) -> Iterator[str]:
    """The address of a server on this machine that has `handler` answer; Python trusts an encrypted one within."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, contextlib.ExitStack() as stack:
        if encrypted:
            file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "certificate.pem"
            file.write_text(CERTIFICATE)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(file)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            stack.enter_context(pytest.MonkeyPatch.context()).setenv("SSL_CERT_FILE", str(file))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http{'s' if encrypted else ''}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def dripping(beginning: bytes) -> Iterator[str]:
    """An address that answers with `beginning` and then with a byte every 20 ms, for ever."""
    ended = threading.Event()

    class Drip(BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):
                self.wfile.write(beginning)
                while not ended.wait(0.02):
                    self.wfile.write(b"0")

        def log_message(self, *_):
            pass

    with serving(Drip) as address:
        try:
            yield address
        finally:
            ended.set()
