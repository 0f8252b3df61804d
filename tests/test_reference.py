"""docs/reference.md and the READMEs say what the code does: flags, exit codes, files, keys, variables, links."""

import dataclasses
import functools
import re
import tokenize
from pathlib import Path

import pytest
from conftest import ROOT, Tiny, metrics, optimizer_for, result
from jobs import begin

from launch import Run, train
from launch.commands import COMMANDS
from launch.errors import __doc__ as exit_codes

PAGE = (ROOT / "docs/reference.md").read_text()
PAGES = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    return re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]


def named(text: str) -> set[str]:
    """The words in backticks in the first column of a table."""
    return {name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)}


def test_every_flag_and_its_default():
    rows = dict(re.findall(r"^\| `--([\w-]+)` \| (.*?) \|", section("Flags of every recipe"), re.MULTILINE))
    flags = [field for field in dataclasses.fields(Run) if field.init]
    assert rows == {field.name.replace("_", "-"): shown(field.default) for field in flags}


def shown(default) -> str:
    default = " ".join(default) if isinstance(default, tuple) else default
    if default is None or default is False:
        return "–" if default is None else "off"
    return f"`{default}`" if isinstance(default, str) else str(default)


def test_exit_codes():
    rows = re.findall(r"^\| (\d[\d, ]*) \|", section("Exit codes"), re.MULTILINE)
    assert {code.strip() for row in rows for code in row.split(",")} == set(re.findall(r"\b\d{1,3}\b", exit_codes))


@pytest.fixture
def finished(start, images):
    run = start(plots=True, profile=True)
    model = Tiny()
    train(run, model, images, optimizer_for(model), epochs=2, batch=8, ema=0.9)
    return run.folder


def test_files_and_keys_of_a_run(finished):
    """W&B and the code's copy are not there: this run is not sent and has no recipe file."""
    files = {name.rstrip("/") for name in named(section("The run folder"))}
    while_it_runs = {"lock", "lock.pid", "preparing"}
    not_here = {
        "stopped.json",
        "code",
        "wandb",
        "wandb.json",
        "tensorboard",
        "trackers.json",
        "split.csv",
        "bad.csv",
        "labels.png",
    }
    several = {"mean_average_precision", "f1", "threshold"}  # of images with several labels: see test_multi_label.py
    assert {path.name for path in finished.iterdir()} | while_it_runs == files - not_here
    lines = metrics(finished)
    clock, of_images = {"images_per_second", "seconds"}, {"data_wait", "balanced_accuracy"}  # see test_images_trained.py
    rows = dict(re.findall(r"^\| `?([\w ]+?)`? \| (.*?) \|$", section("metrics.jsonl"), re.MULTILINE))
    keys = {row: set(re.findall(r"`(\w+)`", text)) - {"train", "eval", "test", "ema"} for row, text in rows.items()}
    for kind in ("train", "eval"):
        named_here = (keys["every line"] | keys[kind]) - clock - of_images - several
        assert {key for line in lines if line["event"] == kind for key in line} == named_here
    assert clock <= keys["train"]
    written = result(finished)
    assert {*written, *written["test"], *written["best"]} == set(re.findall(r"`(\w+)`", section("result.json"))) - several


def test_variables_are_read_somewhere():
    """By the launch files, by the package, or by the libraries that it hands them to."""
    ours = "".join(path.read_text() for path in (ROOT / "launch").rglob("*") if path.suffix in (".py", ".yaml", ".sh", ".html"))
    of_libraries = {"WANDB_INIT_TIMEOUT", "WANDB_FINISH_TIMEOUT"}  # read as f"WANDB_{name}"
    variables = named(section("Environment variables"))
    assert len(variables) > 10
    for name in variables - of_libraries:
        assert re.search(rf"\b{name}\b", ours), name


def anchors(page: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path, text: str) -> list[str]:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    return [link for link in links if not leads_somewhere(page, *link.partition("#")[::2])]


def leads_somewhere(page: Path, path: str, anchor: str) -> bool:
    target = page.parent / path if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert not dead_links(ROOT / page, (ROOT / page).read_text())


def test_control_dead_links_are_noticed():
    text = "[a](docs/custom.md#4-train) [b](docs/lost.md) [c](docs/custom.md#what-it-costs) [d](#guarantees)"
    assert dead_links(ROOT / "README.md", text) == ["docs/lost.md", "docs/custom.md#what-it-costs"]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_commands_of_the_readmes_exist(page):
    text = (ROOT / page).read_text()
    assert {name for name in re.findall(r"^oneloop (\w+)", text, re.MULTILINE)} <= set(COMMANDS)
    for path in re.findall(r"(?<![\w/])(?:recipes|launch|nets|tests|benchmarks|docs)/[\w/.-]*\.\w+", text):
        assert (ROOT / path).exists(), path


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_recipe_of_the_readme_runs(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1])
    flags = ("--data", "synthetic", "--limit", 300, "--hidden", 16, "--epochs", 1, "--threads", 1, "--out", "run")
    job = begin(recipe, *flags, cwd=tmp_path, plots=True)
    assert job.wait(60) == 0, job.log.read_text()
    assert result(tmp_path / "run")["test"]["count"] == 500


def test_places_that_contributing_names_exist():
    """`x` in a path stands for a new file's name."""
    for path in re.findall(r"`((?:recipes|launch|nets|tests|benchmarks|docs)/[\w/.-]*)`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / path).exists() or re.search(r"/(x|mine)\.", path), path


FOLDERS = ("launch", "recipes", "nets", "tests", "benchmarks", "docs", "findings")
PLACE = rf"(?:{'|'.join(FOLDERS)})/[\w/.-]*"  # below the root
NAMED = re.compile(rf"(?<![\w/.-])((?:{PLACE})?\w+\.(?:py|md|yaml|sh|toml|txt|json|png)\b|{PLACE}/(?!\w))")
NOT_OURS, INSTALLED = {"airbench94_muon.py"}, "launch/recipes/"


def remarks(file: Path) -> str:
    """The docstrings and comments of a Python file; all of another one."""
    if file.suffix != ".py":
        return file.read_text()
    with tokenize.open(file) as lines:
        texts = [token.string for token in tokenize.generate_tokens(lines.readline)]
    return "\n".join(text for text in texts if text.startswith(("#", '"""')))


@functools.cache
def modules() -> set[str]:
    return {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")} | NOT_OURS


def lost(text: str) -> set[str]:
    """Files that a text names but that are not here: with their folder, or Python files without; x.py stands for any."""
    paths = [path for path in NAMED.findall(text) if Path(path).stem not in ("x", "X", "NAME", "mine") and path != INSTALLED]
    moved = {path for path in paths if "/" in path and not (ROOT / path).exists()}
    return moved | {path for path in paths if "/" not in path and path.endswith(".py") and path not in modules()}


@pytest.mark.parametrize("place", ["*.md", "docs", "launch", "nets", "recipes", "benchmarks", "findings"])
def test_files_that_are_named_exist(place):
    files = ROOT.glob(place) if "*" in place else (ROOT / place).rglob("*")
    files = [file for file in files if file.suffix in (".md", ".py", ".yaml", ".sh", ".html") and file.name != "CHANGELOG.md"]
    assert files
    missing = {file.relative_to(ROOT).as_posix(): names for file in files if (names := lost(remarks(file)))}
    assert not missing


def test_control_a_file_that_moved_is_noticed():
    moved = {"launch/capture.py", "charts.py", "docs/pictures.md", "launch/record/"}
    assert lost(f"launch/run.py, loop.py, launch/data/ and recipes/x.py; {', '.join(moved)}") == moved
