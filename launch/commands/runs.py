"""`oneloop runs`: list the runs under a folder, newest first. A new column is a key in `_row` and a line in `_print_table`."""

import argparse
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from ..errors import Refused, printable
from ..report.compare import Training, trainings_of
from ..report.runs import WORDS, find, read
from .compare import PAPER, width_of


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "oneloop runs",
        description="List runs, the latest start first.",
        epilog="example: oneloop runs runs/cifar2\n\n"
        "running      a process is working on it\n"
        "interrupted  stopped by a signal or killed: run the same command to resume\n"
        "failed       ended with an error, shown below the table",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("place", nargs="*", metavar="PLACE", default=["runs"], help="folders or globs; default: runs")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    chosen = parser.parse_args(args)
    rows = sorted(map(_row, find(chosen.place)), key=lambda row: row["started"] or "", reverse=True)
    if chosen.json:
        print(json.dumps(rows, indent=1))
    else:
        _print_table(rows)


def _row(folder: Path) -> dict:
    """Row of one run; a folder that cannot be read gets a row, too."""
    row = dict.fromkeys(("recipe", "net", "seed", "epochs", "of", "accuracy", "mean_average_precision", "started"))
    try:
        record = read(folder)
        trainings = list(trainings_of(record))
    except Refused as error:
        return {"folder": str(folder), "state": "unreadable", "note": str(error), **row}
    state, note = record.state, ""
    if state == "failed":
        note = record.why
    elif record.result:
        note = record.result.get("summary", "")
    recorded = any(training.curves["train loss"] for training in trainings) or state != "finished"  # by_hand.py writes no record
    epochs = sum(training.epochs for training in trainings) if recorded else None
    if len(trainings) > 1 and not note:
        note = f"{sum(training.state == 'finished' for training in trainings)} stages finished"
    row |= {
        "recipe": record.options["recipe"],
        "net": record.options.get("net") or record.config.get("model"),
        "seed": record.options["seed"],
        "epochs": epochs,
        "of": None if epochs is None else trainings[0].of,
        **{name: _value(trainings) if trainings[-1].what == what else None for name, what in WORDS.items()},
        "started": record.started.isoformat(),
    }
    return {"folder": str(folder), "state": state, "note": note, **row}


def _value(trainings: Sequence[Training]) -> float | None:
    """Accuracy, or what else is measured, of the only one."""
    return trainings[-1].measures.get("last") if len(trainings) == 1 else None


def _print_table(rows: list[dict]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console, JustifyMethod
    from rich.table import Table

    shown: dict[str, JustifyMethod] = {"state": "left", "epochs": "right", "accuracy": "right", "started": "right"}
    shown |= {"recipe": "left", "net": "left", "seed": "left", "run": "left"}  # last, as a path may be long

    def table() -> Table:
        made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        for heading, side in shown.items():
            made.add_column(heading, justify=side, no_wrap=True)
        for row in rows:
            made.add_row(*(_cell(row, heading) for heading in shown))
        return made

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PAPER  # nothing is truncated in a file or a pipe

    for spare in ("recipe", "seed", "net"):  # the folder's name tells most of these
        if width_of(table(), console) > console.width:
            del shown[spare]
    # A truncated path is useless: let the terminal wrap it instead.
    console.width = max(console.width, width_of(table(), console))
    console.print(table(), soft_wrap=True)
    for row in rows:
        if row["note"]:
            console.print(printable(f"{row['folder']}: {row['note']}"), soft_wrap=True)


def _cell(row: dict, heading: str) -> str:
    """A cell of the table; – is unknown."""
    if heading == "epochs" and row["epochs"] is not None and row["of"] not in (None, row["epochs"]):
        return printable(f"{row['epochs']}/{row['of']}")
    if heading == "accuracy" and row["mean_average_precision"] is not None:
        return f"{WORDS['mean_average_precision']} {row['mean_average_precision']:.4f}"
    value = row["folder" if heading == "run" else heading]
    if value is None:
        return "–"
    return f"{value:.4f}" if heading == "accuracy" else _age(value) if heading == "started" else printable(str(value))


def _age(started: str) -> str:
    """Time since then, in the largest unit that fits."""
    passed = datetime.now().astimezone() - datetime.fromisoformat(started)
    for unit, length in {"d": timedelta(days=1), "h": timedelta(hours=1), "min": timedelta(minutes=1)}.items():
        if passed >= length:
            return f"{passed // length} {unit} ago"
    return f"{max(passed // timedelta(seconds=1), 0)} s ago"
