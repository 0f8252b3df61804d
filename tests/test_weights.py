"""Weights from files, addresses and run folders: what is right loads, and what is wrong is refused before it can do anything."""

import base64
import collections
import contextlib
import hashlib
import io
import json
import pickle
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import pytest
import safetensors.torch
import torch
from conftest import Tiny, optimizer_for
from servers import dripping, serving
from torch import nn
from torchvision.models import get_model

from launch import train
from launch import weights as weights_module
from launch.checkpoint import weights, weights_sha256, write_tensors
from launch.data.cache import cache_folder
from launch.errors import Refused
from launch.weights import load, load_into, public_address
from nets.residual import CifarResNet
from nets.zoo import zoo


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


class Headed(nn.Module):
    """A net whose head has any size, for partial loading."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, classes)


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return Tiny().state_dict()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def saved(found, **how) -> bytes:
    file = io.BytesIO()
    torch.save(found, file, **how)
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refusal(code, match, source, *arguments) -> str:
    with pytest.raises(Refused, match=match) as caught:
        load(source, *arguments)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_state_dicts_nested_and_prefixed(tensors, tmp_path, key, prefix):
    found = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({key: found, "epoch": 3} if key else found, tmp_path / "w.pth")
    assert same(load(tmp_path / "w.pth"), tensors)


def test_prefix_of_a_compiled_part(tensors, tmp_path):
    torch.save({name.replace("conv.", "conv._orig_mod."): tensor for name, tensor in tensors.items()}, tmp_path / "w.pt")
    assert same(load(tmp_path / "w.pt"), tensors)


def test_a_part_that_is_called_module_keeps_its_name(tmp_path):
    torch.save({"module.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, tmp_path / "w.pt")
    assert list(load(tmp_path / "w.pt")) == ["module.weight", "fc.weight"]


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_the_bytes_tell_the_kind_of_file(tensors, tmp_path, kind):
    content = (
        safetensors.torch.save(tensors)
        if kind == "safetensors"
        else saved(tensors, _use_new_zipfile_serialization=kind == "zip")
    )  # fmt: skip
    for name in ("w.safetensors", "w.pth", "w.th", "w"):
        (tmp_path / name).write_bytes(content)
        assert same(load(tmp_path / name), tensors)
        assert same(load(str(tmp_path / name), sha256(content).upper()), tensors)
    refusal(4, "expected 00000000", tmp_path / "w", "0" * 64)


def test_resnet20_saved_under_data_parallel(tmp_path):
    """As the public repository akamaster/pytorch_resnet_cifar10 saves them: nested, prefixed, with its accuracy beside."""
    torch.manual_seed(0)
    trained = CifarResNet(20)
    trained(torch.randn(4, 3, 32, 32))
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    without_counters = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    path = tmp_path / "resnet20.th"
    net = CifarResNet(20)
    for found in (state, without_counters):
        torch.save({"best_prec1": 91.7, "state_dict": found}, path, _use_new_zipfile_serialization=False)
        report = load_into(net, load(path))
        assert (len(report.matched), report.dropped, report.new) == (len(found), (), ())
    x = torch.randn(2, 3, 32, 32)
    assert net.eval()(x).equal(trained.eval()(x))


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle", "a whole model", "nested"])
def test_what_needs_unpickling_is_refused_and_never_runs(tmp_path, how):
    mark = tmp_path / "payload ran"
    pickle.loads(pickle.dumps(Evil(mark))).close()  # control: the payload works
    mark.unlink()
    content = {
        "zip": lambda: saved(Evil(mark)),
        "legacy": lambda: saved(Evil(mark), _use_new_zipfile_serialization=False),
        "plain pickle": lambda: pickle.dumps({"state_dict": Evil(mark)}),
        "a whole model": lambda: saved(nn.Sequential(nn.Linear(2, 2))),
        "nested": lambda: saved({"state_dict": collections.OrderedDict(w=torch.zeros(2)), "args": Evil(mark)}),
    }[how]()
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        refusal(4, r"would run whatever code.*torch\.save\(model\.state_dict\(\)", tmp_path / name)
        refusal(4, "would run whatever code", (tmp_path / name).as_uri(), sha256(content))
    assert not mark.exists()


@pytest.mark.parametrize(("content", "match"), [
    (saved({"a": 1, "b": torch.zeros(1)}), "'a' is no dense tensor but int"),
    (saved({"a": torch.zeros(2, 2).to_sparse()}), "'a' is no dense tensor"),
    (saved({1: torch.zeros(1)}), "1 is no dense tensor"),
    (saved(torch.zeros(1)), "no weights but Tensor"),
    (saved({}), "no weights"),
    (saved({"a": torch.tensor([0.0, float("nan")])}), "a holds values that are no numbers"),
    (saved({"a": torch.zeros(9)})[:-300], "cannot be read|not read"),
    (safetensors.torch.save({"a": torch.zeros(9)})[:-4], "damaged"),
    ((1 << 40).to_bytes(8, "little") + b'{"a":', "damaged"),
    (b"<html>not found</html>", "not read"),
    (b"", "cannot be read"),
])  # fmt: skip
def test_what_is_no_weights(tmp_path, content, match):
    (tmp_path / "w.pt").write_bytes(content)
    refusal(4, match, tmp_path / "w.pt")


def test_compressed_archives_are_not_unpacked(tensors, tmp_path):
    packed = tmp_path / "bomb.pt"
    for size, tensor in {100_000: torch.zeros(1 << 20), 300_000: torch.arange(1.0, 1 << 17)}.items():  # a bomb, and a file
        with zipfile.ZipFile(io.BytesIO(saved({"a": tensor}))) as old, zipfile.ZipFile(packed, "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry), zipfile.ZIP_DEFLATED)
        assert packed.stat().st_size < size
        refusal(4, "compressed", packed)


def test_sources_that_are_none(tmp_path):
    refusal(1, "No such file", tmp_path / "none.pt")
    refusal(2, "file:///", "file://elsewhere/w.pt")
    refusal(2, "need their sha256", (tmp_path / "w.pt").as_uri())
    refusal(2, "http, https and file", "ftp://127.0.0.1/w-12345678.pt")
    refusal(2, "is none", tmp_path / "w.pt", "1234567")
    refusal(2, "is none", tmp_path / "w.pt", "../" * 4)
    refusal(4, "neither", tmp_path)


# --------------------------------------------------------------------------------------------------------------- run folder


def test_run_folder(start, images, tmp_path):
    model = Tiny()
    train(start(), model, images, optimizer_for(model), epochs=2, batch=20)
    run = tmp_path / "run"
    assert same(load(run), weights(model))
    assert load(run / "best.safetensors").keys() == weights(model).keys()
    other = {name: tensor + 1 for name, tensor in load(run).items()}
    (run / "model.safetensors").write_bytes(safetensors.torch.save(other))
    refusal(4, "result.json records", run)
    (run / "model.safetensors").unlink()
    (run / "result.json").unlink()
    assert same(load(run), load(run / "best.safetensors"))  # an unfinished run


@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors"])
def test_weights_of_a_run_are_those_that_its_result_records(tensors, tmp_path, name):
    """The last and the best alike; a result of before, which says nothing of the best, is no reason to refuse them."""
    path, digest = tmp_path / name, weights_sha256(tensors)
    write_tensors(path, tensors, {"oneloop": "{}"})
    right = {"weights_sha256": digest, "best": {}} if name == "model.safetensors" else {"best": {"weights_sha256": digest}}
    for recorded in (right, {"weights_sha256": "", "best": {"accuracy": 1.0}}, {}):
        (tmp_path / "result.json").write_text(json.dumps(recorded))
        assert same(load(path), tensors)
    (tmp_path / "result.json").write_text(json.dumps(right))
    write_tensors(path, tensors | {"fc.bias": tensors["fc.bias"] + 1}, {"oneloop": "{}"})
    refusal(4, f"{name} does not hold the weights that .*result.json records", path)
    for damaged in ("[]", '{"best": 3, "weights_sha256": 3}', "{", "[" * 100_000):
        (tmp_path / "result.json").write_text(damaged)
        refusal(4, "cannot be checked|does not hold", path)
    path.rename(tmp_path / "other.safetensors")
    assert load(tmp_path / "other.safetensors")  # control: the file of no run


@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors", "elsewhere.safetensors"])
def test_weights_are_those_that_their_own_file_records(tensors, tmp_path, name):
    """Of an unfinished run, too, which has no result."""
    path = tmp_path / name
    about = {"oneloop": json.dumps({"net": "Tiny", "weights_sha256": weights_sha256(tensors)})}
    write_tensors(path, tensors, about)
    assert same(load(path), tensors)
    write_tensors(path, tensors | {"fc.bias": tensors["fc.bias"] + 1}, about)
    refusal(4, f"{name} is damaged: its tensors are not those that were saved", path)
    write_tensors(path, tensors | {"fc.bias": tensors["fc.bias"] + 1}, {"oneloop": '{"net": "Tiny"}', "format": "pt"})
    assert load(path).keys() == tensors.keys()  # control: of before, without a digest
    for damaged in ("[]", "{", "[" * 100_000):
        write_tensors(path, tensors, {"oneloop": damaged})
        refusal(4, "is damaged", path)


# ---------------------------------------------------------------------------------------------------------------- addresses


@contextlib.contextmanager
def served(answers: dict, encrypted: bool = False, asked: list | None = None):
    """Serve {path: content, or (status, headers, content)}; yields the address and the growing list of requests.

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
        message = refusal(4, "delete it, and it is fetched anew", f"{address}/w.pth", digest)
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
    """torchvision's names end in the first digits. The cached copy is checked against all 64."""
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
        refusal(4, "fetched anew", address + right)
        path.unlink()
        (path.parent / (sha256(content)[:8] + "0" * 56)).write_bytes(content)  # of all 64 only these are right
        refusal(4, "fetched anew", address + right)
        refusal(2, "need their sha256", f"{address}/w.pth")


