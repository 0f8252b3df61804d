"""`oneloop describe`: what a recipe would train, without training it."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..console import aligned
from ..errors import Refused, printable
from ..recipe import build, load
from ..trained import MOST_PIXELS
from ..training.schedules import Schedule
from .arguments import add_recipe, command_parser

COLUMNS, ROWS, BARS = 60, 4, " ▁▂▃▄▅▆▇█"  # of the plot of a schedule


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "describe",
        usage="RECIPE [the recipe's own flags] [--shape C H W]",
        description="Print the table, the receptive fields and the shapes of the net that a recipe would train, and\n"
        "its learning rate.",
        example="recipes/cifar2.py --net NetWidth",
        notes="The recipe's flags: python RECIPE --help. --data defaults to synthetic here.",
    )
    add_recipe(parser)
    what = "channels, height and width of an image; default: the data's"
    parser.add_argument("--shape", nargs=3, type=int, metavar=("C", "H", "W"), help=what)
    chosen, flags = parser.parse_known_args(args)
    if chosen.shape and not all(1 <= number <= MOST_PIXELS for number in chosen.shape):
        raise Refused(f"--shape takes three numbers from 1 to {MOST_PIXELS:,}", 2)
    model, images, given = build(load(chosen.recipe), flags, prog=f"oneloop describe {chosen.recipe}")
    channels, *size = images.train.shape
    shape = chosen.shape or (channels, *([images.size] * 2 if images.size else size))

    from ..describe import receptive_field, shape_walk, summary

    walk = shape_walk(model, shape)  # first: it says why if the net cannot take the shape
    print("\n".join(map(printable, summary(model, shape).splitlines())))
    print("\nReceptive field and jump, in pixels of the image:\n")
    _print_table(("layer", "output", "field", "jump"), receptive_field(model, shape))
    print("\nShapes:\n")
    _print_table(("layer", "takes", "gives"), walk)
    if given["optimizer"]:
        rates = sorted({group["lr"] for group in given["optimizer"].param_groups})
        print(f"\nLearning rate: {', '.join(f'{rate:g}' for rate in rates)}")
    if schedule := given.get("schedule"):
        for line in _drawn(schedule, given["epochs"]):
            print(line)


def _drawn(schedule: Schedule, epochs: int) -> list[str]:
    """The factor of the learning rates over the epochs, as bars."""
    factors = [schedule(epochs * column / COLUMNS) for column in range(COLUMNS)]
    top = max(factors)
    eighths = [round(8 * ROWS * factor / top) for factor in factors]
    lines = []
    for row in reversed(range(ROWS)):
        label = f"× {top * (row + 1) / ROWS:.3g}"
        lines.append(f"{label:>8} {''.join(BARS[min(max(filled - 8 * row, 0), 8)] for filled in eighths)}".rstrip())
    return [*lines, f"{'epoch':>8} 0{epochs:>{COLUMNS - 1}}"]


def _print_table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    cells = [[*head], *(["?" if cell is None else printable(str(cell)) for cell in row] for row in rows)]
    for line in aligned(cells):
        print(line)
