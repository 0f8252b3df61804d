"""Loopback servers for the tests: a hub with one small data set, and one that accepts and never answers."""

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

COMMIT = "0" * 40


@contextlib.contextmanager
def hub(root: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """Serve the folder `root` as the data set repository `name`; yields the address and the growing list of requests."""
    requests: list[str] = []
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*"))}
    files = {name: path for name, path in paths.items() if path.is_file()}

    def described(path: str) -> dict:
        if path in files:
            content = files[path].read_bytes()
            return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        return {"type": "directory", "path": path, "oid": COMMIT}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            path = self.path.partition("?")[0]
            api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            if path.startswith(resolve) and (file := path.removeprefix(resolve).partition("/")[2]) in files:
                content = files[file].read_bytes()
                start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if self.headers.get("Range") else 0
                self.send(206 if start else 200, content[start:], ETag=f'"{described(file)["oid"]}"')
            elif path == api or path.startswith(f"{api}/revision/"):
                self.send(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})
            elif path.startswith(f"{api}/tree/"):
                folder = Path(path.removeprefix(f"{api}/tree/").partition("/")[2])
                below = [path for path in paths if folder in Path(path).parents]
                deep = "recursive=true" in self.path.lower()
                self.send(200, [described(path) for path in below if deep or Path(path).parent == folder])
            elif path.startswith(f"{api}/paths-info/"):
                self.send(200, [described(path) for path in parse_qs(body).get("paths", []) if path in paths])
            else:
                missing = "EntryNotFound" if name in path else "RepoNotFound"
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
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine that has `handler` answer."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
