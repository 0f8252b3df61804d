"""A run folder that is damaged, or may not be read, is named; the others are listed and compared all the same."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from made_runs import write_run, write_two_designs

from launch import commands
from launch.report.compare import compare, trainings_of
from launch.report.runs import find, read


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current folder, with two designs under `runs`."""
    write_two_designs(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    assert "no run at runs/c*: no folder there contains a config.json" in capsys.readouterr().err


def broken(place: Path, file: str, content: bytes | dict | None = None, line: int = 0) -> None:
    """Damage `file` of runs/a2: set its content, or entries by dotted name (in metrics.jsonl, of one line); None: a folder."""
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
    ("config.json", b'{"format": 1}', "config.recipe is missing"),
    ("config.json", b"\xff\xfe", "is damaged"),
    ("config.json", b"[" * 100_000, "is damaged"),
    ("config.json", {"config": []}, "config is not an object"),
    ("config.json", {"config.seed": "one"}, "config.seed is 'one'"),
    ("config.json", {"config.recipe": ...}, "config.recipe is missing"),
    ("config.json", {"data": None}, "data is not an object"),
    ("config.json", {"data.fingerprint": 5}, "data.fingerprint is '5'"),
    ("config.json", {"resumed": 5}, "resumed is '5'"),
    ("config.json", {"resumed": [None]}, "resumed is"),
    ("config.json", {"resumed": [{"started": "now"}]}, "resumed is"),
    ("config.json", {"started": "yesterday"}, "started is 'yesterday'"),
    ("config.json", {"started": "0001-01-01T00:00:00+1400"}, "started is"),
    ("config.json", {"parameters": "many"}, "parameters is 'many'"),
    ("config.json", {"world_size": ...}, "world_size is missing"),
    ("result.json", b'"done"', "holds a str"),
    ("result.json", b"null", "holds a NoneType"),
    ("result.json", {"test.accuracy": "x"}, "test.accuracy is 'x'"),
    ("result.json", {"test": "x"}, "test is not an object"),
    ("result.json", {"best.accuracy": float("nan")}, "best.accuracy is 'nan'"),
    ("result.json", {"seconds": 10**300}, "seconds is"),
    ("result.json", {"summary": ["x"]}, "summary is"),
    ("result.json", None, "cannot be read: it is not a file"),
    ("stopped.json", b"{}", "code is missing"),
    ("stopped.json", b'{"code": "x", "why": "y"}', "code is 'x'"),
    ("metrics.jsonl", b"null\nnull\n", "line 1 of 2"),
    ("metrics.jsonl", {"accuracy": "x"}, "line 2 of 4"),
    ("metrics.jsonl", {"images": ...}, "line 2 of 4"),
    ("metrics.jsonl", None, "cannot be read: it is not a file"),
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
    assert err.splitlines()[1:] == ["left out 1 run that could not be read"]


def test_a_run_with_a_damaged_stage_is_left_out_as_a_whole(tmp_path):
    write_run(tmp_path / "a", (0.6, 0.7), stage="first")
    write_run(tmp_path / "a", (0.6, 0.7), stage="second")
    write_run(tmp_path / "b", net="Other")
    (tmp_path / "a/second/result.json").write_text("[]")
    comparison, complaints = compare(find([tmp_path]))
    assert [group.options["net"] for group in comparison.groups] == ["Other"]
    assert len(complaints) == 1


def test_odd_but_valid_content_breaks_nothing(place, capsys):
    """Content that passes the checks must not break the arithmetic: no measures, images that do not grow, words for epochs."""
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
    (place / "runs/a1/result.json").write_text("{}")  # finished, even with an empty result
    assert read(place / "runs/a1").state == "finished"
    write_run(place / "runs/e", stage="s")
    (place / "runs/e/s/result.json").write_text("{}")
    for name in ("a1", "e"):
        assert [training.state for training in trainings_of(read(place / "runs" / name))] == ["finished"], name


def test_a_folder_without_read_permission_is_a_row(place, monkeypatch, capsys):
    """Read as another user if this one is root, whom permissions do not stop."""
    with tempfile.TemporaryDirectory() as other:
        os.chmod(other, 0o755)
        monkeypatch.chdir(other)
        write_run(Path(other, "runs/a"))
        write_run(Path(other, "runs/b")).chmod(0)
        (write_run(Path(other, "runs/c")) / "config.json").chmod(0)
        write_run(Path(other, "runs/d")).chmod(0o444)  # may be listed, but its files not read
        assert commands.main(["runs"]) == 0  # imports what it needs: the other user may not read Python's own files
        capsys.readouterr()
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
