"""How sure a net is: temperature from validation images, a threshold below which it is unsure, several views of an image."""

import csv
import io
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from trained import train_here

import oneloop as api
from launch.report import calibration
from nets.fast import SixViews

pytestmark = pytest.mark.usefixtures("own_path")


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A run of cifar2.py whose validation images choose, and say the temperature."""
    run = tmp_path_factory.mktemp("validated") / "run"
    train_here(ROOT / "recipes/cifar2.py", "--limit", 200, "--epochs", 2, "--validation", 0.2, "--out", run)
    return run


@pytest.fixture(scope="module")
def temperature(validated):
    return json.loads((validated / "predictions.json").read_text())["calibration"]["temperature"]


@pytest.fixture(scope="module")
def files(trained_runs):
    return sorted((trained_runs / "images/test").rglob("*.png"))


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_one_that_the_labels_were_drawn_with(true):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 4, generator=generator)
    labels = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
    found = calibration.temperature(true * logits, labels)
    assert found == pytest.approx(true, rel=0.05)
    losses = [F.cross_entropy(true * logits.double() / at, labels).item() for at in (found, 1.001 * found, found / 1.001)]
    assert losses[0] == min(losses)


def test_a_validation_set_without_a_mistake_gives_a_finite_temperature():
    assert calibration.temperature(torch.eye(3), torch.arange(3)) == pytest.approx(calibration.LEAST)
    assert calibration.temperature(-torch.eye(3), torch.arange(3)) == pytest.approx(calibration.MOST)


def test_coverage_counts_the_images_that_reach_the_threshold():
    logits = torch.tensor([[0.95, 0.05], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]], dtype=torch.float64).log()
    rows = calibration.coverage(logits, torch.tensor([0, 1, 1, 0]), [0.5, 0.65, 0.99])
    assert [(row["coverage"], row["accuracy"]) for row in rows] == [(1.0, 0.5), (0.75, 2 / 3), (0.0, None)]


def test_predict_evaluate_and_the_graph_have_the_temperature(validated, temperature, files, oneloop, tmp_path):
    """Of the weights that it was fitted for; control: the others are as they are."""
    model, last = api.load(validated, weights="best"), api.load(validated, weights="last")
    assert temperature != 1
    (read,) = model.read(files)
    logits = model.logits(read)
    for of, at in ((model, temperature), (last, 1.0)):
        expected = (of.logits(read) / at).softmax(1).max(1).values
        assert [one.probability for one in of.predict(files)] == pytest.approx(expected.tolist(), abs=1e-6)
    said = json.loads(oneloop("evaluate", validated, "--json")[1])
    recorded = json.loads((validated / "predictions.json").read_text())
    assert said["temperature"] == temperature
    assert said["calibrated_error"] == pytest.approx(recorded["calibration"]["calibration_error"], abs=1e-6)
    assert said["calibration_error"] == pytest.approx(recorded["scores"]["calibration_error"], abs=1e-6)
    assert f"at temperature {temperature:.2f}" in oneloop("evaluate", validated)[1]
    assert oneloop("export", validated, "--format", "torch-export", "--out", tmp_path / "net.pt2")[0] == 0
    program = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(program(read.pixels.contiguous().float() / 255), logits / temperature, atol=1e-4, rtol=1e-4)
    assert f"temperature {temperature:.2f}" in (validated / "report.html").read_text()


def test_without_validation_images_probabilities_stay(trained_runs):
    assert api.load(trained_runs / "birds").about["temperature"] == 1


def test_a_class_below_the_threshold_is_unsure(validated, files, oneloop, monkeypatch):
    shown = api.load(validated).predict(files)
    middle = sorted(one.probability for one in shown)[6]
    expected = [one.probability >= middle for one in shown]
    assert {*expected} == {True, False}
    rows = csv.DictReader(io.StringIO(oneloop("predict", validated, *files, "--top", 1, "--csv", "--unsure", middle)[1]))
    assert [row["sure"] for row in rows] == ["yes" if sure else "no" for sure in expected]
    answers = json.loads(oneloop("predict", validated, *files, "--json", "--unsure", middle)[1])
    assert [answer["sure"] for answer in answers] == expected
    assert "sure" not in json.loads(oneloop("predict", validated, files[0], "--json")[1])[0]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    assert oneloop("predict", validated, *files, "--unsure", middle)[1].count("unsure: ") == expected.count(False)
    for command in (("predict", validated, files[0]), ("evaluate", validated)):
        code, out, error = oneloop(*command, "--unsure", 1.5)
        assert (code, out, error) == (2, "", "--unsure takes a probability from 0 to 1, got 1.5\n")


def test_evaluate_says_how_many_are_sure_and_how_good_these_are(validated, oneloop):
    recorded = json.loads((validated / "predictions.json").read_text())["calibration"]["thresholds"]
    said = json.loads(oneloop("evaluate", validated, "--unsure", 0.5, "--json")[1])
    assert said["unsure"] == recorded[0]
    assert "of the images, accuracy" in oneloop("evaluate", validated, "--unsure", 0.5)[1]
    page = (validated / "report.html").read_text()
    assert all(f"{row['coverage']:.1%}" in page for row in recorded)


@pytest.mark.parametrize("kind", ["flip", "six"])
def test_several_views_are_their_mean(validated, temperature, files, oneloop, kind):
    model = api.load(validated, tta=kind)
    (read,) = model.read(files)
    rows = read.pixels.permute(0, 2, 3, 1).flatten(1)
    pixels = model._normalise(rows).view(-1, 32, 32, 3).permute(0, 3, 1, 2)
    with torch.no_grad():
        mean = SixViews(model.net)(pixels) if kind == "six" else (model.net(pixels) + model.net(pixels.flip(3))) / 2
    answers = json.loads(oneloop("predict", validated, *files, "--top", 1, "--json", "--tta", kind)[1])
    expected = (mean / temperature).softmax(1).max(1).values.tolist()
    assert [answer["predictions"][0]["probability"] for answer in answers] == pytest.approx(expected, abs=1e-5)
    assert api.load(validated).predict(files) != model.predict(files)
    said = json.loads(oneloop("evaluate", validated, "--tta", kind, "--json")[1])
    assert (said["logged"], said["loss"] == json.loads(oneloop("evaluate", validated, "--json")[1])["loss"]) == (None, False)
