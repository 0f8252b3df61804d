"""Everything about the best weights says which images chose them: terminal, page, plots, comparison, W&B, `oneloop evaluate`."""

import json
import shutil
from pathlib import Path

import matplotlib.figure
import pytest
from conftest import ROOT, metrics, result
from made_runs import compared, write_run
from test_report import Page
from trained import train_here

from launch.commands import main as oneloop_main
from launch.report import predictions, show, wandb_mirror
from launch.report.runs import describe
from launch.trained import WORDS
from launch.verify.checks import _evaluated
from launch.verify.trial import Trial
from launch.weights import load
from launch.weights.tensors import weights_sha256

pytestmark = pytest.mark.usefixtures("own_path")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> Path:
    """A run of cifar2.py whose best epoch, chosen by 60 validation images, is not its last one."""
    folder = tmp_path_factory.mktemp("chosen") / "run"
    flags = ("--limit", 300, "--validation", 0.2, "--epochs", 4, "--net", "NetBatchNorm", "--wandb", "disabled")
    train_here(ROOT / "recipes/cifar2.py", *flags, "--out", folder)
    assert result(folder)["best"]["epoch"] < 4
    return folder


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> Path:
    """A run of methods.py that keeps an average; the test images choose."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    flags = ("--limit", 300, "--epochs", 2, "--method", "ema", "--wandb", "disabled")
    train_here(ROOT / "recipes/ablations.py", *flags, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def averaged_and_chosen(tmp_path_factory) -> Path:
    """One whose best epoch validation images choose, by the average."""
    folder = tmp_path_factory.mktemp("both") / "run"
    flags = ("--limit", 300, "--validation", 0.2, "--epochs", 3, "--method", "ema", "--wandb", "disabled")
    train_here(ROOT / "recipes/ablations.py", *flags, "--out", folder)
    return folder


def line_of(folder: Path, split: str, epoch: int) -> dict:
    (line,) = [line for line in metrics(folder) if line.get("split") == split and line["epoch"] == epoch]
    return line


# ------------------------------------------------------------------------------------------------------ a run by itself


def test_summary_says_one_accuracy_that_of_the_best_weights(chosen):
    best, said = result(chosen)["best"], describe(result(chosen))
    assert f"test accuracy {best['test']['accuracy']:.4f} (" in said
    assert f"with the best weights, which the validation images chose after epoch {best['epoch']};" in said
    assert said.count("accuracy") == 1
    assert f"loss {best['test']['loss']:.4f}" in said
    assert result(chosen)["weights"] == "best"


def test_page_says_what_chose(chosen, trained_runs):
    words, best = Page((chosen / "report.html").read_text()).words, result(chosen)["best"]
    assert words[words.index(f"best on validation, epoch {best['epoch']}") + 1] == f"{best['accuracy']:.4f}"
    assert words[words.index("test accuracy") + 1] == f"{best['test']['accuracy']:.4f}"
    assert any("in eval mode, with the best weights" in word for word in words)
    ring = "The ring marks the best epoch, which the {} images chose"
    assert any(ring.format("validation") in word for word in words)
    plain = Page((trained_runs / "birds/report.html").read_text()).words
    assert any(ring.format("test") in word for word in plain)


def test_curves_are_those_of_the_images_that_chose(chosen, tmp_path, monkeypatch):
    from launch.report import plots

    figures = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, _: figures.append(figure))
    plots.history(tmp_path / "curves.png", [json.loads(line) for line in (chosen / "metrics.jsonl").read_text().splitlines()])
    losses, accuracies = figures[0].axes
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["train", "validation"]
    assert accuracies.get_title().startswith("validation: ")
    assert [*accuracies.lines[0].get_ydata()] == [line_of(chosen, "validation", epoch)["accuracy"] for epoch in (1, 2, 3, 4)]
    assert accuracies.lines[1].get_xdata()[0] == result(chosen)["best"]["epoch"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_curves_have_the_average_and_the_ring_lies_on_its_best(averaged, averaged_and_chosen, tmp_path, monkeypatch, split):
    """The plain weights are best after another epoch: here, always after the last."""
    from launch.report import plots

    figures, folder = [], averaged_and_chosen if split == "validation" else averaged
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, _: figures.append(figure))
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for event in events:
        if event.get("split") in (split, "ema"):
            event["accuracy"] = (0.1 if event["split"] == "ema" else -0.1) * (9 - event["epoch"])
    plots.history(tmp_path / "curves.png", events)
    losses, accuracies = figures[0].axes
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["train", split, f"average, {split}"]
    plain, average, ring = accuracies.lines
    assert [*average.get_ydata()] == [event["accuracy"] for event in events if event.get("split") == "ema"]
    assert [*plain.get_ydata()] == [event["accuracy"] for event in events if event.get("split") == split]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (1, pytest.approx(0.8))
    assert accuracies.get_title().startswith("average: ")
    assert accuracies.get_title().endswith("best 0.8000 after epoch 1")


@pytest.mark.parametrize("split", ["validation", "test", "train"])
def test_evaluate_gives_the_numbers_of_the_training(chosen, oneloop, split):
    said = json.loads(oneloop("evaluate", chosen, "--split", split, "--weights", "last", "--json")[1])
    assert {name: said[name] for name in ("loss", "accuracy", "count")} == result(chosen)[split]
    assert said["logged"] == {name: said[name] for name in ("loss", "accuracy")}


def test_evaluate_the_best_weights(chosen, oneloop):
    best = result(chosen)["best"]
    said = json.loads(oneloop("evaluate", chosen, "--weights", "best", "--split", "validation", "--json")[1])
    assert said["accuracy"] == said["logged"]["accuracy"] == best["accuracy"]
    for flags in ((), ("--weights", "best")):  # they are the default
        said = json.loads(oneloop("evaluate", chosen, *flags, "--json")[1])
        assert {name: said[name] for name in ("loss", "accuracy", "count")} == best["test"]
        assert said["logged"] == {name: said[name] for name in ("loss", "accuracy")}
        assert said["weights"] == "best"


def test_what_is_shown_is_of_the_best_weights(chosen):
    """Confusion matrix, worst mistakes and predictions.parquet."""
    best, shown = result(chosen)["best"]["test"], json.loads((chosen / "predictions.json").read_text())
    right = round(best["accuracy"] * best["count"])
    assert sum(row[place] for place, row in enumerate(shown["counts"])) == right
    assert best["loss"] != result(chosen)["test"]["loss"]  # control
    assert predictions.read(chosen).right.sum() == right
    assert len(shown["mistakes"]) == show.MISTAKES


@pytest.mark.parametrize("weights", ["best", "ema", "last"])
def test_weights_that_are_used_are_those_of_the_last_line(chosen, averaged, trained_runs, oneloop, tmp_path, weights):
    """By predict, export and as --source: the best where validation images chose, else the average where one is kept."""
    folder = {"best": chosen, "ema": averaged, "last": trained_runs / "birds"}[weights]
    image = next((trained_runs / "images/test").rglob("*.png"))
    said = {each: oneloop("predict", folder, image, "--json", "--weights", each) for each in ("chosen", "last", weights)}
    assert said["chosen"][:1] + said["chosen"][2:] == (0, "")
    assert said["chosen"] == said[weights] == oneloop("predict", folder, image, "--json")
    assert (said["chosen"] == said["last"]) == (weights == "last")
    assert result(folder)["weights"] == weights
    out = tmp_path / "net.safetensors"
    code, line, _ = oneloop("export", folder, "--format", "safetensors", "--out", out)
    assert code == 0
    assert line.endswith(f", with the {WORDS[weights]}\n")
    own = load(folder / {"best": "best.safetensors", "ema": "ema.safetensors", "last": "model.safetensors"}[weights])
    for tensors in (load(out), load(folder)):
        assert weights_sha256(tensors) == weights_sha256(own)


def test_where_an_average_is_kept_every_number_is_the_average_s(averaged, oneloop, tmp_path):
    """The last line, `oneloop runs`, compare, the page, the predictions and W&B say one accuracy."""
    ema, plain = result(averaged)["ema"], result(averaged)["test"]
    assert ema["loss"] != plain["loss"]  # control
    accuracy = f"{ema['accuracy']:.4f}"
    assert f"test accuracy {accuracy} (" in describe(result(averaged))
    assert "with the average of the weights; best" in describe(result(averaged))
    assert json.loads(oneloop("runs", averaged, "--json")[1])[0]["accuracy"] == ema["accuracy"]
    assert compared(averaged).groups[0].measure("last")[0] == ema["accuracy"]
    words = Page((averaged / "report.html").read_text()).words
    assert words[words.index("test accuracy") + 1] == accuracy
    assert predictions.read(averaged).right.sum() == round(ema["accuracy"] * ema["count"])
    board = Board()
    wandb_mirror.end(board, averaged, result(averaged))
    assert {name: board.summary[name] for name in ("weights", "accuracy", "loss")} == {
        "weights": "ema", "accuracy": ema["accuracy"], "loss": ema["loss"],
    }  # fmt: skip


def test_lost_best_weights_are_replaced_with_a_word(chosen, oneloop, tmp_path):
    """A run folder from before these weights were kept."""
    folder = shutil.copytree(chosen, tmp_path / "run")
    (folder / "best.safetensors").unlink()
    code, out, error = oneloop("evaluate", folder, "--json")
    said = json.loads(out)
    assert code == 0
    assert error == f"{folder} has no best.safetensors any more: the last weights are used\n"
    assert (said["weights"], said["accuracy"]) == ("last", result(chosen)["test"]["accuracy"])


def test_unfinished_run_is_refused_unless_the_best_so_far_are_asked_for(chosen, trained_runs, oneloop, tmp_path):
    folder = shutil.copytree(chosen, tmp_path / "run")
    for name in ("result.json", "model.safetensors"):
        (folder / name).unlink()
    image = next((trained_runs / "images/test").rglob("*.png"))
    code, _, error = oneloop("predict", folder, image)
    assert (code, error.count("\n")) == (4, 1)
    assert "use --weights best, the best so far" in error
    assert oneloop("predict", folder, image, "--weights", "best")[0] == 0


def test_evaluate_quotes_the_line_of_the_average_for_the_best(averaged_and_chosen, oneloop):
    """The plain weights have a line of the same epoch, on the same images."""
    folder, best = averaged_and_chosen, result(averaged_and_chosen)["best"]
    said = json.loads(oneloop("evaluate", folder, "--split", "validation", "--json")[1])
    line, plain = (line_of(folder, split, best["epoch"]) for split in ("ema", "validation"))
    assert said["logged"] == {name: line[name] for name in ("accuracy", "loss")}
    assert said["accuracy"] == line["accuracy"] == best["accuracy"]
    assert line["loss"] != plain["loss"]  # control
    assert json.loads(oneloop("evaluate", folder, "--split", "train", "--json")[1])["logged"] is None  # never measured


def test_an_average_s_validation_accuracy_is_not_its_test_accuracy(averaged_and_chosen, tmp_path):
    best, (group,) = result(averaged_and_chosen)["best"], compared(averaged_and_chosen).groups
    assert group.measure("last")[0] == best["test"]["accuracy"]
    assert group.measure("loss")[0] == best["test"]["loss"]
    assert group.measure("validation_accuracy")[0] == best["accuracy"]
    found = result(averaged_and_chosen)
    assert best["test"]["loss"] not in (found["ema"]["loss"], found["test"]["loss"])  # control
    assert group.measure("gap")[0] == found["train"]["accuracy"] - found["test"]["accuracy"]
    averages = {epoch: line_of(averaged_and_chosen, "ema", epoch)["accuracy"] for epoch in (1, 2, 3)}
    assert group.trainings[0].curves["validation accuracy"] == averages
    unfinished = shutil.copytree(averaged_and_chosen, tmp_path / "run")
    (unfinished / "result.json").unlink()
    (group,) = compared(unfinished).groups
    assert (group.measure("last"), group.measure("validation_accuracy")[0]) == (None, best["accuracy"])


def test_evaluate_a_run_without_validation_images(trained_runs, oneloop):
    code, out, error = oneloop("evaluate", trained_runs / "birds", "--split", "validation")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "was trained without --validation" in error


def test_evaluate_on_other_data_that_are_too_few_to_cut(chosen, trained_runs, oneloop):
    """Their test images are measured all the same; without an image of each class there is nothing to validate on."""
    few = shutil.copytree(trained_runs / "images", chosen.parent / "few")
    for folder in (few / "train").iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    assert oneloop("evaluate", chosen, "--data", few)[0] == 0
    code, _, error = oneloop("evaluate", chosen, "--data", few, "--split", "validation")
    assert (code, error.count("\n")) == (2, 1)
    assert "leaves no validation image of" in error


@pytest.mark.parametrize("fraction", ["much", 2, -0.5])
def test_damaged_fraction_is_named(chosen, oneloop, tmp_path, fraction):
    folder = shutil.copytree(chosen, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["config"]["validation"] = fraction
    (folder / "config.json").write_text(json.dumps(config))
    code, _, error = oneloop("evaluate", folder, "--split", "validation")
    assert (code, error.count("\n")) == (4, 1)
    assert "config.validation is" in error


def test_verify_counts_the_validation_images(chosen, tmp_path):
    """Each evaluation has all images of its split, the validation images too; one that lacks an image fails."""
    for name in ("one", "two"):
        shutil.copytree(chosen, tmp_path / name)
    trial = Trial(Path("cifar2.py"), [], tmp_path)
    assert _evaluated(trial).verdict == "pass"
    assert "validation 60" in _evaluated(trial).detail
    lines = [json.loads(line) for line in (tmp_path / "two/metrics.jsonl").read_text().splitlines()]
    lines[1] |= {"count": 59, "accuracy": 0.0}
    (tmp_path / "two/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _evaluated(trial).verdict == "FAIL"


# ----------------------------------------------------------------------------------------------------------- comparison


def test_validation_has_a_column_and_ranks(tmp_path):
    """By the test images, which choose nothing here, the order would be the other one."""
    write_run(tmp_path / "a", (0.9, 0.8), validation=(0.5, 0.6))
    write_run(tmp_path / "b", (0.5, 0.7), validation=(0.8, 0.75), net="Other")
    head, rows = compared(tmp_path).table()
    assert head[3:6] == ["validation accuracy", "accuracy", "best"]
    assert [[row[0], *row[3:6]] for row in rows] == [
        ["Other", "0.8000", "0.5000", "0.5000"], ["Net", "0.6000", "0.8000", "0.8000"],
    ]  # fmt: skip
    (record, _) = compared(tmp_path).records()
    assert record["validation_accuracy"] == {"mean": 0.8, "deviation": None}


def test_unfinished_runs_have_the_validation_accuracy_so_far(tmp_path):
    write_run(tmp_path / "a", (0.9, 0.8), validation=(0.5, 0.6))
    write_run(tmp_path / "b", (0.9,), validation=(0.8,), finished=False, net="Other")
    write_run(tmp_path / "c", (), finished=False, net="None yet")
    _, rows = compared(tmp_path).table()
    assert [[row[0], *row[3:6]] for row in rows] == [
        ["Other", "0.8000", "–", "–"], ["Net", "0.6000", "0.8000", "0.8000"], ["None yet", "–", "–", "–"],
    ]  # fmt: skip


def test_beside_a_run_without_validation_images_the_test_accuracy_ranks(tmp_path):
    write_run(tmp_path / "a", (0.9, 0.8), validation=(0.5, 0.6))
    write_run(tmp_path / "b", (0.5, 0.85), net="Other")
    _, rows = compared(tmp_path).table()
    assert [row[3:6] for row in rows] == [["–", "0.8500", "0.8500"], ["0.6000", "0.8000", "0.8000"]]


def test_without_validation_images_there_is_no_column(tmp_path, capsys):
    write_run(tmp_path / "a")
    assert "validation accuracy" not in compared(tmp_path).table()[0]
    assert oneloop_main(["compare", str(tmp_path / "a"), "--csv"]) == 0
    assert "validation" not in capsys.readouterr().out
    write_run(tmp_path / "b", (0.9, 0.8), validation=(0.5, 0.6), net="Other")
    assert oneloop_main(["compare", str(tmp_path), "--csv"]) == 0
    assert "validation_accuracy,validation_accuracy_deviation" in capsys.readouterr().out


def test_curves_of_a_comparison_are_of_the_images_that_rank(tmp_path, monkeypatch):
    from launch.report import compare_plots

    figures = {}
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, path: figures.setdefault(path.parent.name, figure))
    write_run(tmp_path / "runs/a", (0.9, 0.8), validation=(0.5, 0.6))
    for name in ("all", "mixed"):
        (tmp_path / name).mkdir()
        compare_plots.draw(tmp_path / name, compared(tmp_path / "runs"), [])
        write_run(tmp_path / "runs/b", (0.5, 0.7), net="Other")
    axes, mixed = figures["all"].axes[0], figures["mixed"].axes[0]
    assert (axes.get_ylabel(), [*axes.lines[0].get_ydata()]) == ("validation accuracy", [0.5, 0.6])
    assert (mixed.get_ylabel(), sorted(len(line.get_xdata()) for line in mixed.lines)) == ("test accuracy", [1, 2])


# ------------------------------------------------------------------------------------------------------------------ W&B


class Board:
    """Values that a W&B run gets."""

    def __init__(self):
        self.summary, self.defined = {}, {}

    def define_metric(self, name, **options):
        self.defined[name] = options


def test_wandb_has_validation_beside_test(chosen):
    events = [json.loads(line) for line in (chosen / "metrics.jsonl").read_text().splitlines()]
    shown, board = wandb_mirror.rows(events), Board()
    assert [row["validation/accuracy"] for row in shown] == [
        line_of(chosen, "validation", epoch)["accuracy"] for epoch in (1, 2, 3, 4)
    ]
    assert ["test/accuracy" in row for row in shown] == [False, False, False, True]
    wandb_mirror.axes(board)
    assert board.defined["validation/accuracy"] == {"step_metric": "epoch", "summary": "max,last"}
    wandb_mirror.end(board, chosen, best := result(chosen))
    assert board.summary["best/accuracy"] == best["best"]["accuracy"]
    assert board.summary["best/test_accuracy"] == best["best"]["test"]["accuracy"]
    facts = {"model": "Net", "parameters": 1, "trainable": 1}
    assert wandb_mirror.options(chosen, "offline", facts)["config"]["data"]["validation"] == 60
