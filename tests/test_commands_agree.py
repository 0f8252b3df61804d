"""Defaults, forms and exit codes of the commands that show runs: the table, JSON, CSV and markdown say the same."""

import csv
import io
import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import ROOT
from made_runs import compared, write_run, write_two_designs
from PIL import Image

from launch import commands


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    write_two_designs(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)

    def drawn(folder, *_):
        Image.new("RGB", (2, 2)).save(folder / "curves.png")
        return [folder / "curves.png"]

    monkeypatch.setattr("launch.report.compare_plots.draw", drawn)
    return tmp_path


# --------------------------------------------------------------------------------------------------------------------- compare


def test_every_form_of_a_comparison_says_the_same(place, oneloop):
    found, comparison = json.loads(oneloop("compare", "runs", "--json")[1]), compared(Path("runs"))
    assert found["rows"] == json.loads(json.dumps(comparison.records()))
    assert found["same"]["recipe"] == "mine"
    assert found["differ"] == comparison.differ
    means = [row["last"]["mean"] for row in found["rows"]]
    assert means == sorted(means, reverse=True)
    first = found["rows"][0]
    assert first["last"] == {"mean": pytest.approx(0.85), "deviation": pytest.approx(0.1 / 2**0.5)}  # of a sample
    assert (first["seeds"], first["finished"], [Path(each).name for each in first["folders"]]) == ([1, 2], True, ["a1", "a2"])
    assert [row["finished"] for row in found["rows"]] == [True, True, False]
    (pair,) = found["pairs"]
    assert (pair["one"], pair["other"], pair["seeds"]) == ("Net", "a|b", 1)

    rows = [*csv.DictReader(io.StringIO(oneloop("compare", "runs", "--csv")[1]))]
    assert [(row["net"], row["finished"], row["runs"]) for row in rows] == [
        ("Net", "True", "2"), ("a|b", "True", "1"), ("a|b", "False", "1"),
    ]  # fmt: skip
    for row, record in zip(rows, found["rows"], strict=True):
        for name in ("last", "best", "loss", "gap", "parameters"):
            expected = record[name] or {"mean": None, "deviation": None}
            assert row[name] == ("" if expected["mean"] is None else str(expected["mean"]))
            assert row[f"{name}_deviation"] == ("" if expected["deviation"] is None else str(expected["deviation"]))

    lines = oneloop("compare", "runs", "--markdown")[1].splitlines()
    cells = [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines if line.startswith("|")]
    assert len({len(row) for row in cells}) == 1
    assert [row[0] for row in cells] == ["net", "---", "Net", "a/b", "a/b"]
    accuracy = cells[0].index("accuracy")
    assert [row[accuracy] for row in cells[2:]] == ["0.8500 ± 0.0707", "0.7000", "0.5000"]
    assert cells[2][cells[0].index("gap")] == "+0.1000 ± 0.0000"
    assert cells[4][cells[0].index("done")] == "1/2 interrupted"
    assert any(line.startswith("Net is better than") for line in lines)


def test_images_are_drawn_unless_a_form_is_asked_for_and_where_it_says(place, oneloop):
    assert "compare/curves.png" in oneloop("compare", "runs")[1]
    assert (place / "compare").is_dir()
    shutil.rmtree(place / "compare")
    assert oneloop("compare", "runs", "--json")[0] == 0
    assert not (place / "compare").exists()
    assert "there/curves.png" in oneloop("compare", "runs", "--out", "there")[1]
    code, out, _ = oneloop("compare", "runs", "--csv", "--out", "again")
    assert (code, (place / "again").is_dir(), "curves.png" in out) == (0, True, False)
    assert not (place / "compare").exists()


def test_what_cannot_be_read_gives_1_and_the_rest_is_shown(place, oneloop):
    (place / "runs/broken").mkdir()
    (place / "runs/broken/config.json").write_text("{")
    code, out, error = oneloop("compare", "runs")
    assert code == 1
    assert "0.8500" in out
    assert "broken/config.json is damaged" in error
    assert "left out 1 run that could not be read" in error


def test_the_row_that_others_are_compared_with(place, oneloop):
    (pair,) = json.loads(oneloop("compare", "runs", "--against", "a|b", "--json")[1])["pairs"]
    assert (pair["one"], pair["other"], pair["difference"]) == ("Net", "a|b", pytest.approx(0.1))
    (pair,) = json.loads(oneloop("compare", "runs", "--against", "Net", "--json")[1])["pairs"]
    assert (pair["one"], pair["other"], pair["difference"]) == ("a|b", "Net", pytest.approx(-0.1))
    assert oneloop("compare", "runs", "--against", "None")[0] == 2


