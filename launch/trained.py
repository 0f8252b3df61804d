"""The trained net of a run folder, and images as it takes them: for `oneloop predict`, `evaluate`, `export` and `explain`.

A run folder holds weights, not code, and may come from anyone. The recipe itself makes the net: its `main` runs with the recorded
options until it calls `train` (launch/recipe.py, which also says whose recipe). Then the weights are checked against the recorded
sha256 and copied in by name. What a folder records is used only if it fits the net and the images that the recipe makes.
"""

import contextlib
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import Refused, first_line, printable
from .old_names import options_of_today
from .option_groups import together
from .recipe import find as find_recipe
from .recipe import load as load_recipe
from .recipe import run_until_train
from .report.runs import Record, command, model_selection_split, read, read_json, read_metrics, read_result, recorded_white, used

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .data.feed import MemoryFeed
    from .data.images import Images
    from .data.resize import ResizeRule
    from .data.task import Task
    from .run import Run

# torch is imported where it is needed: a command's help must not wait for it.

WEIGHTS = {"last": "model.safetensors", "best": "best.safetensors", "ema": "ema.safetensors"}
WORDS = {"last": "last weights", "best": "best weights", "ema": "average of the weights"}  # for people
CHOSEN = "chosen"  # those of them that are used unless the user names others
MOST_PIXELS = 4096  # of an image's height and width: a file that says more is damaged
MOST_CLASSES = 100_000
MOST_METADATA = 100_000_000  # bytes, safetensors' own limit


class Trained(NamedTuple):
    """A trained net and what is needed to use it."""

    net: "nn.Module"  # in eval mode, on the CPU
    images: "Images"  # as the recipe passes them to `train`, with the run's normalisation, also if `data` replaces them
    shape: tuple[int, int, int]  # (C, H, W) of an image, before it is resized to `images.size`
    about: dict  # as in the file of the weights: recipe, net, classes, mean, std, shape, size
    run: "Run"  # not started; its accelerator has the device
    rule: "ResizeRule | None"  # of nets for images of any size
    measured_in: str  # the mode, "eval" or "train", of the evaluations that the training logged
    weights: str  # which: "last", "best" or "ema"

    @property
    def task(self) -> "Task":
        """What the net was trained for, also where other images stand in for its own."""
        from .data.task import ONE, SEVERAL

        return ONE if self.about["threshold"] is None else SEVERAL


def find_run(path: Path) -> tuple[Record, str]:
    """The run at `path`, and the stage if `path` is a stage's folder. Raises Refused (2, 4)."""
    if not path.is_dir():
        raise Refused(f"no run at {path}; `oneloop runs` lists the runs", 2)
    inside = path.resolve()
    if not (inside / "config.json").exists() and (inside / "metrics.jsonl").exists():
        for above in inside.parents:
            if (above / "config.json").is_file():
                return _sound(read(above)), inside.relative_to(above).as_posix()
    return _sound(read(path)), ""


def _sound(record: Record) -> Record:
    """The record, if it has the entries that `rebuild` and its callers read. Raises Refused (4)."""
    kinds = {"recipe": str, "data": str, "precision": str, "limit": int, "seed": int, "micro_batches": int, "compile": bool}
    try:
        wrong = [name for name, kind in kinds.items() if not isinstance(record.options[name], kind)]
        wrong += [name for name in ("fingerprint", "source") if not isinstance(record.config["data"][name], str)]
        if not wrong and record.options["precision"] not in ("no", "fp16", "bf16"):
            wrong = ["precision"]
    except (KeyError, TypeError) as error:
        wrong = [first_line(error)]
    if wrong:
        raise Refused(f"{record.folder / 'config.json'} is damaged: {', '.join(wrong)}", 4)
    return record


