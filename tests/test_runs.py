"""`oneloop runs` and `oneloop compare` find each run once, tell its state, and show its names without escape sequences."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import filelock
import pytest
from made_runs import compared, write_run, write_two_designs

from launch import commands
from launch.report.runs import find, read


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current folder, with two designs under `runs`."""
    write_two_designs(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_newest_first_with_their_states(place, capsys):
    write_run(place / "runs/c", (0.9,), finished=False, stopped=3, started=13)
    write_run(place / "runs/d", (0.9,), finished=False, stopped=143, started=9)
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


STATES = {1: "failed", 3: "failed", 4: "failed", 130: "interrupted", 143: "interrupted"}


@pytest.mark.parametrize(("code", "state"), STATES.items())
def test_state_by_exit_code(code, state, tmp_path):
    assert read(write_run(tmp_path / "a", finished=False, stopped=code)).state == state


def test_started_is_the_last_launch(place, capsys):
    about = json.loads((place / "runs/a1/config.json").read_text())
    launches = [{"started": f"2026-01-0{day}T10:00:00+0000"} for day in (2, 3)]
    (place / "runs/a1/config.json").write_text(json.dumps(about | {"resumed": launches}))
    assert commands.main(["runs", "--json"]) == 0
    first, *_ = json.loads(capsys.readouterr().out)
    assert first["folder"] == "runs/a1"
    assert datetime.fromisoformat(first["started"]) == datetime(2026, 1, 3, 10, tzinfo=UTC)


@pytest.fixture
def soon():
    """Fail after ten seconds: following every link would take years."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("not done after ten seconds"))
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_each_run_is_found_once_however_many_links_lead_to_it(place, soon):
    runs = place / "runs"
    (runs / "A-latest").symlink_to("a1")  # sorts first, but the run is listed under its own name
    (place / "elsewhere").mkdir()
    write_run(place / "elsewhere/far", seed=7)
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


def test_a_run_inside_another_counts_as_a_run(tmp_path):
    outer = write_run(tmp_path / "runs/a", (0.6, 0.7), stage="frozen")
    write_run(outer / "mine", (0.8, 0.9), net="Inner")
    write_run(outer / "other/deep", (0.8, 0.9), net="Deep", stage="s")
    assert find([tmp_path]) == [outer, outer / "mine", outer / "other/deep"]
    assert {(group.options.get("stage"), group.options["net"]) for group in compared(tmp_path).groups} == {
        ("frozen", "Net"), (None, "Inner"), ("s", "Deep"),
    }  # fmt: skip


def test_a_stage_of_an_inner_run_does_not_belong_to_the_outer(tmp_path):
    outer = write_run(tmp_path / "a", (0.6, 0.7))
    write_run(outer / "other", (0.8, 0.9), net="Deep", stage="one/two")
    assert [(group.options["net"], group.options.get("stage")) for group in compared(tmp_path).groups] == [
        ("Deep", "one/two"), ("Net", None),
    ]  # fmt: skip


def test_control_characters_of_a_run_do_not_reach_the_terminal(place, capsys):
    evil = "\x1b]0;x\x07\u009b1m\n"
    write_run(place / "runs/c\x1b[31m", (0.9,), finished=False, stopped=3, net=evil, **{evil: evil})
    write_run(place / "runs/d", (0.9,), stage=evil, net=[evil])
    for command in (["runs"], ["compare", "runs"], ["compare", "runs", "--markdown"], ["compare", "runs", "--csv"]):
        assert commands.main(command) == 0
        shown = capsys.readouterr().out
        assert not set(shown) & {"\x1b", "\x07", "\u009b"}, command
        assert r"\x1b]0;x\x07\x9b1m\n" in shown or command == ["runs"], command
    (place / "runs/d/config.json").write_text(json.dumps({"format": evil}))
    assert commands.main(["compare", "runs"]) == 1
    assert not set(capsys.readouterr().err) & {"\x1b", "\x07", "\u009b"}


def test_a_folder_name_that_is_not_utf8(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a"))
    Path("runs/a").rename(os.fsdecode(b"runs/\xff"))
    assert commands.main(["runs"]) == 0
    assert r"runs/\udcff" in capsys.readouterr().out


def test_runs_and_compare_import_no_torch(place):
    code = """
import sys
from launch.commands import main
assert [main(["runs"]), main(["compare", "runs"])] == [0, 0]
assert "matplotlib" in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def test_a_closed_pipe_is_not_an_error(place):
    code = "from launch.commands import main; import sys; sys.exit(main(['runs', '--json']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, "")
    process.stderr.close()
