"""The `oneloop` command: one file for each subcommand, imported when that subcommand is asked for.

A subcommand is a line here and a file with a `main(args)`, which takes the arguments after its name and raises Refused.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from ..errors import Refused

COMMANDS = {  # name -> what it does, an example
    "describe": ("a recipe's net: table, receptive fields, shapes", "oneloop describe recipes/cifar2.py --net NetWidth"),
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
    except Refused as error:
        print(error, file=sys.stderr)
        return error.code
    return 0
