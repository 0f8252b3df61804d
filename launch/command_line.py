"""A recipe's `main` signature becomes its command line: `cli(main)` is all that a recipe calls.

It parses the command line (tyro), starts the `Run`, calls `main(run, **options)` and turns every expected failure into one line
and an exit code (launch/errors.py).
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from . import code
from .errors import Refused, first_line
from .processes import first_to_say, follow_launcher, launched, lost_process
from .run import Run
from .screen import complain


def parse(main: Callable[..., Any], args: Sequence[str] | None = None, prog: str | None = None) -> tuple[Run, dict[str, Any]]:
    """The Run, not started, and the options that `args` (None: the command line) give for `main(run: Run, …)`.

    Exits with 0 after printing the help, with 2 after saying what is wrong. `prog` is the command's name in both.
    """

    @functools.wraps(main)
    def options(run: Run, **chosen: Any) -> tuple[Run, dict[str, Any]]:
        return run, chosen

    title, _, header = (sys.modules[main.__module__].__doc__ or "").partition("\n")
    return tyro.cli(
        options,
        args=args,
        prog=prog,
        description=title + "\n\n" + "\n".join(f" {line}" for line in header.strip().splitlines()),  # a space keeps the lines
        console_outputs=not launched() or os.environ["RANK"] == "0",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def cli(main: Callable[..., Any]) -> None:
    """Run `main(run: Run, …)` as a command; its further parameters, with their defaults, are the recipe's own flags."""
    module = sys.modules[main.__module__]
    run, chosen = parse(main)
    follow_launcher()
    status = 0
    try:
        run.code = code.sources(module)
        with lost_process(1 + launched(), "this device"):
            result = run.start(Path(str(module.__file__)).stem, chosen)
            if result is None:
                main(run, **chosen)
            else:
                run.say_finished(result, run.on_main(lambda: run.compare_data(main, chosen)))
    except Refused as error:
        status = error.code
        run.stopped(status, str(error))
        # Once on each machine, as data may be missing on one of them only; from every process where each has trials of its own.
        if not error.said and (run.separate_trials or first_to_say(error)):
            complain(str(error))
    except KeyboardInterrupt:
        status = 130
        run.stopped(status, "interrupted")
        if not launched() or os.environ["RANK"] == "0":
            saved = run.folder.name and any(run.folder.rglob("checkpoints/step-*"))
            resume = "the last checkpoint is sound: run the same command to resume"
            complain(f"interrupted; {resume if saved else 'nothing was saved: the same command starts over'}")
    except Exception as error:
        run.stopped(1, first_line(error))
        raise
    run.end()
    if status:
        sys.exit(status)
