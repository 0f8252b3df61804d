"""A run's own code: a copy in the run folder that is compared and never executed.

    code/1/cifar2.py, code/1/nets/cifar2.py    the recipe and every module that it imports, directly or indirectly
    code/2/…                                   the same after an edit accepted with --accept-edit

Not copied: `launch`, the standard library and installed packages; config.json records their versions. Changes to comments,
docstrings and formatting do not count as edits.
"""

import ast
import contextlib
import hashlib
import importlib.util
import sys
import tokenize
from pathlib import Path
from types import ModuleType

from .errors import Refused, first_line
from .files import write_atomically

FOLDER = "code"
NOT_OWN = ("launch", "torch", "torchvision", "accelerate", "datasets", "wandb", "timm")  # config.json has their versions


def sources(recipe: ModuleType) -> dict[str, str]:
    """The source of the recipe and of each of the user's modules that it imports, by name: "cifar2.py", "nets/cifar2.py".

    Raises Refused (4) for a file that cannot be read as Python.
    """
    assert recipe.__file__  # a recipe is a file
    found: dict[str, str] = {}
    waiting = [(Path(recipe.__file__).stem, Path(recipe.__file__))]
    while waiting:
        module, path = waiting.pop()
        name = f"{module.replace('.', '/')}.py" if path.name != "__init__.py" else f"{module.replace('.', '/')}/__init__.py"
        if name in found:
            continue
        try:
            with tokenize.open(path) as file:  # in the encoding that the file declares
                found[name] = file.read()
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            waiting += _imported(ast.parse(found[name]), package)
        except (OSError, SyntaxError, ValueError) as error:
            raise Refused(f"cannot read {path} as Python: {first_line(error)}", 4) from error
    return dict(sorted(found.items()))


def _imported(tree: ast.Module, package: str) -> list[tuple[str, Path]]:
    """The user's modules that a file of `package` imports, also inside functions, and the packages that contain them."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = package.split(".") if package else []
            above = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    return [(name, path) for name in sorted(parts) if (path := _file(name))]


def _file(name: str) -> Path | None:
    """The source file of one of the user's modules; None for launch, the standard library, installed packages and non-modules."""
    top, parent = name.partition(".")[0], name.rpartition(".")[0]
    if not name or top in sys.stdlib_module_names or top in NOT_OWN:
        return None
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None and (not parent or parent in sys.modules):  # otherwise find_spec would import the parent
        with contextlib.suppress(ImportError, ValueError, AttributeError):
            path = getattr(importlib.util.find_spec(name), "origin", None)
    if path is None or not path.endswith(".py"):
        return None
    installed = {"site-packages", "dist-packages"} & {*Path(path).parts}
    return Path(path) if top == "nets" or not installed else None


def digests(texts: dict[str, str]) -> dict[str, str]:
    """The sha256 of each text, as recorded in config.json."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def keep(folder: Path, number: int, texts: dict[str, str]) -> None:
    """Write copy `number` (from 1) into the run folder. Raises OSError."""
    for name, text in texts.items():
        path = folder / FOLDER / str(number) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())


def edited(folder: Path, recorded: list[dict[str, str]], texts: dict[str, str]) -> list[str]:
    """The names of the files that differ from what the run in `folder` last used, including new and missing files.

    `recorded` holds the digests of each copy in turn. Without any, nothing counts as edited.
    """
    if not recorded or not texts:
        return []
    last, now = recorded[-1], digests(texts)
    different = [name for name in sorted(last.keys() | now.keys()) if last.get(name) != now.get(name)]
    return [name for name in different if not _same(folder / FOLDER / str(len(recorded)) / name, last.get(name), texts.get(name))]


def _same(copy: Path, digest: str | None, text: str | None) -> bool:
    """Return whether the copy is the recorded one and means the same to Python as the text."""
    if digest is None or text is None:
        return False
    try:
        kept = copy.read_bytes()
        return hashlib.sha256(kept).hexdigest() == digest and _meaning(kept.decode()) == _meaning(text)
    except (OSError, ValueError, SyntaxError):
        return False


def _meaning(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            del body[0]  # a docstring
    return ast.dump(tree)
