"""A loopback stand-in for the W&B server: what wandb's own client needs for a run with media, artifacts, resume and sync.

It keeps what it is told in memory, for the tests to look at. What it does not know it answers with an error: a dropped connection
would have the client try for ever.
"""

import contextlib
import gzip
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Received:
    """One W&B run as the server knows it."""

    about: dict = field(default_factory=dict)  # of the mutation: displayName, groupName, jobType, tags, ...
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)  # file -> offset -> line
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict]:
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[offset]) for offset in sorted(lines)]

    @property
    def rows(self) -> list[dict]:
        """The history without its end of images."""
        return [row for row in self.history if not any(key.startswith("final/") for key in row)]


@dataclass
class Server:
    url: str = ""
    runs: dict[str, Received] = field(default_factory=dict)  # by id
    artifacts: dict[str, dict] = field(default_factory=dict)  # by id: what was asked for, its files and its state
    unknown: list[str] = field(default_factory=list)  # operations that were refused
    broken: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # operation, or "" for all -> status and content

    def bucket(self, name: str, project: str) -> dict:
        run = self.runs[name]
        history = run.history
        return {
            "id": name, "name": name, "displayName": run.about.get("displayName") or name, "description": None,
            "config": json.dumps(run.config), "sweepName": None, "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(history), "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]),
            "logLineCount": len(run.lines.get("output.log", {})), "eventsTail": "[]",
            "eventsLineCount": len(run.lines.get("wandb-events.jsonl", {})), "tags": run.about.get("tags") or [],
            "notes": None, "stopped": False, "wandbConfig": json.dumps({"t": 1}),
            "project": {"id": project, "name": project, "entity": {"id": "local", "name": "local"}},
        }  # fmt: skip

    def answer(self, operation: str, given: dict) -> dict | None:
        """The data of a GraphQL operation; None for one that this server does not know."""
        name, project = given.get("name") or given.get("id"), given.get("project") or given.get("projectName") or "uncategorized"
        match operation:
            case "Viewer":
                nobody = {"teams": {"edges": []}, "apiKeys": {"edges": []}, "flags": "{}", "admin": False, "email": ""}
                return {"viewer": {"id": "1", "entity": "local", "username": "local", "name": "local", **nobody}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "ServerInfo":
                newest = json.dumps({"max_cli_version": "9.9.9"})
                return {"serverInfo": {"cliVersionInfo": newest, "latestLocalVersionInfo": None}}
            case "RunResumeStatus":
                bucket = self.bucket(name, project) if name in self.runs else None
                return {"model": {"id": "1", "name": project, "entity": {"id": "1", "name": "local"}, "bucket": bucket}}
            case "RunStoppedStatus":
                return {"project": {"run": {"stopped": False}}}
            case "UpsertBucket":
                new = name not in self.runs
                run = self.runs.setdefault(name, Received())
                run.about |= {key: value for key, value in given.items() if value is not None}
                if given.get("config"):
                    run.config = json.loads(given["config"])
                if given.get("summaryMetrics"):
                    run.summary = json.loads(given["summaryMetrics"])
                return {"upsertBucket": {"bucket": self.bucket(name, project), "inserted": new}}
            case "CreateRunFiles":
                links = [{"name": file, "uploadUrl": f"{self.url}/run/{given['run']}/{quote(file)}"} for file in given["files"]]
                return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": links}}
            case "MarkRunFilesUploaded":
                return {"markRunFilesUploaded": {"success": True}}
            case "CreateArtifact":
                artifact = str(len(self.artifacts))
                self.artifacts[artifact] = {**given["input"], "files": {}, "committed": False}
                sequence = {"latestArtifact": None}
                return {"createArtifact": {"artifact": {"id": artifact, "state": "PENDING", "artifactSequence": sequence}}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                of = given.get("artifactID") or given["artifactManifestID"]
                file = {"id": of, "uploadUrl": f"{self.url}/artifact/{of}/manifest", "uploadHeaders": []}
                return {operation[0].lower() + operation[1:]: {"artifactManifest": {"id": of, "file": file}}}
            case "CreateArtifactFiles":
                edges = [
                    {"node": {
                        "storagePath": file["name"], "uploadHeaders": [], "uploadMultipartUrls": None,
                        "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{quote(file['name'])}",
                        "artifact": {"id": file["artifactID"]},
                    }}
                    for file in given.get("input", given)["artifactFiles"]
                ]  # fmt: skip
                return {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                artifact = self.artifacts[given["artifactID"]]
                artifact["committed"] = True
                return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": artifact["digest"]}}}
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "OrganizationCoreWeaveOrganizationID":
                return {"entity": {"organization": None}}
        return None

    def stream(self, name: str, message: dict) -> None:
        """A part of a run's files: lines from an offset on."""
        run = self.runs[name]
        for file, part in message.get("files", {}).items():
            run.lines.setdefault(file, {}).update(enumerate(part["content"], part["offset"]))
            if file == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
        if message.get("complete"):
            run.exit_code = message.get("exitcode")

    def store(self, kind: str, name: str, file: str, content: bytes) -> None:
        (self.runs[name].files if kind == "run" else self.artifacts[name]["files"])[file] = content


@contextlib.contextmanager
def wandb_server(port: int = 0) -> Iterator[Server]:
    """Serve at 127.0.0.1:`port` (0: a free one) until the end of the block, which also cuts the open connections."""
    server, lock, connections = Server(), threading.Lock(), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            connections.append(self.request)
            super().setup()

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline().partition(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            with lock:
                asked = re.search(rb"(?:query|mutation)\s+(\w+)", body) if self.path == "/graphql" else None
                broken = server.broken.get("", server.broken.get(asked[1].decode()) if asked else None)
                try:
                    status, reply = (broken[0], {}) if broken else self.reply(unquote(self.path.partition("?")[0]), body)
                except Exception as error:  # an error of the stand-in is one of the test, and must not drop the connection
                    server.unknown.append(repr(error))
                    status, reply = 400, {"errors": [{"message": repr(error)}]}
            content = broken[1] if broken else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def reply(self, path: str, body: bytes) -> tuple[int, dict]:
            if path == "/graphql":
                asked = json.loads(body)
                operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
                data = server.answer(operation, asked.get("variables") or {})
                if data is None:
                    server.unknown.append(operation)
                    return 400, {"data": None, "errors": [{"message": f"{operation} is not known here"}]}
                return 200, {"data": data}
            if streamed := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
                server.stream(streamed[1], json.loads(body))
                return 200, {"limits": {}}
            if uploaded := re.fullmatch(r"/(run|artifact)/([^/]+)/(.+)", path):
                server.store(*uploaded.groups(), body)
                return 200, {}
            return (200, {}) if path == "/" else (404, {})

        def log_message(self, *_) -> None:
            pass

    class Threads(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_) -> None:
            pass  # a client that is killed leaves torn requests

    with Threads(("127.0.0.1", port), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(2)
