"""`oneloop compare`: several runs side by side, as a table and as plots.

What is compared is in launch/report/compare.py, a new measure in measures.py, a new plot in compare_plots.py.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Refused, printable
from ..report.compare import Comparison, compare, text_of
from ..report.paired import Pair, pairs
from ..report.runs import find

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PAPER = 10_000  # characters: wider than any table


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "oneloop compare",
        description="Print how runs differ and what they reached: mean ± standard deviation over seeds, highest accuracy first:\n"
        "validation accuracy if all runs have validation images, else test accuracy.\n"
        "Unfinished runs have their own rows. Also draw four plots: curves, bars of training and test accuracy,\n"
        "accuracy against time and parameters, and differences with their intervals; compare.html has all of it.",
        epilog="example: oneloop compare runs/cifar2\n\n"
        "accuracy, loss  on the test images, of the weights that are used: the best ones where validation images chose them\n"
        "best            test accuracy after the best epoch; optimistic, unless validation images chose that epoch\n"
        "validation accuracy   after the best epoch\n"
        "gap             training accuracy minus test accuracy, both of the last weights; of your own images,\n"
        "                training accuracy is that of as many as there are test images, at least 200",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, globs of them, or folders with runs inside")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the plots; default: compare, or none with --json …")
    parser.add_argument(
        "--against", default="", metavar="ROW", help="the row to compare the others with, such as Net; default: the best"
    )
    forms = parser.add_mutually_exclusive_group()
    for form, what in {"json": "everything, unrounded", "csv": "the rows, unrounded", "markdown": "the table"}.items():
        forms.add_argument(f"--{form}", dest="form", action="store_const", const=form, help=f"print {what}")
    chosen = parser.parse_args(args)
    comparison, complaints = compare(find(chosen.runs))
    paired = pairs(comparison, chosen.against)
    show(comparison, paired, chosen.form)
    if chosen.out or not chosen.form:
        draw(comparison, paired, chosen.out or Path("compare"), quiet=bool(chosen.form))
    for complaint in complaints:
        print(printable(complaint), file=sys.stderr)
    if complaints:
        raise Refused(f"left out {len(complaints)} run{'s' * (len(complaints) > 1)} that could not be read")


def show(comparison: Comparison, paired: Sequence[Pair], form: str | None = None) -> None:
    """Print the comparison and its pairs as a table, or as json, csv or markdown."""
    if form == "json":
        print(
            json.dumps(
                {
                    "same": comparison.same,
                    "differ": comparison.differ,
                    "rows": comparison.records(),
                    "pairs": [asdict(pair) for pair in paired],
                },
                indent=1,
            )
        )
    elif form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(_flat_rows(comparison))
    elif form == "markdown":
        head, rows = comparison.table()
        rule = ["---" if heading in comparison.differ else "---:" for heading in head]
        for row in (head, rule, *rows):
            print("|", " | ".join(cell.replace("|", "\\|") for cell in row), "|")
        for pair in paired:
            print(f"\n{pair.sentence()}.")
    else:
        _print_table(comparison, paired)


def draw(comparison: Comparison, paired: Sequence[Pair], folder: Path, quiet: bool = False) -> None:
    """Draw both into `folder`, with a page of all, and print the paths. Raises Refused (1) if they cannot be written."""
    from ..report import compare_page, compare_plots  # imports matplotlib: half a second

    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = compare_plots.draw(folder, comparison, paired)
        written = [*written, compare_page.write(folder, comparison, paired, written)]
    except OSError as error:
        raise Refused(f"cannot write {error.filename or folder}: {error.strerror or error}") from error
    for path in written if not quiet else ():
        print(path)


def _print_table(comparison: Comparison, paired: Sequence[Pair]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PAPER  # nothing is truncated in a file or a pipe; a table takes only what it needs
    head, rows = comparison.table()
    left_out: list[str] = []
    if width_of(_rich_table(comparison, head, rows), console) > console.width:
        head, rows = comparison.table(narrow=True)
    while width_of(_rich_table(comparison, head, rows), console) > console.width and head[-1] != comparison.what:
        left_out.insert(0, head[-1])
        head, rows = head[:-1], [row[:-1] for row in rows]
    console.print(_rich_table(comparison, head, rows))
    if left_out:
        console.print(f"too wide for {console.width} columns, left out: {', '.join(left_out)}", soft_wrap=True)
    for pair in paired:
        console.print(f"{pair.sentence()}.", soft_wrap=True)
    same = ", ".join(f"{key} {text_of(value)}" for key, value in comparison.same.items())
    console.print(f"the same for all: {same}", soft_wrap=True)
    if len(counts := comparison.train_counts()) > 1:
        said = " or ".join(f"{count:,}" for count in counts)
        console.print(f"gaps may not be comparable, the training accuracy is that of {said} images", soft_wrap=True)
    if len(comparison.places()) > 1:
        console.print(f"speeds and times are not comparable, the runs ran on: {'; '.join(comparison.places())}", soft_wrap=True)


def width_of(table: "Table", console: "Console") -> int:
    """Count the columns that `table` takes if nothing in it is wrapped or truncated."""
    return console.measure(table, options=console.options.update(width=PAPER)).maximum


def _rich_table(comparison: Comparison, head: list[str], rows: list[list[str]]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in head:
        varies = heading in comparison.differ
        table.add_column(heading, justify="left" if varies else "right", overflow="fold", no_wrap=not varies)
    for row in rows:
        table.add_row(*row)
    return table


def _flat_rows(comparison: Comparison) -> list[list]:
    head = [*comparison.differ, "finished", "runs", *(name + part for name in comparison.columns for part in ("", "_deviation"))]
    return [head] + [
        [
            *("" if value is None else text_of(value) for value in record["options"].values()),
            record["finished"],
            len(record["seeds"]),
            *(value for name in comparison.columns for value in (record[name] or {"mean": None, "deviation": None}).values()),
        ]
        for record in comparison.records()
    ]