def test_a_swapped_file_is_refused_before_it_is_read(tmp_path, tensors):
    content, mark = saved(tensors), tmp_path / "payload ran"
    with served({"/w.pth": content}) as (address, _):
        load(f"{address}/w.pth", sha256(content))
        cached()[0].write_bytes(saved(Evil(mark)))
        refusal(4, "has the sha256", f"{address}/w.pth", sha256(content))
    assert not mark.exists()


FILE = saved({"a": torch.zeros(99)})
LENGTH = {"Content-Length": len(FILE)}


@pytest.mark.parametrize(("answer", "code", "match"), [
    ((200, LENGTH, FILE[:-1]), 1, f"ended after {len(FILE) - 1:,} of {len(FILE):,} bytes"),
    ((200, {}, FILE[:-1]), 4, "expected"),
    ((200, LENGTH, FILE[:-1] + b"?"), 4, "expected"),
    ((200, {"Content-Length": 9 << 30}, FILE), 1, "ended after"),
    ((200, {"Content-Length": "many"}, FILE), 1, "cannot get"),
    ((404, {}, b"no"), 1, "404"),
    ((302, {"Location": "/loop"}, b""), 1, "redirect"),
    ((302, {"Location": "file:///etc/hostname"}, b""), 1, "cannot get"),
    ((302, {"Location": "ftp://127.0.0.1/w"}, b""), 1, "cannot get"),
])  # fmt: skip
def test_what_goes_wrong_leaves_nothing(answer, code, match):
    with served({"/w": answer, "/loop": (302, {"Location": "/loop"}, b"")}) as (address, _):
        refusal(code, match, f"{address}/w", sha256(FILE))
    assert cached() == []


