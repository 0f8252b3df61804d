"""Runs side by side: what is said is what their folders hold, means are over finished runs alone, and torch is not needed."""

import csv
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import filelock
import pytest
import torch
from conftest import Tiny, optimizer_for, result
from PIL import Image

import launch.commands.runs  # noqa: F401 - before a test becomes a user who may not read this folder
from launch import commands, train
from launch.record.compare import Comparison, compare, trainings_of
from launch.record.runs import find, read

PICTURES = ["bars.png", "cost.png", "curves.png"]


def record(folder: Path, accuracies=(0.7, 0.8), *, finished=True, seed=1, stage="", stopped=None, started=10, **options) -> Path:
    """Write a run folder as `train` leaves it: 100 images, so many a second, test accuracies by epoch; 0.1 more in training."""
    inner = folder / stage
    inner.mkdir(parents=True, exist_ok=True)
    config = {"recipe": "mine", "net": "Net", "epochs": 2, "batch": 50, "data": "hub", "shards": 0, "seed": seed} | options
    machine = {"device": "cpu", "world_size": 1, "threads": 1, "precision": "no"}
    environment = {"started": f"2026-01-01T{started:02}:00:00+0000", **machine}
    data = {"fingerprint": "61" * 32, "train": 100}
    about = {"format": 1, "config": config, "shards": 1, "parameters": 7, "resumed": [], "data": data, **environment}
    (folder / "config.json").write_text(json.dumps(about))
    events = []
    for epoch, accuracy in enumerate(accuracies, 1):
        head = {"step": 2 * epoch, "epoch": epoch, "images": 100 * epoch}
        clock = {"images_per_second": 50.0 * epoch, "seconds": 10.0 * epoch}
        events.append({"event": "train", **head, "loss": 1 - accuracy, **clock})
        events.append({"event": "eval", **head, "split": "test", "loss": 2 - accuracy, "accuracy": accuracy})
    (inner / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if finished:
        end = {"test": {"accuracy": accuracy, "loss": 2 - accuracy}, "train": {"accuracy": accuracy + 0.1, "loss": 0.0}}
        best = {"accuracy": max(accuracies), "epoch": 1}
        end |= {"net": "Net", "parameters": 7, "epochs": 2, "best": best, "images_per_second": 60.0, "seconds": 21.0}
        (inner / "result.json").write_text(json.dumps(end))
    if stopped:
        (folder / "stopped.json").write_text(json.dumps({"code": stopped, "why": "it was so"}))
    return folder


def compared(place: Path) -> Comparison:
    comparison, complaints = compare(find([place]))
    assert complaints == []
    return comparison


def test_mean_and_deviation_over_seeds(tmp_path):
    for seed, accuracy in enumerate((0.7, 0.7, 1.0)):  # their median is another
        record(tmp_path / f"a{seed}", (0.95, accuracy), seed=seed)
    record(tmp_path / "b", (0.5, 0.6), net="Other")
    first, second = compared(tmp_path).groups
    assert first.measure("last") == (pytest.approx(0.8), pytest.approx(0.03**0.5))  # of three: the sum of squares by two
    assert first.measure("best") == (pytest.approx(2.9 / 3), pytest.approx(0.0289, abs=1e-4))
    assert first.measure("loss") == (pytest.approx(1.2), pytest.approx(0.03**0.5))
    assert first.measure("gap") == (pytest.approx(0.1), pytest.approx(0))
    assert first.seeds == [0, 1, 2]
    assert second.measure("last") == (0.6, None)  # one has no deviation
    head, rows = compared(tmp_path).table()
    assert head[:4] == ["net", "runs", "done", "accuracy"]
    assert [row[:4] for row in rows] == [["Net", "3", "2", "0.8000 ± 0.1732"], ["Other", "1", "2", "0.6000"]]
    assert rows[0][6:] == ["+0.1000 ± 0.0000", "60", "21.0", "7"]


def test_an_unfinished_run_is_no_finished_one(tmp_path):
    """Control: were it counted, the mean would be 0.5."""
    record(tmp_path / "a", (0.5, 0.8), seed=1)
    record(tmp_path / "b", (0.2,), seed=2, finished=False)
    record(tmp_path / "c", (0.1,), seed=3, finished=False, stopped=3)
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
    """One evaluates every epoch, the other every second one: the band is over epochs 2 and 4, each with its own values."""
    record(tmp_path / "a", (0.1, 0.2, 0.3, 0.4), seed=1)
    record(tmp_path / "b", (0.5, 0.6, 0.7, 0.8), seed=2)
    lines = (tmp_path / "b/metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b/metrics.jsonl").write_text("".join(lines[place] for place in (0, 2, 3, 4, 6, 7)))
    (group,) = compared(tmp_path).groups
    assert group.curve("test accuracy") == ([2, 4], [[0.2, 0.4], [0.6, 0.8]])
    assert group.curve("train loss")[0] == [1, 2, 3, 4]


def test_best_is_what_the_result_says(tmp_path):
    """The record of this finished run has lost its lines; what the result holds is the run's."""
    folder = record(tmp_path / "a", (0.9, 0.7))
    (folder / "metrics.jsonl").write_text("".join((folder / "metrics.jsonl").read_text().splitlines(keepends=True)[2:]))
    end = json.loads((folder / "result.json").read_text())
    end["test"]["accuracy"] = 0.75
    (folder / "result.json").write_text(json.dumps(end))
    (group,) = compared(tmp_path).groups
    assert [group.measure(name)[0] for name in ("best", "last", "gap")] == [0.9, 0.75, pytest.approx(0.05)]
    record(tmp_path / "b", (0.9, 0.7), finished=False, net="So far")
    assert compared(tmp_path / "b").groups[0].measure("best")[0] == 0.9


def test_seconds_are_those_so_far(tmp_path):
    record(tmp_path / "a", (0.2, 0.3, 0.4), finished=False)
    (group,) = compared(tmp_path).groups
    assert group.measure("seconds") == (30, None)


def test_speed_is_images_by_time(tmp_path):
    """100 images at 50 a second and 100 at 100: 200 in 3 s, and not the mean of the speeds."""
    record(tmp_path / "a", (0.2, 0.3), finished=False)
    (group,) = compared(tmp_path).groups
    assert group.measure("images_per_second") == (pytest.approx(200 / 3), None)


def test_an_epoch_counts_when_it_is_closed(tmp_path):
    """A train line is from within its epoch, which may be open; an evaluation closes it."""
    folder = record(tmp_path / "a", (0.2, 0.3), finished=False)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]))
    assert compared(tmp_path).groups[0].progress() == "1/2 interrupted"


