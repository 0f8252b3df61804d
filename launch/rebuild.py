"""The net of a run folder, and images as it takes them: what `oneloop predict`, `evaluate`, `export` and `explain` share.

A run folder holds weights, not code, and may come from anyone. The net is made by the recipe itself: its `main` is called with
the recorded options until it calls `train`, which is not called. Only a recipe of the package, of the folder `recipes` where the
user works, or one that the user names is run. Then the weights are checked against the recorded sha256 and copied in, name by
name. What a folder says is believed only as far as it fits the net and the images that the recipe makes.
"""

import argparse
import contextlib
import filecmp
import fnmatch
import importlib.util
import inspect
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import Refused, first_line, printable
from .record.runs import Record, home, read, read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .data import Feed, Images
    from .run import Run

# torch is imported where it is needed: the help of a command does not wait for it.

WEIGHTS = {"last": "model.safetensors", "best": "best.safetensors"}
RECIPES = Path(__file__).resolve().parents[1] / "recipes"  # the package's own
OWN_FILES = (  # of a run or a stage, beside its pictures
    *WEIGHTS.values(), "config.json", "metrics.jsonl", "result.json", "stopped.json", "predictions.json", "report.html", "lock",
    "lock.pid",
)  # fmt: skip
MOST_PIXELS = 4096  # of an image's height and width: what claims more is damaged
MOST_CLASSES = 100_000
MOST_METADATA = 100_000_000  # bytes, safetensors' own limit


class Trained(NamedTuple):
    """A trained net and what its user needs to know."""

    net: "nn.Module"  # in eval mode, on the CPU
    images: "Images"  # what the recipe gave to `train`, normalised as the run was, whatever --data was put in its place
    shape: tuple[int, int, int]  # (C, H, W) of an image, before it is resized to `images.size`
    about: dict  # as in the file of the weights: recipe, net, classes, mean, std, shape, size
    run: "Run"  # not started; its accelerator knows the device
    measured_in: str  # the mode, "eval" or "train", of the evaluations that the training logged


def add_run(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a trained net: RUN, --weights, --recipe."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, or that of a stage in it")
    parser.add_argument("--weights", choices=WEIGHTS, default="last", help="those of the end, or of the best test accuracy")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="the recipe's file, if it is not in recipes/")


def at(path: Path) -> tuple[Record, str]:
    """The run that `path` names, and the stage if it is the folder of one. Raises Refused (2, 4)."""
    if not path.is_dir():
        raise Refused(f"no run at {path}; `oneloop runs` lists what is there", 2)
    inside = path.resolve()
    if not (inside / "config.json").exists() and (inside / "metrics.jsonl").exists():
        for above in inside.parents:
            if (above / "config.json").is_file():
                return _sound(read(above)), inside.relative_to(above).as_posix()
    return _sound(read(path)), ""


def _sound(record: Record) -> Record:
    """The record, if it says what `rebuild` and its callers ask it. Raises Refused (4)."""
    kinds = {"recipe": str, "data": str, "precision": str, "limit": int, "seed": int, "shards": int, "compile": bool}
    try:
        wrong = [name for name, kind in kinds.items() if not isinstance(record.options[name], kind)]
        wrong += [name for name in ("fingerprint", "source") if not isinstance(record.config["data"][name], str)]
    except (KeyError, TypeError) as error:
        wrong = [first_line(error)]
    if wrong:
        raise Refused(f"{record.folder / 'config.json'} is damaged: {', '.join(wrong)}", 4)
    return record


def writable(out: Path, made: Sequence[str]) -> None:
    """Raises Refused (2) if the file `out` is, or would pass for, one that a run keeps for itself.

    `made` are glob patterns of the names that the caller makes, and may replace in a run's folder.
    """
    out = out.parent.resolve() / out.name
    try:
        place, recorded = home(out.parent)
    except (Refused, OSError):
        return
    if not isinstance(recorded, dict) or "format" not in recorded:
        return
    name, within = out.name.casefold(), out.relative_to(place).parts
    own = name in OWN_FILES or {"checkpoints", "wandb"} & {*within}
    if own or (out.exists() and not any(fnmatch.fnmatch(name, pattern) for pattern in made)):
        raise Refused(f"{out} is, or would pass for, a file of the run {place} itself; --out names another", 2)