def rebuild(
    record: Record,
    stage: str = "",
    *,
    weights: str = CHOSEN,
    recipe: Path | None = None,
    data: str = "",
    precision: str = "no",
) -> Trained:
    """The net of a run, or of one of its `stage`s, with its `weights` "last", "best", "ema", or those `chosen` by its training.

    `recipe` is the recipe's file if `recipe.find` would not find it. `data` replaces the recorded --data; without it nothing is
    downloaded: synthetic images stand in for the hub's. `precision` is for the run's accelerator.

    Raises Refused: no such stage, no recipe (2); no weights yet, or weights, options, classes or images that do not fit (4).
    """
    from dataclasses import replace

    from . import source_copy
    from .data.images import prepared
    from .describe import shape_walk
    from .report import calibration
    from .sources.options import as_recorded
    from .weights import load, probe
    from .weights.tensors import load_weights

    folder = record.folder / stage
    path, weights = weights_file(record, stage, weights)
    module = load_recipe(recipe or find_recipe(record))
    if names := source_copy.edited(record.folder, record.config.get("code", []), source_copy.sources(module)):
        changed = f"{', '.join(names)} changed since {record.folder} was trained: the net may compute something else"
        print(printable(changed), file=sys.stderr)
    run, options = _recorded_run(record, data)
    with contextlib.suppress(Refused):  # raised again below, if nothing else is wrong
        run.classes = tuple(about_of(path)["classes"])
    try:
        options = as_recorded(together(module.main, options), recorded_white(record.config))
        inspect.signature(module.main).bind(run, **options)
    except TypeError as error:
        raise Refused(
            f"{module.__file__} no longer takes the options of {record.folder}: {error}; --recipe FILE names an older copy", 4
        ) from error

    def earlier(name: str) -> dict:
        """Result of `train` for an earlier stage."""
        if result := read_json(record.folder / name / "result.json"):
            return result
        raise Refused(f"{record.folder / name}, a stage before {folder}, is not finished; run the run's command to resume it", 4)

    try:
        net, images, given = run_until_train(module, run, options, stage, earlier, precision)
    except Refused:
        raise
    except Exception as error:  # of any kind: the recorded options may be anything
        why = f"{type(error).__name__}: {first_line(error)}"
        raise Refused(f"{module.__file__} fails with the options of {record.folder} ({why})", 4) from error
    about = about_of(path) | {"temperature": calibration.recorded(folder, weights)}
    if list(images.classes) != about["classes"]:
        theirs, ours = _some(images.classes), _some(about["classes"])
        raise Refused(f"{images.source} has the classes {theirs}; {record.folder} was trained on {ours}", 4)
    load_weights(net, load(path))
    net = net.to("cpu").eval().requires_grad_(False)
    shape_walk(net, seen(about))
    if (difference := probe.difference(net, seen(about), about["probe"])) > probe.TOLERANCE:
        raise Refused(
            f"{module.__file__} makes a net that computes something else than the one that was trained: its answers to the "
            f"probe in {path} differ by {difference:.1g}; --recipe FILE names an older copy",
            4,
        )
    preprocessing = {name: about[name] for name in ("crop", "interpolation")} if about["cache_size"] else {}
    images = replace(prepared(images, tuple(about["mean"]), tuple(about["std"]), **preprocessing), size=about["size"])
    return Trained(net, images, tuple(about["shape"]), about, run, rule_of(about), given.get("measured_in", "eval"), weights)


def _chosen(folder: Path, quietly: bool = False) -> str:
    """The weights of the training in `folder` that are used unless told otherwise: see `used` in record/runs.py."""
    result = read_result(folder)
    if result is None:  # killed a moment before its end, if it has its last weights
        there = (folder / WEIGHTS["last"]).is_file()
        ended = there and model_selection_split(read_metrics(folder / "metrics.jsonl")) == "validation"
        return "best" if ended else "last"
    weights = used(result)
    if not (folder / WEIGHTS[weights]).is_file() and (folder / WEIGHTS["last"]).is_file():
        if not quietly:
            print(printable(f"{folder} has no {WEIGHTS[weights]} any more: the last weights are used"), file=sys.stderr)
        return "last"
    return weights


def weights_file(record: Record, stage: str = "", weights: str = CHOSEN, quietly: bool = False) -> tuple[Path, str]:
    """The file of the `weights` of a run or stage, and which they are. Raises Refused (4) if there are none."""
    folder = record.folder / stage
    which = _chosen(folder, quietly) if weights == CHOSEN else weights
    path = folder / WEIGHTS[which]
    if not path.is_file():
        raise _without_weights(record, stage, which)
    return path, which


def described(record: Record, stage: str = "", weights: str = CHOSEN) -> dict:
    """Metadata of the weights that `rebuild` would load, about their net. Raises Refused (4), also if there are none."""
    return about_of(weights_file(record, stage, weights, quietly=True)[0])


def seen(about: dict) -> tuple[int, int, int]:
    """(C, H, W) of an image as the net sees it."""
    channels, *sides = about["shape"]
    height, width = [about["size"]] * 2 if about["size"] else sides
    return channels, height, width


def rule_of(about: dict) -> "ResizeRule | None":
    """The rule for size, of nets for images of any size."""
    from .data.resize import ResizeRule

    if not about["cache_size"]:
        return None
    known = {name: about[name] for name in ("cache_size", "white", "crop", "interpolation")}
    return ResizeRule(about["shape"][1], **known, bands=tuple(about["bands"]))


def _recorded_run(record: Record, data: str) -> tuple["Run", dict[str, Any]]:
    """The Run with the recorded flags, not started, on `data` if given; and the recorded options of the recipe."""
    from .run import Run

    options: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record.options.items()}
    recorded = options.pop("data")
    run = Run(
        data=data or (recorded if recorded != "hub" and os.path.exists(recorded) else "synthetic"),
        out=record.folder,
        **{name: options.pop(name) for name in ("limit", "seed", "micro_batches", "compile")},
        deterministic=options.pop("deterministic", False),
        validation=options.pop("validation", None),
    )
    run.recipe, run.config, run.folder = options.pop("recipe"), record.options, record.folder
    del options["precision"]  # accelerate's, not the recipe's
    return run, options