def test_labels_of_pictures(tmp_path):
    record(tmp_path / "a", lr=0.1)
    record(tmp_path / "b", (0.2,), lr=0.2, finished=False)
    comparison = compared(tmp_path)
    assert [comparison.label(group) for group in comparison.groups] == ["lr 0.1", "lr 0.2 (1/2 interrupted)"]
    (group,) = compared(tmp_path / "a").groups
    assert compared(tmp_path / "a").label(group) == "Net"


def test_speeds_of_different_places_are_said(place, capsys):
    assert commands.main(["compare", "runs"]) == 0
    assert "different places" not in capsys.readouterr().out
    about = json.loads((place / "runs/a2/config.json").read_text())
    (place / "runs/a2/config.json").write_text(json.dumps(about | {"threads": 4}))
    assert commands.main(["compare", "runs"]) == 0
    said = "speeds and times are of different places: 1 × cpu, 1 threads, precision no; 1 × cpu, 4 threads, precision no"
    assert said in capsys.readouterr().out


def test_only_what_differs_is_a_column(tmp_path):
    record(tmp_path / "a", optimizer={"lr": 0.1, "kind": "sgd"}, nets=["A", "B"], book=True)
    record(tmp_path / "b", optimizer={"lr": 0.2, "kind": "sgd"}, nets=["A", "B"])
    comparison = compared(tmp_path)
    assert comparison.differ == ["optimizer.lr", "book"]
    assert [row[:2] for row in comparison.table()[1]] == [["0.1", "True"], ["0.2", "–"]]
    assert comparison.same["nets"] == ["A", "B"]
    assert comparison.same["optimizer.kind"] == "sgd"
    assert not {"seed", "pixels"} & comparison.same.keys()
    assert [comparison.label(group) for group in comparison.groups] == ["optimizer.lr 0.1, book True", "optimizer.lr 0.2"]


