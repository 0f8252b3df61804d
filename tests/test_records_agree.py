"""Recorded numbers are those that everything shows: commands, comparison, pairs, plots, W&B."""

import base64
import csv
import io
import json
import shutil
import statistics
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pytest
import torch
from conftest import ROOT, metrics, result
from made_runs import compared, write_run
from PIL import Image
from safetensors.torch import load_file
from trained import train_here
from training import fit

from launch.data.dataset import Split
from launch.errors import Refused
from launch.report import compare_plots, plots, predictions, wandb_mirror
from launch.report.paired import pairs
from launch.trained import find_run, rebuild

# ------------------------------------------------------------------------------------------- a run that keeps an average


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run of methods.py with an average of the weights and validation images: three sets of weights, all different."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    flags = ("--method", "ema", "--limit", 200, "--validation", 0.25, "--epochs", 3, "--lr", 0.2, "--wandb", "disabled")
    train_here(ROOT / "recipes/ablations.py", *flags, "--out", folder)
    return folder


FILES = {"last": "model", "best": "best", "ema": "ema"}


def expected(folder, weights, pixels):
    """Probabilities by the weights in the file of this name."""
    net = rebuild(*find_run(folder), weights="last").net
    net.load_state_dict(load_file(folder / f"{FILES[weights]}.safetensors"))
    with torch.no_grad():
        return net.eval()(pixels).softmax(1)


@pytest.mark.usefixtures("own_path")
@pytest.mark.parametrize("split", ["test", "validation", "train"])
@pytest.mark.parametrize("weights", ["last", "best", "ema"])
def test_evaluate_quotes_the_line_of_the_weights_that_it_measures(averaged, oneloop, weights, split):
    """Or none: never that of others."""
    code, out, error = oneloop("evaluate", averaged, "--weights", weights, "--split", split, "--json")
    assert code == 0, error
    said, trained = json.loads(out), result(averaged)
    assert said["split"] == split
    if said["logged"]:
        assert said["logged"] == pytest.approx({name: said[name] for name in ("accuracy", "loss")}, rel=1e-5)
    if weights == "last":
        assert said["accuracy"] == trained[split]["accuracy"]
        assert said["logged"]
    if (weights, split) == ("best", "test"):
        assert said["accuracy"] == trained["best"]["test"]["accuracy"]
    if (weights, split) == ("best", "validation"):
        assert said["accuracy"] == trained["best"]["accuracy"]
        assert said["logged"]
    usual = () if split == "test" else ("--split", split)  # of the test images, if nobody says which
    code, out, _ = oneloop("evaluate", averaged, "--weights", weights, *usual)
    right = round(said["accuracy"] * said["count"])
    assert f"accuracy {said['accuracy']:.4f} ({right}/{said['count']}), loss {said['loss']:.4f}" in out
    assert ("logged in training" in out) == bool(said["logged"])


