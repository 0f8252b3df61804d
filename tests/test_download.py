"""Weights from a URL: downloaded once, checked each time, bounded, and without a secret in any message."""

import base64
import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import pytest
import torch
from servers import dripping, serving
from torchvision.models import get_model
from weight_files import Evil, refusal, same, saved, sha256

from launch.cache import cache_folder
from launch.errors import public_address
from launch.weights import download, load
from nets.zoo import zoo

pytestmark = pytest.mark.usefixtures("own_cache")


@contextlib.contextmanager
def served(answers: dict, encrypted: bool = False, asked: list | None = None):
    """Serve {path: content, or (status, headers, content)}; yields the URL and the growing list of requests.

    `asked` gets the headers of each request.
    """
    requests = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            if asked is not None:
                asked.append(dict(self.headers))
            answer = answers[self.path.partition("?")[0]]
            status, headers, content = answer if isinstance(answer, tuple) else (200, {"Content-Length": len(answer)}, answer)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with serving(Answer, encrypted) as address:
        yield address, requests


def cached() -> list:
    return [path for path in (cache_folder() / "weights").glob("*") if not path.name.startswith(".lock-")]


def test_downloaded_once_and_checked_each_time(tensors):
    content = saved(tensors)
    digest = sha256(content)
    with served({"/w.pth": content}) as (address, requests):
        for _ in range(2):
            assert same(load(f"{address}/w.pth", digest), tensors)
        assert requests == ["/w.pth"]
        (path,) = cached()
        assert path.name == digest
        path.write_bytes(saved({"swapped": torch.zeros(1)}))
        message = refusal(4, "delete it to download it again", f"{address}/w.pth", digest)
        assert digest in message
        assert str(path) in message
        path.unlink()
        assert same(load(f"{address}/w.pth", digest), tensors)
        assert len(requests) == 2


def test_many_ask_and_one_downloads(tensors):
    content = saved(tensors)
    with served({"/w.pth": content}) as (address, requests), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load, [f"{address}/w.pth"] * 4, [sha256(content)] * 4))
        assert requests == ["/w.pth"]
    assert all(same(one, tensors) for one in found)


def test_digits_in_the_name(tensors):
    """torchvision's names end in the first digits of the sha256. The cached copy is checked against all 64."""
    content = saved(tensors)
    right, wrong = f"/w-{sha256(content)[:8]}.pth", "/w-01234567.pth"
    with served({right: content, wrong: content}) as (address, requests):
        assert same(load(address + right), tensors)
        assert same(load(address + right), tensors)
        assert requests == [right]
        refusal(4, "expected 01234567", address + wrong)
        (path,) = cached()
        assert path.name == sha256(content)
        path.write_bytes(content + b"0")
        refusal(4, "delete it to download it again", address + right)
        path.unlink()
        (path.parent / (sha256(content)[:8] + "0" * 56)).write_bytes(content)  # of all 64 only these are right
        refusal(4, "delete it to download it again", address + right)
        refusal(2, "need a sha256", f"{address}/w.pth")


def test_a_swapped_file_is_refused_before_it_is_read(tmp_path, tensors):
    content, mark = saved(tensors), tmp_path / "payload ran"
    with served({"/w.pth": content}) as (address, _):
        load(f"{address}/w.pth", sha256(content))
        cached()[0].write_bytes(saved(Evil(mark)))
        refusal(4, "sha256 mismatch for the cached file", f"{address}/w.pth", sha256(content))
    assert not mark.exists()


FILE = saved({"a": torch.zeros(99)})
LENGTH = {"Content-Length": len(FILE)}


@pytest.mark.parametrize(("answer", "code", "match"), [
    ((200, LENGTH, FILE[:-1]), 1, f"ended after {len(FILE) - 1:,} of {len(FILE):,} bytes"),
    ((200, {}, FILE[:-1]), 4, "expected"),
    ((200, LENGTH, FILE[:-1] + b"?"), 4, "expected"),
    ((200, {"Content-Length": 9 << 30}, FILE), 1, "ended after"),
    ((200, {"Content-Length": "many"}, FILE), 1, "cannot download"),
    ((404, {}, b"no"), 1, "404"),
    ((302, {"Location": "/loop"}, b""), 1, "redirect"),
    ((302, {"Location": "file:///etc/hostname"}, b""), 1, "cannot download"),
    ((302, {"Location": "ftp://127.0.0.1/w"}, b""), 1, "cannot download"),
])  # fmt: skip
def test_a_failed_download_leaves_no_file(answer, code, match):
    with served({"/w": answer, "/loop": (302, {"Location": "/loop"}, b"")}) as (address, _):
        refusal(code, match, f"{address}/w", sha256(FILE))
    assert cached() == []