def test_other_pixels_behind_the_same_name_are_other_data(tmp_path):
    record(tmp_path / "a", seed=1)
    record(tmp_path / "b", seed=2)
    assert len(compared(tmp_path).groups) == 1
    about = json.loads((tmp_path / "b/config.json").read_text())
    about["data"]["fingerprint"] = "62" * 32
    (tmp_path / "b/config.json").write_text(json.dumps(about))
    assert compared(tmp_path).differ == ["pixels"]


def test_a_repeated_seed_is_said(tmp_path):
    record(tmp_path / "a")
    record(tmp_path / "a-2")
    (row,) = compared(tmp_path).table()[1]
    assert row[0] == "2 (1 seed)"


def test_each_stage_is_a_row(tmp_path):
    record(tmp_path / "a", (0.6, 0.7), stage="frozen")
    record(tmp_path / "a", (0.8, 0.9), stage="unlocked", finished=False)
    first, second = compared(tmp_path).groups
    assert (first.options["stage"], first.progress()) == ("unlocked", "2 interrupted")
    assert (second.options["stage"], second.progress()) == ("frozen", "2")


def test_a_real_run_is_read_as_it_was_recorded(start, images, tmp_path):
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
    assert training.state == "running"  # this process has not left it
    assert training.measures.keys() == whole.keys()
    for name in ("last", "best", "loss", "gap", "parameters"):
        assert training.measures[name] == whole[name], name
    assert training.measures["images_per_second"] == pytest.approx(whole["images_per_second"], rel=0.01)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder `runs` with two designs, three finished runs and one that was interrupted."""
    for seed in (1, 2):
        record(tmp_path / f"runs/a{seed}", (0.7, 0.8 if seed == 1 else 0.9), seed=seed, started=10)
    record(tmp_path / "runs/b1", (0.6, 0.7), net="a|b", started=12)
    record(tmp_path / "runs/b2", (0.5,), net="a|b", seed=2, finished=False, started=11)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_table_and_pictures(place, capsys):
    assert commands.main(["compare", "runs"]) == 0
    shown = capsys.readouterr().out
    assert "0.8500 ± 0.0707" in shown
    assert "1/2 interrupted" in shown
    assert "the same for all: recipe mine, epochs 2" in shown
    assert sorted(path.name for path in (place / "compare").iterdir()) == PICTURES
    for name in PICTURES:
        with Image.open(place / "compare" / name) as picture:
            assert len(picture.convert("L").getcolors(256)) > 10, name  # something is drawn


def test_no_bars_without_a_training_accuracy(place, capsys):
    assert commands.main(["compare", "runs", "--out", "new"]) == 0  # what it draws, the next one does not leave
    assert commands.main(["compare", "runs/b2", "--out", "new"]) == 0
    assert sorted(path.name for path in (place / "new").iterdir()) == ["cost.png", "curves.png"]


def test_forms(place, capsys):
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
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}
    assert not (place / "compare").exists()  # pictures only where they are asked for
    assert commands.main(["compare", "runs", "--csv", "--out", "here"]) == 0
    assert "here" not in capsys.readouterr().out
    assert (place / "here/bars.png").exists()


def test_what_cannot_be_read_is_named_and_left_out(place, capsys):
    (place / "runs/a2/config.json").write_text('{"format": 99}')
    (place / "runs/a1/result.json").write_text('{"test": ')
    assert commands.main(["compare", "runs/*", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [row["options"]["net"] if row["options"] else None for row in json.loads(out)["rows"]] == [None, None]
    assert "runs/a2 was written by another version of oneloop (format 99)" in err
    assert "runs/a1/result.json is damaged" in err
    assert commands.main(["compare", "runs/a2"]) == 4
    assert commands.main(["compare", "runs/c*"]) == 2
    assert "no run at runs/c*" in capsys.readouterr().err


def test_runs_newest_first_with_their_states(place, capsys):
    record(place / "runs/c", (0.9,), finished=False, stopped=3, started=13)
    record(place / "runs/d", (0.9,), finished=False, stopped=143, started=9)
    (place / "runs/e").mkdir()
    (place / "runs/e/config.json").write_text("{")
    with filelock.FileLock(place / "runs/b2/lock"):
        assert commands.main(["runs", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(Path(row["folder"]).name, row["state"], row["epochs"], row["accuracy"]) for row in rows] == [
        ("c", "failed", 1, 0.9), ("b1", "finished", 2, 0.7), ("b2", "running", 1, 0.5), ("a1", "finished", 2, 0.8),
        ("a2", "finished", 2, 0.9), ("d", "interrupted", 1, 0.9), ("e", "unreadable", None, None),
    ]  # fmt: skip
    assert commands.main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = lines[2].split()
    assert words[:3] + words[4:] == ["failed", "1/2", "0.9000", "d", "ago", "mine", "Net", "1", "runs/c"]
    assert "runs/c: it was so" in lines
    assert commands.main(["runs", "elsewhere"]) == 2


@pytest.fixture
def soon():
    """What takes more than ten seconds fails, where without its limits it would take years."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("not done after ten seconds"))
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_each_real_run_once_whatever_links_lead_to_it(place, soon):
    runs = place / "runs"
    (runs / "A-latest").symlink_to("a1")  # sorted first, and yet the run is named by its own name
    (place / "elsewhere").mkdir()
    record(place / "elsewhere/far", seed=7)
    (runs / "far").symlink_to(place / "elsewhere")
    (runs / "a1/self").symlink_to(".")
    (runs / "up").symlink_to("..")
    (runs / "root").symlink_to("/")
    (runs / "nowhere").symlink_to("nothing")
    (runs / "round").symlink_to("round")
    for name in "xyz":  # control: followed everywhere, these are 3**n folders
        (runs / name).mkdir()
        for other in "xyz":
            (runs / name / f"to-{other}").symlink_to(f"../{other}")
    assert [str(folder) for folder in find(["runs"])] == [f"runs/{name}" for name in ("a1", "a2", "b1", "b2", "far/far")]
    assert [str(folder) for folder in find(["runs/*"])] == [f"runs/{name}" for name in ("a1", "a2", "b1", "b2", "far/far")]
    assert find(["runs/A-latest", "runs/a1", "runs"])[0] == Path("runs/A-latest")
    assert len(find(["runs/A-latest", "runs/a1", "runs"])) == 5
    group, *_ = compared(runs).groups
    assert group.seeds == [1, 2, 7]
    assert group.measure("last") == (pytest.approx(2.5 / 3), pytest.approx(0.0577, abs=1e-4))


