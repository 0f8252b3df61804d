"""`oneloop publish`: a folder that timm, transformers and oneloop load, or none at all; and the hub, which is a stand-in here."""

import base64
import contextlib
import http.server
import importlib.util
import json
import threading

import pytest
import torch
from conftest import ROOT
from PIL import Image
from trained import train_here

import oneloop as api
from launch.errors import Refused
from launch.publish import card, folder, push
from launch.report import runs

pytestmark = [
    pytest.mark.usefixtures("own_path"),
    pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="needs the extra `publish`"),
]
NET = ("--net", "timm/test_resnet", "--mode", "scratch", "--lr", 0.001, "--size", 32, "--epochs", 1, "--batch", 100)
LICENCE = ("--licence", "cc-by-4.0")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a small net of timm's."""
    place = tmp_path_factory.mktemp("published") / "run"
    train_here(ROOT / "recipes/custom.py", *NET, "--out", place)
    return place


@pytest.fixture
def image(tmp_path):
    Image.effect_noise((48, 40), 90).convert("RGB").save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        return image.copy()


def test_the_folder_loads_through_timm_transformers_and_oneloop(run, oneloop, tmp_path, image):
    transformers, timm = pytest.importorskip("transformers"), pytest.importorskip("timm")
    code, out, error = oneloop("publish", run, tmp_path / "out", *LICENCE)
    assert (code, error) == (0, "")
    assert "loaded by timm and transformers: probabilities of 100 images" in out
    model, trained = api.load(tmp_path / "out"), api.load(run)
    assert model.predict(image) == trained.predict(image)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "curves.png", "confusion.png", "kernels.png"
    }  # fmt: skip
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(pixels), trained.net(pixels), atol=1e-5)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
        expected = dict(zip(model.classes, net(transform(image)[None]).softmax(1)[0].tolist(), strict=True))
    answer = transformers.pipeline("image-classification", model=str(tmp_path / "out"))(image, top_k=10)
    assert {of["label"]: of["score"] for of in answer} == pytest.approx(expected, abs=1e-5)


def test_the_card_says_what_was_trained_and_no_path_of_the_machine(run, oneloop, tmp_path):
    assert oneloop("publish", run, tmp_path / "out", *LICENCE)[0] == 0
    text, config = (tmp_path / "out/README.md").read_text(), (tmp_path / "out/config.json").read_text()
    test = runs.tested(json.loads((run / "result.json").read_text()))
    low, high = card.interval(test["accuracy"], test["count"])
    for part in (
        'license: "cc-by-4.0"', "timm/test\\_resnet for 10 classes", f"{test['accuracy']:.4f} on 100 test images",
        f"95 % interval {low:.4f} to {high:.4f}", "local-dir:FOLDER", "| airplane |", "| lr | 0.001 |", "400 train, 100 test",
    ):  # fmt: skip
        assert part in text, part
    for place in (str(run), str(tmp_path), str(ROOT)):
        assert place not in text + config
    assert "apache" not in config  # timm's own weights have that licence


def test_wilsons_interval():
    """Against published values: 0 of 10, and 81 of 263 (Newcombe 1998, table I)."""
    assert card.interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert card.interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize(("what", "why"), [
    ("weights", "what timm loads is not the net"), ("names", "transformers calls the classes"), ("config", "timm cannot load"),
])  # fmt: skip
def test_a_folder_that_is_not_the_net_is_not_there(run, oneloop, tmp_path, monkeypatch, what, why):
    """The control of the two tests above: each of the comparisons notices."""
    pytest.importorskip("transformers")
    if what == "weights":
        read = folder._weights
        monkeypatch.setattr(folder, "_weights", lambda trained: read(trained._replace(net=_other(trained.net))))
    else:
        make = folder._config

        def config(*args):
            made = make(*args)
            made.pop("label_names" if what == "names" else "architecture")
            return made

        monkeypatch.setattr(folder, "_config", config)
    code, out, error = oneloop("publish", run, tmp_path / "out", *LICENCE)
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert why in error
    assert [*tmp_path.iterdir()] == []


