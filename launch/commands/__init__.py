"""The `oneloop` command: one file for each subcommand, imported when that subcommand is asked for.

A subcommand is a line here and a file with a `main(args)`, which takes the arguments after its name and raises Refused.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from ..errors import Refused

COMMANDS = {  # name -> what it does, an example
    "describe": ("a recipe's net: table, receptive fields, shapes", "oneloop describe recipes/cifar2.py --net NetWidth"),
    "verify": ("the promises, tried on this machine: 1 and 2 processes, kill, …", "oneloop verify recipes/cifar2.py"),
    "runs": ("what lies under runs/, newest first: state, epochs, accuracy", "oneloop runs"),
    "compare": ("runs side by side: table and pictures, means over seeds", "oneloop compare runs/cifar2"),
    "sweep": ("a grid of flags, resumable, then compared", "oneloop sweep recipes/cifar2.py --lr 0.01 0.03 --seed 1 2"),
    "predict": ("what a trained net says of image files", "oneloop predict runs/cifar2/Net-0a1b2c3d bird.jpg photos/"),
    "evaluate": ("a trained net's loss and accuracy, also on other data", "oneloop evaluate runs/cifar2/Net-0a1b2c3d"),
    "export": ("a trained net as one file, checked", "oneloop export runs/cifar2/Net-0a1b2c3d --format onnx --out birds.onnx"),
    "explain": ("where in an image a trained net looks", "oneloop explain runs/cifar2/Net-0a1b2c3d bird.jpg --class airplane"),
    "upload": ("run folders to W&B, also those made without it", "oneloop upload runs/cifar2"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the subcommand that `args` (None: the command line) name. Returns the exit code, launch/errors.py lists them."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {does}\n  {'':{width}}  {example}" for name, (does, example) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        "oneloop",
        usage="oneloop COMMAND … | oneloop COMMAND --help",
        description="What can be done with recipes, besides `accelerate launch`:\n\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(args)
    try:
        importlib.import_module(f".{chosen.command}", __name__).main(chosen.rest)
        sys.stdout.flush()
    except Refused as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as in `oneloop runs | head`: who read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
