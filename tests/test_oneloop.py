"""The `oneloop` command itself: help at once, one line for an error, and output that nobody reads or that cannot be written."""

import contextlib
import errno
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from launch import commands

pytestmark = pytest.mark.usefixtures("own_path")


def test_every_command_has_its_file_and_the_script_its_entry():
    files = {path.stem for path in (ROOT / "launch/commands").glob("*.py")} - {"__init__", "arguments"}
    parts = "sweep_", "data_", "export_", "try_"  # of other commands
    assert {name for name in files if not name.startswith(parts)} == commands.COMMANDS.keys()
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="oneloop")
    assert entry.load() is commands.main


def test_help_has_an_example_and_does_not_wait_for_torch():
    code = (
        "import sys; from launch.commands import COMMANDS, main\n"
        "for args in (['--help'], *([name, '--help'] for name in COMMANDS)):\n"
        "    try: main(args)\n"
        "    except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'tyro', 'accelerate', 'PIL', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("example: oneloop ") == len(commands.COMMANDS)


@pytest.mark.parametrize("args", ["", "descry", "describe", "describe recipes/cifar2.py --nett Net", "describe x.py --shape 3"])
def test_wrong_usage_is_exit_2(monkeypatch, args):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        commands.main(args.split())
    assert ended.value.code == 2


def test_characters_that_the_output_encoding_lacks_are_escaped(trained_runs, tmp_path):
    shutil.copy(trained_runs / "images/test/bird/01.png", tmp_path / "猫.png")
    with open(tmp_path / "out", "w", encoding="ascii") as file, contextlib.redirect_stdout(file):
        assert commands.main(["predict", str(trained_runs / "birds"), str(tmp_path / "猫.png")]) == 0
    assert (tmp_path / "out").read_text().count("\\u732b.png,") == 2


@pytest.mark.parametrize("buffer", [1, 1 << 20], ids=["line by line", "at the end"])
def test_output_to_a_full_disk_is_one_line(trained_runs, buffer):
    predict, evaluate = ["predict", trained_runs / "birds", trained_runs / "images"], ["evaluate", trained_runs / "birds"]
    for args in (predict, evaluate, ["runs", trained_runs], ["--help"]):
        with (
            open("/dev/full", "w", buffering=buffer) as full,
            contextlib.redirect_stdout(full),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            assert commands.main([*map(str, args)]) == 1
        assert said.getvalue() == "cannot write to standard output: No space left on device\n"
    with open("/dev/full", "w", buffering=1) as full, contextlib.redirect_stderr(full):  # nor can that be said
        assert commands.main(["runs", str(trained_runs / "nowhere")]) == 2


def test_a_closed_pipe_is_not_an_error(trained_runs):
    """The reader ends early, as in `oneloop predict … | head`."""
    for args in (
        ["predict", trained_runs / "birds", trained_runs / "images"],
        ["runs", trained_runs, "--json"],
        ["runs", trained_runs],
    ):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as pipe, contextlib.redirect_stdout(pipe), contextlib.redirect_stderr(io.StringIO()) as said:
            assert commands.main([*map(str, args)]) == 0
        assert said.getvalue() == ""


def test_control_other_os_errors_are_tracebacks(monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "as of a file of ours", "somewhere")

    monkeypatch.setattr("launch.commands.runs.main", broken)
    with pytest.raises(OSError, match="of ours"):
        commands.main(["runs"])


@pytest.mark.parametrize(("module", "args"), [("onnxruntime", ["export", "RUN", "--format", "onnx"])])
def test_a_missing_library_is_one_line(trained_runs, oneloop, monkeypatch, module, args):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, error = oneloop(*(trained_runs / "birds" if arg == "RUN" else arg for arg in args))
    assert (code, error.count("\n")) == (2, 1)
    assert f"needs {module}: pip install" in error
