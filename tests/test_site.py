"""The docs as a site: built strictly, every link leads somewhere; the notebook's cells run, on the drawings of the package."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from trained import train_here

from launch import commands

NOTEBOOK = json.loads((ROOT / "docs/custom.ipynb").read_text())


@pytest.fixture
def copy(tmp_path) -> Path:
    """What the site is made of, and empty files where links lead elsewhere in the repository."""
    place = tmp_path / "copy"
    shutil.copytree(ROOT / "docs", place / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (ROOT / "mkdocs.yml", *ROOT.glob("*.md")):
        shutil.copy(path, place)
    for path in ROOT.glob("launch/*.*"):
        (place / "launch").mkdir(exist_ok=True)
        (place / "launch" / path.name).touch()
    return place


def build(place: Path) -> Path:
    """The built site of the repository in `place`. Raises mkdocs' Abort for anything that it warns of."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(place / "mkdocs.yml"), strict=True, site_dir=str(place / "site")))
    return place / "site"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_link_and_anchor_of_the_site_leads_somewhere(copy):
    site = build(copy)
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {"index.html", "index.zh-CN.html", "notebook.html", "guarantees.html", "custom.zh-CN.html"} <= pages
    assert not list(site.glob("*.py"))
    assert '<a href="compare.html#search-instead-of-a-grid">' in (site / "reference.html").read_text()
    assert "oneloop data photos" in (site / "notebook.html").read_text()
    assert 'href="../launch' not in "".join((site / page).read_text() for page in pages)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_control_links_that_lead_nowhere_fail(copy):
    mkdocs = pytest.importorskip("mkdocs.exceptions")
    with open(copy / "docs/training.md", "a") as page:
        page.write("\n[x](nowhere.md) [x](use.md#nowhere) [x](../launch/nowhere.yaml) ![x](nowhere.png)\n")
    with pytest.raises(mkdocs.Abort, match="4 warnings"):
        build(copy)


def code_of(cell: dict) -> str:
    return "".join(cell["source"])


def command(line: str) -> None:
    """Run `oneloop …` in this process."""
    words = shlex.split(line)
    assert words[0] == "oneloop"
    if words[1] == "train":
        train_here(ROOT / f"recipes/{words[2]}.py", *words[3:])
    else:
        assert commands.main(words[1:]) == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # an image to look at
def test_the_notebooks_cells_run_in_turn(tmp_path, monkeypatch, capsys):
    """Without Jupyter, which is several times as large as all of these tests: a cell is Python, or one command of the shell."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in NOTEBOOK["cells"]:
        code = code_of(cell)
        if cell["cell_type"] == "code" and code.startswith("!"):
            command(code.removeprefix("!"))
        elif cell["cell_type"] == "code":
            exec(compile(code, "custom.ipynb", "exec"), names)
    out = capsys.readouterr().out
    assert "120 images, 2 classes" in out
    assert "done: Net, 3 epochs" in out
    assert out.count("Prediction(label=") == len(names["files"]) == 4


def test_the_notebook_is_kept_without_what_it_printed():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["metadata"]["language_info"]) == (4, {"name": "python"})
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in NOTEBOOK["cells"] if "outputs" in cell)
