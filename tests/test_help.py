"""`python recipes/NAME.py --help` needs no torch, and says what it says with it."""

import ast
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout, suppress

import pytest
from conftest import ROOT

from launch.command_line import parse
from launch.recipe import load

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
SCRIPT = """
import io, json, sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from launch import lazy
sys.meta_path.insert(0, lazy._Finder())
from launch.command_line import parse
from launch.recipe import load
said = {}
for name in sys.argv[1:]:
    with redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
        parse(load(Path(name)).main, ["--help"], name)
    said[name] = out.getvalue()
print(json.dumps(said))
"""
MINE = '''"""A recipe of one's own."""
from launch import Run, cli, train
import torch

def main(run: Run, epochs: int = {default}):
    """Train."""

if __name__ == "__main__":
    cli(main)
'''


def helped(*command, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"} | environment, cwd=ROOT)


def test_the_help_of_every_recipe_is_the_same_without_torch(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"recipes/{name}.py" for name in RECIPES]
    done = helped("-c", SCRIPT, *names)
    assert done.returncode == 0, done.stderr
    without = json.loads(done.stdout)
    for name in names:
        with redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
            parse(load(ROOT / name).main, ["--help"], name)
        assert "run options" in out.getvalue()
        assert without[name] == out.getvalue()


@pytest.fixture
def torchless(tmp_path) -> dict:
    """An environment in which whoever imports torch notices."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none/torch.py").write_text("raise SystemExit('torch was imported')")
    return {"PYTHONPATH": str(tmp_path / "none")}


def test_a_recipe_started_for_its_help_imports_no_torch(torchless):
    done = helped("recipes/custom.py", "--help", **torchless)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--class-weights" in done.stdout
    done = helped("-c", "from launch.commands import main; main()", "train", "cifar2", "--help", **torchless)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--n-blocks" in done.stdout


def test_control_without_help_torch_is_imported(torchless):
    done = helped("recipes/cifar2.py", "--data", "synthetic", **torchless)
    assert (done.returncode, done.stderr) == (1, "torch was imported\n")


@pytest.mark.parametrize("default", ["torch.tensor([2, 3]).sum().item()", "len(torch.zeros(7))"])
def test_a_recipe_whose_flags_need_torch_gets_it(torchless, tmp_path, default):
    """Whether a stand-in becomes the default or cannot do what is asked of it."""
    (tmp_path / "mine.py").write_text(MINE.format(default=default))
    done = helped(tmp_path / "mine.py", "--help", **torchless)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "torch was imported\n")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_import_this_package_before_torch(name):
    tree = ast.parse((ROOT / f"recipes/{name}.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [node.names[0].name if isinstance(node, ast.Import) else str(node.module) for node in imports]
    roots = [module.partition(".")[0] for module in modules]
    assert "torch" not in roots[: roots.index("launch")]