def test_options_within_options_and_lists_are_columns_of_their_own(tmp_path):
    write_run(tmp_path / "a", nested={"depth": 3, "width": 5}, names=["x", "y"], net="A")
    write_run(tmp_path / "b", (0.5, 0.6), nested={"depth": 3, "width": 7}, names=["x"], net="B")
    comparison = compared(tmp_path)
    assert comparison.differ == ["net", "nested.width", "names"]
    assert comparison.same["nested.depth"] == 3
    assert [row[:3] for row in comparison.table()[1]] == [["A", "5", "x y"], ["B", "7", "x"]]


def test_speed_and_time_of_a_finished_run_are_those_of_its_result_and_of_another_those_so_far(tmp_path):
    write_run(tmp_path / "a", net="A")
    write_run(tmp_path / "b", net="B", finished=False)
    rows = {row["options"]["net"]: row for row in compared(tmp_path).records()}
    assert (rows["A"]["images_per_second"]["mean"], rows["A"]["seconds"]["mean"]) == (60, 21)
    assert rows["B"]["seconds"]["mean"] == 20  # of the last line, which counts from the start
    assert rows["B"]["images_per_second"]["mean"] == pytest.approx(200 / (100 / 50 + 100 / 100))


def test_without_validation_in_all_runs_the_test_accuracy_ranks(tmp_path):
    write_run(tmp_path / "a", (0.5, 0.6), validation=(0.9, 0.95), net="A")
    write_run(tmp_path / "b", (0.5, 0.7), net="B")
    assert [row["options"]["net"] for row in compared(tmp_path).records()] == ["B", "A"]
    write_run(tmp_path / "b", (0.5, 0.7), validation=(0.5, 0.8), net="B")
    assert [row["options"]["net"] for row in compared(tmp_path).records()] == ["A", "B"]


# ------------------------------------------------------------------------------------------------------------------------ runs


@pytest.mark.parametrize(
    ("ago", "said"),
    [
        (timedelta(seconds=30), "s ago"), (timedelta(minutes=5, seconds=9), "5 min ago"),
        (timedelta(hours=3, minutes=9), "3 h ago"), (timedelta(days=2, hours=9), "2 d ago"),
    ],
)  # fmt: skip
def test_age_is_in_the_largest_unit_that_fits(ago, said, place, oneloop):
    config = json.loads((place / "runs/a1/config.json").read_text())
    config["started"] = (datetime.now(UTC) - ago).strftime("%Y-%m-%dT%H:%M:%S%z")
    (place / "runs/a1/config.json").write_text(json.dumps(config))
    (line,) = [line for line in oneloop("runs", "runs/a1")[1].splitlines() if "runs/a1" in line]
    assert said in line


def test_a_run_is_shown_with_its_last_accuracy_and_why_it_failed(tmp_path, oneloop, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a", (0.9, 0.75), net="mine")
    write_run(tmp_path / "runs/b", (0.5,), finished=False, stopped=3, net="other")
    rows = {Path(row["folder"]).name: row for row in json.loads(oneloop("runs", "--json")[1])}
    assert (rows["a"]["accuracy"], rows["a"]["net"], rows["a"]["epochs"]) == (0.75, "mine", 2)
    assert (rows["b"]["state"], rows["b"]["note"], rows["b"]["net"], rows["b"]["of"]) == ("failed", "it was so", "other", 2)
    assert "runs/b: it was so" in oneloop("runs")[1].splitlines()


# -------------------------------------------------------------------------------------------------------------------- describe


def test_the_drawn_rate_covers_all_epochs(own_path, monkeypatch, capsys):
    """Half a cosine from 1 to 0: each row is as long as its height says."""
    commands.main(["describe", str(ROOT / "recipes/ablations.py"), "--method", "cosine", "--epochs", "8", "--limit", "64"])
    *_, top, second, third, bottom, axis = capsys.readouterr().out.splitlines()
    assert [len(line[9:]) for line in (top, second, third, bottom)] == pytest.approx([19, 29, 39, 55], abs=2)
    assert [line.split()[1] for line in (top, second, third, bottom)] == ["1", "0.75", "0.5", "0.25"]
    assert axis.split() == ["epoch", "0", "8"]
    sys.modules.pop("methods", None)
