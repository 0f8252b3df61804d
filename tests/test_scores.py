"""Scores are scikit-learn's, on any number of processes and for any sizes; predictions.parquet is what was predicted."""

import json
from dataclasses import replace

import jobs
import pyarrow.parquet
import pytest
import torch
from conftest import Tiny, optimizer_for, result
from tiny import tiny_images

from launch import commands, train
from launch.data.dataset import Split
from launch.report.scores import scores


def scikit_learns(logits, labels) -> dict:
    metrics = pytest.importorskip("sklearn.metrics")
    guess, probabilities = logits.argmax(1), logits.double().softmax(1).numpy()
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels, guess, average="macro", zero_division=0)
    found = {"precision": precision, "recall": recall, "f1": f1}
    found["balanced_accuracy"] = metrics.balanced_accuracy_score(labels, guess)
    if logits.shape[1] > 5:
        known = range(logits.shape[1])
        found["top_5"] = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=known)
    return found


def by_class(logits, labels) -> list[tuple]:
    metrics, classes = pytest.importorskip("sklearn.metrics"), range(logits.shape[1])
    guess = logits.argmax(1)
    columns = metrics.precision_recall_fscore_support(labels, guess, labels=classes, zero_division=0)
    return [pytest.approx(row, abs=1e-6) for row in zip(*(column.tolist() for column in columns), strict=True)]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize(("n", "k"), [(5, 2), (7, 3), (23, 3), (101, 7), (997, 10)])
@pytest.mark.parametrize("missing", ["none", "absent", "never predicted"])
def test_scores_are_scikit_learns(n, k, missing):
    generator = torch.Generator().manual_seed(n)
    labels = torch.randint(0, k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator) + torch.nn.functional.one_hot(labels, k)
    if missing == "absent":
        labels = labels.clamp(min=1)
    if missing == "never predicted":
        logits[:, 0] = -100
    found = scores(logits, labels)
    expected = scikit_learns(logits, labels)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    rows = [(row["precision"], row["recall"], row["f1"], row["count"]) for row in found["classes"]]
    assert rows == by_class(logits, labels)
    wrong = scores(-logits, labels)  # control
    assert {name: wrong[name] for name in expected} != pytest.approx(expected, abs=1e-6)


def test_calibration_error_is_the_papers():
    """By its definition, bin by bin; none for a classifier as right as it is sure."""
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(3000, 4), torch.randint(0, 4, (3000,))
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = (predicted == labels)[inside].double().mean() - confidence[inside].mean()
            expected += inside.double().mean().item() * abs(gap.item())
    assert scores(logits, labels)["calibration_error"] == pytest.approx(expected, abs=1e-9)
    honest = torch.distributions.Categorical(logits=logits).sample()
    assert scores(logits, honest)["calibration_error"] < 0.03 < expected


EVALUATED = """
import json, torch, tiny
from pathlib import Path
from launch import Run, cli
from launch.training.evaluate import evaluate_with_logits
from launch.report.scores import scores

def main(run: Run):
    torch.manual_seed(3)
    images = tiny.tiny_images()
    found, logits = evaluate_with_logits(run, tiny.Tiny(), images)
    Path(f"{run.world}-{run.rank}.json").write_text(json.dumps(found | scores(logits, images.test.labels)))

if __name__ == "__main__":
    cli(main)
"""


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(tmp_path):
    """23 images in batches of 5, so that the last one is short and one process has a batch more."""
    script = tmp_path / "measured.py"
    script.write_text("import launch.data\nlaunch.data.MemoryFeed.evaluation_batch = 5\n" + EVALUATED)
    for processes in (None, 2):
        job = jobs.begin(script, "--data", "synthetic", "--threads", 1, cwd=tmp_path, processes=processes)
        assert job.wait() == 0, job.output
    said = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")]
    assert len(said) == 3
    assert said[0] == said[1] == said[2]
    assert said[0]["count"] == 23


def test_predictions_of_a_run_are_in_a_table(start, tmp_path):
    images = tiny_images()
    images = replace(images, test=Split(images.test.pixels, images.test.labels), classes=("a", "b\udcff", "c"))
    train(start(plots=True), net := Tiny(), images, optimizer_for(net), epochs=2, batch=8)
    table = pyarrow.parquet.read_table(tmp_path / "run/predictions.parquet").to_pydict()
    assert table["id"] == [*range(23)]
    assert table["label"] == images.test.labels.tolist()
    right = sum(a == b for a, b in zip(table["label"], table["predicted"], strict=True))
    assert right / 23 == pytest.approx(result(tmp_path / "run")["test"]["accuracy"])
    assert {*table["true"]} == {"a", "b\\udcff", "c"}
    probabilities = torch.tensor(table["probabilities"])
    torch.testing.assert_close(probabilities.sum(1), torch.ones(23))
    assert probabilities.argmax(1).tolist() == table["predicted"]
    shown = json.loads((tmp_path / "run/predictions.json").read_text())["scores"]
    expected = scores(probabilities.log(), images.test.labels)
    assert shown.pop("classes") == expected.pop("classes")
    assert shown == pytest.approx(expected, abs=1e-5)


def test_evaluate_prints_the_scores(trained_runs, capsys, monkeypatch):
    monkeypatch.chdir(trained_runs)
    assert commands.main(["evaluate", "birds"]) == 0
    said = capsys.readouterr().out
    assert commands.main(["evaluate", "birds", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("precision", "recall", "f1", "balanced_accuracy", "calibration_error"):
        assert f"{name.replace('_', ' ')} {found[name]:.4f}" in said
    assert len(found["classes"]) == 2