def rebuild(
    record: Record,
    stage: str = "",
    *,
    weights: str = "last",
    recipe: Path | None = None,
    data: str = "",
    precision: str = "no",
) -> Trained:
    """The net of a run, or of one of its `stage`s, with its `weights` "last" or "best".

    `recipe` is the recipe's file where `_recipe_file` finds none. `data` is given to the recipe in place of the recorded --data;
    without it nothing is fetched: drawn images stand in for those of the hub. `precision` is that of the run's accelerator.

    Raises Refused: no such stage, no recipe (2), no weights yet, other weights, options or classes than the recorded ones, or
    what no net can take (4).
    """
    from dataclasses import replace

    from . import checkpoint, code
    from .describe import shape_walk
    from .run import Run
    from .weights import load as load_tensors

    folder = record.folder / stage
    path = folder / WEIGHTS[weights]
    if not path.is_file():
        raise _without_weights(record, stage)
    module = load(recipe or _recipe_file(record))
    if names := code.edited(record.folder, record.config.get("code", []), code.sources(module)):
        changed = f"{', '.join(names)} changed since {record.folder} was trained: the net may compute something else"
        print(printable(changed), file=sys.stderr)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in record.options.items()}
    recorded = options.pop("data")
    run = Run(
        data=data or (recorded if recorded != "hub" and os.path.exists(recorded) else "synthetic"),
        out=record.folder,
        **{name: options.pop(name) for name in ("limit", "seed", "shards", "compile")},
        deterministic=options.pop("deterministic", False),
    )
    run.recipe, run.config, run.folder = options.pop("recipe"), record.options, record.folder
    del options["precision"]  # accelerate's, not the recipe's
    try:
        inspect.signature(module.main).bind(run, **options)
    except TypeError as error:
        raise Refused(
            f"{module.__file__} no longer takes the options of {record.folder}: {error}; --recipe names the file as it was", 4
        ) from error

    def earlier(name: str) -> dict:
        """What `train` returned for a stage before the wanted one."""
        if result := read_json(record.folder / name / "result.json"):
            return result
        raise Refused(f"{record.folder / name} comes before {folder} and is not finished; the run's command goes on with it", 4)

    try:
        net, images, given = reach(module, run, options, stage, earlier, precision)
    except Refused:
        raise
    except Exception as error:  # of any kind: the options may be anything
        why = f"{type(error).__name__}: {first_line(error)}"
        raise Refused(f"{module.__file__} fails with the options of {record.folder} ({why})", 4) from error
    about = _about(path)
    if list(images.classes) != about["classes"]:
        theirs, ours = _some(images.classes), _some(about["classes"])
        raise Refused(f"the classes of {images.source} are {theirs}; {record.folder} was trained on {ours}", 4)
    checkpoint.load_weights(net, load_tensors(path))
    net = net.to("cpu").eval().requires_grad_(False)
    shape_walk(net, (about["shape"][0], *([about["size"]] * 2 if about["size"] else about["shape"][1:])))
    images = replace(images, mean=tuple(about["mean"]), std=tuple(about["std"]), size=about["size"])
    return Trained(net, images, tuple(about["shape"]), about, run, given.get("measured_in", "eval"))


def _without_weights(record: Record, stage: str) -> Refused:
    """Why there are none, and the way out."""
    folder = record.folder / stage
    if (folder / WEIGHTS["last"]).is_file():
        return Refused(f"{folder} has no weights of a best epoch; --weights last", 4)
    stages = sorted(path.parent for path in folder.rglob(WEIGHTS["last"]) if (path.parent / "metrics.jsonl").exists())
    if stages:
        some = ", ".join(map(str, stages[:4])) + (f" and {len(stages) - 4} more" if len(stages) > 4 else "")
        return Refused(f"{folder} has {len(stages)} nets, each in the folder of its stage; name one: {some}", 4)
    so_far = " or take --weights best, the best so far" if (folder / WEIGHTS["best"]).is_file() else ""
    if record.state == "running":
        return Refused(f"{folder} is still being trained: wait for its end{so_far}", 4)
    if record.state == "failed":
        return Refused(f"{folder} has not finished: {record.stopped['why']}", 4)
    if record.state == "interrupted":
        return Refused(f"{folder} was interrupted: python {record.config['command']} goes on with it{so_far and ',' + so_far}", 4)
    return Refused(f"{folder} is finished and has no {WEIGHTS['last']}: it was removed, or the recipe saves no weights", 4)


def _about(path: Path) -> dict:
    """What a file of weights says of its net. Raises Refused (4) if it does not, or if it is nothing that a net could take."""
    try:
        with open(path, "rb") as file:  # not safetensors' own function: it wants names in UTF-8
            length = int.from_bytes(file.read(8), "little")
            about = json.loads(json.loads(file.read(min(length, MOST_METADATA)))["__metadata__"]["oneloop"])
        about = {name: about[name] for name in ("recipe", "net", "classes", "mean", "std", "shape", "size")}
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{path} does not say what it holds ({first_line(error)}): it is damaged, or not of `train`", 4) from error

    def whole(value: Any, least: int, most: int) -> bool:
        return type(value) is int and least <= value <= most

    def listed(name: str, right: Callable[[Any], bool]) -> bool:
        return isinstance(about[name], list) and all(map(right, about[name]))

    channels = about["shape"][0] if isinstance(about["shape"], list) and len(about["shape"]) == 3 else None
    fits = {
        **{name: isinstance(about[name], str) for name in ("recipe", "net")},
        "classes": listed("classes", lambda name: isinstance(name, str)) and 1 <= len(about["classes"]) <= MOST_CLASSES,
        "shape": channels in (1, 3) and listed("shape", lambda size: whole(size, 1, MOST_PIXELS)),
        "size": whole(about["size"], 0, MOST_PIXELS),
        "mean": listed("mean", _finite) and len(about["mean"]) == channels,
        "std": listed("std", lambda value: _finite(value) and value > 0) and len(about["std"]) == channels,
    }
    if wrong := [f"{name} {_cut(about[name])}" for name, fit in fits.items() if not fit]:
        raise Refused(f"{path} is damaged: what it says of its images cannot be ({', '.join(wrong)})", 4)
    return about


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _cut(value: Any, most: int = 40) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


