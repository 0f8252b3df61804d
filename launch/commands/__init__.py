"""The `oneloop` command: one file for each subcommand, imported only when it is called.

A new subcommand is a line in COMMANDS and a file with `main(args)`: it gets the arguments after its name and may raise Refused.
"""

import argparse
import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from ..errors import Refused, exhausted, printable

COMMANDS = {  # name -> description, arguments of an example
    "train": ("train a recipe on all devices, as accelerate launch does", "cifar2 --data synthetic"),
    "data": ("show your own images before training: classes, sizes, split, bad files", "photos/ --html photos.html"),
    "probe": ("show which trained net suits images of your own: a table in minutes", "photos/ --net resnet18 resnet50"),
    "describe": ("show a recipe's net: table, receptive fields, shapes", "recipes/cifar2.py --net NetWidth"),
    "verify": ("test the guarantees on this machine: 1 and 2 processes, kill, …", "recipes/cifar2.py"),
    "runs": ("list runs, newest first: state, epochs, accuracy", "runs/cifar2"),
    "compare": ("show runs side by side: table and plots, means over seeds", "runs/cifar2"),
    "sweep": ("run a grid of flags, resumable, then compare", "recipes/cifar2.py --lr 0.01 0.03 --seed 1 2"),
    "predict": ("classify image files with a trained net", "runs/cifar2/Net-0a1b2c3d bird.jpg photos/"),
    "evaluate": ("measure a trained net's loss and accuracy, also on other data", "runs/cifar2/Net-0a1b2c3d"),
    "export": ("write a trained net as one file, and check it", "runs/cifar2/Net-0a1b2c3d --format onnx --out birds.onnx"),
    "publish": ("write a trained net as a folder that timm and transformers load", "runs/custom/NAME ants --licence mit"),
    "explain": ("show where in an image a trained net looks", "runs/cifar2/Net-0a1b2c3d bird.jpg --class airplane"),
    "try": ("serve a page on this machine to try a trained net with photos", "runs/cifar2/Net-0a1b2c3d"),
    "upload": ("send run folders to W&B, even if made without it", "runs/cifar2"),
}

# Errors of writing to standard output: an error with a file has a file name.
UNWRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)


def main(args: Sequence[str] | None = None) -> int:
    """Run the subcommand in `args` (None: the command line's). Returns the exit code; launch/errors.py lists them."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {does}\n  {'':{width}}  oneloop {name} {given}" for name, (does, given) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        "oneloop",
        usage="oneloop COMMAND … | oneloop COMMAND --help",
        description="Train recipes, and work with them and their runs.\n\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those above")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # escape what its encoding lacks
    code, ended, failures = 0, None, []
    try:
        chosen = parser.parse_args(args)
        importlib.import_module(f".{chosen.command}", __name__).main(chosen.rest)
    except Refused as error:
        code = error.code
        with contextlib.suppress(OSError):  # nobody reads it: the exit code remains
            print(printable(str(error)), file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:  # argparse's, or rich's after a broken pipe
        ended = None if isinstance(error.__context__, BrokenPipeError) else error
    except (MemoryError, RuntimeError) as error:
        if not (why := exhausted(error)):
            raise
        code = 1
        print(why, file=sys.stderr)
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITTEN:
            raise
        failures.append(error)
    failures += _flush()
    # A broken pipe, as in `oneloop runs | head`, is not an error.
    if lost := [error for error in failures if not isinstance(error, BrokenPipeError)]:
        code, ended = code or 1, None
        with contextlib.suppress(OSError):
            print(f"cannot write to standard output: {lost[0].strerror}", file=sys.stderr)
    if ended:
        raise ended
    return code


def _flush() -> list[OSError]:
    """Flush both streams; returns the errors. A stream that fails is pointed at nothing, or Python would complain at exit."""
    failures = []
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError as error:
            failures.append(error)
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return failures
