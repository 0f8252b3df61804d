"""A recipe's `main` signature becomes its command line: `cli(main)` is all that a recipe calls.

It parses the command line (tyro), starts the `Run`, calls `main(run, **options)` and turns every expected failure into one line
and an exit code (launch/errors.py).
"""

import atexit
import dataclasses
import functools
import gc
import inspect
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import tyro

from . import source_copy
from .console import complain
from .errors import Refused, exhausted, first_line
from .lazy import help_with_torch, stands_in, without_torch
from .old_names import flags_of_today
from .option_groups import groups
from .processes import first_to_say, launched, lost_process, main_here
from .run import Run
from .sources.options import as_recorded
from .stop import follow_launcher

SWITCHED = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse(main: Callable[..., Any], args: Sequence[str] | None = None, prog: str | None = None) -> tuple[Run, dict[str, Any]]:
    """The Run, not started, and the options that `args` (None: the command line) give for `main(run: Run, …)`.

    Exits with 0 after printing the help, with 2 after saying what is wrong. `prog` is the command's name in both.
    """

    @functools.wraps(main)
    def options(run: Run, **chosen: Any) -> tuple[Run, dict[str, Any]]:
        return run, chosen

    words = _flags_as_tyro_has_them(main, flags_of_today(sys.argv[1:] if args is None else args))
    title, _, header = (sys.modules[main.__module__].__doc__ or "").partition("\n")
    return tyro.cli(
        options,
        args=words,
        prog=prog,
        description=title + "\n\n" + "\n".join(f" {line}" for line in header.strip().splitlines()),  # a space keeps the lines
        console_outputs=main_here(),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _flags_as_tyro_has_them(main: Callable[..., Any], words: Sequence[str]) -> list[str]:
    """The command line, its flags that are on or off written as tyro takes them: nothing where they are so by default, else
    --flag to switch on, --no-flag to switch off; --flag=True or --flag=False where there is no default.

    They may also be given as --flag=true, --flag False, --no-flag and the like, of which the last one counts. Exits with 2 after
    saying what is wrong.
    """
    signature = inspect.signature(main).parameters
    kinds = {name: parameter.annotation for name, parameter in signature.items()}
    defaults = {name: parameter.default for name, parameter in signature.items()}
    for group in (Run, *groups(main).values()):
        kinds |= {field.name: field.type for field in dataclasses.fields(group) if field.init}
        defaults |= {field.name: field.default for field in dataclasses.fields(group) if field.init}
    bare = {name: get_args(kind)[0] if get_origin(kind) is Annotated else kind for name, kind in kinds.items()}
    switches = {name.replace("_", "-"): defaults[name] for name, kind in bare.items() if kind in (bool, "bool")}
    on: dict[str, bool] = {}
    left, rest = list[str](), deque(words)
    while rest:
        word = rest.popleft()
        flag, equals, value = word.removeprefix("--").partition("=")
        flag = flag.replace("_", "-")
        named = flag if flag in switches else flag.removeprefix("no-")
        if not word.startswith("--") or named not in switches:
            left.append(word)
            continue
        if not equals:
            value = rest.popleft() if named == flag and rest and rest[0].lower() in SWITCHED else "true"
        if value.lower() not in SWITCHED or (equals and named != flag):
            if main_here():
                complain(f"{word}: this flag is on or off: --{named} or --{named}=true, --no-{named} or --{named}=false")
            sys.exit(2)
        on[named] = SWITCHED[value.lower()] == (named == flag)
    for name, wanted in on.items():
        if switches[name] not in (True, False):  # it must be given
            left.append(f"--{name}={wanted}")
        elif wanted != switches[name]:
            left.append(f"--{name}" if wanted else f"--no-{name}")
    return left


def cli(main: Callable[..., Any]) -> None:
    """Run `main(run: Run, …)` as a command; its further parameters, with their defaults, are the recipe's own flags."""
    module = sys.modules[main.__module__]
    if without_torch():
        signature = inspect.signature(main).parameters.values()
        if not any(stands_in(part) for parameter in signature for part in (parameter.annotation, parameter.default)):
            parse(main)  # exits, after printing the help
        help_with_torch()
    run, chosen = parse(main)
    atexit.register(gc.freeze)  # else Python's end looks through all objects of all libraries: 0.8 s
    follow_launcher()
    status = 0
    try:
        run.code = source_copy.sources(module)
        with lost_process(1 + launched(), "this device"):
            result = run.start(Path(str(module.__file__)).stem, chosen)
            if result is None:
                main(run, **as_recorded(chosen, run.white))
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
        if main_here():
            saved = run.folder.name and any(run.folder.rglob("checkpoints/step-*"))
            resume = "the last checkpoint is sound: run the same command to resume"
            complain(f"interrupted; {resume if saved else 'nothing was saved: the same command starts over'}")
    except Exception as error:
        run.stopped(1, first_line(error))
        if not (why := exhausted(error)):
            raise
        status = 1
        complain(why)
    run.end()
    if status:
        sys.exit(status)
