"""`oneloop compare`: what it says is what the runs recorded; means are over finished runs of one configuration."""

import csv
import io
import json
import statistics
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from conftest import Tiny, optimizer_for, result
from made_runs import compared, write_run, write_two_designs
from PIL import Image

from launch import commands, train
from launch.report.compare import trainings_of
from launch.report.runs import read

PLOTS = ["bars.png", "cost.png", "curves.png"]


def test_mean_and_deviation_over_seeds(tmp_path):
    for seed, accuracy in enumerate((0.7, 0.7, 1.0)):  # whose median is not 0.8
        write_run(tmp_path / f"a{seed}", (0.95, accuracy), seed=seed)
    write_run(tmp_path / "b", (0.5, 0.6), net="Other")
    first, second = compared(tmp_path).groups
    assert first.measure("last") == (pytest.approx(0.8), pytest.approx(0.03**0.5))  # sample deviation: squares divided by 3 - 1
    assert first.measure("best") == (pytest.approx(2.9 / 3), pytest.approx(0.0289, abs=1e-4))
    assert first.measure("loss") == (pytest.approx(1.2), pytest.approx(0.03**0.5))
    assert first.measure("gap") == (pytest.approx(0.1), pytest.approx(0))
    assert first.seeds == [0, 1, 2]
    assert second.measure("last") == (0.6, None)  # a single run has no deviation
    head, rows = compared(tmp_path).table()
    assert head[:4] == ["net", "runs", "done", "accuracy"]
    assert [row[:4] for row in rows] == [["Net", "3", "2", "0.8000 ± 0.1732"], ["Other", "1", "2", "0.6000"]]
    assert rows[0][6:] == ["+0.1000 ± 0.0000", "60", "21.0", "7"]


def test_unfinished_runs_are_not_averaged_with_finished_ones(tmp_path):
    """Control: averaged together, the first two would have accuracy 0.5."""
    write_run(tmp_path / "a", (0.5, 0.8), seed=1)
    write_run(tmp_path / "b", (0.2,), seed=2, finished=False)
    write_run(tmp_path / "c", (0.1,), seed=3, finished=False, stopped=3)
    finished, unfinished = compared(tmp_path).groups
    assert finished.measure("last") == (0.8, None)
    assert unfinished.measure("last") == (pytest.approx(0.15), pytest.approx(statistics.stdev((0.1, 0.2))))
    assert unfinished.progress() == "1/2 failed, interrupted"
    assert unfinished.measure("gap") is None
    assert unfinished.measure("images_per_second") == (50, 0)
    assert unfinished.measure("seconds") == (10, 0)
    (tmp_path / "b/result.json").write_text((tmp_path / "a/result.json").read_text())
    finished, unfinished = compared(tmp_path).groups
    assert finished.seeds == [1, 2]


def test_curve_is_over_the_epochs_that_all_have(tmp_path):
    """One run evaluates each epoch, the other every second: the curve is over epochs 2 and 4, with the values of those."""
    write_run(tmp_path / "a", (0.1, 0.2, 0.3, 0.4), seed=1)
    write_run(tmp_path / "b", (0.5, 0.6, 0.7, 0.8), seed=2)
    lines = (tmp_path / "b/metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b/metrics.jsonl").write_text("".join(lines[place] for place in (0, 2, 3, 4, 6, 7)))
    (group,) = compared(tmp_path).groups
    assert group.curve("test accuracy") == ([2, 4], [[0.2, 0.4], [0.6, 0.8]])
    assert group.curve("train loss")[0] == [1, 2, 3, 4]


def test_best_is_what_the_result_says(tmp_path):
    """This finished run has lost lines of its metrics.jsonl: result.json counts."""
    folder = write_run(tmp_path / "a", (0.9, 0.7))
    (folder / "metrics.jsonl").write_text("".join((folder / "metrics.jsonl").read_text().splitlines(keepends=True)[2:]))
    end = json.loads((folder / "result.json").read_text())
    end["test"]["accuracy"] = 0.75
    (folder / "result.json").write_text(json.dumps(end))
    (group,) = compared(tmp_path).groups
    assert [group.measure(name)[0] for name in ("best", "last", "gap")] == [0.9, 0.75, pytest.approx(0.05)]
    write_run(tmp_path / "b", (0.9, 0.7), finished=False, net="So far")
    assert compared(tmp_path / "b").groups[0].measure("best")[0] == 0.9