def test_a_run_inside_another_is_one_of_its_own(tmp_path):
    outer = record(tmp_path / "runs/a", (0.6, 0.7), stage="frozen")
    record(outer / "mine", (0.8, 0.9), net="Inner")
    record(outer / "other/deep", (0.8, 0.9), net="Deep", stage="s")
    assert find([tmp_path]) == [outer, outer / "mine", outer / "other/deep"]
    assert {(group.options.get("stage"), group.options["net"]) for group in compared(tmp_path).groups} == {
        ("frozen", "Net"), (None, "Inner"), ("s", "Deep"),
    }  # fmt: skip


def test_a_stage_of_a_run_inside_another_is_not_the_others(tmp_path):
    outer = record(tmp_path / "a", (0.6, 0.7))
    record(outer / "other", (0.8, 0.9), net="Deep", stage="one/two")
    assert [(group.options["net"], group.options.get("stage")) for group in compared(tmp_path).groups] == [
        ("Deep", "one/two"), ("Net", None),
    ]  # fmt: skip


def test_a_run_of_which_one_stage_is_damaged_is_left_out_as_a_whole(tmp_path):
    record(tmp_path / "a", (0.6, 0.7), stage="first")
    record(tmp_path / "a", (0.6, 0.7), stage="second")
    record(tmp_path / "b", net="Other")
    (tmp_path / "a/second/result.json").write_text("[]")
    comparison, complaints = compare(find([tmp_path]))
    assert [group.options["net"] for group in comparison.groups] == ["Other"]
    assert len(complaints) == 1


STATES = {1: "failed", 3: "failed", 4: "failed", 130: "interrupted", 143: "interrupted"}


@pytest.mark.parametrize(("code", "state"), STATES.items())
def test_states_by_exit_code(code, state, tmp_path):
    assert read(record(tmp_path / "a", finished=False, stopped=code)).state == state


def test_age_is_that_of_the_last_launch(place, capsys):
    about = json.loads((place / "runs/a1/config.json").read_text())
    launches = [{"started": f"2026-01-0{day}T10:00:00+0000"} for day in (2, 3)]
    (place / "runs/a1/config.json").write_text(json.dumps(about | {"resumed": launches}))
    assert commands.main(["runs", "--json"]) == 0
    first, *_ = json.loads(capsys.readouterr().out)
    assert first["folder"] == "runs/a1"
    assert datetime.fromisoformat(first["started"]) == datetime(2026, 1, 3, 10, tzinfo=UTC)