def test_a_redirect_to_a_local_file_with_the_right_bytes_is_refused_too(tmp_path):
    (tmp_path / "w").write_bytes(FILE)
    local = (tmp_path / "w").as_uri()
    with served({"/w": (302, {"Location": local}, b""), "/v": (302, {"Location": "/u"}, b""), "/u": FILE}) as (address, _):
        refusal(1, "cannot get", f"{address}/w", sha256(FILE))
        assert cached() == []
        assert load(f"{address}/v", sha256(FILE))["a"].shape == (99,)  # control: redirects to http are followed


def test_bounds(monkeypatch):
    monkeypatch.setattr(weights_module, "DOWNLOAD_BYTES", 1000)
    with served({"/w": FILE}) as (address, _):
        refusal(1, "goes beyond", f"{address}/w", sha256(FILE))
        monkeypatch.setattr(weights_module, "DOWNLOAD_BYTES", 1 << 30)
        monkeypatch.setattr(weights_module, "DOWNLOAD_SECONDS", -1)
        refusal(1, "goes beyond", f"{address}/w", sha256(FILE))
    assert cached() == []


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr(weights_module, "ANSWER_SECONDS", 0.2)
    with served({}) as (address, _):
        gone = address
    refusal(1, "cannot get", f"{gone}/w", "0" * 64)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        refusal(1, "timed out", f"{gone.rpartition(':')[0]}:{silent.getsockname()[1]}/w", "0" * 64)


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 302 Found\r\nLocation: /"])
def test_a_server_that_drips_its_headers_is_not_waited_for(monkeypatch, beginning):
    """Each byte comes in time; the answer does not."""
    monkeypatch.setattr(weights_module, "ANSWER_SECONDS", 0.4)
    began = time.monotonic()
    with dripping(beginning) as address:
        refusal(1, "timed out, no answer within 0.4 s", f"{address}/w", "0" * 64)
    assert 0.4 <= time.monotonic() - began < 5
    assert cached() == []


