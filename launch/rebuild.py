"""The net of a run folder, and images as it takes them: what `oneloop predict`, `evaluate`, `export` and `explain` share.

A run folder holds weights, not code. The net is made by the recipe itself: its `main` is called with the recorded options until
it calls `train`, which is not called. Then the weights are checked against the recorded sha256 and copied in, name by name.
"""

import argparse
import contextlib
import importlib.util
import inspect
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import Refused, first_line
from .runs import Record, read, read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .cli import Run
    from .data import Feed, Images

# torch is imported where it is needed: the help of a command does not wait for it.

WEIGHTS = {"last": "model.safetensors", "best": "best.safetensors"}


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
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="the recipe's file, if it is no longer where it was")


def at(path: Path) -> tuple[Record, str]:
    """The run that `path` names, and the stage if it is the folder of one. Raises Refused (2, 4)."""
    if not path.is_dir():
        raise Refused(f"no run at {path}; `oneloop runs` lists what is there", 2)
    inside = path.resolve()
    if not (inside / "config.json").exists() and (inside / "metrics.jsonl").exists():
        for above in inside.parents:
            if (above / "config.json").is_file():
                return read(above), inside.relative_to(above).as_posix()
    return read(path), ""


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

    `recipe` is the recipe's file where it has moved. `data` is given to the recipe in place of the recorded --data; without it
    nothing is fetched: drawn images stand in for those of the hub. `precision` is that of the run's accelerator.

    Raises Refused: no such stage, no recipe (2), no weights yet, other weights, options or classes than the recorded ones (4).
    """
    from dataclasses import replace

    from . import checkpoint
    from .cli import Run
    from .weights import load as load_tensors

    folder = record.folder / stage
    path = folder / WEIGHTS[weights]
    if not path.is_file():
        raise _without_weights(record, stage)
    module = load(recipe or _recipe_file(record))
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in record.options.items()}
    recorded = options.pop("data")
    run = Run(
        data=data or (recorded if recorded != "hub" and Path(recorded).exists() else "synthetic"),
        out=record.folder,
        **{name: options.pop(name) for name in ("limit", "seed", "shards", "compile")},
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

    net, images, given = reach(module, run, options, stage, earlier, precision)
    about = _about(path)
    if list(images.classes) != about["classes"]:
        theirs, ours = ", ".join(images.classes), ", ".join(about["classes"])
        raise Refused(f"the classes of {images.source} are {theirs}; {record.folder} was trained on {ours}", 4)
    checkpoint.load_weights(net, load_tensors(path))
    net = net.to("cpu").eval().requires_grad_(False)
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
    """What a file of weights says of its net. Raises Refused (4) if it does not."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["oneloop"])
        return {name: about[name] for name in ("recipe", "net", "classes", "mean", "std", "shape", "size")}
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise Refused(f"{path} does not say what it holds ({first_line(error)}): it is damaged, or not of `train`", 4) from error


# ------------------------------------------------------------------------------------------------------------------- recipe


def _recipe_file(record: Record) -> Path:
    """The file of the recorded recipe, where it was or under this folder. Raises Refused (2)."""
    name = f"{record.options['recipe']}.py"
    was = Path(record.config.get("recipe_file", ""))
    # A run folder may come from anyone, and its recipe is run: it cannot bring its own.
    if was.name == name and was.is_file() and not was.resolve().is_relative_to(record.folder.resolve()):
        return was
    if (here := Path("recipes") / name).is_file():
        return here
    raise Refused(f"the recipe of {record.folder}, {name}, is neither at {was} nor at {here}; --recipe FILE says where it is", 2)


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
    from .cli import _accelerator
    from .loop import train

    def reached(_run, model, images, *_args, **given):
        if stage in (None, given.get("stage", "")):
            raise _Reached(model, images, given)
        return earlier(given.get("stage", ""))

    names = [name for name, value in vars(recipe).items() if value is train]
    if not names:
        raise Refused(f"{recipe.__file__} does not import `train`: what it trains cannot be seen without running it", 2)
    for name in names:
        setattr(recipe, name, reached)
    run.accelerator = _accelerator(precision)  # a recipe may ask for its device
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
