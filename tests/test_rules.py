"""Rules: what the code must not contain, which package may import which, what pages must name."""

import ast
import re
import sys
import tomllib

import pytest
from conftest import ROOT
from imports import floors, rooms

FOLDERS = ("launch", "nets", "oneloop", "recipes", "benchmarks")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
FORBIDDEN = {
    "pickle": r"pickle\.loads?\(|(?<!safetensors\.)torch\.load\((?![^)]*weights_only=True)",
    "unsafe loading": r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|yaml\.load\(",
    "shell and eval": r"shell\s*=\s*True|\beval\(|\bexec\(|os\.system",
    "archives": r"extractall\(",
    "plain http": r"http://(?!127\.0\.0\.1|localhost)",
    "swallowed errors": r"except( Exception)?:\s*\n\s*pass",
    "pretrained hub loading": r"load_state_dict_from_url",
}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_forbidden(path):
    for name, pattern in FORBIDDEN.items():
        assert not re.search(pattern, path.read_text().replace(".eval()", "")), name


def test_control_the_patterns_find_what_they_forbid():
    bad = [
        "pickle.load(file)", "torch.load(path)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)",
        "subprocess.run(c, shell=True)", "eval(text)", "tar.extractall(place)", "'http://example.com'", "except:\n    pass",
        "load_state_dict_from_url(u)",
    ]  # fmt: skip
    for text in bad:
        assert any(re.search(pattern, text) for pattern in FORBIDDEN.values()), text
    assert not any(re.search(pattern, "torch.load(p, weights_only=True)") for pattern in FORBIDDEN.values())


def imports(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_imports_go_one_way():
    for path in CODE:
        room, names = path.relative_to(ROOT).parts[0], imports(path)
        if room == "nets":
            assert names - sys.stdlib_module_names <= {"torch", "torchvision", "timm", "nets"}, path
        if room == "launch":
            assert "nets" not in names, path
            assert "oneloop" not in names or path.parent.name == "commands", path
        if room == "oneloop":
            assert not names & {"accelerate", "wandb", "datasets", "recipes"}, path
        if room == "recipes":
            assert not names & {other.stem for other in CODE if other.parent == path.parent}, path


def test_the_rooms_of_launch_have_no_circle():
    heights = floors(rooms())
    assert heights["launch.data"] < heights["launch.sources"] < heights["launch.training"] < heights["launch.commands"]


def test_control_a_circle_is_named():
    with pytest.raises(ValueError, match="a circle: a -> b -> a"):
        floors({"a": {"b"}, "b": {"a"}})


def test_no_path_of_a_machine():
    for path in ROOT.rglob("*"):
        if path.suffix in (".py", ".md", ".yaml", ".sh", ".cfg", ".toml") and ".venv" not in path.parts:
            assert not re.search(r"(?<![\w.])/(home|root|work|Users)/", path.read_text()) or path.name == "test_rules.py", path


def test_claims_name_tests_that_exist():
    claims = tomllib.loads((ROOT / "tests/claims.toml").read_text())
    for test in (test for claim in claims["held"] for test in claim["by"]):
        file, name = test.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), test


@pytest.mark.parametrize(("page", "many"), [("guarantees", 40), ("mistakes", 20)])
def test_pages_name_tests_that_exist(page, many):
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / f"docs/{page}.md").read_text())
    assert len(named) > many
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


def promises_and_tests(page: str) -> tuple[list[str], list[str]]:
    """Names of the promises in the first table of docs/guarantees.md, and of those for which its last one has a test."""
    promises = re.search(r"^\| \| promise \| limits \|\n(?:\|.*\n)+", page, re.MULTILINE)[0]
    tests = re.search(r"^\| promise \| tests \|\n(?:\|.*\n)+", page, re.MULTILINE)[0]
    named = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \|$", promises, re.MULTILINE)
    return named, re.findall(r"^\| ([^|]+) \| `test_\w+\.py::", tests, re.MULTILINE)


def test_every_promise_has_tests():
    promises, tested = promises_and_tests((ROOT / "docs/guarantees.md").read_text())
    assert len(promises) == len(set(promises)) > 40
    assert promises == tested


@pytest.mark.parametrize(
    ("row", "now"), [(r"^\| stable split \| `test_.*\n", ""), (r"^\| stable split \| `test_.*", "| stable split | |")]
)
def test_control_a_promise_without_tests_is_noticed(row, now):
    page, changed = re.subn(row, now, (ROOT / "docs/guarantees.md").read_text(), flags=re.MULTILINE)
    promises, tested = promises_and_tests(page)
    assert changed == 1
    assert set(promises) - set(tested) == {"stable split"}