def test_a_redirect_to_a_local_file_with_the_right_bytes_is_refused_too(tmp_path):
    (tmp_path / "w").write_bytes(FILE)
    local = (tmp_path / "w").as_uri()
    with served({"/w": (302, {"Location": local}, b""), "/v": (302, {"Location": "/u"}, b""), "/u": FILE}) as (address, _):
        refusal(1, "cannot download", f"{address}/w", sha256(FILE))
        assert cached() == []
        assert load(f"{address}/v", sha256(FILE))["a"].shape == (99,)  # control: redirects to http are followed


def test_downloads_are_limited_in_size_and_time(monkeypatch):
    monkeypatch.setattr(download, "DOWNLOAD_BYTES", 1000)
    with served({"/w": FILE}) as (address, _):
        refusal(1, "exceeds the download limits", f"{address}/w", sha256(FILE))
        monkeypatch.setattr(download, "DOWNLOAD_BYTES", 1 << 30)
        monkeypatch.setattr(download, "DOWNLOAD_SECONDS", -1)
        refusal(1, "exceeds the download limits", f"{address}/w", sha256(FILE))
    assert cached() == []


def test_a_server_that_does_not_answer_is_given_up_on(monkeypatch):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.2)
    with served({}) as (address, _):
        gone = address
    refusal(1, "cannot download", f"{gone}/w", "0" * 64)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        refusal(1, "timed out", f"{gone.rpartition(':')[0]}:{silent.getsockname()[1]}/w", "0" * 64)


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 302 Found\r\nLocation: /"])
def test_a_server_that_drips_its_headers_is_not_waited_for(monkeypatch, beginning):
    """Each byte is in time; the response is not."""
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.4)
    began = time.monotonic()
    with dripping(beginning) as address:
        refusal(1, "timed out: no answer within 0.4 s", f"{address}/w", "0" * 64)
    assert 0.4 <= time.monotonic() - began < 5
    assert cached() == []


@pytest.mark.parametrize("beginning", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",  # the length of its first chunk never ends
], ids=["body", "chunks"])  # fmt: skip
def test_a_server_that_drips_its_file_has_its_time(monkeypatch, beginning):
    monkeypatch.setattr(download, "DOWNLOAD_SECONDS", 0.6)
    began = time.monotonic()
    with dripping(beginning) as address:
        refusal(1, "exceeds the download limits of 4.3 GB and 0.6 s", f"{address}/w", "0" * 64)
    assert 0.6 <= time.monotonic() - began < 5
    assert cached() == []


def test_redirect_to_an_address_without_encryption_is_not_followed(monkeypatch):
    """It is not even requested: the URL itself may be a secret."""
    with served({"/w": FILE}) as (open_address, sent):
        answers = {"/w": (302, {"Location": f"{open_address}/w?key=secret"}, b""), "/v": (302, {"Location": "/u"}, b"")}
        answers["/u"] = FILE
        with served(answers, encrypted=True) as (address, _):
            message = refusal(4, "is not encrypted; it is not followed", f"{address}/w", sha256(FILE))
            assert f"{open_address}/w," in message
            assert "secret" not in message
            assert sent == []
            assert cached() == []
            assert load(f"{address}/v", sha256(FILE))["a"].shape == (99,)  # control: within https it is followed
            cached()[0].unlink()
            with served({"/w": (302, {"Location": f"{address}/u"}, b"")}) as (first, _):
                assert load(f"{first}/w", sha256(FILE))["a"].shape == (99,)  # and from http to https
    cached()[0].unlink()
    with served({"/w": FILE}, encrypted=True) as (address, _), monkeypatch.context() as patch:
        patch.delenv("SSL_CERT_FILE")
        refusal(1, "CERTIFICATE_VERIFY_FAILED", f"{address}/w", sha256(FILE))  # control: who it is is checked


