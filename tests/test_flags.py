"""Every flag of every recipe, with its type and default, as tests/flags.txt lists them: a new or changed flag is a decision.

To accept a change:  python tests/test_flags.py > tests/flags.txt
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable

import pytest
from conftest import ROOT

from launch import Run
from launch.recipe import load

LIST = ROOT / "tests/flags.txt"
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


def line(name: str, kind: object, default: object) -> str:
    if typing.get_origin(kind) is typing.Annotated:  # with its help
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        kind = "|".join(typing.get_args(kind))
    elif typing.get_origin(kind) is tuple:
        each = typing.get_args(kind)[0]
        kind = f"several of {'|'.join(typing.get_args(each)) or each.__name__}"
    elif typing.get_origin(kind) is types.UnionType:
        kind = " or ".join(part.__name__ for part in typing.get_args(kind))
    return f"    --{name.replace('_', '-')}  {kind.__name__ if isinstance(kind, type) else kind}  {default!r}"


def flags_of(main: Callable) -> list[str]:
    """The recipe's own flags, a line for each."""
    lines = []
    for parameter in inspect.signature(main).parameters.values():
        if dataclasses.is_dataclass(parameter.default):
            lines += [line(field.name, field.type, field.default) for field in dataclasses.fields(parameter.default)]
        elif parameter.name != "run":
            lines.append(line(parameter.name, parameter.annotation, parameter.default))
    return lines


def all_flags() -> list[str]:
    """The lines of flags.txt."""
    lines = ["every recipe"]
    lines += [line(field.name, field.type, field.default) for field in dataclasses.fields(Run) if field.init]
    for recipe in RECIPES:
        module = load(ROOT / f"recipes/{recipe}.py")
        lines += [recipe, *flags_of(module.main)]
        if hasattr(module, "own_images"):
            lines += [f"{recipe} --folds", *flags_of(module.own_images)]
    return lines


def test_flags_are_those_of_the_list():
    recorded, found = LIST.read_text().splitlines(), all_flags()
    changes = "\n".join(difflib.unified_diff(recorded, found, "tests/flags.txt", "the code", lineterm="", n=1))
    if changes:
        pytest.fail(f"flags changed; to accept this: python tests/test_flags.py > tests/flags.txt\n{changes}", pytrace=False)


def test_control_a_new_flag_and_another_default_are_seen():
    def before(run: Run, epochs: int = 10): ...

    def after(run: Run, epochs: int = 11, n_blocks: int = 3): ...

    assert flags_of(before) == ["    --epochs  int  10"]
    assert flags_of(after) == ["    --epochs  int  11", "    --n-blocks  int  3"]


if __name__ == "__main__":
    print("\n".join(all_flags()))
