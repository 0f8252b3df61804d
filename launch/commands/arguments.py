"""Arguments that the subcommands share. Imports no torch: help must not wait for it."""

import argparse
import dataclasses
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from .. import recipe
from ..errors import Refused
from ..report.runs import home
from ..sources.options import DataOptions
from ..trained import CHOSEN, WEIGHTS

OWN_FILES = (  # of a run or a stage, beside its plots
    *WEIGHTS.values(), "config.json", "metrics.jsonl", "result.json", "stopped.json", "predictions.json", "report.html", "lock",
    "lock.pid", "trackers.json",
)  # fmt: skip


def command_parser(
    command: str, *, description: str, example: str, notes: str = "", usage: str | None = None
) -> argparse.ArgumentParser:
    """The parser of `oneloop COMMAND`. `usage` and `example` follow the command's name; `notes` end the help."""
    return argparse.ArgumentParser(
        f"oneloop {command}",
        usage=usage and f"oneloop {command} {usage}",
        description=description,
        epilog=f"example: oneloop {command} {example}" + (f"\n\n{notes}" if notes else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The argument RECIPE, a path."""
    parser.add_argument("recipe", metavar="RECIPE", type=recipe.located, help="a recipe's file, or the name of the package's own")


def launch_file(word: str) -> str:
    """`word`; if it is launch/NAME.yaml, and not here, the path of the package's own."""
    own = Path(__file__).parents[1] / Path(word).name
    return str(own) if Path(word).parent == Path("launch") and own.is_file() and not os.path.exists(word) else word


def add_trained_net(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a trained net: RUN, --weights, --recipe."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, or the folder of a stage in it")
    which = (
        "last: those of the last step; best: of the epoch with the highest accuracy on the validation images, or without these "
        "on the test images; ema: the last moving average, if the recipe keeps one. Default: chosen, the best where validation "
        "images chose them, else the last average, else the last, as the training's last line says"
    )
    parser.add_argument("--weights", choices=(CHOSEN, *WEIGHTS), default=CHOSEN, help=which)
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="the recipe's file, if it is not in recipes/")


def add_data_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """The flags `names` of DataOptions, as a group of their own."""
    group = parser.add_argument_group("data options", DataOptions.__doc__)
    fields = {field.name: field for field in dataclasses.fields(DataOptions)}
    for name in names:
        kind, doc = get_args(fields[name].type)
        how = {"action": "store_true"} if kind is bool else {"type": kind, "metavar": name.upper()}
        if get_args(kind):  # several words
            word = get_args(kind)[0]
            how = {"nargs": "+", "type": word, "metavar": "N" if word is int else "X=NAME"}
        default = fields[name].default
        said = "" if default in ("", 0, ()) else f" Default: {default}."
        group.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=doc.documentation + said, **how)


def data_options(chosen: argparse.Namespace, *names: str, default: DataOptions = DataOptions()) -> DataOptions:
    """What the flags `names` say, `default` where they are not given. Raises Refused (2)."""
    asked = {name: getattr(chosen, name) for name in names if hasattr(chosen, name)}
    asked = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
    return dataclasses.replace(default, **asked).checked()


def add_confidence(parser: argparse.ArgumentParser) -> None:
    """The arguments of how sure a prediction is: --unsure, --tta."""
    below = "a class of which the net is less sure than this probability, from 0 to 1, is said to be unsure"
    parser.add_argument("--unsure", type=float, default=0.0, metavar="P", help=below)
    views = "mean logits over views of each image: flip, it and its mirror image; six, these and both moved by a pixel"
    parser.add_argument("--tta", choices=("flip", "six"), default="", help=views)


def check_confidence(unsure: float) -> None:
    """Raises Refused (2) if --unsure is no probability."""
    if not 0 <= unsure <= 1:
        raise Refused(f"--unsure takes a probability from 0 to 1, got {unsure}", 2)


def refuse_unsure(run: Path, unsure: float, threshold: float | None) -> None:
    """Raises Refused (2) if --unsure is given for a net of several labels, which an image gets from `threshold` on."""
    if unsure and threshold is not None:
        raise Refused(f"{run} gives an image several labels, from a probability of {threshold:.3g} on: no --unsure", 2)


def refuse_own_file(out: Path, exports: Sequence[str]) -> None:
    """Raises Refused (2) if the file `out` is, or could be mistaken for, one of a run's own.

    `exports` are glob patterns of the file names that the command makes and may replace in a run's folder.
    """
    out = out.parent.resolve() / out.name
    try:
        place, recorded = home(out.parent)
    except (Refused, OSError):
        return
    if not isinstance(recorded, dict) or "format" not in recorded:
        return
    name, within = out.name.casefold(), out.relative_to(place).parts
    own = name in OWN_FILES or {"checkpoints", "wandb", "tensorboard"} & {*within}
    if own or (out.exists() and not any(fnmatch.fnmatch(name, pattern) for pattern in exports)):
        raise Refused(f"{out} is, or could be mistaken for, a file of the run {place}; choose another with --out", 2)