@pytest.mark.parametrize("beginning", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",  # the length of its first chunk never ends
], ids=["body", "chunks"])  # fmt: skip
def test_a_server_that_drips_its_file_has_its_time(monkeypatch, beginning):
    monkeypatch.setattr(weights_module, "DOWNLOAD_SECONDS", 0.6)
    began = time.monotonic()
    with dripping(beginning) as address:
        refusal(1, "goes beyond 4.3 GB and 0.6 s", f"{address}/w", "0" * 64)
    assert 0.6 <= time.monotonic() - began < 5
    assert cached() == []


def test_redirect_to_an_address_without_encryption_is_not_followed(monkeypatch):
    """Not even asked: what an address holds is a secret, and its path may be, too."""
    with served({"/w": FILE}) as (open_address, sent):
        answers = {"/w": (302, {"Location": f"{open_address}/w?key=secret"}, b""), "/v": (302, {"Location": "/u"}, b"")}
        answers["/u"] = FILE
        with served(answers, encrypted=True) as (address, _):
            message = refusal(4, "has no encryption; it is not followed", f"{address}/w", sha256(FILE))
            assert f"{open_address}/w," in message
            assert "secret" not in message
            assert sent == []
            assert cached() == []
            assert load(f"{address}/v", sha256(FILE))["a"].shape == (99,)  # control: within https it is followed
            cached()[0].unlink()
            with served({"/w": (302, {"Location": f"{address}/u"}, b"")}) as (first, _):
                assert load(f"{first}/w", sha256(FILE))["a"].shape == (99,)  # and from http to https
    cached()[0].unlink()
    with served({"/w": FILE}, encrypted=True) as (address, _):
        monkeypatch.delenv("SSL_CERT_FILE")
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
    """Neither user and password nor the query, which may be a signature: those of an address, and of what it redirects to."""
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
                assert "secret" not in refusal(1, "cannot get", f"{where}{path}?key=secret", "0" * 64)
            for found, code, source, *digest in (
                ("need their sha256", 2, f"{where}/w?key=secret"),
                ("expected 00000000", 4, f"{where}/html?key=secret", "0" * 64),
            ):
                assert "secret" not in refusal(code, found, source, *digest)
    for address in (
        "ftp://user:secret@127.0.0.1/w?secret", "s3://key:secret@bucket/w", "file://user:secret@elsewhere/w",
        "http://user:secret@[::1", "https://user:secret@127.0.0.1:port/w", "https://user:pa/secret@127.0.0.1/w",
    ):  # fmt: skip
        assert "secret" not in refusal(2, "://", address, "0" * 64)