def test_seconds_of_an_unfinished_run_are_those_so_far(tmp_path):
    write_run(tmp_path / "a", (0.2, 0.3, 0.4), finished=False)
    (group,) = compared(tmp_path).groups
    assert group.measure("seconds") == (30, None)


def test_speed_is_all_images_by_all_seconds(tmp_path):
    """100 images at 50 a second and 100 at 100 are 200 in 3 s, not 75 a second."""
    write_run(tmp_path / "a", (0.2, 0.3), finished=False)
    (group,) = compared(tmp_path).groups
    assert group.measure("images_per_second") == (pytest.approx(200 / 3), None)


def test_an_epoch_counts_once_it_is_evaluated(tmp_path):
    """A train line may come from within an epoch; an evaluation ends it."""
    folder = write_run(tmp_path / "a", (0.2, 0.3), finished=False)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]))
    assert compared(tmp_path).groups[0].progress() == "1/2 interrupted"


def test_a_real_run_is_compared_as_it_was_recorded(start, images, tmp_path):
    torch.manual_seed(0)
    train(start(log_every=2), net := Tiny(), images, optimizer_for(net), epochs=3, batch=16)
    (training,) = trainings_of(read(tmp_path / "run"))
    end = result(tmp_path / "run")
    whole = training.measures
    assert (whole["last"], whole["loss"]) == (end["test"]["accuracy"], end["test"]["loss"])
    assert whole["best"] == end["best"]["accuracy"]
    assert whole["gap"] == end["train"]["accuracy"] - end["test"]["accuracy"]
    assert (training.state, training.epochs, list(training.curves["train loss"])) == ("finished", 3, [1, 2, 3])
    lines = [line for line in read(tmp_path / "run").metrics() if line["event"] == "train" and line["epoch"] == 1]
    assert [line["images"] for line in lines] == [32, 61]
    assert training.curves["train loss"][1] == pytest.approx((lines[0]["loss"] * 32 + lines[1]["loss"] * 29) / 61)
    (tmp_path / "run/result.json").unlink()
    (training,) = trainings_of(read(tmp_path / "run"))
    assert training.state == "running"  # this process still holds the lock
    assert training.measures.keys() == whole.keys()
    for name in ("last", "best", "loss", "gap", "parameters"):
        assert training.measures[name] == whole[name], name
    assert training.measures["images_per_second"] == pytest.approx(whole["images_per_second"], rel=0.01)


def test_only_what_differs_is_a_column(tmp_path):
    write_run(tmp_path / "a", optimizer={"lr": 0.1, "kind": "sgd"}, nets=["A", "B"], book=True)
    write_run(tmp_path / "b", optimizer={"lr": 0.2, "kind": "sgd"}, nets=["A", "B"])
    comparison = compared(tmp_path)
    assert comparison.differ == ["optimizer.lr", "book"]
    assert [row[:2] for row in comparison.table()[1]] == [["0.1", "True"], ["0.2", "–"]]
    assert comparison.same["nets"] == ["A", "B"]
    assert comparison.same["optimizer.kind"] == "sgd"
    assert not {"seed", "data sha256"} & comparison.same.keys()
    assert [comparison.label(group) for group in comparison.groups] == ["optimizer.lr 0.1, book True", "optimizer.lr 0.2"]


def test_an_option_that_is_none_equals_one_that_is_missing(tmp_path):
    """A recipe has gained an option: both are – in a table, and nothing differs."""
    write_run(tmp_path / "a", (0.8, 0.9), seed=1)
    write_run(tmp_path / "b", source=None, net="Other")
    write_run(tmp_path / "c", (0.8, 0.9), seed=2, source=None)
    comparison = compared(tmp_path)
    assert comparison.differ == ["net"]
    assert comparison.same["source"] is None
    assert [group.seeds for group in comparison.groups] == [[1, 2], [1]]


