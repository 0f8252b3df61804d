"""`oneloop train`: what `accelerate launch` starts, also of the package's own recipes, wherever they are installed."""

import contextlib
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from .. import recipe
from ..errors import Refused
from ..old_names import recipe_of_today
from .arguments import add_recipe, command_parser, launch_file


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "train",
        usage="[flags of accelerate launch] RECIPE [the recipe's own flags]",
        description="Train a recipe: does what `accelerate launch FILE` does. A process on each GPU, or one on the CPU,\n"
        "unless flags of `accelerate launch` say something else. The same command resumes the run.",
        example="cifar2 --data synthetic",
        notes=textwrap.fill(f"The package's own recipes: {', '.join(recipe.names())}.", 100)
        + "\nTheir flags: oneloop train RECIPE --help. Launch files: --config_file launch/gpus.yaml (bf16, all GPUs),\n"
        "launch/gpu.yaml (bf16, one GPU), launch/cpus.yaml (two processes on the CPU).",
    )
    add_recipe(parser)
    if not args or args[0] in ("-h", "--help"):
        parser.parse_args(args)  # exits
    place = _place_of_recipe(args)
    file = recipe.located(args[place])
    recipe.check(file)
    if {"-h", "--help"} & {*args[place + 1 :]}:  # which need not wait for accelerate
        os.execv(sys.executable, [sys.executable, str(file), *args[place + 1 :]])
    words = [*map(launch_file, args[:place])]
    _refuse_gpus(words)
    launch = [sys.executable, "-P", "-m", "accelerate.commands.launch"]  # -P: modules of the current folder are not accelerate's
    # This process becomes the launcher: its signals and its exit code are the launcher's.
    os.execv(launch[0], [*launch, *words, str(file), *args[place + 1 :]])


def _refuse_gpus(words: Sequence[str]) -> None:
    """Raise Refused (2) for a launch file that wants a process on each GPU where there is none: torch ends in a traceback."""
    for flag, value in itertools.pairwise([*words, ""]):
        name, equals, own = flag.partition("=")
        if name != "--config_file" or any(word.partition("=")[0] == "--num_processes" for word in words):
            continue
        with contextlib.suppress(OSError, ValueError):
            if not re.search(r"^num_processes: *gpu\b", Path(file := own if equals else value).read_text(), re.MULTILINE):
                continue
            import torch

            if not torch.cuda.is_available():
                raise Refused(f"{file} is for GPUs, and torch sees none here; launch/cpus.yaml is for a CPU, as are no flags", 2)


def _place_of_recipe(args: Sequence[str]) -> int:
    """Index of the recipe: the first word that ends in .py or is a name, behind flags of accelerate's and their values."""
    own = recipe.names()
    for place, word in enumerate(args):
        if recipe_of_today(word) in own or word.endswith(".py"):
            return place
        if not word.startswith("-") and not (place and args[place - 1].startswith("-")):
            recipe.check(recipe.located(word))
    raise Refused(f"no recipe in `{' '.join(args)}`: a file that ends in .py, or one of {', '.join(own)}", 2)