@pytest.mark.usefixtures("own_path")
def test_the_best_epoch_is_that_of_what_chose_it(averaged, oneloop, tmp_path):
    """The average, where there is one: whatever the plain weights reached in another epoch."""
    folder = shutil.copytree(averaged, tmp_path / "run")
    best = result(folder)["best"]["epoch"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("split") == "validation" and line["epoch"] != best:
            line["accuracy"] = 1.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = json.loads(oneloop("evaluate", folder, "--weights", "best", "--split", "validation", "--json")[1])
    assert said["logged"] == pytest.approx({name: said[name] for name in ("accuracy", "loss")}, rel=1e-5)


@pytest.mark.usefixtures("own_path")
def test_control_the_three_sets_of_weights_measure_differently(averaged, oneloop):
    losses = {json.loads(oneloop("evaluate", averaged, "--weights", weights, "--json")[1])["loss"] for weights in FILES}
    assert len(losses) == 3


@pytest.mark.usefixtures("own_path")
@pytest.mark.parametrize("weights", ["last", "best", "ema"])
def test_every_command_uses_the_weights_that_it_is_told(averaged, oneloop, tmp_path, weights):
    images, file = rebuild(*find_run(averaged), weights="last").images, tmp_path / "bird.png"
    Image.fromarray(images.test.pixels[1].permute(1, 2, 0).numpy()).save(file)
    code, out, error = oneloop("predict", averaged, file, "--weights", weights, "--json")
    assert code == 0, error
    (said,) = json.loads(out)
    pixels = images.test.pixels[1:2].float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
    (probabilities,) = expected(averaged, weights, (pixels - mean) / std)
    shown = json.loads((averaged / "predictions.json").read_text())["calibration"]["temperature"] if weights == "best" else 1.0
    probabilities = (probabilities.log() / shown).softmax(0)  # predicted with the temperature of the weights that are used
    by_class = dict(zip(images.classes, probabilities.tolist(), strict=True))
    assert {each["class"]: each["probability"] for each in said["predictions"]} == pytest.approx(by_class, abs=1e-5)
    rows = [*csv.DictReader(io.StringIO(oneloop("predict", averaged, file, "--weights", weights, "--csv")[1]))]
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert [row["class"] for row in rows] == sorted(by_class, key=by_class.get, reverse=True)
    assert len(json.loads(oneloop("predict", averaged, file, "--top", 1, "--json")[1])[0]["predictions"]) == 1
    (tmp_path / "no.png").write_bytes(b"no image")
    code, out, error = oneloop("predict", averaged, tmp_path / "no.png", file, "--json")
    assert (code, len(json.loads(out)), "1 of 2 files could not be read" in error) == (1, 1, True)
    code, _, error = oneloop("export", averaged, "--weights", weights, "--format", "safetensors", "--out", tmp_path / "net.st")
    assert code == 0, error
    exported, own = load_file(tmp_path / "net.st"), load_file(averaged / f"{FILES[weights]}.safetensors")
    assert exported.keys() == own.keys()
    assert all(tensor.equal(own[name]) for name, tensor in exported.items())
    pytest.importorskip("captum")
    for name in images.classes:
        code, out, _ = oneloop("explain", averaged, file, "--weights", weights, "--class", name, "--out", tmp_path / "seen.png")
        assert out.startswith(f"{name}: {by_class[name]:.1%}, from conv2; {tmp_path}/seen.png")


def with_average(folder, accuracies):
    """Add lines of an average, as `train` writes them: on the images that choose."""
    lines = []
    for line in (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()):
        lines.append(line)
        chooses = "validation" if (folder / "result.json").exists() and "validation" in result(folder) else "test"
        if line.get("split") == chooses:
            lines.append(line | {"split": "ema", "accuracy": accuracies[line["epoch"] - 1], "loss": 0.125})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_an_average_reached_on_validation_images_is_no_test_accuracy(tmp_path):
    with_average(write_run(tmp_path / "run", (0.7, 0.8), validation=(0.5, 0.6)), (0.97, 0.98))
    (row,) = compared(tmp_path).records()
    assert row["last"]["mean"] in (0.7, 0.8)
    assert row["best"]["mean"] in (0.7, 0.8)
    assert row["loss"]["mean"] != 0.125
    assert row["gap"]["mean"] == pytest.approx(0.1)


def test_without_validation_images_the_average_is_measured_on_the_test_images(tmp_path):
    with_average(write_run(tmp_path / "run", (0.7, 0.8)), (0.6, 0.75))
    (row,) = compared(tmp_path).records()
    assert (row["last"]["mean"], row["loss"]["mean"]) == (0.75, 0.125)


# ------------------------------------------------------------------------------------------------------ image by image


def answered(folder, images, wrong=()):
    """predictions.parquet of a net that has all test images right but those."""
    guess = images.test.labels.clone()
    guess[list(wrong)] = (guess[list(wrong)] + 1) % len(images.classes)
    logits = 5 * torch.nn.functional.one_hot(guess, len(images.classes)).float()
    predictions.write(folder, logits, images)
    return predictions.read(folder)


def test_predictions_say_which_images_were_right_and_how_sure_the_net_was(images, tmp_path):
    import pyarrow.parquet

    found = answered(tmp_path, images, wrong=(1, 4))
    assert [*np.flatnonzero(~found.right)] == [1, 4]
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert table["id"] == [*range(23)]
    assert table["label"] == images.test.labels.tolist()
    assert [images.classes[label] for label in table["label"]] == table["true"]
    assert [images.classes[label] for label in table["predicted"]] == table["guess"]
    for row, predicted in zip(table["probabilities"], table["predicted"], strict=True):
        assert sum(row) == pytest.approx(1, abs=1e-5)
        assert row[predicted] == pytest.approx(max(row)) == pytest.approx(np.exp(5) / (np.exp(5) + 2))


def changed(images, **parts):
    test = {"pixels": images.test.pixels, "labels": images.test.labels} | parts
    return replace(images, test=Split(**test))


def test_other_labels_pixels_classes_or_orders_are_other_test_images(images, tmp_path):
    own = answered(tmp_path, images).images
    labels, pixels = images.test.labels.clone(), images.test.pixels.clone()
    labels[3] = (labels[3] + 1) % 3
    pixels[5, 0, 2, 2] += 1
    others = {
        "labels": changed(images, labels=labels), "pixels": changed(images, pixels=pixels),
        "classes": replace(images, classes=("a", "b", "d")), "order": changed(images, pixels=images.test.pixels.flip(0)),
    }  # fmt: skip
    assert answered(tmp_path, images, wrong=(2,)).images == own  # whatever the net says
    assert answered(tmp_path, replace(images, train=images.test)).images == own
    for what, other in others.items():
        assert answered(tmp_path, other).images != own, what


def write_pair(place, images, others, seeds=1):
    for seed in range(seeds):
        write_run(place / f"a{seed}", (0.5, 0.9 + seed / 100), seed=seed)
        write_run(place / f"b{seed}", (0.5, 0.8), seed=seed, net="Other")
        answered(place / f"a{seed}", images)
        answered(place / f"b{seed}", others[seed], wrong=range(10))


def test_runs_whose_test_labels_differ_are_not_compared(images, tmp_path):
    labels = images.test.labels.clone()
    labels[0] = (labels[0] + 1) % 3
    write_pair(tmp_path / "one", images, [changed(images, labels=labels)])
    (pair,) = pairs(compared(tmp_path / "one"))
    assert (pair.difference, pair.p, pair.more_than_chance) == (None, None, None)
    assert "test images differ" in pair.sentence()
    write_pair(tmp_path / "two", images, [images, changed(images, labels=labels)], seeds=2)  # of one seed only
    assert "test images differ" in pairs(compared(tmp_path / "two"))[0].sentence()
    write_pair(tmp_path / "same", images, [images])  # control
    (pair,) = pairs(compared(tmp_path / "same"))
    assert pair.p == pytest.approx(2 / 2**10)
    assert pair.more_than_chance


def test_what_validation_images_say_is_not_tested_on_the_test_images(images, tmp_path):
    for name, validation in (("a", (0.5, 0.9)), ("b", (0.5, 0.8))):
        write_run(tmp_path / name, (0.5, 0.6), validation=validation, net=name)
        answered(tmp_path / name, images, wrong=range(10) if name == "b" else ())
    (pair,) = pairs(compared(tmp_path))
    assert (pair.p, pair.more_than_chance) == (None, None)
    assert "McNemar" not in pair.sentence()


def test_a_steady_loss_is_more_than_chance_too(tmp_path):
    """The interval has two sides: what is clearly worse is not called chance."""
    for seed in range(4):
        write_run(tmp_path / f"a{seed}", (0.5, 0.9 + seed / 100), seed=seed)
        write_run(tmp_path / f"b{seed}", (0.5, 0.8 + seed / 100 + seed / 1000), seed=seed, net="Other")
    (pair,) = pairs(compared(tmp_path), against="Net")
    assert (pair.one, pair.other) == ("Other", "Net")
    assert pair.difference == pytest.approx(-0.0985)
    assert pair.more_than_chance
    assert "Other is worse than Net by 9.85 ± " in pair.sentence()
    assert pair.sentence().endswith("more than chance")


def test_of_a_seed_that_was_run_twice_the_last_run_counts(tmp_path):
    """On both sides."""
    for name, net, accuracy in (("a1", "A", 0.9), ("a2", "A", 0.7), ("b1", "B", 0.5), ("b2", "B", 0.65)):
        write_run(tmp_path / name, (0.5, accuracy), seed=1, net=net)
    (pair,) = pairs(compared(tmp_path))
    assert (pair.one, pair.seeds, pair.difference) == ("A", 1, pytest.approx(0.05))


# ------------------------------------------------------------------------------------------------------------ images


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, by the names of their files."""
    figures = {}

    def save(figure, path, **_):
        figures[path.name] = figure
        path.write_bytes(b"drawn")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)
    return figures


@pytest.fixture
def two_designs(tmp_path):
    """Three seeds of each of two nets."""
    for seed, gain in enumerate((0.0, 0.04, 0.02)):
        write_run(tmp_path / f"runs/a{seed}", (0.6 + gain, 0.8 + gain), seed=seed)
        write_run(tmp_path / f"runs/b{seed}", (0.5, 0.7 - gain), seed=seed, net="Other")
    return compared(tmp_path / "runs")


def test_images_of_a_comparison_show_its_numbers(two_designs, tmp_path, drawn):
    found = pairs(two_designs)
    paths = compare_plots.draw(tmp_path, two_designs, found)
    assert {path.name for path in paths} == drawn.keys() == {"curves.png", "bars.png", "cost.png", "differences.png"}
    accuracy, loss = drawn["curves.png"].axes
    assert [axes.get_ylabel() for axes in (accuracy, loss)] == ["test accuracy", "train loss"]
    assert [*accuracy.lines[0].get_xdata()] == [1, 2]
    assert [*accuracy.lines[0].get_ydata()] == pytest.approx([0.62, 0.82])
    assert [*accuracy.lines[1].get_ydata()] == pytest.approx([0.5, 0.68])
    assert [*loss.lines[0].get_ydata()] == pytest.approx([0.38, 0.18])
    band = accuracy.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(0.6), pytest.approx(0.84))

    (axes,) = drawn["bars.png"].axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([0.92, 0.78, 0.82, 0.68])  # training accuracies, then test accuracies
    assert [*axes.get_legend_handles_labels()[1]] == ["train", "test"]

    seconds, parameters = drawn["cost.png"].axes
    points = [(line[0].get_xdata()[0], line[0].get_ydata()[0]) for line in seconds.containers]
    assert points == [(21, pytest.approx(0.82)), (21, pytest.approx(0.68))]
    assert [line[0].get_xdata()[0] for line in parameters.containers] == [7, 7]

    (axes,) = drawn["differences.png"].axes
    (bar,) = axes.containers
    assert bar[0].get_xdata()[0] == pytest.approx(14)
    low, high = (part[0] for part in bar[2][0].get_segments()[0])
    assert (high - low) / 2 == pytest.approx(100 * found[0].interval)
    assert bar[0].get_fillstyle() == ("full" if found[0].more_than_chance else "none")
    assert "better than Other" in axes.get_xlabel()


def test_what_may_be_chance_is_drawn_hollow_and_what_has_no_image_leaves_none(tmp_path, drawn):
    for seed, gain in enumerate((0.05, -0.04)):
        write_run(tmp_path / f"runs/a{seed}", (0.6, 0.8 + gain), seed=seed)
        write_run(tmp_path / f"runs/b{seed}", (0.6, 0.79), seed=seed, net="Other")
    comparison = compared(tmp_path / "runs")
    compare_plots.draw(tmp_path, comparison, pairs(comparison))
    assert drawn["differences.png"].axes[0].containers[0][0].get_fillstyle() == "none"
    comparison = replace(comparison, groups=comparison.groups[:1])
    assert "differences.png" not in {path.name for path in compare_plots.draw(tmp_path, comparison, [])}
    assert not (tmp_path / "differences.png").exists()  # of the earlier comparison


def event(kind, epoch, **values):
    return {"event": kind, "step": 10 * epoch, "epoch": epoch, "images": 100 * epoch} | values


def test_curves_of_a_run_are_its_lines_by_epoch(tmp_path, drawn):
    events = [event("train", epoch, loss=4.0 - number) for number, epoch in enumerate((0.5, 1, 2, 3))]
    events[0]["epoch"] = 1
    events += [event("eval", epoch, split="test", loss=5 + epoch, accuracy=value) for epoch, value in ((2, 0.75), (3, 0.5))]
    plots.history(tmp_path / "curves.png", events)
    losses, accuracies = drawn["curves.png"].axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in losses.lines}
    assert lines == {"train": ([0.5, 1, 2, 3], [4, 3, 2, 1]), "test": ([2, 3], [7, 8])}
    line, ring = accuracies.lines
    assert ([*line.get_xdata()], [*line.get_ydata()]) == ([2, 3], [0.75, 0.5])
    assert ([*ring.get_xdata()], [*ring.get_ydata()]) == ([2], [0.75])
    assert accuracies.get_title() == "test: 0.5000 at the end, best 0.7500 after epoch 2"


def test_a_confusion_is_drawn_by_true_class_in_rows(tmp_path, drawn):
    plots.confusion(tmp_path / "confusion.png", torch.tensor([[8, 2, 0], [0, 5, 0], [1, 0, 9]]), ("ant", "bee", "cow"))
    (axes,) = drawn["confusion.png"].axes
    (image,) = axes.images
    shares = np.array([[0.8, 0.2, 0], [0, 1, 0], [0.1, 0, 0.9]])
    assert np.asarray(image.get_array()) == pytest.approx(np.sqrt(shares), abs=1e-6)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert (texts[1, 0], texts[0, 2], texts[0, 0], texts[2, 2]) == ("2", "1", "8", "9")
    assert (0, 1) not in texts
    assert {text for (x, _), text in texts.items() if x > 2.5} == {"80.0%", "100.0%", "90.0%"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee", "cow"]
    assert axes.get_title() == "22 of 25 test images correct: 0.8800"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_mistakes_and_kernels_are_named(tmp_path, drawn):
    plots.mistakes(tmp_path / "mistakes.png", [Image.new("RGB", (8, 8))], [("ant", "bee", 0.75)])
    above, below = [text for text in drawn["mistakes.png"].axes[0].texts if text.get_text() in ("ant", "bee 0.75")]
    assert (above.get_text(), below.get_text()) == ("ant", "bee 0.75")
    assert above.get_position()[1] > below.get_position()[1]
    plots.kernels(tmp_path / "kernels.png", torch.linspace(-1, 2, 70 * 3 * 5 * 7).view(70, 3, 5, 7), "conv1")
    title = drawn["kernels.png"].axes[0].get_title(loc="left")
    assert title == "conv1: 64 of 70 kernels 5×7\ndarkest -1.00, brightest 1.74"


# ---------------------------------------------------------------------------------------------------------------- W&B


class FakeWandb:
    """A run of W&B that keeps what it gets."""

    url, starting_step = None, 0

    def __init__(self):
        self.rows, self.summary, self.metrics, self.ended, self.options = [], {}, {}, [], {}

    def log(self, row):
        self.rows.append(row)

    def define_metric(self, name, **how):
        self.metrics[name] = how

    def finish(self, exit_code=0):
        self.ended.append(exit_code)


@pytest.fixture
def logged(start, monkeypatch):
    """logged(**flags) -> a started run that logs to the FakeWandb `run.fake`."""
    pytest.importorskip("wandb")
    monkeypatch.setattr(wandb_mirror, "settings", lambda: SimpleNamespace(base_url="", api_key=""))

    def logged(**flags):
        run, fake = start(**flags), FakeWandb()
        run.wandb, run.fake = "offline", fake

        def init(project, init_kwargs):
            fake.project, fake.options = project, init_kwargs["wandb"]
            run.accelerator.trackers = [fake]

        monkeypatch.setattr(run.accelerator, "init_trackers", init)
        monkeypatch.setattr(run.accelerator, "get_tracker", lambda *_, **__: fake)
        return run

    return logged


def test_wandb_has_the_lines_of_the_record_and_a_finished_run(logged, images, tmp_path):
    run = logged(out="run", seed=7)
    fit(run, images, epochs=2)
    fake, lines = run.fake, metrics(tmp_path / "run")
    assert fake.ended == [0]
    trained = [line for line in lines if line["event"] == "train"]
    assert [row["train/loss"] for row in fake.rows[:2]] == [line["loss"] for line in trained]
    assert [row["train/gradient_norm"] for row in fake.rows[:2]] == [line["gradient_norm"] for line in trained]
    tests = [line for line in lines if line.get("split") == "test"]
    assert [row["test/accuracy"] for row in fake.rows[:2]] == [line["accuracy"] for line in tests]
    (measured,) = [line for line in lines if line.get("split") == "train"]
    assert (fake.rows[1]["train_eval/loss"], fake.rows[1]["train_eval/accuracy"]) == (measured["loss"], measured["accuracy"])
    assert [row["epoch"] for row in fake.rows[:2]] == [1, 2]
    best = result(tmp_path / "run")["best"]
    assert (fake.summary["best/accuracy"], fake.summary["best/epoch"]) == (best["accuracy"], best["epoch"])
    assert fake.options["name"].endswith("-s7")
    config = fake.options["config"]
    assert (config["seed"], config["data"]["fingerprint"], config["data"]["test"]) == (7, "61", 23)
    assert config["model"] == {"name": "Tiny", "parameters": 243, "trainable": 243}


def test_wandb_has_the_balanced_accuracy_and_what_the_best_weights_reached(tmp_path):
    lines = [event("train", 1, loss=1.0), event("eval", 1, split="validation", loss=2.0, accuracy=0.5, balanced_accuracy=0.25)]
    (row,) = wandb_mirror.rows(lines)
    assert (row["validation/accuracy"], row["validation/balanced_accuracy"]) == (0.5, 0.25)
    two = [{**line, "step": line["step"] + offset} for offset in (0, 5) for line in lines[:1]]
    assert len(wandb_mirror.rows(two)) == 2  # two lines of one epoch are two rows
    fake = FakeWandb()
    best = {"accuracy": 0.5, "epoch": 3, "test": {"accuracy": 0.25, "loss": 2.0}}
    wandb_mirror.end(fake, tmp_path, {"best": best, "parameters": 9})
    assert fake.summary == {
        "best/accuracy": 0.5, "best/epoch": 3, "best/test_accuracy": 0.25, "best/test_loss": 2.0, "parameters": 9,
        "weights": "best", "accuracy": 0.25, "loss": 2.0,
    }  # fmt: skip


def test_wandb_shows_mistakes_as_what_they_are_and_what_they_were_taken_for(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    captions, tables = [], []
    monkeypatch.setattr(wandb, "Image", lambda *_, caption="": captions.append(caption) or "image")
    monkeypatch.setattr(wandb, "Table", lambda columns, data: tables.append((columns, data)) or "table")
    monkeypatch.setattr(wandb.plot, "confusion_matrix", lambda **options: options)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    mistake = {"true": 0, "predicted": 1, "probability": 0.75, "png": base64.b64encode(file.getvalue()).decode()}
    shown = {"classes": ["ant", "bee"], "counts": [[3, 1], [0, 2]], "mistakes": [mistake]}
    (tmp_path / "predictions.json").write_text(json.dumps(shown))
    row = wandb_mirror.end(FakeWandb(), tmp_path, {})
    assert captions == ["ant, not bee (0.75)"]
    assert tables == [(["class", "images", "right", "accuracy"], [["ant", 4, 3, 0.75], ["bee", 2, 2, 1.0]])]
    found = row["final/confusion_matrix"]
    assert sorted(zip(found["y_true"], found["preds"], strict=True)) == [(0, 0), (0, 0), (0, 0), (0, 1), (1, 1), (1, 1)]


def burst(logits, labels):
    return logits.sum() * float("nan")


def broken(logits, labels):
    raise ValueError("a fault of the recipe's")


@pytest.mark.parametrize(("loss", "error"), [(burst, Refused), (broken, ValueError)])
def test_wandb_shows_a_failed_run_as_failed(logged, images, loss, error):
    run = logged(out="run")
    with pytest.raises(error):
        fit(run, images, loss=loss)
    (code,) = run.fake.ended
    assert code not in (0, None)


def test_wandb_shows_a_stopped_run_as_stopped_and_goes_on_with_it(logged, images):
    run = logged(out="run")
    run.stop_when = lambda step, batch: batch is None and step == 9
    with pytest.raises(Refused, match="stopped"):
        fit(run, images)
    assert run.fake.ended == [143]
    before = len(run.fake.rows)
    assert before == 1
    again = logged(out="run")
    fit(again, images)
    assert again.fake.ended == [0]
    epochs = [row["epoch"] for row in run.fake.rows + again.fake.rows if "train/loss" in row]
    assert epochs == [1, 2, 3]
    assert again.fake.options["id"] == run.fake.options["id"]


def test_wandb_is_configured_by_the_environment_and_the_last_launch(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    folder = write_run(tmp_path / "run", recipe="mine", book=True)
    recorded = json.loads((folder / "config.json").read_text())
    recorded["data"] |= {"source": "synthetic"}
    launch = {**recorded, "versions": {"torch": "1"}, "git": "abc", "launcher": "python", "command": "first"}
    last = {"device": "cuda", "launcher": "accelerate launch", "command": "second"}
    recorded |= launch | {"resumed": [{**launch, **last}]}
    (folder / "config.json").write_text(json.dumps(recorded))
    facts = {"model": "Net", "parameters": 7, "trainable": 7}
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    options = wandb_mirror.options(folder, "offline", facts)
    assert options["project"] == "oneloop"
    assert (options["group"], options["name"], {*options["tags"]}) == ("mine", "mine-Net-s1", {"synthetic", "book"})
    assert (options["config"]["machine"]["device"], options["config"]["command"]) == ("cuda", "accelerate launch second")
    monkeypatch.setenv("WANDB_PROJECT", "birds")
    assert wandb_mirror.options(folder, "offline", facts)["project"] == "birds"
    first = wandb_mirror.identity(folder)
    wandb_mirror.mark(folder, first | {"rows": 5})
    assert wandb_mirror.identity(folder) == first | {"rows": 5}
    fresh = wandb_mirror.identity(folder, fresh=True)
    assert (fresh["id"] != first["id"], fresh["rows"]) == (True, 0)


def test_weights_are_uploaded_as_what_they_are(logged, images, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    sent = {}

    class Artifact:
        def __init__(self, *_, metadata):
            self.metadata = metadata

        def add_file(self, path, **_):
            self.file = load_file(path)

    monkeypatch.setattr(wandb, "Artifact", Artifact)
    run = logged(out="run")
    run.wandb_artifacts = True
    run.fake.id = "1"
    run.fake.log_artifact = lambda artifact, aliases: sent.update({alias: artifact for alias in aliases})
    fit(run, images, epochs=3, ema=0.9)  # the best weights are an average: others than the last
    assert sent.keys() == {"best", "latest"}
    for alias, name in (("best", "best"), ("latest", "model")):
        own = load_file(tmp_path / f"run/{name}.safetensors")
        assert all(own[key].equal(tensor) for key, tensor in sent[alias].file.items())
    found = result(tmp_path / "run")
    for name in ("accuracy", "epoch"):
        assert sent["best"].metadata[name] == found["best"][name]
    assert sent["latest"].metadata["accuracy"] == found["test"]["accuracy"]
    plain = logged(out="plain")
    plain.fake.log_artifact = lambda *_, **__: pytest.fail("nobody has asked for it")
    fit(plain, images, epochs=1)


# ---------------------------------------------------------------------------------------------------------- the screen


def test_the_line_of_an_epoch_is_that_of_the_record(start, images, tmp_path, capsys):
    uneven = replace(images, validation=images.test)
    fit(start(), uneven, epochs=2)
    said = capsys.readouterr().out
    assert "61 training, 23 validation and 23 test images" in said
    for line in metrics(tmp_path / "run"):
        if line["event"] == "train":
            assert f"epoch {line['epoch']}/2  loss {line['loss']:.4f}" in said
        else:
            assert f"{line['split']} accuracy {line['accuracy']:.4f} loss {line['loss']:.4f}" in said
    assert "done: Tiny, 2 epochs: " in said
    assert "synthetic images are shapes" not in said  # these are called "test"
    fit(start(out="other"), replace(images, source="synthetic"), epochs=1)
    assert "synthetic images are shapes drawn on noise: accuracy on them says nothing" in capsys.readouterr().out


def test_mean_and_range_over_epochs_that_differ(tmp_path):
    """A group whose runs have other epochs done has the curve that all have."""
    write_run(tmp_path / "a1", (0.6, 0.8, 0.7), seed=1)
    write_run(tmp_path / "a2", (0.8, 0.6), seed=2)
    (group,) = compared(tmp_path).groups
    assert group.curve("test accuracy") == ([1, 2], [[0.6, 0.8], [0.8, 0.6]])
    mean, deviation = group.measure("last")
    assert (mean, deviation) == (pytest.approx(0.65), pytest.approx(statistics.stdev((0.7, 0.6))))
