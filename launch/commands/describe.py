"""`oneloop describe`: what a recipe would train, without training it."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import printable
from ..rebuild import load, reach

if TYPE_CHECKING:
    from torch import nn

    from ..data import Images


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "oneloop describe",
        usage="oneloop describe RECIPE [the recipe's own flags] [--shape C H W]",
        description="Print the table, the receptive fields and the shapes of the net that a recipe would train.",
        epilog="example: oneloop describe recipes/cifar2.py --net NetWidth\n"
        "the recipe's flags: python RECIPE --help; --data is synthetic if it is not given",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="the file of a recipe")
    parser.add_argument(
        "--shape", nargs=3, type=int, metavar=("C", "H", "W"), help="channels, height and width of an image; default: the data's"
    )
    chosen, flags = parser.parse_known_args(args)
    model, images = build(load(chosen.recipe), flags, prog=f"oneloop describe {chosen.recipe}")
    channels, *size = images.train.pixels.shape[1:]
    shape = chosen.shape or (channels, *([images.size] * 2 if images.size else size))

    from ..describe import receptive_field, shape_walk, summary

    walk = shape_walk(model, shape)  # first: it says why a net cannot take a shape
    print("\n".join(map(printable, summary(model, shape).splitlines())))
    print("\nReceptive field and jump, in pixels of the image:\n")
    _print_table(("layer", "output", "field", "jump"), receptive_field(model, shape))
    print("\nShapes:\n")
    _print_table(("layer", "takes", "gives"), walk)


def build(recipe: ModuleType, flags: Sequence[str], prog: str) -> tuple["nn.Module", "Images"]:
    """The net and the images that the recipe, with its own flags, gives to its first `train`, which is not called.

    No run folder is made or looked at. `prog` names the command where flags are wrong (exit 2). Raises Refused.
    """
    from ..command_line import parse

    if not any(flag.partition("=")[0] == "--data" for flag in flags):
        flags = ["--data", "synthetic", *flags]
    run, options = parse(recipe.main, flags, prog)
    run.recipe = recipe.__name__
    return reach(recipe, run, options)[:2]


def _print_table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    cells = [[*head], *(["?" if cell is None else printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
