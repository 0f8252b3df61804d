"""`oneloop data`: what images there are, before a training. What is found out is in launch/sources/dataset_report.py."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import complain
from ..errors import Refused, printable
from ..files import write_atomically
from ..sources.options import FRACTION, DataOptions
from . import data_seen
from .arguments import add_data_options, command_parser, data_options

if TYPE_CHECKING:
    from rich.console import RenderableType

LINES = 10  # of a list in the terminal; --json and --html have all of it
WIDTH = 80  # columns where the output is no terminal
OPTIONS = (  # of sources.options.DataOptions
    "split", "relabel", "test", "columns", "split_column", "group", "label_from", "classes_at", "multi_label",
    "uncertain", "skip_bad", "white", "bands",
)  # fmt: skip
NAME, BAR = 20, 12  # columns of a class's name, at most, and of its bar


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "data",
        usage="PATH [--html FILE] [--json] [--split FILE] [--write-split FILE]",
        description="Show what images there are: classes, sizes, split, duplicates, bad files, what a training would take.\n"
        "PATH is a folder with a folder for each class, split into train/, val/ and test/ or not; a CSV or parquet table\n"
        "with an image or its path, a label and perhaps a split in each row; a folder of such parquet files; or\n"
        "OWNER/NAME[:CONFIG], a data set of the Hugging Face hub.",
        example="photos/ --html photos.html",
        notes="Each image is opened once. What is found is kept in the cache ($ONELOOP_CACHE, else ~/.cache/oneloop) and\n"
        "holds until the size or the modification time of the file changes. Exit code 4: some are bad, without --skip-bad.",
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="a folder, a table or OWNER/NAME")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with a few images of each class")
    parser.add_argument("--json", action="store_true", help="print everything as one object")
    parser.add_argument("--write-split", type=Path, metavar="FILE", help="write such a table, to keep or to edit")
    parser.add_argument(
        "--validation", type=float, default=FRACTION, metavar="X", help=f"fraction, if not split; default {FRACTION}"
    )
    which_net = "also what a trained net sees: labels in doubt, near-duplicates, outliers; NAME or NAME=SOURCE, as for probe"
    parser.add_argument("--net", default="", metavar="NET", help=which_net)
    parser.add_argument("--size", type=int, default=0, metavar="PIXELS", help="size of image that the net sees, if not its own")
    parser.add_argument("--write-labels", type=Path, metavar="FILE", help="write a table of the labels in doubt, for --relabel")
    parser.add_argument("--clear", action="store_true", help="delete what the cache holds of PATH, and exit")
    add_data_options(parser, *OPTIONS)
    chosen = parser.parse_args(args)
    if chosen.clear:
        _clear(chosen.path)
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..sources import split
    from ..sources.dataset_report import dataset_report, summary
    from ..sources.listing import located

    data_seen.check(chosen.net, chosen.write_labels)
    for flag, target in (("--html", chosen.html), ("--write-split", chosen.write_split), ("--write-labels", chosen.write_labels)):
        if target and located(target) == located(chosen.path):
            raise Refused(f"{flag} {target} would replace what it describes; choose another file", 2)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    options = data_options(chosen, *OPTIONS)
    reading, table = options.reading(), Path(options.split) if options.split else None
    parts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal or chosen.json) as bar:
        report = dataset_report(chosen.path, reading, table, chosen.validation, options.test, bar)
    content, splits = summary(report, options.white or options.open_white), report.splits
    content["train"] = _training(chosen.path, options, chosen.validation, content)
    if chosen.net:
        content["seen"] = data_seen.seen(chosen.path, chosen.net, report, options, chosen.validation, chosen.size)
        splits = data_seen.one_side(report, content["seen"])
    if chosen.write_labels:
        _write(chosen.write_labels, split.as_csv(data_seen.labels_to_correct(content["seen"]), data_seen.HEAD))
    if chosen.write_split:
        sha256 = {image.path: report.files[image.path].sha256 for image in report.good}
        splits = split.mended(splits, split.units(sha256, report.listing.groups))
        rows = [(image.path, image.label, splits[image.path], sha256[image.path]) for image in report.good]
        _write(chosen.write_split, split.as_csv(rows))
        if moved := sum(splits[path] != side for path, side in report.splits.items()):
            are = "images are" if moved > 1 else "image is"
            complain(
                f"{chosen.write_split}: {moved:,} {are} on another side than in the data, so that copies and groups are on one"
            )
    if chosen.html:
        from ..sources import page  # jinja2 takes 0.1 s

        _write(chosen.html, page.render(report, content))
    if chosen.json:
        print(json.dumps(content, indent=1))
    else:
        for part in _text(content):
            console.print(part, soft_wrap=isinstance(part, str))
    if (bad := len(content["bad"])) and not options.skip_bad:
        raise Refused(f"{report.listing.source}: {bad} bad {content['unit']}{'s' * (bad > 1)}; repair or remove them", 4)


def _clear(path: Path) -> None:
    from ..data import store
    from ..sources import hub, index, parquet
    from ..sources.listing import located

    path = located(path)
    cleared = *index.clear(path), parquet.clear(path), hub.clear(path), *store.clear(path)
    deleted = [file for file in cleared if file]
    for file in deleted:
        print(printable(f"deleted {file}"))
    if not deleted:
        print(printable(f"the cache holds nothing of {path}"))


def _write(path: Path, content: bytes) -> None:
    """Replace the file, whole or not at all. Raises Refused (1)."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise Refused(f"cannot write {path}: {error.strerror or error}") from error