def broken(place: Path, file: str, content: bytes | dict | None = None, line: int = 0) -> None:
    """Change `file` of runs/a2: its content, or an entry by dotted name, in metrics.jsonl of one line; None makes it a folder."""
    path = place / "runs/a2" / file
    if content is None:
        path.unlink()
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        lines = path.read_text().splitlines() if file == "metrics.jsonl" else [path.read_text()]
        known = json.loads(lines[line])
        for name, value in content.items():
            *outer, last = name.split(".")
            inner = known
            for key in outer:
                inner = inner[key]
            if value is ...:
                del inner[last]
            else:
                inner[last] = value
        lines[line] = json.dumps(known)
        path.write_text("\n".join(lines) + "\n")


BROKEN = [
    ("config.json", b"[]", "holds a list"),
    ("config.json", b"{}", "another version"),
    ("config.json", b'{"format": 1}', "no config.recipe"),
    ("config.json", b"\xff\xfe", "is damaged"),
    ("config.json", b"[" * 100_000, "is damaged"),
    ("config.json", {"config": []}, "config is no object"),
    ("config.json", {"config.seed": "one"}, "config.seed is 'one'"),
    ("config.json", {"config.recipe": ...}, "no config.recipe"),
    ("config.json", {"data": None}, "data is no object"),
    ("config.json", {"data.fingerprint": 5}, "data.fingerprint is '5'"),
    ("config.json", {"resumed": 5}, "resumed is '5'"),
    ("config.json", {"resumed": [None]}, "resumed is"),
    ("config.json", {"resumed": [{"started": "now"}]}, "resumed is"),
    ("config.json", {"started": "yesterday"}, "started is 'yesterday'"),
    ("config.json", {"started": "0001-01-01T00:00:00+1400"}, "started is"),
    ("config.json", {"parameters": "many"}, "parameters is 'many'"),
    ("config.json", {"world_size": ...}, "no world_size"),
    ("result.json", b'"done"', "holds a str"),
    ("result.json", b"null", "holds a NoneType"),
    ("result.json", {"test.accuracy": "x"}, "test.accuracy is 'x'"),
    ("result.json", {"test": "x"}, "test is no object"),
    ("result.json", {"best.accuracy": float("nan")}, "best.accuracy is 'nan'"),
    ("result.json", {"seconds": 10**300}, "seconds is"),
    ("result.json", {"summary": ["x"]}, "summary is"),
    ("result.json", None, "cannot be read: it is no file"),
    ("stopped.json", b"{}", "no code"),
    ("stopped.json", b'{"code": "x", "why": "y"}', "code is 'x'"),
    ("metrics.jsonl", b"null\nnull\n", "line 1 of 2"),
    ("metrics.jsonl", {"accuracy": "x"}, "line 2 of 4"),
    ("metrics.jsonl", {"images": ...}, "line 2 of 4"),
    ("metrics.jsonl", None, "cannot be read: it is no file"),
]


