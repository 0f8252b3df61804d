"""Report of a finished run: four plots, and a page that loads nothing from elsewhere."""

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tiny, optimizer_for, result
from PIL import Image
from torch import nn

from launch import train
from launch.data.feed import MemoryFeed
from launch.report import page as page_of
from launch.report import plots as report
from launch.report import predictions, show
from launch.training import finish as finishing
from launch.weights import load, load_into

PLOTS = ("curves", "confusion", "mistakes", "kernels")
NAMES = ("<b>bold</b>", "$\\frac$ & co", "猫")  # none of these may become markup or a formula


@pytest.fixture
def shown(start, images, tmp_path) -> Path:
    """The folder of a run of two epochs."""
    torch.manual_seed(0)
    train(start(plots=True), net := Tiny(), replace(images, classes=NAMES), optimizer_for(net), epochs=2, batch=16)
    return tmp_path / "run"


class Page(HTMLParser):
    """The tags, the references and the words of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.references, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data", "poster")]
        if tag not in ("meta", "img", "br", "link", "input", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if data.strip() and self.open[-1:] != ["style"]:
            self.words.append(data.strip())


def test_plots_and_predictions_agree_with_the_result(shown, images):
    for name in PLOTS:
        with Image.open(shown / f"{name}.png") as plot:
            assert plot.width > 200, name
            assert len(plot.convert("L").getcolors(256)) > 2, name  # something is drawn
    predictions, end = json.loads((shown / "predictions.json").read_text()), result(shown)
    counts = torch.tensor(predictions["counts"])
    assert counts.sum(1).tolist() == torch.bincount(images.test.labels).tolist()
    right = round(end["test"]["accuracy"] * end["test"]["count"])
    assert counts.trace() == right
    mistakes = predictions["mistakes"]
    assert len(mistakes) == min(23 - right, show.MISTAKES) > 1
    assert [mistake["loss"] for mistake in mistakes] == sorted((mistake["loss"] for mistake in mistakes), reverse=True)
    for mistake in mistakes:
        assert mistake["true"] == images.test.labels[mistake["id"]] != mistake["predicted"]
        plot = Image.open(io.BytesIO(base64.b64decode(mistake["png"])))
        assert np.array_equal(np.asarray(plot), images.test.pixels[mistake["id"]][0])


def test_mistakes_are_those_of_the_net_in_eval_mode(shown, images):
    load_into(net := Tiny().eval(), load(shown))
    feed = MemoryFeed(images.test, images, torch.device("cpu"))
    with torch.no_grad():
        probabilities = net(feed.batch(feed.order(torch.arange(23)))[0]).softmax(1)
    mistakes = json.loads((shown / "predictions.json").read_text())["mistakes"]
    assert len(mistakes) > 1
    for mistake in mistakes:
        assert mistake["probability"] == pytest.approx(probabilities[mistake["id"], mistake["predicted"]].item(), abs=1e-5)


def test_confusion_has_a_row_for_each_true_class(images):
    """All images of the first class are taken for the second, three of the second for the third; the rest is correct."""
    labels = images.test.labels
    predicted = torch.where(labels == 0, 1, labels)
    predicted[(labels == 1).nonzero()[:3]] = 2
    logits = torch.eye(3)[predicted] * torch.linspace(1, 9, len(labels))[:, None]
    found = show.summary(logits, images)
    first, second, third = torch.bincount(labels).tolist()
    assert found["counts"] == [[0, first, 0], [0, second - 3, 3], [0, 0, third]]
    wrong = (labels != predicted).nonzero().flatten().tolist()
    assert [mistake["id"] for mistake in found["mistakes"]] == wrong[::-1]  # the most confident first
    for mistake in found["mistakes"]:
        assert (mistake["true"], mistake["predicted"]) == (labels[mistake["id"]], predicted[mistake["id"]])
        assert mistake["probability"] == pytest.approx(logits[mistake["id"]].softmax(0).max().item())


def test_page_shows_the_accuracy_of_each_class(shown):
    words, end = Page((shown / "report.html").read_text()).words, result(shown)
    counts = json.loads((shown / "predictions.json").read_text())["counts"]
    place, exchanged = words.index("Accuracy of each class"), False
    for index, name in enumerate(NAMES):
        place = words.index(name, place)
        right, total = counts[index][index], sum(counts[index])
        guessed = sum(row[index] for row in counts)
        precision, f1 = right / max(guessed, 1), 2 * right / (total + guessed)
        assert words[place + 1 : place + 4] == [str(total), str(right), f"{right / total:.1%}"]
        assert words[place + 4 : place + 6] == [f"{precision:.1%}", f"{f1:.1%}"]
        exchanged |= precision != f1
    assert exchanged  # a control: a page that takes one for the other would be noticed
    headings = ["class", "images", "correct", "accuracy", "precision", "F1"]
    assert words[(first := words.index("class", words.index("Accuracy of each class"))) : first + 6] == headings
    wrong = round((1 - end["test"]["accuracy"]) * end["test"]["count"])
    assert any(word.startswith(f"{wrong} test images are misclassified") for word in words)


def test_class_names_that_are_not_text_are_drawn(start, images, tmp_path, capsys):
    """Classes are named by folders: bytes that are not UTF-8, control characters."""
    classes = ("a\udcff", "b\x1b[31m\n", "\u202ec")
    train(start(plots=True), net := Tiny(), replace(images, classes=classes), optimizer_for(net), epochs=1, batch=16)
    assert "plots are missing" not in "".join(capsys.readouterr())
    for name in ("confusion", "mistakes"):
        assert (tmp_path / f"run/{name}.png").exists()
    assert "a\\udcff" in (tmp_path / "run/report.html").read_text()


def test_page_loads_nothing_and_agrees_with_the_result(shown):
    text = (shown / "report.html").read_text()
    page, end = Page(text), result(shown)
    assert len(page.references) >= 4
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    words = page.words
    for name in NAMES:
        assert name in words  # as text: no class name becomes a tag
    assert page.tags.count("b") == len(json.loads((shown / "predictions.json").read_text())["mistakes"])
    for name in ("accuracy", "loss"):
        assert words[words.index(f"test {name}") + 1] == f"{end['test'][name]:.4f}"
    assert words[words.index("weights_sha256") + 1] == end["weights_sha256"]
    config = json.loads((shown / "config.json").read_text())
    assert words[words.index("Command") + 1] == f"{config['launcher']} {config['command']}"


def test_page_of_several_stages_compares_them(start, images, tmp_path, capsys, monkeypatch):
    run = start(plots=True)
    for name in ("first", "second"):
        train(run, net := Tiny(), replace(images, classes=NAMES), optimizer_for(net), epochs=1, batch=16, stage=name)
    run.finish("<i>two</i> trainings")
    page = Page((tmp_path / "run/report.html").read_text())
    assert page.references == []
    assert "i" not in page.tags
    assert "<i>two</i> trainings" in page.words
    for name in ("first", "second"):
        assert page.words[page.words.index(name) + 3] == f"{result(tmp_path / 'run' / name)['test']['accuracy']:.4f}"
    monkeypatch.setattr(page_of, "_several", lambda _: 1 / 0)
    run.finish("again")
    assert result(tmp_path / "run")["summary"] == "again"
    assert capsys.readouterr().err.count("has no report.html: division by zero") == 1


def test_control_a_page_that_loads_something_is_caught():
    """The test above finds what it looks for."""
    page = Page('<b>x</b><img src="https://example.org/x.png"><script></script>')
    assert page.references == ["https://example.org/x.png"]
    assert {"script", "b"} <= set(page.tags)


def test_broken_plot_is_reported_once_and_the_run_is_finished(start, images, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no such font\nand more")

    monkeypatch.setattr(report, "confusion", broken)
    train(start(plots=True), net := Tiny(), images, optimizer_for(net), epochs=1, batch=16)
    assert result(tmp_path / "run")["epochs"] == 1
    said = capsys.readouterr().out
    assert said.count("some plots are missing: no such font") == 1
    assert "and more" not in said
    assert (tmp_path / "run/curves.png").exists()
    assert not (tmp_path / "run/report.html").exists()


def test_quiet_trials_and_nets_without_convolution(start, images, tmp_path):
    run, linear = start(plots=True), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    train(run, linear, images, optimizer_for(linear), epochs=1, batch=16, stage="linear")
    train(run.single_process(), linear, images, optimizer_for(linear), epochs=1, batch=16, stage="trial")
    plots = {path.name for path in (tmp_path / "run/linear").glob("*.png")}
    assert plots == {"curves.png", "confusion.png", "mistakes.png"}
    assert "test · Sequential · linear" in (tmp_path / "run/linear/report.html").read_text()
    assert not list((tmp_path / "run/trial").glob("*.png"))


def test_no_other_process_is_waited_for(start, images, shown, monkeypatch):
    """On the main one of two processes while the other never answers."""

    def no_answer(*_):
        raise TimeoutError("the other process does not answer")

    run, net = start("other", plots=True), Tiny()
    run.world = 2
    monkeypatch.setattr("launch.run.broadcast_object_list", no_answer)
    with pytest.raises(TimeoutError):  # control: a collective would fail; torch's own have no process group here
        run.on_main(lambda: None)
    monkeypatch.setattr(run, "folder", shown)
    (shown / "curves.png").unlink()
    show.show(run, net, MemoryFeed(images.test, images, run.accelerator.device), images, result(shown))
    assert (shown / "curves.png").exists()
    assert net.training


@pytest.mark.parametrize(("ema", "passes"), [(0.0, 0), (0.9, 0), (0.0, 1)])
def test_the_report_has_the_logits_of_the_last_evaluation(start, images, tmp_path, monkeypatch, ema, passes):
    """With the bits of a pass of its own, which it makes where that evaluation was an earlier launch's."""
    run, net, made, own = start(plots=True), Tiny(), [], predictions.logits_of
    monkeypatch.setattr(predictions, "logits_of", lambda *of: made.append(of) or own(*of))
    if passes:
        monkeypatch.setattr(finishing, "EVALUATED", dict.fromkeys(finishing.EVALUATED, "of no launch"))
    train(run, net, images, optimizer_for(net), epochs=2, batch=16, ema=ema)
    assert len(made) == passes
    shown = (tmp_path / "run" / predictions.NAME).read_bytes()
    load_into(net, load(tmp_path / "run" / ("ema.safetensors" if ema else "model.safetensors")))
    predictions.write(tmp_path, own(run, net, MemoryFeed(images.test, images, run.accelerator.device)), images)
    assert (tmp_path / predictions.NAME).read_bytes() == shown


@pytest.mark.parametrize("classes", [1, 2, 10, 30, 100])
def test_any_number_of_classes(classes, tmp_path):
    counts = torch.eye(classes, dtype=torch.int64) * 7
    counts[0, -1] += 1
    report.confusion(tmp_path / "confusion.png", counts, [f"class {index}" for index in range(classes)])
    with Image.open(tmp_path / "confusion.png") as plot:
        assert max(plot.size) < 2000


def test_no_mistakes_and_no_test_images(tmp_path):
    report.mistakes(tmp_path / "none.png", [], [])
    counts = torch.zeros(2, 2, dtype=torch.int64)  # no test images at all
    report.confusion(tmp_path / "empty.png", counts, ("a", "b"))
