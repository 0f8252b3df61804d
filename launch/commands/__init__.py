"""The `oneloop` command: one file for each subcommand, imported when that subcommand is asked for.

A subcommand is a line here and a file with a `main(args)`, which takes the arguments after its name and raises Refused.
"""

import argparse
import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from ..errors import Refused, printable

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

UNWRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)  # of standard output: commands name their files


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what its encoding lacks is no reason to lose the rest
    code, ended, failures = 0, None, []
    try:
        chosen = parser.parse_args(args)
        importlib.import_module(f".{chosen.command}", __name__).main(chosen.rest)
    except Refused as error:
        code = error.code
        with contextlib.suppress(OSError):  # that nobody reads: the code says it, too
            print(printable(str(error)), file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:  # argparse's, and rich's where who read it has gone
        ended = None if isinstance(error.__context__, BrokenPipeError) else error
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITTEN:
            raise
        failures.append(error)
    failures += _flush()
    # As in `oneloop runs | head`: who read it has seen enough.
    if lost := [error for error in failures if not isinstance(error, BrokenPipeError)]:
        code, ended = code or 1, None
        with contextlib.suppress(OSError):
            print(f"cannot write to standard output: {lost[0].strerror}", file=sys.stderr)
    if ended:
        raise ended
    return code


def _flush() -> list[OSError]:
    """Write out what waits for it; why that fails. Such a stream goes nowhere from then on: Python would complain at its end."""
    failures = []
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            failures.append(error)
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return failures
