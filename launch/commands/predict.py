"""`oneloop predict`: the classes that a trained net gives image files."""

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..console import progress
from ..errors import Refused, printable
from ..memory import keep_freed_memory, nothing_is_garbage
from ..sources.folder import entries, is_image, kind_of
from .arguments import add_confidence, add_trained_net, check_confidence, command_parser, refuse_unsure

if TYPE_CHECKING:
    from oneloop import Model, Prediction

TOP = 3  # classes of an image
TERMINAL = {"FORCE_COLOR", "TTY_COMPATIBLE"}  # set where rich may see a terminal in what is none
Rows = list[tuple[Path, "Prediction"]]


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "predict",
        usage="RUN IMAGE… | FOLDER… [--top 3] [--csv | --json]",
        description="Print the most probable classes of each image, batch by batch. Other sizes than the run's are resized,\n"
        "then normalised as in training. Images in a folder are found as in training, behind links, too.\n"
        "Files that cannot be read as an image are named and skipped, with exit code 1.",
        example="runs/cifar2/Net-0a1b2c3d bird.jpg photos/",
    )
    add_trained_net(parser)
    add_confidence(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files, or folders with images in them")
    many = "classes per image; default 3, or all where an image has several labels"
    parser.add_argument("--top", type=int, metavar="N", help=many)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="image, rank, class, probability; the default in a pipe")
    form.add_argument("--json", action="store_true", help="a list of images with their predictions, names unescaped")
    chosen = parser.parse_args(args)
    if chosen.top is not None and chosen.top < 1:
        raise Refused(f"--top must be at least 1, got {chosen.top}", 2)
    check_confidence(chosen.unsure)
    files = [file for place in chosen.images for file in (images_in(place) if place.is_dir() else [place])]
    keep_freed_memory()
    with nothing_is_garbage():
        import oneloop

        model = oneloop.load(chosen.run, weights=chosen.weights, recipe=chosen.recipe, tta=chosen.tta)
    write, several = _json if chosen.json else _writer(plain=chosen.csv), model.threshold is not None
    refuse_unsure(chosen.run, chosen.unsure, model.threshold)
    top = None if several and not chosen.top else chosen.top or TOP
    if bad := write(predictions(model, files, top), sys.stdout, chosen.unsure, several):
        raise Refused(f"{bad} of {len(files)} files could not be read as an image")


def predictions(model: "Model", files: Sequence[Path], top: int | None) -> Iterator[tuple[Rows, int]]:
    """The files of each batch that could be read, with what they show, and the number of the others, which go to stderr."""
    with progress(len(files)) as done:
        for read in model.read(files, skip=True):
            for why in read.unread.values():
                print(printable(why), file=sys.stderr)
            shown = model.predictions(read, top)
            yield [(files[place], prediction) for place, prediction in zip(read.places, shown, strict=True)], len(read.unread)
            done(len(read.places) + len(read.unread))


def images_in(folder: Path) -> list[Path]:
    """All images in a folder and its subfolders, found as training finds them; the rest is counted on standard error.

    Raises Refused (1) for a folder without any.
    """
    found, left_out = [], Counter[str]()
    for entry in entries(folder):
        if is_image(entry):
            found.append(Path(entry.path))
        elif entry.kind != "folder":
            left_out[kind_of(entry)] += 1
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    if not found:
        raise Refused(f"{folder}: no images in it{f' ({said})' if said else ''}")
    if said := ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()) if kind != "hidden"):
        print(printable(f"{folder}: left out what is no image by its name: {said}"), file=sys.stderr)
    return found


def _json(batches: Iterator[tuple[Rows, int]], out: TextIO, unsure: float, several: bool) -> int:
    """Write a list of images with their predictions; returns the number of files that could not be read.

    With a probability `unsure`, it is said of each image whether its class reaches it; with `several` labels, which it gets.
    """
    bad, before = 0, "[\n"
    for rows, unread in batches:
        bad += unread
        for file, prediction in rows:
            pairs = [{"class": name, "probability": value} for name, value in prediction.probabilities.items()]
            more: dict = {"sure": prediction.probability >= unsure} if unsure else {}
            more |= {"labels": prediction.labels} if several else {}
            out.write(before + json.dumps({"image": str(file), "predictions": pairs} | more))
            before = ",\n"
        out.flush()
    out.write(("[" if before == "[\n" else "\n") + "]\n")
    return bad


def _writer(plain: bool) -> Callable[[Iterator[tuple[Rows, int]], TextIO, float, bool], int]:
    """What writes tables on a terminal, else CSV."""
    if plain or not (sys.stdout.isatty() or TERMINAL & os.environ.keys()):
        return _csv  # 0.2 s sooner
    from rich.console import Console

    return _tables if Console().is_terminal else _csv


def _csv(batches: Iterator[tuple[Rows, int]], out: TextIO, unsure: float, several: bool) -> int:
    """As `_json`, a row for each class of each image."""
    bad, writer = 0, csv.writer(out, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability", *(["sure"] if unsure else ["given"] if several else [])])
    for rows, unread in batches:
        bad += unread
        for file, prediction in rows:
            sure = ["yes" if prediction.probability >= unsure else "no"] if unsure else []
            for rank, (name, value) in enumerate(prediction.probabilities.items(), 1):
                given = ["yes" if name in prediction.labels else "no"] if several else []
                writer.writerow([printable(str(file)), rank, printable(name), f"{value:.6f}", *sure, *given])
        out.flush()
    return bad


def _tables(batches: Iterator[tuple[Rows, int]], _out: TextIO, unsure: float, several: bool) -> int:
    """As `_json`, a table for each batch, for people; of several labels, it has those that an image gets."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    bad, console = 0, Console(highlight=False)
    for rows, unread in batches:
        bad += unread
        table = Table("image", "class", "probability")
        table.columns[0].overflow, table.columns[2].justify = "fold", "right"
        for file, prediction in rows:
            shown_rows = [
                (name, value) for name, value in prediction.probabilities.items() if not several or name in prediction.labels
            ]
            if not shown_rows:
                table.add_row(printable(str(file)), "none", "", end_section=True)
            last = len(shown_rows) - 1
            for rank, (name, value) in enumerate(shown_rows):
                doubt = "unsure: " if rank == 0 and value < unsure else ""
                shown = Text(doubt + printable(name), style="" if rank else "bold")  # as Text: brackets in a name are no markup
                image = Text("" if rank else printable(str(file)))
                table.add_row(image, shown, f"{value:.1%}", end_section=rank == last)
        if rows:
            console.print(table)
    return bad
