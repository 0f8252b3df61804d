"""A run's record: a torn last line is skipped, a damaged line is named, and anyone who may read the folder sees its lock."""

import contextlib
import fcntl
import json
import os
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import filelock
import jobs
import pytest
import torch
from conftest import ROOT, Tiny, metrics, optimizer_for, result

from launch import commands, train
from launch.console import Screen, say
from launch.errors import Refused, printable
from launch.report.runs import in_use, read, read_metrics, without_clock

EVENT = {"event": "train", "step": 1, "epoch": 1, "images": 8, "loss": 0.5, "images_per_second": 9.0, "seconds": 0.1}


@contextlib.contextmanager
def somebody_else():
    """A folder that everyone may list, and a user id that does not own it (if this process is root)."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place), (65534 if os.geteuid() == 0 else os.geteuid())


def as_user(user: int, action):
    me = os.geteuid()
    os.seteuid(user)
    try:
        return action()
    finally:
        os.seteuid(me)


def test_only_the_last_line_may_be_torn(tmp_path):
    path, lines = tmp_path / "metrics.jsonl", [json.dumps(EVENT | {"step": step}) for step in (1, 2, 3)]
    assert read_metrics(path) == []
    whole = "".join(line + "\n" for line in lines)
    for kept in range(len(whole) + 1):  # a kill at any byte
        path.write_text(whole[:kept])
        complete = sum(len("\n".join(lines[: n + 1])) <= kept for n in range(3))
        assert [event["step"] for event in read_metrics(path)] == [1, 2, 3][:complete]


DAMAGED = {
    "garbage": b"#",
    "null": b"null",
    "a list": b"[1]",
    "not UTF-8": b'"\xff\xfe"',
    "nested": b"[" * 100_000,
    "an unknown event": b'{"event": "party", "step": 2}',
    "no step": b'{"event": "eval", "epoch": 1, "images": 8, "split": "test", "loss": 0.5, "accuracy": 0.5}',
    "a word for a number": json.dumps(EVENT | {"loss": "x"}).encode(),
    "not a number": json.dumps(EVENT | {"loss": float("nan")}).encode(),
    "a speed of zero": json.dumps(EVENT | {"images_per_second": 0}).encode(),
    "too large": json.dumps(EVENT | {"seconds": 10**200}).encode(),
    "empty": b"",
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("place", [1, 2])
def test_a_damaged_line_is_named_wherever_it_is(kind, place, tmp_path):
    lines = [json.dumps(EVENT).encode()] * 3
    lines[place] = DAMAGED[kind]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(Refused, match=rf"metrics.jsonl is damaged in line {place + 1} of 3 .*--fresh") as refused:
        read_metrics(tmp_path / "metrics.jsonl")
    assert refused.value.code == 4


def test_without_clock_drops_seconds_and_speed_and_nothing_else():
    """The comparison of two runs must see a different loss, accuracy or step."""
    (event,) = without_clock([EVENT | {"gradient_norm": 2.0}])
    assert event == {"event": "train", "step": 1, "epoch": 1, "images": 8, "loss": 0.5, "gradient_norm": 2.0}


def test_training_refuses_a_damaged_line_and_leaves_the_record_alone(start, images, tmp_path):
    """Control: with the line intact, the same command resumes and the record equals that of an uninterrupted run."""

    def again():
        run = start(log_every=1)
        try:
            train(run, net := Tiny(), images, optimizer_for(net), epochs=2, batch=16)
        finally:
            run.end()

    again()
    whole, path = metrics(tmp_path / "run"), tmp_path / "run/metrics.jsonl"
    (tmp_path / "run/result.json").unlink()
    sound = path.read_bytes()
    damaged = sound.replace(b'"loss"', b'"lo\x00s"', 1)
    path.write_bytes(damaged)
    with pytest.raises(Refused, match="damaged in line 1 of") as refused:
        again()
    assert refused.value.code == 4
    assert path.read_bytes() == damaged
    assert not (tmp_path / "run/result.json").exists()
    path.write_bytes(sound + b'{"event": "tr')
    again()
    assert metrics(tmp_path / "run") == whole


def test_in_use_tells_a_held_lock_from_a_free_one(tmp_path):
    assert not in_use(tmp_path)
    with filelock.FileLock(tmp_path / "lock"):
        assert in_use(tmp_path)
    assert not in_use(tmp_path)
    assert not (tmp_path / "lock.pid").exists()
    (tmp_path / "lock").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "lock")
    assert not in_use(tmp_path)  # without waiting for a writer


@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_in_use_tells_the_lock_of_another_user(mode, tmp_path):
    """A lock that may be read is judged, even in a folder that may not be written; one that may not be read counts as free."""
    with somebody_else() as (place, user):
        lock = place / "lock"
        lock.touch()
        lock.chmod(mode)
        place.chmod(0o555)
        assert not as_user(user, lambda: in_use(place))
        with open(lock) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert as_user(user, lambda: in_use(place)) == (mode == 0o444)
        place.chmod(0o755)


def test_in_use_neither_takes_nor_creates_the_lock(tmp_path):
    in_use(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with filelock.FileLock(tmp_path / "lock", timeout=0):
        pass
    with open(tmp_path / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # as another reader does
        assert not in_use(tmp_path)


def test_what_cannot_be_read_is_one_line(tmp_path):
    with somebody_else() as (place, user):
        (place / "metrics.jsonl").write_text("")
        (place / "metrics.jsonl").chmod(0)
        with pytest.raises(Refused, match=r"metrics.jsonl cannot be read: Permission denied"):
            as_user(user, lambda: read_metrics(place / "metrics.jsonl"))
    os.mkfifo(tmp_path / "config.json")
    writer = threading.Thread(target=lambda: open(tmp_path / "config.json", "w").close(), daemon=True)
    writer.start()  # so that a reader that does open it need not wait forever
    with pytest.raises(Refused, match=r"config.json cannot be read: it is not a file"):
        read(tmp_path)
    reader = os.open(tmp_path / "config.json", os.O_RDONLY | os.O_NONBLOCK)  # stays open until the writer has opened its end
    writer.join(10)
    os.close(reader)


def test_broken_standard_output_is_reported_once_and_ends_nothing(start, images, tmp_path, monkeypatch, capfd):
    for number, broken in enumerate(("/dev/full", "pipe")):
        if broken == "pipe":
            gone, writer = os.pipe()
            os.close(gone)
        else:
            writer = os.open(broken, os.O_WRONLY)
        with open(writer, "w") as stream, monkeypatch.context() as patch:
            patch.setattr("sys.stdout", stream)
            torch.manual_seed(0)
            train(start(f"run{number}"), net := Tiny(), images, optimizer_for(net), epochs=2, batch=16)
            print("what a recipe prints itself is dropped, too", flush=True)
        why = os.strerror({"/dev/full": 28, "pipe": 32}[broken])
        expected = f"cannot write to standard output ({why}): no more output; the run continues\n"
        assert capfd.readouterr().err == expected
    assert len({result(tmp_path / f"run{number}")["weights_sha256"] for number in (0, 1)}) == 1


def test_a_closed_pipe_does_not_end_a_training(tmp_path):
    """A real process and its exit code, as with `python recipe | head -1`."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    flags = ("--data", "synthetic", "--epochs", 30, "--out", "run")
    job = jobs.begin(ROOT / "tests/tiny.py", *flags, cwd=tmp_path, log=tmp_path / "pipe", errors=tmp_path / "errors")
    os.set_blocking(reader, True)
    jobs.wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists())
    assert os.read(reader, 4)
    os.close(reader)
    assert job.wait(60) == 0, (tmp_path / "errors").read_text()
    assert (tmp_path / "errors").read_text().count("Broken pipe): no more output; the run continues") == 1
    assert result(tmp_path / "run")["epochs"] == 30


def test_screen_passes_everything_else_to_its_stream(capsys):
    screen = Screen(sys.stdout)
    screen.write("a")
    screen.flush()
    assert (capsys.readouterr().out, screen.isatty(), screen.encoding) == ("a", False, sys.stdout.encoding)


def test_control_characters_are_escaped_on_the_screen(start, images, tmp_path, capsys):
    assert printable("a\x1b[31m\x07\x7f\x9b\n\u2028\udcff é–") == r"a\x1b[31m\x07\x7f\x9b\n\u2028\udcff é–"
    train(start("a\x1b[31m"), net := Tiny(), replace(images, source="x\x1b]0;\x07"), optimizer_for(net), epochs=1, batch=16)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert r"images from x\x1b]0;\x07;" in shown
    assert commands.main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"a\x1b[31m" in shown


def test_what_is_said_before_a_training_needs_no_reader(monkeypatch):
    """The reader ends early, as in `python recipes/custom.py … | head -n 3`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody_reads:
        monkeypatch.setattr(sys, "stdout", nobody_reads)
        say("photos: 2 classes")
        say("weights: 114 matched")