# ------------------------------------------------------------------------------------------------------------------- recipe


def _recipe_file(record: Record) -> Path:
    """The file of the recorded recipe, in the folder `recipes` of the package or of the current directory. Raises Refused (2).

    A run folder may come from anyone, and a recipe is run. So a name only chooses among the files in these folders, and the
    file that a folder records is looked at, never run, unless it is one of them: only the user can name another.
    """
    name, inside = record.options["recipe"], record.folder.resolve()
    # Who works inside of the run folder has no recipes there but those of the folder's maker.
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
        f"{record.folder} was trained by {was}, which is {places}. A run folder may come from anyone and its recipe is run: "
        f"if you trust that file, --recipe {shlex.quote(str(was))}",
        2,
    )


def _recorded_file(record: Record) -> Path | None:
    """The file that trained this run, if it is still there, and outside of the run folder."""
    try:
        path = Path(record.config["recipe_file"])
        there = path.name == f"{record.options['recipe']}.py" and path.is_file() and os.access(path, os.R_OK)
        return path if there and not _within(path, record.folder.resolve()) else None
    except (KeyError, TypeError, ValueError, OSError):  # anything may stand there
        return None


def _within(file: Path, folder: Path) -> bool:
    """Whether `file` is in `folder`, be it by its name or by where its links lead."""
    return any(path.is_relative_to(folder) for path in (file.absolute(), file.resolve()))


def load(path: Path) -> ModuleType:
    """The recipe in the file `path` as a module; nothing of it is run but its imports and definitions. Raises Refused (2)."""
    if not path.is_file() or path.suffix != ".py":
        raise Refused(f"{path} is no recipe: {'its name does not end in .py' if path.is_file() else 'no such file'}", 2)
    sys.path.insert(0, str(path.resolve().parent))  # as `python PATH` does: a recipe may import what lies beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    recipe = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(recipe)
    except Exception as error:
        raise Refused(f"{path} is no recipe: it cannot be imported ({first_line(error)})", 2) from error
    if not hasattr(recipe, "main"):
        raise Refused(f"{path} is no recipe: it has no main(run, …)", 2)
    return recipe


class _Reached(Exception):
    """`train` was called: the recipe has made its net."""


def reach(
    recipe: ModuleType,
    run: "Run",
    options: dict[str, Any],
    stage: str | None = None,
    earlier: Callable[[str], dict] | None = None,
    precision: str | None = None,
) -> tuple["nn.Module", "Images", dict[str, Any]]:
    """The net, the images and the options that the recipe's `main(run, **options)` gives to `train`, which is not called.

    Of several calls it is that of `stage` (None: the first); those before it return what `earlier` says of theirs. No run folder
    is made or written to, and what the recipe prints on its way is not shown. Raises Refused.
    """
    from .loop import train
    from .processes import accelerator

    def reached(_run, model, images, *_args, **given):
        if stage in (None, given.get("stage", "")):
            raise _Reached(model, images, given)
        return earlier(given.get("stage", ""))

    names = [name for name, value in vars(recipe).items() if value is train]
    if not names:
        raise Refused(f"{recipe.__file__} does not import `train`: what it trains cannot be seen without running it", 2)
    for name in names:
        setattr(recipe, name, reached)
    run.accelerator = accelerator(precision)  # a recipe may ask for its device
    run.opened, run.finish = True, lambda result: None  # its folder is neither taken nor written
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            recipe.main(run, **options)
    except _Reached as found:
        return found.args
    raise Refused(f"{recipe.__file__} ended without calling `train`{f' for the stage {stage}' if stage else ''}", 2)


# ------------------------------------------------------------------------------------------------------------------- images


def feed(trained: Trained, pixels: "Tensor", device: Any = "cpu") -> "Feed":
    """`pixels` uint8 (N, C, H, W) on the way to the net, as the run's own images were."""
    import torch

    from .data import Feed, Split

    return Feed(Split(pixels, torch.zeros(len(pixels), dtype=torch.int64)), trained.images, torch.device(device))
