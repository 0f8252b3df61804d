"""docs/reference.md and the READMEs say what the code does: flags, exit codes, files, keys, variables, links."""

import dataclasses
import re

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
    if default is None or default is False:
        return "–" if default is None else "off"
    return f"`{default}`" if isinstance(default, str) else str(default)


def test_exit_codes():
    rows = re.findall(r"^\| (\d[\d, ]*) \|", section("Exit codes"), re.MULTILINE)
    assert {code.strip() for row in rows for code in row.split(",")} == set(re.findall(r"\b\d{1,3}\b", exit_codes))


@pytest.fixture
def finished(start, images):
    run = start(images=True, profile=True)
    model = Tiny()
    train(run, model, images, optimizer_for(model), epochs=2, batch=8, ema=0.9)
    return run.folder


def test_files_and_keys_of_a_run(finished):
    """W&B and the code's copy are not there: this run is not sent and has no recipe file."""
    files = {name.rstrip("/") for name in named(section("The run folder"))}
    while_it_runs = {"lock", "lock.pid", "preparing"}
    not_here = {"stopped.json", "code", "wandb", "wandb.json", "split.csv", "bad.csv"}
    assert {path.name for path in finished.iterdir()} | while_it_runs == files - not_here
    lines = metrics(finished)
    clock, of_images = {"images_per_second", "seconds"}, {"data_wait", "balanced_accuracy"}  # see test_images_trained.py
    rows = dict(re.findall(r"^\| `?([\w ]+?)`? \| (.*?) \|$", section("metrics.jsonl"), re.MULTILINE))
    keys = {row: set(re.findall(r"`(\w+)`", text)) - {"train", "eval", "test", "ema"} for row, text in rows.items()}
    for kind in ("train", "eval"):
        named_here = (keys["every line"] | keys[kind]) - clock - of_images
        assert {key for line in lines if line["event"] == kind for key in line} == named_here
    assert clock <= keys["train"]
    written = result(finished)
    assert {*written, *written["test"], *written["best"]} == set(re.findall(r"`(\w+)`", section("result.json")))


def test_variables_are_read_somewhere():
    """By the launch files, by the package, or by the libraries that it hands them to."""
    ours = "".join(path.read_text() for path in (ROOT / "launch").rglob("*") if path.suffix in (".py", ".yaml", ".sh", ".html"))
    of_libraries = {"WANDB_INIT_TIMEOUT", "WANDB_FINISH_TIMEOUT"}  # read as f"WANDB_{name}"
    variables = named(section("Environment variables"))
    assert len(variables) > 10
    for name in variables - of_libraries:
        assert re.search(rf"\b{name}\b", ours), name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    place = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)", place.read_text()):
        assert target.startswith("https://") or (place.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_commands_of_the_readmes_exist(page):
    text = (ROOT / page).read_text()
    assert {name for name in re.findall(r"^oneloop (\w+)", text, re.MULTILINE)} <= set(COMMANDS)
    for path in re.findall(r"(?<![\w/])(?:recipes|launch|nets|tests|benchmarks|docs)/[\w/.-]*\.\w+", text):
        assert (ROOT / path).exists(), path


def test_both_readmes_have_the_same_numbers_and_commands():
    english, chinese = ((ROOT / page).read_text() for page in ("README.md", "README.zh-CN.md"))
    commands, first_column = r"^(?:\$ )?(?:accelerate|oneloop|python|timeout) [^#\n]*[^#\s]", r"^\| `[\w.]+`"
    code = r"```(?:python|console)\n.*?```"
    for what in (r"\d[\d,]*\.\d+", commands, first_column, code):
        found = [re.findall(what, text, re.MULTILINE | re.DOTALL) for text in (english, chinese)]
        assert found[0], what
        assert found[0] == found[1], what


def test_the_recipe_of_the_readme_runs(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1])
    flags = ("--data", "synthetic", "--limit", 300, "--hidden", 16, "--epochs", 1, "--threads", 1, "--out", "run")
    job = begin(recipe, *flags, cwd=tmp_path, images=True)
    assert job.wait(60) == 0, job.log.read_text()
    assert result(tmp_path / "run")["test"]["count"] == 500


def test_places_that_contributing_names_exist():
    """`x` in a path stands for a new file's name."""
    for path in re.findall(r"`((?:recipes|launch|nets|tests|benchmarks|docs)/[\w/.-]*)`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / path).exists() or re.search(r"/(x|mine)\.", path), path