def test_user_and_password_are_for_one_server_alone():
    asked, others = [], []
    with served({"/w": FILE}, asked=others) as (other, _):
        answers = {"/w": FILE, "/away": (302, {"Location": f"{other}/w"}, b"")}
        with served(answers, asked=asked) as (address, requests):
            with_secret = address.replace("//", "//me%40home:sec%2Fret@")
            assert load(f"{with_secret}/w", sha256(FILE))["a"].shape == (99,)
            expected = "Basic " + base64.b64encode(b"me@home:sec/ret").decode()
            assert [headers["Authorization"] for headers in asked] == [expected]
            cached()[0].unlink()
            load(f"{with_secret}/away#part", sha256(FILE))
            assert requests == ["/w", "/away"]
    assert ["Authorization" in headers for headers in others] == [False]


def test_messages_keep_secrets(tmp_path):
    """Neither user and password nor the query, which may be a signature; of the URL and of what it redirects to."""
    away = {
        "/ftp": (302, {"Location": "ftp://user:secret@127.0.0.1/w?key=secret"}, b""),
        "/file": (302, {"Location": "file://user:secret@127.0.0.1/w?key=secret"}, b""),
        "/user": (302, {"Location": "http://user:secret@127.0.0.1/w?key=secret"}, b""),
        "/loop": (302, {"Location": "/loop?key=secret"}, b""),
    }
    with served({"/w": (404, {}, b""), "/html": b"<html>secret", **away}) as (address, _):
        for where in (address, address.replace("//", "//user:secret@"), address.replace("//", "//secret@")):
            assert f"{address}/w: HTTP 404 Not Found;" in refusal(1, "404", f"{where}/w?key=secret#secret", "0" * 64)
            for path in (*away, "/with space"):
                assert "secret" not in refusal(1, "cannot download", f"{where}{path}?key=secret", "0" * 64)
            for found, code, source, *digest in (
                ("need a sha256", 2, f"{where}/w?key=secret"),
                ("expected 00000000", 4, f"{where}/html?key=secret", "0" * 64),
            ):
                assert "secret" not in refusal(code, found, source, *digest)
    for address in (
        "ftp://user:secret@127.0.0.1/w?secret", "s3://key:secret@bucket/w", "file://user:secret@elsewhere/w",
        "http://user:secret@[::1", "https://user:secret@127.0.0.1:port/w", "https://user:pa/secret@127.0.0.1/w",
    ):  # fmt: skip
        assert "secret" not in refusal(2, "://", address, "0" * 64)


def test_public_address_has_no_secrets():
    for given, shown in {
        "https://user:secret@example.org:8443/a@b/w-1.pth?X-Amz-Signature=1#part": "https://example.org:8443/a@b/w-1.pth",
        "HTTP://secret@example.org": "http://example.org",
        "https://example.org/w.pth": "https://example.org/w.pth",
        "https://[2001:db8::1]:80/w?key": "https://[2001:db8::1]:80/w",
        " https://u:p@example.org/w\n": "https://example.org/w",
        "https://user:pass/word@example.org/w": "https://…",
        "https://user:pass?word@example.org/w": "https://…",
        "runs/cifar2/Net-0a1b2c3d?#@": "runs/cifar2/Net-0a1b2c3d?#@",
        "of https://example.org/?a": "of https://example.org/?a",
        "s3://key:secret@bucket/w": "s3://key:secret@bucket/w",
        "": "",
    }.items():
        assert public_address(given) == shown


def test_from_a_url_into_the_zoo():
    """Load published weights as a recipe does; these have 3 classes and come from the test."""
    published = get_model("shufflenet_v2_x0_5", num_classes=3)
    content = saved(published.state_dict())
    name = f"/shufflenetv2_x0.5-{sha256(content)[:10]}.pth"
    with served({name: content}) as (address, _):
        net = zoo("shufflenet_v2_x0_5", in_channels=1, grey="sum", state=load(address + name))
    assert net.conv1[0].weight.equal(published.conv1[0].weight.sum(1, keepdim=True))
    assert net.conv5[0].weight.equal(published.conv5[0].weight)
    assert net.fc.out_features == 10