def _training(path: Path, options: DataOptions, validation: float, summary: dict) -> str:
    """The command that trains on the images as they were shown; empty if a class has none to train on or to be measured on."""
    absent = _absent(summary)
    if absent["train"] or (any(absent.values()) and "multi_label" not in summary):
        return ""
    words = ["oneloop", "train", "custom", "--data", str(path)]
    words += ["--validation", f"{validation:g}"] if validation != FRACTION else []
    return shlex.join([*words, *data_seen.words(replace(options, skip_bad=bool(summary["bad"])))])


def _text(summary: dict) -> Iterator["RenderableType"]:
    """Lines and tables for the terminal."""
    checked, splits = summary["examined"], summary["splits"]
    yield printable(summary["source"] + (f" at revision {summary['revision']}" if summary["revision"] else ""))
    opened = f"{checked['opened']:,} {summary['unit']}{'s' * (checked['opened'] != 1)} opened"
    compared = "the size of each and the time of its table" if summary["unit"] == "row" else "the size and time of each"
    known = f", {checked['unchanged']:,} known from before (checked: {compared}, not its content)"
    yield opened + known * bool(checked["unchanged"])
    yield ""
    yield f"{_many(summary['images'], 'image')}, {_many(len(summary['classes']), 'class', 'classes')}; " + ", ".join(
        f"{splits[name]:,} {name}" for name in splits
    )
    yield _classes(summary["classes"])
    if several := summary.get("multi_label"):
        yield from _labels(several)
    yield ""
    yield from _pixels(summary)
    yield from _trouble(summary)
    yield from data_seen.text(summary["seen"]) if "seen" in summary else ()
    if summary["train"]:
        yield printable(f"to train on them: {summary['train']}")


def _labels(several: dict) -> Iterator[str]:
    """What is known of several labels an image."""
    unknown = f"; {several['unknown']:,} unknown" * bool(several["unknown"])
    yield f"labels of an image: {several['mean']:.2f} on average; without any: {several['without']:,}{unknown}"
    if several["together"]:
        pairs = ", ".join(f"{one} and {other} {count:,}" for one, other, count in several["together"])
        yield printable(f"most often together: {pairs}")