def test_what_an_address_shows():
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


# ---------------------------------------------------------------------------------------------------------------- load_into


def test_strict_takes_all_or_nothing(tensors):
    net = Tiny()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for wrong, match in (
        ({**tensors, "fc.weight": torch.zeros(2, 64)}, r"not those of Tiny: fc\.weight \(2×64 there, 3×64 here\)"),
        ({**tensors, "fc.weight": torch.zeros(64, 3)}, r"fc\.weight \(64×3 there, 3×64 here\)"),
        ({**tensors, "extra": torch.zeros(1)}, r"extra \(the net has no such tensor\)"),
        ({name: tensor for name, tensor in tensors.items() if name != "fc.bias"}, "lacking: fc.bias"),
        ({**tensors, "fc.bias": torch.zeros(3, dtype=torch.int64)}, r"torch\.int64 there, torch\.float32 here"),
    ):
        with pytest.raises(Refused, match=match) as caught:
            load_into(net, wrong)
        assert caught.value.code == 4
        assert same(net.state_dict(), before)


def test_copies_in_place(tensors):
    net = Tiny()
    optimizer, objects = optimizer_for(net), [id(p) for p in net.parameters()]
    report = load_into(net, {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()})
    assert str(report) == "weights: 9 matched, 0 dropped, 0 new"
    assert same(net.state_dict(), tensors)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == objects == [id(p) for p in net.parameters()]
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())


def test_partial_says_what_it_did():
    torch.manual_seed(0)
    there, net = Headed(1000), Headed(10)
    fresh = net.fc.weight.clone()
    state = {**there.state_dict(), "aux.weight": torch.zeros(1)}
    del state["norm.bias"]
    report = load_into(net, state, partial=True)
    assert str(report).splitlines() == [
        "weights: 6 matched, 3 dropped, 3 new",
        "  dropped fc.weight: 1000×2 there, 10×2 here",
        "  dropped fc.bias: 1000 there, 10 here",
        "  dropped aux.weight: the net has no such tensor",
        "  new norm.bias, fc.weight, fc.bias",
    ]
    assert net.conv.weight.equal(there.conv.weight)
    assert net.fc.weight.equal(fresh)


def test_partial_that_fits_nowhere_is_refused(tensors):
    with pytest.raises(Refused, match="none of the 9 tensors fits CifarResNet"):
        load_into(CifarResNet(20), {f"other.{name}": tensor for name, tensor in tensors.items()}, partial=True)


def test_long_reports_are_cut():
    net = CifarResNet(20)
    state = {**net.state_dict(), **{f"extra{number}": torch.zeros(1) for number in range(20)}}
    lines = str(load_into(net, state, partial=True)).splitlines()
    assert lines[-1] == "  … and 12 more dropped"
    assert len(lines) == 10


def test_shared_tensors_under_one_or_both_names():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    state = {name: torch.ones_like(tensor) for name, tensor in net.state_dict().items()}
    load_into(net, state)
    load_into(net, {name: tensor for name, tensor in state.items() if name != "1.weight"})
    assert net[1].weight is net[0].weight
    assert (net[1].weight == 1).all()


def test_from_an_address_into_the_zoo():
    """The way of a recipe with published weights, here of 3 classes and made by the test."""
    published = get_model("shufflenet_v2_x0_5", num_classes=3)
    content = saved(published.state_dict())
    name = f"/shufflenetv2_x0.5-{sha256(content)[:10]}.pth"
    with served({name: content}) as (address, _):
        net = zoo("shufflenet_v2_x0_5", in_channels=1, grey="sum", state=load(address + name))
    assert net.conv1[0].weight.equal(published.conv1[0].weight.sum(1, keepdim=True))
    assert net.conv5[0].weight.equal(published.conv5[0].weight)
    assert net.fc.out_features == 10
