"""The code that a run came from: a copy in its folder, to compare with and never to run.

    code/1/cifar2.py, code/1/nets/cifar2.py    the recipe, and every module that it imports, directly or not
    code/2/…                                   the same after an edit that --accept-edit took on

Not copied: `launch`, the standard library and installed packages, whose versions config.json records. Comments, docstrings and
formatting are no edit.
"""

import ast
import hashlib
import sys
from pathlib import Path
from types import ModuleType

from .checkpoint import write_atomically

FOLDER = "code"


def sources(recipe: ModuleType) -> dict[str, str]:
    """The text of the recipe's file and of each own module that it imports, by name: "cifar2.py", "nets/cifar2.py"."""
    found: dict[str, str] = {}
    waiting = [(f"{Path(recipe.__file__).stem}.py", recipe)]
    while waiting:
        name, module = waiting.pop()
        if name not in found:
            found[name] = Path(module.__file__).read_text(encoding="utf-8")
            waiting += [(f"{other.__name__.replace('.', '/')}.py", other) for other in _imported(found[name], module)]
    return dict(sorted(found.items()))


def _imported(text: str, module: ModuleType) -> list[ModuleType]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = (module.__package__ or "").split(".")
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules and _own(sys.modules[name])]


def _own(module: ModuleType) -> bool:
    top = module.__name__.partition(".")[0]
    if top in sys.stdlib_module_names or top == "launch" or not getattr(module, "__file__", None):
        return False
    return top == "nets" or not {"site-packages", "dist-packages"} & {*Path(module.__file__).parts}


def digests(texts: dict[str, str]) -> dict[str, str]:
    """The sha256 of each text, as config.json keeps them."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def keep(folder: Path, number: int, texts: dict[str, str]) -> None:
    """Write the copy `number` (from 1) into the run folder. Raises OSError."""
    for name, text in texts.items():
        path = folder / FOLDER / str(number) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())


def edited(folder: Path, recorded: list[dict[str, str]], texts: dict[str, str]) -> list[str]:
    """The names of the files that are not what the run in `folder` last ran, new and missing ones among them.

    `recorded` are the digests of each copy in turn; without any nothing is known, and nothing edited.
    """
    if not recorded or not texts:
        return []
    last, now = recorded[-1], digests(texts)
    different = [name for name in sorted(last.keys() | now.keys()) if last.get(name) != now.get(name)]
    return [name for name in different if not _same(folder / FOLDER / str(len(recorded)) / name, last.get(name), texts.get(name))]


def _same(copy: Path, digest: str | None, text: str | None) -> bool:
    """Whether the copy, if it is the recorded one, and the text say the same to Python."""
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
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            del body[0]  # a docstring
    return ast.dump(tree)