def _absent(summary: dict) -> dict[str, list[str]]:
    """The classes without images to train on, or to test on, which a training refuses. Without a test split, validation is it."""
    tested = "validation" if summary["splits"]["validation"] and not summary["splits"]["test"] else "test"
    return {side: [name for name, row in summary["classes"].items() if not row[side]] for side in ("train", tested)}


def _classes(classes: dict[str, dict]) -> "RenderableType":
    from rich.bar import Bar
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("class", max_width=NAME, overflow="ellipsis", no_wrap=True)
    columns = ("images", "train", "validation", "test", *["bad"] * any(row["bad"] for row in classes.values()))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", width=BAR)
    most = max(row["images"] for row in classes.values()) or 1
    for name, row in classes.items():
        table.add_row(printable(name), *(f"{row[column]:,}" for column in columns), Bar(most, 0, row["images"], width=BAR))
    return table


def _pixels(summary: dict) -> Iterator[str]:
    """Sizes, modes, and what a training takes."""
    from rich.filesize import decimal

    if sizes := summary["sizes"]:
        yield "width×height: " + ", ".join(f"{name} {width}×{height}" for name, (width, height) in sizes.items())
        yield "Pillow modes: " + ", ".join(f"{count:,} {mode}" for mode, count in summary["modes"].items())
    if several := summary["first_frame_only"]:
        yield f"of {len(several):,} with several frames, the first is used: {_named(several)}"
    bytes_ = {name: decimal(size) for name, size in summary["cost"].items()}
    encoded = "in the table" if summary["unit"] == "row" else "as files"
    yield (
        f"in memory or on disk: {bytes_['files']} {encoded}; decoded, {bytes_['decoded_224']} at 224×224, "
        f"{bytes_['decoded_own_size']} at their own sizes"
    )


def _trouble(summary: dict) -> Iterator[str]:
    """Findings that are worth a look before training."""
    from ..sources.dataset_report import UNEVEN, reasons

    if (ratio := summary["imbalance"]) and ratio >= UNEVEN:
        yield f"imbalance: the largest class has {ratio:.0f} times the images of the smallest"
    yield from map(printable, summary["notes"])
    if missing := [name for name, count in summary["splits"].items() if not count]:
        yield f"no {' and no '.join(missing)} images"
    for side, absent in _absent(summary).items():
        if absent and summary["splits"][side]:
            needed = side == "train" or "multi_label" not in summary
            yield f"no {side} images of {_named(absent)}: {'every class needs at least one' if needed else 'not measured'}"
    if none := [name for name, row in summary["classes"].items() if not row["images"]]:
        yield f"without a usable image: {_named(none)}"
    if copies := summary["duplicates"]["files"]:
        yield f"duplicates: {copies:,} {summary['unit']}{'s have' if copies > 1 else ' has'} the same content as another"
    for key, what, why in (
        ("across_classes", "class", "in several classes: one of the labels is wrong"),
        (
            "across_splits",
            "split",
            "in several splits: what is measured there has been trained on; --write-split FILE mends that",
        ),
    ):
        if groups := summary["duplicates"][key]:
            yield f"{len(groups):,} {'images are' if len(groups) > 1 else 'image is'} {why}"
            for group in groups[:LINES]:
                yield printable("  " + " = ".join(f"{image['path']} ({image[what]})" for image in group))
            if len(groups) > LINES:
                yield f"  and {len(groups) - LINES:,} more: --json or --html"
    if summary["ignored"]:
        kinds = (
            (count, re.sub("^images ", "image ", kind) if count == 1 else kind) for kind, count in summary["ignored"].items()
        )
        yield printable("ignored: " + ", ".join(f"{count:,} {kind}" for count, kind in kinds))
    if bad := summary["bad"]:
        yield f"{len(bad):,} bad {summary['unit']}{'s' * (len(bad) > 1)}:"
        yield from (printable(f"  {line}") for line in reasons((file["path"], file["reason"]) for file in bad))


def _many(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - LINES:,} more" if len(names) > LINES else ""
    return ", ".join(map(printable, names[:LINES])) + more
