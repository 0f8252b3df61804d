"""`oneloop try`: what its page shows, and what is kept from it by others, by huge and hostile files, and by too many at once."""

import base64
import contextlib
import http.client
import importlib
import io
import json
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from browser import BROWSER, browser
from conftest import ROOT
from PIL import Image
from trained import train_here

import oneloop as api
from launch.commands.explain import grad_cam
from launch.data.dataset import Split
from launch.data.images import Images
from launch.errors import Refused
from launch.features.backbone import Backbone
from launch.features.compute import with_features
from launch.processes import accelerator
from launch.trained import find_run, rebuild
from nets.named import head

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")
from launch.commands import try_answers, try_app, try_nearest  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_path")
TOKEN = "the-token"
command = importlib.import_module("launch.commands.try")


def photos(place: Path) -> Path:
    """Noise of two classes, some of which is the same."""
    for split, count in (("train", 9), ("test", 4)):
        for seed, name in enumerate(("ant <b>", "cow")):
            (place / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.effect_noise((40 + number % 8, 36), 100 + 10 * (number % 8) + seed).convert("RGB")
                image.save(place / split / name / f"{number}.jpg")
    shutil.copy(place / "train/cow/8.jpg", place / "train/cow/same.jpg")
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("try")
    flags = ("--data", photos(place / "photos"), "--net", "Net", "--mode", "scratch", "--size", 32, "--epochs", 1, "--batch", 6)
    train_here(ROOT / "recipes/custom.py", *flags, "--out", place / "runs/a")
    return place / "runs/a"


@pytest.fixture(scope="module")
def model(run):
    return api.load(run, device="cpu")


def training_images(run: Path, model):
    return command._training_images(run, "chosen", None, model)


@contextlib.contextmanager
def served(app):
    """The port of a server in a thread."""
    with socket.socket() as listening:
        listening.bind((command.HOST, 0))
        server = uvicorn.Server(uvicorn.Config(app, **command.SERVER))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port(run, model):
    with served(try_app.app(model, training_images(run, model), TOKEN, "a run", 0.99)) as port:
        yield port


def ask(port: int, path: str, body=None, method: str = "", **headers) -> tuple[int, dict, bytes]:
    """Status, headers and body of an answer. `headers` may replace those that a browser sends; None leaves one out."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    method = method or ("GET" if body is None else "POST")
    sent = {"host": f"127.0.0.1:{port}"} | ({"origin": f"http://127.0.0.1:{port}"} if method == "POST" else {}) | headers
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in sent.items():
        if value is not None:
            connection.putheader(name, value)
    if isinstance(body, bytes) and "content-length" not in sent and "transfer-encoding" not in sent:
        connection.putheader("content-length", str(len(body)))
    connection.endheaders()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may answer before it has everything
        if body:
            connection.send(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def classified(port: int, content: bytes, **headers) -> tuple[int, dict]:
    status, _, body = ask(port, f"/{TOKEN}/classify", content, **headers)
    return status, json.loads(body)


def wait_for_features(port: int, image: bytes) -> dict:
    for _ in range(200):
        status, found = classified(port, image)
        assert status == 200
        if found["nearest"]:
            return found
        time.sleep(0.02)
    raise AssertionError(found["why"])


@pytest.fixture
def image(run) -> bytes:
    return (run.parents[1] / "photos/train/cow/3.jpg").read_bytes()


def test_the_page_shows_what_predict_explain_and_embed_say(port, run, model, image, oneloop):
    file = run.parents[1] / "photos/train/cow/3.jpg"
    found = wait_for_features(port, image)
    (answers,) = json.loads(oneloop("predict", run, file, "--json", "--unsure", 0.99)[1])
    assert [of["name"] for of in found["classes"]] == [of["class"] for of in answers["predictions"]]
    assert [of["probability"] for of in found["classes"]] == pytest.approx([of["probability"] for of in answers["predictions"]])
    assert found["sure"] is answers["sure"] is False
    (read,) = model.read(file)
    seen = Image.open(io.BytesIO(base64.b64decode(found["seen"].partition(",")[2])))
    assert seen.tobytes() == read.pixels[0].permute(1, 2, 0).numpy().tobytes()
    layer, heat = grad_cam(model.net, model.batch(read.pixels), model.classes.index(answers["predictions"][0]["class"]), (32, 32))
    assert found["where"] == (f"from {layer}" if heat.any() else "nothing in it supports this class")
    assert bool(found["heat"]) == bool(heat.any())
    everything = sorted((run.parents[1] / "photos/train").rglob("*.jpg"))
    features = model.embed(everything)
    files = {str(path.relative_to(run.parents[1] / "photos")): row for path, row in zip(everything, features, strict=True)}
    names = [of["name"] for of in found["nearest"]]
    assert names[0].endswith("train/cow/3.jpg")
    assert found["nearest"][0]["cosine"] == pytest.approx(1, abs=1e-4)
    assert len(names) == len({*names}) == try_nearest.NEAREST
    assert [of["label"] for of in found["nearest"]] == [Path(name).parent.name for name in names]
    assert {*names} <= {*files}
    status, headers, content = ask(port, f"/{TOKEN}/training/{found['nearest'][0]['id']}")
    assert (status, headers["content-type"]) == (200, "image/png")
    with Image.open(file) as opened:
        assert Image.open(io.BytesIO(content)).size == opened.size


def test_features_are_computed_once_and_those_of_other_weights_again(run, model):
    first = training_images(run, model)
    while first.missing:
        assert first.compute_some() > 0
    assert len(first) > len({*first.keys})  # the same image, twice
    again = training_images(run, model)
    assert again.missing == []
    torch.testing.assert_close(again.nearest(model.embed(run.parents[1] / "photos/train/cow/8.jpg"))[0].cosine, 1.0)
    other = api.load(run, device="cpu")
    other.net.conv1.weight.data += 1
    assert len(training_images(run, other).missing) == len({*first.keys})


def test_embed_gives_the_features_that_a_frozen_training_computes(run, model):
    trained = rebuild(*find_run(run), data=str(run.parents[1] / "photos"))
    with Backbone(trained.net, head(trained.net, 2), trained.images, accelerator("no")) as backbone:
        images, _ = with_features(trained.images, backbone, sides=("train",))
    features = images.train.features.table[images.train.features.rows[:, 0]]
    files = [run.parents[1] / "photos" / image.name for image in images.train.images]
    torch.testing.assert_close(model.embed(files), features)


def test_without_training_images_the_page_says_why(run, model, tmp_path):
    gone = Path(shutil.copytree(run, tmp_path / "gone"))
    config = json.loads((gone / "config.json").read_text())
    config["config"]["data"] = str(tmp_path / "nowhere")
    (gone / "config.json").write_text(json.dumps(config))
    assert "nowhere" in training_images(gone, model)
    config["config"]["data"] = str(photos(tmp_path / "others"))
    (tmp_path / "others/train/cow/0.jpg").unlink()
    (gone / "config.json").write_text(json.dumps(config))
    assert training_images(gone, model) == f"{tmp_path / 'others'} has changed since the training"
    (tmp_path / "published").mkdir()
    (tmp_path / "published/config.json").write_text('{"oneloop": {}}')
    why = training_images(tmp_path / "published", model)
    assert why == "a published folder has no training images"
    found = try_answers.answer(model, why, 0.0, (run.parents[1] / "photos/test/cow/0.jpg").read_bytes())
    assert (found["nearest"], found["why"]) == ([], why)


def test_training_images_in_memory_are_compared_too(run, model, image):
    pixels = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
    (read,) = model.read(run.parents[1] / "photos/train/cow/3.jpg")
    pixels[7] = read.pixels[0]
    split = Split(pixels, torch.arange(20) % 2)
    training = try_nearest.TrainingImages(model, Images(split, split, model.classes, (0.5,) * 3, (0.5,) * 3, "drawn", "0"))
    waits = try_answers.answer(model, training, 0.0, image)
    assert (waits["nearest"], waits["why"]) == ([], "0 of 20 are compared: try again later")
    while training.missing:
        training.compute_some()
    first = try_answers.answer(model, training, 0.0, image)["nearest"][0]
    assert (first["id"], first["name"], first["label"]) == (7, "number 7", "cow")
    assert Image.open(io.BytesIO(training.png(7))).tobytes() == pixels[7].permute(1, 2, 0).contiguous().numpy().tobytes()


def test_training_images_that_cannot_be_compared_are_said_and_the_rest_works(run, model, image, monkeypatch, capfd):
    training = training_images(run, model)
    training.missing = [*range(len(training))]

    def some(*_):
        raise Refused("it has changed", 4)

    monkeypatch.setattr(type(training.split), "some", some)
    with served(try_app.app(model, training, TOKEN, "")) as port:
        for _ in range(200):
            found = classified(port, image)[1]
            if found["why"] == "it has changed":
                break
            time.sleep(0.01)
        assert (found["why"], found["nearest"], len(found["classes"])) == ("it has changed", [], 2)
    assert capfd.readouterr().err == "no nearest training images: it has changed\n"


OTHERS = {
    "another page": {"origin": "http://evil.example"},
    "a page at another port": {"origin": "http://127.0.0.1:1"},
    "a sandboxed page": {"origin": "null"},
    "no page": {"origin": None},
    "another name": {"host": "evil.example", "origin": "http://evil.example"},
    "another name at the port": {"host": "evil.example:{port}", "origin": "http://evil.example:{port}"},
    "the name of another": {"host": "127.0.0.1.evil.example:{port}", "origin": "http://127.0.0.1.evil.example:{port}"},
}


@pytest.mark.parametrize("who", OTHERS)
def test_who_comes_from_elsewhere_gets_nothing(port, image, who):
    changed = {name: value and value.format(port=port) for name, value in OTHERS[who].items()}
    status, headers, body = ask(port, f"/{TOKEN}/classify", image, **changed)
    assert (status, body) == (403, b"only the page itself may ask")
    assert not [name for name in headers if name.startswith("access-control")]
    if "host" in changed:
        assert ask(port, f"/{TOKEN}/", host=changed["host"])[0] == 403
    assert ask(port, f"/{TOKEN}/classify", image)[0] == 200  # control


@pytest.mark.parametrize("path", ["/", "", "//", "/{other}/", "/{short}/", "/{long}/", "/%00/", "/docs", "/../{token}/"])
def test_who_does_not_know_the_token_gets_nothing(port, path):
    path = path.format(other="an-token", short=TOKEN[:-1], long=TOKEN + "x", token=TOKEN)
    status, _, body = ask(port, path or "*")
    assert status in (400, 404)
    assert TOKEN.encode() not in body
    assert b"classes" not in body
    assert ask(port, f"/{TOKEN}/")[0] == 200  # control


def test_preflights_other_methods_and_other_places_get_nothing(port):
    for method, path in (("OPTIONS", "classify"), ("PUT", "classify"), ("DELETE", ""), ("GET", "classify"), ("POST", "")):
        assert ask(port, f"/{TOKEN}/{path}", method=method)[0] in (403, 405)
    digits, other = "9" * 5000, "%C2%B2"
    for path in ("-1", "999", "1e1", digits, other, "", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "../../../etc/passwd"):
        status, _, body = ask(port, f"/{TOKEN}/training/{path}")
        assert status == 404, path
        assert b"root:" not in body
    assert ask(port, f"/{TOKEN}/training/0")[0] == 200  # control


def policy(headers: dict) -> dict[str, str]:
    return dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))


def test_the_page_loads_nothing_from_elsewhere_and_runs_only_its_own_script(port):
    status, headers, page = ask(port, f"/{TOKEN}/")
    script = policy(headers)["script-src"]
    assert (status, policy(headers)["default-src"], policy(headers)["frame-ancestors"]) == (200, "'none'", "'none'")
    assert script.startswith("'nonce-")
    assert script != policy(ask(port, f"/{TOKEN}/")[1])["script-src"]
    assert b"http:" not in page
    assert b"https:" not in page
    assert page.count(b"<script") == page.count(b"<script nonce=") == 1
    assert headers["cache-control"] == "no-store"


def test_more_bytes_than_the_limit_are_refused_before_they_are_in_memory(port, image, monkeypatch):
    large = 64 << 30
    assert classified(port, b"x" * 100, **{"content-length": str(large)}) == (413, {"error": "the file has more than 32 MiB"})
    monkeypatch.setattr(try_app, "MOST_BYTES", 100_000)
    chunks = b"".join(b"4000\r\n" + b"x" * 0x4000 + b"\r\n" for _ in range(8)) + b"0\r\n\r\n"
    assert classified(port, chunks, **{"transfer-encoding": "chunked"})[0] == 413
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(image), image)
    assert classified(port, chunked, **{"transfer-encoding": "chunked"})[0] == 200  # control
    for wrong in ("-1", "1e3", "0x10", "9" * 400):
        # No body: a server that answers and closes resets the connection if there is more to read; the answer may be lost.
        assert ask(port, f"/{TOKEN}/classify", b"", **{"content-length": wrong})[0] in (400, 413)


def test_what_arrives_too_slowly_is_given_up(port, image, monkeypatch):
    monkeypatch.setattr(try_app, "SECONDS", 0.1)
    assert classified(port, image[:10], **{"content-length": str(len(image))})[0] == 408
    monkeypatch.undo()
    assert classified(port, image)[0] == 200


def test_who_goes_away_is_not_waited_for(port, image, capfd):
    for _ in range(2 * try_app.WAITING):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = f"POST /{TOKEN}/classify HTTP/1.1\r\nhost: localhost:{port}\r\norigin: http://localhost:{port}\r\n"
            connection.sendall(f"{head}content-length: 1000\r\n\r\n".encode() + bytes(100))
    for _ in range(100):
        if (status := classified(port, image)[0]) == 200:
            break
        time.sleep(0.01)
    assert status == 200
    assert capfd.readouterr().err == ""


def png(width: int, height: int) -> bytes:
    """A PNG file that says to be so large, and is not."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1_000_000))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_kinds_of_images_are_known_by_their_content(port, kind):
    file, image = io.BytesIO(), Image.effect_noise((40, 36), 90).convert("RGB")
    image.save(file, kind, **({"save_all": True, "append_images": [image]} if kind == "MPO" else {}))
    assert classified(port, file.getvalue())[0] == 200


HOSTILE = {
    "nothing": (b"", 415),
    "zip": (zipped(), 415),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415),
    "html": (b"<!doctype html><script>alert(1)</script>", 415),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", 415),
    "pickle": (b"\x80\x04cos\nsystem\n", 415),
    "a size of 10^10 pixels": (png(100_000, 100_000), 413),
    "a little too large": (png(7_072, 7_072), 413),
    "large, as WebP": (webp(16_384, 16_384), 413),
    "a lie": (png(2_000, 2_000), 422),
    "a word": (b"GIF89a", 415),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_line(port, name):
    content, expected = HOSTILE[name]
    status, found = classified(port, content)
    assert (status, [*found]) == (expected, ["error"])
    assert "\n" not in found["error"]


def test_no_cut_or_changed_file_is_anything_but_an_answer_or_one_line(port, image, run):
    numbers = torch.Generator().manual_seed(0)
    file = io.BytesIO()
    Image.open(io.BytesIO(image)).save(file, "png")
    for content in (image, file.getvalue()):
        for _ in range(40):
            changed = bytearray(content)
            for place in torch.randint(len(content), (4,), generator=numbers).tolist():
                changed[place] ^= 1 << int(torch.randint(8, (), generator=numbers))
            end = int(torch.randint(len(content), (), generator=numbers)) if _ % 2 else len(content)
            status, found = classified(port, bytes(changed[:end]))
            assert status in (200, 413, 415, 422), found
            assert status == 200 or "\n" not in found["error"]
    assert classified(port, image)[0] == 200


def test_a_request_writes_no_file(port, run, image, monkeypatch, tmp_path):
    """Not for a moment either: that would change the time of its folder."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    wait_for_features(port, image)
    places = (tmp_path, run.parents[1], Path(os.environ["ONELOOP_CACHE"]))

    def there() -> dict:
        return {path: path.stat().st_mtime_ns for place in places for path in (place, *place.rglob("*"))}

    before = there()
    for content in (image, b"bad", HOSTILE["a lie"][0]):
        classified(port, content)
    ask(port, f"/{TOKEN}/training/0")
    assert there() == before
    tempfile.NamedTemporaryFile().close()
    assert there() != before  # control


def test_many_at_once_wait_in_a_short_queue_and_are_computed_one_at_a_time(run, model, image, monkeypatch):
    go, inside, most = threading.Event(), [0], [0]

    def answer(*_):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        go.wait(20)
        inside[0] -= 1
        return {}

    monkeypatch.setattr(try_app, "answer", answer)
    statuses: list[int] = []
    with served(try_app.app(model, "none", TOKEN, "")) as port:
        threads = [threading.Thread(target=lambda: statuses.append(classified(port, image)[0])) for _ in range(30)]
        for thread in threads:
            thread.start()
        for _ in range(500):
            if len(statuses) == 30 - try_app.WAITING:
                break
            time.sleep(0.01)
        assert statuses == [503] * (30 - try_app.WAITING)
        go.set()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200] * try_app.WAITING + [503] * (30 - try_app.WAITING)
        assert most == [1]
        assert classified(port, image)[0] == 200


def test_a_net_that_fails_is_one_line(port, model, image, monkeypatch, capfd):
    monkeypatch.setattr(try_app, "answer", lambda *_: 1 / 0)
    assert classified(port, image) == (500, {"error": "the net fails with this image: division by zero"})
    assert capfd.readouterr().err == "ZeroDivisionError: division by zero\n"


def test_the_command_prints_the_address_and_ends_with_ctrl_c(run, oneloop, monkeypatch, image):
    with socket.socket() as free:
        free.bind((command.HOST, 0))
        port = free.getsockname()[1]
    monkeypatch.setattr("secrets.token_urlsafe", lambda: TOKEN)
    found = []

    def interrupt() -> None:
        for _ in range(500):
            with contextlib.suppress(OSError):
                found.append(classified(port, image)[0])
                break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, out, error = oneloop("try", run, "--port", port)
    thread.join()
    assert found == [200]
    assert (code, out, error) == (130, f"http://127.0.0.1:{port}/{TOKEN}/\nCtrl-C ends it\n", "")


def test_wrong_usage_is_one_line(run, oneloop, monkeypatch):
    with socket.socket() as taken:
        taken.bind((command.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = oneloop("try", run, "--port", port)
    assert code == 1
    assert error.startswith(f"cannot listen at port {port} of 127.0.0.1: ")
    assert oneloop("try", run, "--port", 70000)[::2] == (2, "--port takes 0 to 65,535, got 70000\n")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert oneloop("try", run)[::2] == (1, 'oneloop try needs uvicorn: pip install "oneloop[try]"\n')


GIVEN = """new Promise(done => document.createElement("canvas").toBlob(blob => {
    const files = new DataTransfer();
    files.items.add(new File([blob], "%(kind)s.png"));
    done(document.body.dispatchEvent(new %(event)s("%(kind)s", {%(name)s: files, bubbles: true, cancelable: true})));
}))"""  # an image, dropped or pasted


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_in_a_browser_on_a_phone_and_a_screen(port, run, tmp_path):
    files = [*sorted((run.parents[1] / "photos/test").rglob("*.jpg"))[:2], tmp_path / "bad <i>.jpg"]
    files[-1].write_text("no image")
    with browser(tmp_path) as page:
        for width in (390, 1280):
            page.open(f"http://127.0.0.1:{port}/{TOKEN}/", width)
            page.choose("#files", files)
            page.until("[...document.querySelectorAll('.note')].filter(note => note.textContent != '…').length == 3")
            notes = page.value("[...document.querySelectorAll('.note')].map(note => note.textContent)")
            assert sum(note.startswith("unsure: ") for note in notes) == 2
            assert sum(note.startswith("no image of a kind") for note in notes) == 1
            page.until("[...document.querySelectorAll('.few img')].every(image => image.complete && image.naturalWidth)")
            assert page.value("document.querySelectorAll('.few img').length") == 2 * try_nearest.NEAREST
            assert page.value("document.querySelectorAll('i, section b').length") == 0  # names are text
            assert page.value("document.scrollingElement.scrollWidth") <= width
            for kind, event, name in (("drop", "DragEvent", "dataTransfer"), ("paste", "ClipboardEvent", "clipboardData")):
                page.value(GIVEN % {"kind": kind, "event": event, "name": name})
                page.until(f"document.querySelector('h2').textContent == '{kind}.png'")
                page.until("document.querySelector('.note').textContent.startsWith('unsure: ')")
    blocked = [line for line in page.complaints if "Content Security Policy" in line]
    assert blocked == []