def test_other_content_under_the_same_name_is_other_data(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=2)
    assert len(compared(tmp_path).groups) == 1
    about = json.loads((tmp_path / "b/config.json").read_text())
    about["data"]["fingerprint"] = "62" * 32
    (tmp_path / "b/config.json").write_text(json.dumps(about))
    comparison = compared(tmp_path)
    assert comparison.differ == ["data sha256"]
    assert {comparison.label(group) for group in comparison.groups} == {"data sha256 61616161", "data sha256 62626262"}


def test_sizes_of_the_same_plots_are_not_other_data(tmp_path):
    """The sha256 of images of one's own depends on the size that they are reduced to."""
    write_run(tmp_path / "a", size=64)
    changed = write_run(tmp_path / "b", size=128) / "config.json"
    about = json.loads(changed.read_text())
    about["data"]["fingerprint"] = "62" * 32
    changed.write_text(json.dumps(about))
    assert compared(tmp_path).differ == ["size"]


def test_labels_name_what_differs_between_finished_runs_and_end_in_full(tmp_path):
    """An unfinished run of another batch size adds nothing to the names of the others; common folders are left out."""
    above = "/data/of/the/laboratory/on/a/disk/whose/path/is/longer/than/any/legend/photos"
    write_run(tmp_path / "a", lr=0.1, data=f"{above}/summer/birds")
    write_run(tmp_path / "b", lr=0.1, data=f"{above}/winter/birds", started=11)
    write_run(tmp_path / "c", (0.5,), lr=0.1, batch=7, data=f"{above}/winter/birds", finished=False)
    comparison = compared(tmp_path)
    assert comparison.differ == ["batch", "data"]
    assert [comparison.label(group) for group in comparison.groups] == [
        "data summer/birds", "data winter/birds", "batch 7, data winter/birds (1/2 interrupted)",
    ]  # fmt: skip


def test_long_labels_are_wrapped_in_plots_and_not_cut(tmp_path, monkeypatch):
    from launch.report import compare_plots

    figures = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, _: figures.append(figure))
    nets = [f"Net{number}" for number in range(20)]
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, nets=[*nets, name])
    compare_plots.draw(tmp_path, comparison := compared(tmp_path / "runs"), [])
    texts = [text for figure in figures for legend in figure.legends for text in legend.get_texts()]
    shown = {text.get_text().replace("\n", " ") for text in texts}
    assert {comparison.label(group) for group in comparison.groups} <= shown
    assert all(len(line) <= 60 for text in texts for line in text.get_text().split("\n"))


def test_a_repeated_seed_is_shown(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "a-2")
    (row,) = compared(tmp_path).table()[1]
    assert row[0] == "2 (1 seed)"


def test_each_stage_is_a_row(tmp_path):
    write_run(tmp_path / "a", (0.6, 0.7), stage="frozen")
    write_run(tmp_path / "a", (0.8, 0.9), stage="unlocked", finished=False)
    first, second = compared(tmp_path).groups
    assert (first.options["stage"], first.progress()) == ("unlocked", "2 interrupted")
    assert (second.options["stage"], second.progress()) == ("frozen", "2")


