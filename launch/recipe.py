"""A recipe's file as a module, and what it trains: its `main` called until it calls `train`.

A run folder may come from anyone, and a recipe is code. So a run folder never says which file is executed: only a recipe of the
package, one in the folder `recipes` where the user works, or one that the user names is.
"""

import contextlib
import filecmp
import importlib.util
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import Refused, first_line
from .old_names import recipe_of_today
from .report.runs import Record

if TYPE_CHECKING:
    from torch import nn

    from .data.images import Images
    from .run import Run

INSTALLED = Path(__file__).resolve().parent / "recipes"  # where a wheel has the package's own
RECIPES = INSTALLED if INSTALLED.is_dir() else Path(__file__).resolve().parents[1] / "recipes"  # else they are in the checkout


def names() -> list[str]:
    """The names of the package's own recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.py"))


def located(word: str) -> Path:
    """The file that `word` means: a path, or the name of one of the package's own recipes."""
    name = recipe_of_today(word)
    if name not in names():
        return Path(word)
    path = RECIPES / f"{name}.py"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path  # as one would write it in a checkout


def load(path: Path) -> ModuleType:
    """The recipe in the file `path` as a module; only its imports and definitions are executed. Raises Refused (2)."""
    check(path)
    sys.path.insert(0, str(path.resolve().parent))  # as `python PATH` does: a recipe may import the files beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # as for every name in .py
    assert spec.loader is not None
    recipe = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(recipe)
    except Exception as error:
        raise Refused(f"{path} is not a recipe: importing it fails ({first_line(error)})", 2) from error
    if not hasattr(recipe, "main"):
        raise Refused(f"{path} is not a recipe: it has no main(run, …)", 2)
    return recipe


def check(path: Path) -> None:
    """Raise Refused (2) if `path` cannot be a recipe's file."""
    if path.is_file():
        why = "" if path.suffix == ".py" else "its name does not end in .py"
    else:
        why = f"no such file, and the package's own are {', '.join(names())}"
    if why:
        raise Refused(f"{path} is not a recipe: {why}", 2)


# ------------------------------------------------------------------------------------------------------- what a recipe trains


class _Reached(Exception):
    """`train` was called: the recipe has made its net."""


def run_until_train(
    recipe: ModuleType,
    run: "Run",
    options: dict[str, Any],
    stage: str = "",
    earlier: Callable[[str], dict] | None = None,
    precision: str | None = None,
) -> tuple["nn.Module", "Images", dict[str, Any]]:
    """The net, the images and the options that the recipe's `main(run, **options)` passes to `train`, which is not called.

    Of several calls it is that of `stage`, and those before it return what `earlier` says of their stages. Without `earlier` it
    is the first call. No run folder is made or written to, and what the recipe prints is not shown. Raises Refused.
    """
    from .processes import accelerator
    from .training.loop import train

    def reached(_run: "Run", model: "nn.Module", images: "Images", optimizer: Any, *_args: Any, **given: Any) -> dict:
        if earlier is None or stage == given.get("stage", ""):
            raise _Reached(model, images, given | {"optimizer": optimizer})
        return earlier(given.get("stage", ""))

    names = [name for name, value in vars(recipe).items() if value is train]
    if not names:
        raise Refused(f"{recipe.__file__} does not import `train`: only running it would show what it trains", 2)
    for name in names:
        setattr(recipe, name, reached)
    run.accelerator = accelerator(precision)  # a recipe may ask for its device
    run.opened, run.trains = True, False  # the run folder is neither locked nor written
    run.finish = lambda summary, **facts: None  # type: ignore[method-assign]  # of this run alone
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            recipe.main(run, **options)
    except _Reached as found:
        return found.args
    raise Refused(f"{recipe.__file__} ended without calling `train`{f' for the stage {stage}' if stage else ''}", 2)


def flag_names(words: Sequence[str]) -> set[str]:
    """The names of the flags among the words of a command line, with dashes."""
    return {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}


def build(recipe: ModuleType, flags: Sequence[str], prog: str) -> tuple["nn.Module", "Images", dict[str, Any]]:
    """The net, the images and the rest that the recipe, with its own flags, passes to its first `train`, by name.

    --data is synthetic by default.
    No run folder is made or read. `prog` is the command's name in usage errors (exit 2). Raises Refused.
    """
    from .command_line import parse

    if "--data" not in flag_names(flags):
        flags = ["--data", "synthetic", *flags]
    run, options = parse(recipe.main, flags, prog)
    run.configure(recipe.__name__, options, "no")
    return run_until_train(recipe, run, options)


# ----------------------------------------------------------------------------------------------------- the recipe of a run


def find(record: Record) -> Path:
    """The file of the recorded recipe, in the folder `recipes` of the package or of the current directory. Raises Refused (2).

    The recorded name only chooses among the files in these folders. The file that a run folder records is compared with them and
    never executed unless it is one of them; only the user can name another.
    """
    name, inside = record.options["recipe"], record.folder.resolve()
    # If the user works inside the run folder, its `recipes` are those of whoever made that folder.
    mine = [file for file in Path("recipes").absolute().glob("*.py") if not _within(file, inside)]
    known = [file for file in (*RECIPES.glob("*.py"), *mine) if file.stem == name]
    was = _recorded_file(record)
    if was is None and known:
        return known[0]
    if same := [file for file in known if was and filecmp.cmp(file, was, shallow=False)]:
        return same[0]
    places = f"neither in {RECIPES} nor in recipes/"
    if was is None:
        raise Refused(f"the recipe of {record.folder}, {name}.py, is {places}; --recipe FILE says where it is", 2)
    raise Refused(
        f"{record.folder} was trained by {was}, which is {places}. A run folder may come from anyone, and a recipe is executed: "
        f"if you trust that file, add --recipe {shlex.quote(str(was))}",
        2,
    )


def _recorded_file(record: Record) -> Path | None:
    """The file that trained this run, if it still exists outside the run folder."""
    try:
        path = Path(record.config["recipe_file"])
        there = path.name == f"{record.options['recipe']}.py" and path.is_file() and os.access(path, os.R_OK)
        return path if there and not _within(path, record.folder.resolve()) else None
    except (KeyError, TypeError, ValueError, OSError):  # the entry may be anything
        return None


def _within(file: Path, folder: Path) -> bool:
    """Return whether `file` is in `folder`, by its name or through links."""
    return any(path.is_relative_to(folder) for path in (file.absolute(), file.resolve()))