def _other(net):
    import copy

    other = copy.deepcopy(net)
    with torch.no_grad():
        other.get_classifier().bias[0] += 1
    return other


def test_other_nets_load_with_oneloop_and_it_is_said(trained_runs, oneloop, tmp_path):
    code, _, error = oneloop("publish", trained_runs / "birds", tmp_path / "out", *LICENCE)
    assert (code, error) == (0, "NetBatchNorm is no net of timm's: it loads with oneloop.load\n")
    files = sorted((trained_runs / "images/test").rglob("*.png"))
    assert api.load(tmp_path / "out").predict(files) == api.load(trained_runs / "birds").predict(files)
    assert "timm and transformers do not have this net" in (tmp_path / "out/README.md").read_text()
    assert oneloop("predict", tmp_path / "out", files[0])[0] == 0
    twice = oneloop("publish", trained_runs / "twice/second", tmp_path / "twice", *LICENCE, "--recipe", trained_runs / "twice.py")
    assert twice[0] == 0
    with pytest.raises(Refused, match="oneloop cannot make Sequential by its name"):
        api.load(tmp_path / "twice")


def test_names_of_classes_are_shown_and_not_obeyed():
    assert card._safe("a|b`<img src=x>\n# [x](y)") == "a\\|b\\`&lt;img src=x&gt;\\\\n\\# \\[x\\](y)"


def test_what_is_wrongly_asked_is_one_line(run, oneloop, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    (tmp_path / "there").mkdir()
    for flags, code, why in (
        ((tmp_path / "there", *LICENCE), 2, "exists: choose another folder"),
        ((tmp_path / "out", "--push", "a/b", *LICENCE), 2, "either OUT or --push"),
        (("--push", "nobody", *LICENCE), 2, "--push takes owner/name"),
        (("--push", "a/b", *LICENCE), 1, "no token"),
        (("--public", *LICENCE), 2, "--public is for --push"),
    ):
        answer = oneloop("publish", run, *flags)
        assert (answer[0], answer[1], answer[2].count("\n")) == (code, "", 1)
        assert why in answer[2]
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in oneloop("publish", run, "--push", "a/b", *LICENCE)[2]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, _, error = oneloop("publish", run, "--push", "a/b", *LICENCE)
    assert (code, error.count("\n")) == (1, 1)
    assert "http://127.0.0.1:9 cannot be reached" in error
    assert not (run / "published").exists()


class Hub(http.server.BaseHTTPRequestHandler):
    """What of the hub's interface an upload needs: every file in the commit itself."""

    def do_GET(self):
        self._answer({"name": "somebody", "type": "user"} if self.path == "/api/whoami-v2" else {"error": "unknown"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        files = self.server.files
        if self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            return self._answer({"url": f"http://127.0.0.1:{self.server.server_port}/a/b", "name": "a/b"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self._answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._answer({"commitUrl": "http://127.0.0.1/a/b/commit/1", "commitOid": "1" * 40})

    def _answer(self, value):
        content = json.dumps(value).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files, server.made, server.status = {}, {}, 200
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
        yield server
        server.shutdown()


def test_what_is_pushed_is_the_folder_and_private_unless_told(trained_runs, oneloop, hub, tmp_path):
    for public in (False, True):
        flags = ["--public"] if public else []
        code, out, error = oneloop("publish", trained_runs / "birds", "--push", "a/b", *LICENCE, *flags)
        assert (code, hub.made["visibility"]) == (0, "public" if public else "private"), error
        assert out.startswith(f"http://127.0.0.1:{hub.server_port}/a/b: NetBatchNorm, with the ")
    assert {*hub.files} == {"README.md", "config.json", "model.safetensors", "curves.png", "confusion.png", "kernels.png"}
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert api.load(tmp_path).classes == ("airplane", "bird")
    assert not (trained_runs / "birds/published").exists()
    hub.status = 401
    with contextlib.suppress(Refused):
        push.ask("a/b")
        pytest.fail("a wrong token was taken")
