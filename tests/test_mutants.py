"""The hand-written faults of tests/mutants/ can be put in, and benchmarks/mutants.py tells which are noticed."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

PREFIX = f"import json, sys; from pathlib import Path; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import mutants; "


def runner(code: str):
    """Output of `code`, which knows the runner as `mutants`, as JSON; in a process that knows nothing of ours."""
    done = subprocess.run([sys.executable, "-c", PREFIX + code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_every_mutant_can_be_put_in_and_its_tests_exist():
    found = f"root = Path({str(ROOT)!r}); all = mutants.read(root); "
    lines, many = runner(found + "print(json.dumps([mutants.faults(root, all), len(all)]))")
    assert lines == []
    assert many > 100


@pytest.fixture
def tree(tmp_path):
    """A package of one function with its tests, one of which does not hold."""
    tests = """
        from package import add
        def test_add(): assert add(2, 3) == 5
        def test_wrong(): assert add(2, 3) == 6
    """
    files = {"package.py": "def add(a, b):\n    return a + b\n", "tests/test_add.py": tests.replace("\n        ", "\n")}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "tests/mutants").mkdir()
    return tmp_path


def entry(old, new, test="tests/test_add.py::test_add") -> str:
    lines = {"file": "package.py", "old": old, "new": new, "tests": [test]}
    return "[[mutant]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def test_noticed_is_what_fails_or_hangs(tree):
    entries = [
        entry("a + b", "a - b"),
        entry("a + b", "b + a"),
        entry("    return", "    import time; time.sleep(60)\n    return"),
    ]
    (tree / "tests/mutants/part.toml").write_text("\n".join(entries))
    judged = "found = [*mutants.judge(root, all[:2], 1, 60, str).values(), *mutants.judge(root, all[2:], 1, 2, str).values()]; "
    found = f"root = Path({str(tree)!r}); all = mutants.read(root); {judged}"
    assert runner(found + "print(json.dumps(found))") == ["noticed", "NOT NOTICED", "noticed"]
    assert (tree / "package.py").read_text() == "def add(a, b):\n    return a + b\n"


def test_refused_is_what_cannot_tell(tree):
    """Text that is not there once, tests that are not there, and tests that fail as it is."""
    entries = [entry("b", "c"), entry("a * b", "c"), entry("a + b", "a", "tests/test_add.py::test_none")]
    (tree / "tests/mutants/part.toml").write_text("\n".join(entries))
    found = f"root = Path({str(tree)!r}); all = mutants.read(root); "
    lines = runner(found + "print(json.dumps(mutants.faults(root, all)))")
    assert [line.partition(": ")[2].partition(": ")[2] for line in lines] == [
        "what it replaces is there 2 times",
        "what it replaces is there 0 times",
        "no test tests/test_add.py::test_none",
    ]
    (tree / "tests/mutants/part.toml").write_text(entry("a + b", "a - b", "tests/test_add.py::test_wrong"))
    (said,) = runner(found + "print(json.dumps(mutants.unsound(root, all, 1)))")
    assert "test_wrong" in said