def test_plots_label_groups_by_what_differs(tmp_path):
    write_run(tmp_path / "a", lr=0.1)
    write_run(tmp_path / "b", (0.2,), lr=0.2, finished=False)
    comparison = compared(tmp_path)
    assert [comparison.label(group) for group in comparison.groups] == ["lr 0.1", "lr 0.2 (1/2 interrupted)"]
    (group,) = compared(tmp_path / "a").groups
    assert compared(tmp_path / "a").label(group) == "Net"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current folder, with two designs under `runs`."""
    write_two_designs(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_table_and_plots(place, capsys):
    assert commands.main(["compare", "runs"]) == 0
    shown = capsys.readouterr().out
    assert "0.8500 ± 0.0707" in shown
    assert "1/2 interrupted" in shown
    assert "the same for all: recipe mine, epochs 2" in shown
    assert sorted(path.name for path in (place / "compare").iterdir()) == sorted([*PLOTS, "compare.html"])
    for name in PLOTS:
        with Image.open(place / "compare" / name) as plot:
            assert len(plot.convert("L").getcolors(256)) > 10, name  # something is drawn


def test_a_narrow_terminal_names_the_columns_that_it_leaves_out(place, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setenv("COLUMNS", "70")
    assert commands.main(["compare", "runs"]) == 0
    shown = capsys.readouterr().out
    assert "0.8500 ± 0.0707" in shown
    assert shown.count("±") == 1  # only the accuracy keeps its deviation
    assert "too wide for 70 columns, left out: images/s, seconds, parameters\n" in shown


def test_no_bars_without_a_training_accuracy(place, capsys):
    assert commands.main(["compare", "runs", "--out", "new"]) == 0  # draws bars.png, which the next command removes
    assert commands.main(["compare", "runs/b2", "--out", "new"]) == 0
    assert sorted(path.name for path in (place / "new").iterdir()) == ["compare.html", "cost.png", "curves.png"]
    assert "bars" not in (place / "new/compare.html").read_text()


def test_json_csv_and_markdown(place, capsys):
    assert commands.main(["compare", "runs", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["differ"] == ["net"]
    first, _, last = said["rows"]
    assert first["last"] == {"mean": pytest.approx(0.85), "deviation": pytest.approx(statistics.stdev((0.8, 0.9)))}
    assert (first["seeds"], first["folders"], first["finished"]) == ([1, 2], ["runs/a1", "runs/a2"], True)
    assert (last["finished"], last["gap"]) == (False, None)
    assert commands.main(["compare", "runs", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["net"] for row in rows] == ["Net", "a|b", "a|b"]
    assert float(rows[0]["last"]) == pytest.approx(0.85)
    assert (rows[2]["finished"], rows[2]["gap"], rows[0]["runs"]) == ("False", "", "2")
    assert commands.main(["compare", "runs", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| net | runs | done | accuracy |")
    table, sentence = lines[:5], lines[6:]
    assert {line.replace("\\|", "").count("|") for line in table} == {lines[0].count("|")}
    assert sentence == ["Net is better than a|b by 10.00 points with one seed; one seed says little."]
    assert not (place / "compare").exists()  # plots only on request
    assert commands.main(["compare", "runs", "--csv", "--out", "here"]) == 0
    assert "here" not in capsys.readouterr().out
    assert (place / "here/bars.png").exists()


def test_speeds_from_different_machines_are_flagged(place, capsys):
    assert commands.main(["compare", "runs"]) == 0
    assert "not comparable" not in capsys.readouterr().out
    about = json.loads((place / "runs/a2/config.json").read_text())
    (place / "runs/a2/config.json").write_text(json.dumps(about | {"threads": 4}))
    assert commands.main(["compare", "runs"]) == 0
    places = "1 × cpu, 1 threads, precision no; 1 × cpu, 4 threads, precision no"
    assert f"speeds and times are not comparable, the runs ran on: {places}" in capsys.readouterr().out


def test_training_accuracies_of_other_numbers_of_images_are_flagged(place, capsys):
    """As they are beside a run of an earlier version, which measured all training images."""
    for run, count in {"a1": 200, "a2": 200, "b1": 200}.items():
        end = result(place / "runs" / run)
        (place / f"runs/{run}/result.json").write_text(json.dumps(end | {"train": end["train"] | {"count": count}}))
    assert commands.main(["compare", "runs"]) == 0
    assert "gaps" not in capsys.readouterr().out
    end = result(place / "runs/a2")
    (place / "runs/a2/result.json").write_text(json.dumps(end | {"train": end["train"] | {"count": 1245}}))
    assert commands.main(["compare", "runs"]) == 0
    assert "gaps may not be comparable, the training accuracy is that of 200 or 1,245 images\n" in capsys.readouterr().out