@pytest.mark.parametrize(("file", "content", "why"), BROKEN)
def test_one_bad_folder_is_a_row_and_the_others_are_shown(file, content, why, place, capsys):
    broken(place, file, content, line=1 if file == "metrics.jsonl" else 0)
    assert commands.main(["runs", "--json"]) == 0
    rows = {Path(row["folder"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "a1": "finished", "a2": "unreadable", "b1": "finished", "b2": "interrupted",
    }  # fmt: skip
    assert why in rows["a2"]["note"]
    assert commands.main(["runs"]) == 0
    assert why in capsys.readouterr().out
    assert commands.main(["compare", "runs", "--csv"]) == 1
    out, err = capsys.readouterr()
    assert [row["runs"] for row in csv.DictReader(io.StringIO(out))] == ["1", "1", "1"]
    assert why in err.splitlines()[0]
    assert err.splitlines()[1:] == ["1 could not be read, and is not in the comparison"]


def test_odd_but_possible_content_breaks_nothing(place, capsys):
    """What no check forbids, and arithmetic must bear: nothing measured, images that do not grow, words for epochs."""
    nothing = {"test": {}, "train": {}, "best": {}, "parameters": ..., "images_per_second": ..., "seconds": ...}
    broken(place, "result.json", nothing)
    broken(place, "config.json", {"config.epochs": {"x": [None]}, "parameters": ..., "config.net": {"a": 1}})
    broken(place, "metrics.jsonl", {"images": -5}, line=0)
    broken(place, "metrics.jsonl", {"images": -5}, line=2)
    (place / "runs/b2/metrics.jsonl").write_text("")
    assert commands.main(["runs"]) == 0
    assert commands.main(["compare", "runs"]) == 0
    assert commands.main(["compare", "runs/b2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "unreadable" not in out
    (place / "runs/a1/result.json").write_text("{}")  # finished, though it says nothing
    assert read(place / "runs/a1").state == "finished"
    record(place / "runs/e", stage="s")
    (place / "runs/e/s/result.json").write_text("{}")
    for name in ("a1", "e"):
        assert [training.state for training in trainings_of(read(place / "runs" / name))] == ["finished"], name


def test_a_folder_that_may_not_be_looked_into_is_a_row(place, monkeypatch, capsys):
    """As another user, where this one is root, whom nothing is forbidden."""
    with tempfile.TemporaryDirectory() as other:
        os.chmod(other, 0o755)
        monkeypatch.chdir(other)
        record(Path(other, "runs/a"))
        record(Path(other, "runs/b")).chmod(0)
        (record(Path(other, "runs/c")) / "config.json").chmod(0)
        record(Path(other, "runs/d")).chmod(0o444)  # its names may be seen, and no more
        me = os.geteuid()
        os.seteuid(65534 if me == 0 else me)
        try:
            assert commands.main(["runs", "--json"]) == 0
            rows = json.loads(capsys.readouterr().out)
            assert commands.main(["compare", "runs", "--csv"]) == 1
            assert commands.main(["runs", "runs/b/inside"]) == 2
        finally:
            os.seteuid(me)
            for name in "bd":
                Path(other, f"runs/{name}").chmod(0o755)
    assert {row["folder"]: row["state"] for row in rows} == {
        "runs/a": "finished", "runs/b": "unreadable", "runs/c": "unreadable", "runs/d": "unreadable",
    }  # fmt: skip
    assert all("config.json cannot be read: Permission denied" in row["note"] for row in rows if row["state"] == "unreadable")


def test_option_that_is_none_here_and_missing_there(tmp_path):
    """As a recipe does that gained an option: both are – in a table, and nothing differs."""
    record(tmp_path / "a", (0.8, 0.9), seed=1)
    record(tmp_path / "b", source=None, net="Other")
    record(tmp_path / "c", (0.8, 0.9), seed=2, source=None)
    comparison = compared(tmp_path)
    assert comparison.differ == ["net"]
    assert comparison.same["source"] is None
    assert [group.seeds for group in comparison.groups] == [[1, 2], [1]]


def test_control_characters_of_a_run_do_not_reach_the_terminal(place, capsys):
    evil = "\x1b]0;x\x07\u009b1m\n"
    record(place / "runs/c\x1b[31m", (0.9,), finished=False, stopped=3, net=evil, **{evil: evil})
    record(place / "runs/d", (0.9,), stage=evil, net=[evil])
    for command in (["runs"], ["compare", "runs"], ["compare", "runs", "--markdown"], ["compare", "runs", "--csv"]):
        assert commands.main(command) == 0
        shown = capsys.readouterr().out
        assert not set(shown) & {"\x1b", "\x07", "\u009b"}, command
        assert r"\x1b]0;x\x07\x9b1m\n" in shown or command == ["runs"], command
    (place / "runs/d/config.json").write_text(json.dumps({"format": evil}))
    assert commands.main(["compare", "runs"]) == 1
    assert not set(capsys.readouterr().err) & {"\x1b", "\x07", "\u009b"}


def test_a_name_that_is_no_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record(Path("runs/a"))
    Path("runs/a").rename(os.fsdecode(b"runs/\xff"))
    assert commands.main(["runs"]) == 0
    assert r"runs/\udcff" in capsys.readouterr().out


def test_neither_needs_torch(place):
    code = """
import sys
from launch.commands import main
assert [main(["runs"]), main(["compare", "runs"])] == [0, 0]
assert "matplotlib" in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def test_a_reader_that_leaves_early_is_no_error(place):
    code = "from launch.commands import main; import sys; sys.exit(main(['runs', '--json']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, "")
    process.stderr.close()