def _without_weights(record: Record, stage: str, weights: str) -> Refused:
    """Why a run or stage has none, and what to do."""
    folder = record.folder / stage
    if (folder / WEIGHTS["last"]).is_file():
        return Refused(f"{folder} has no {WEIGHTS[weights]}; use --weights last", 4)
    stages = sorted(path.parent for path in folder.rglob(WEIGHTS["last"]) if (path.parent / "metrics.jsonl").exists())
    if stages:
        some = ", ".join(map(str, stages[:4])) + (f" and {len(stages) - 4} more" if len(stages) > 4 else "")
        return Refused(f"{folder} has {len(stages)} nets, one in the folder of each stage; name one: {some}", 4)
    so_far = ", or use --weights best, the best so far" if (folder / WEIGHTS["best"]).is_file() else ""
    if record.state == "running":
        return Refused(f"{folder} is still training: wait for its end{so_far}", 4)
    if record.state == "failed":
        return Refused(f"{folder} has not finished: {record.why}", 4)
    if record.state == "interrupted":
        return Refused(f"{folder} was interrupted: run {command(record.config)} to resume it{so_far}", 4)
    return Refused(f"{folder} is finished but has no {WEIGHTS['last']}: it was deleted, or the recipe saves no weights", 4)


def about_of(path: Path) -> dict:
    """Metadata of a weights file about its net. Raises Refused (4) if it is missing, or if no net could have been trained so."""
    try:
        with open(path, "rb") as file:  # not with safetensors' own function: it needs a UTF-8 path
            length = int.from_bytes(file.read(8), "little")
            about = options_of_today(json.loads(json.loads(file.read(min(length, MOST_METADATA)))["__metadata__"]["oneloop"]))
        about = {name: about[name] for name in ("recipe", "net", "classes", "mean", "std", "shape", "size")} | {
            "cache_size": about.get("cache_size", 0),
            "white": about.get("white", 0),
            "bands": about.get("bands", []),
            "crop": about.get("crop", 7 / 8),  # as it was in runs before 0.3
            "interpolation": about.get("interpolation", "bilinear"),
            "probe": about.get("probe", []),  # runs before 0.3 have none
            "temperature": about.get("temperature", 1.0),  # of a published folder; a run's is in predictions.json
            "threshold": about.get("threshold"),  # of probabilities, where an image has several labels
        }
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{path} does not describe its net ({first_line(error)}): damaged, or not written by `train`", 4) from error

    def whole(value: Any, least: int, most: int) -> bool:
        return type(value) is int and least <= value <= most

    def listed(name: str, right: Callable[[Any], bool]) -> bool:
        return isinstance(about[name], list) and all(map(right, about[name]))

    channels = about["shape"][0] if isinstance(about["shape"], list) and len(about["shape"]) == 3 else None
    fits = {
        **{name: isinstance(about[name], str) for name in ("recipe", "net")},
        "classes": listed("classes", lambda name: isinstance(name, str)) and 1 <= len(about["classes"]) <= MOST_CLASSES,
        "shape": channels in (1, 3) and listed("shape", lambda size: whole(size, 1, MOST_PIXELS)),
        **{name: whole(about[name], 0, MOST_PIXELS) for name in ("size", "cache_size")},
        "white": whole(about["white"], 0, 65535),
        "bands": listed("bands", lambda band: whole(band, 1, MOST_PIXELS)) and len(about["bands"]) in (0, 3),
        "crop": _finite(about["crop"]) and 0 < about["crop"] <= 1,
        "interpolation": about["interpolation"] in ("bilinear", "bicubic"),
        "mean": listed("mean", _finite) and len(about["mean"]) == channels,
        "std": listed("std", lambda value: _finite(value) and value > 0) and len(about["std"]) == channels,
        "probe": listed("probe", _finite),
        "threshold": about["threshold"] is None or (_finite(about["threshold"]) and 0 <= about["threshold"] <= 1),
        "temperature": _finite(about["temperature"]) and about["temperature"] > 0,
    }
    if wrong := [f"{name} {_cut(about[name])}" for name, fit in fits.items() if not fit]:
        raise Refused(f"{path} is damaged: impossible values for its images ({', '.join(wrong)})", 4)
    return about


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _cut(value: Any, most: int = 40) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def feed(trained: Trained, pixels: "Tensor", device: Any = "cpu") -> "MemoryFeed":
    """`pixels` uint8 (N, C, H, W) as the net takes them, preprocessed as the run's own images were."""
    import torch

    from .data.dataset import Split
    from .data.feed import MemoryFeed

    return MemoryFeed(Split(pixels, torch.zeros(len(pixels), dtype=torch.int64)), trained.images, torch.device(device))
