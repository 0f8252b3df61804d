"""`oneloop verify`: the promises, tried on the user's own machine, net and data (launch/verify/)."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import Refused, printable
from ..report.runs import recorded_json
from ..verify.checks import checks
from ..verify.trial import EPOCHS, SIZES, Trial
from .arguments import add_recipe, command_parser
from .sweep_cells import signals_noted


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "verify",
        usage="RECIPE [the recipe's own flags] [--out FILE]",
        description="Prove on this machine, with this net and data: the same curve on 1 and 2 processes, exact resume after a\n"
        "kill, every image evaluated once, damaged checkpoints named and not used. Takes a few minutes.",
        example="recipes/cifar2.py --net NetDropout",
        notes=f"Trains on {SIZES[0][0]} images, fewer for a large net, for {EPOCHS} epochs, unless --limit and --epochs\n"
        f"are given; evaluates on at most {SIZES[0][1]} test images. Exit code 0: all promises hold, 4: one does not.",
    )
    add_recipe(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("receipt.json"), help="default: receipt.json")
    chosen, flags = parser.parse_known_args(args)

    from ..command_line import parse  # torch, which help must not wait for
    from ..recipe import load

    parse(load(chosen.recipe).main, flags, prog=f"oneloop verify {chosen.recipe}")  # wrong flags end here
    if chosen.out.is_dir() or not os.access(chosen.out if chosen.out.exists() else chosen.out.resolve().parent, os.W_OK):
        raise Refused(f"cannot write {chosen.out}; choose another file with --out")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="oneloop-verify-") as place, signals_noted() as signals:
        trial = Trial(chosen.recipe.resolve(), flags, Path(place), signals=signals)
        found = list(checks(trial))
        trial.stop_if_told()
        environment = recorded_json(trial.place / "one/config.json")
    receipt = {
        "recipe": str(chosen.recipe),
        "flags": trial.flags,
        "test_images": trial.tests,
        "passed": all(check.verdict != "FAIL" for check in found),
        "checks": [asdict(check) for check in found],
        **{key: environment[key] for key in ("git", "versions", "device", "threads")},
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "seconds": round(time.monotonic() - began),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    _print(receipt, chosen.out)
    try:
        chosen.out.write_text(json.dumps(receipt, indent=1))
    except OSError as error:
        raise Refused(f"cannot write {chosen.out}: {error.strerror}") from error
    if failed := [check.what for check in found if check.verdict == "FAIL"]:
        raise Refused(f"does not hold here: {'; '.join(failed)}", 4)


def _print(receipt: dict, file: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{receipt['recipe']} {' '.join(receipt['flags'])}, at most {receipt['test_images']} test images"
    table = Table(title=escape(printable(title)), title_justify="left")
    for column in ("compared", "verdict", "outcome"):
        table.add_column(column)
    colours = {"pass": "green", "FAIL": "bold red", "skipped": "dim"}
    for check in receipt["checks"]:
        table.add_row(check["what"], f"[{colours[check['verdict']]}]{check['verdict']}", escape(printable(check["detail"])))
    versions = ", ".join(f"{name} {receipt['versions'][name]}" for name in ("oneloop", "torch", "accelerate", "python"))
    console = Console()
    console.print(table)
    console.print(f"{versions}; {receipt['device']}, {receipt['machine']}; {receipt['seconds']} s", highlight=False)
    console.print(str(file), highlight=False)
