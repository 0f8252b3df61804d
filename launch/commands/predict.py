"""`oneloop predict`: the classes that a trained net gives image files."""

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import Refused, printable
from ..sources.folder import entries, is_image, kind_of
from ..trained import Trained, feed, find_run, rebuild
from .arguments import add_trained_net, command_parser

BATCH = 500  # images in memory at a time, fewer if they are large
VALUES = 1 << 24  # pixel values in memory at a time, at most


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "predict",
        usage="RUN IMAGE… | FOLDER… [--top 3] [--csv | --json]",
        description="Print the most probable classes of each image. Images of another size than the run's are resized to it,\n"
        "then normalised as in training. Images in a folder are found as in training, behind links, too.\n"
        "Files that cannot be read as an image are named and skipped, with exit code 1.",
        example="runs/cifar2/Net-0a1b2c3d bird.jpg photos/",
    )
    add_trained_net(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files, or folders with images in them")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes per image; default 3")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="image, rank, class, probability; the default in a pipe")
    form.add_argument("--json", action="store_true", help="a list of images with their predictions, names unescaped")
    chosen = parser.parse_args(args)
    if chosen.top < 1:
        raise Refused(f"--top must be at least 1, got {chosen.top}", 2)
    files = [file for place in chosen.images for file in (images_in(place) if place.is_dir() else [place])]
    trained = rebuild(*find_run(chosen.run), weights=chosen.weights, recipe=chosen.recipe)
    rows = list(predictions(trained, files, chosen.top))
    if chosen.json:
        print(json.dumps([{"image": str(file), "predictions": [*map(dict, said)]} for file, said in rows], indent=1))
    else:
        _print(rows, plain=chosen.csv)
    if len(rows) < len(files):
        raise Refused(f"{len(files) - len(rows)} of {len(files)} files could not be read as an image")


def predictions(trained: Trained, files: Sequence[Path], top: int) -> Iterator[tuple[Path, list[dict]]]:
    """Each file and its `top` predictions {"class", "probability"}, most probable first. Unreadable files go to stderr."""
    import torch

    from ..data.image_file import read_image

    device = trained.run.accelerator.device
    net = trained.net.to(device)
    channels, *sides = trained.shape
    size = max(math.prod(sides), trained.images.size**2)
    count = min(BATCH, max(VALUES // (channels * size), 1))
    for start in range(0, len(files), count):
        read, pixels = [], []
        for file in files[start : start + count]:
            try:
                pixels.append(read_image(file, trained.shape, trained.rule))
                read.append(file)
            except Refused as error:
                print(printable(str(error)), file=sys.stderr)
        if not read:
            continue
        source = feed(trained, torch.stack(pixels), device)
        batch, _ = source.batch(source.order(torch.arange(len(read))))
        with torch.no_grad():
            best = net(batch).softmax(1).topk(min(top, len(trained.images.classes)))
        for file, values, indices in zip(read, best.values.tolist(), best.indices.tolist(), strict=True):  # host-device sync
            names = (trained.images.classes[index] for index in indices)
            yield file, [{"class": name, "probability": value} for name, value in zip(names, values, strict=True)]


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


def _print(rows: Sequence[tuple[Path, list[dict]]], plain: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if plain or not console.is_terminal:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "rank", "class", "probability"])
        for file, said in rows:
            for rank, each in enumerate(said, 1):
                writer.writerow([printable(str(file)), rank, printable(each["class"]), f"{each['probability']:.6f}"])
        return
    from rich.text import Text

    table = Table("image", "class", "probability")
    table.columns[0].overflow, table.columns[2].justify = "fold", "right"
    for file, said in rows:
        for rank, each in enumerate(said):
            name = Text(printable(each["class"]), style="" if rank else "bold")  # as Text: brackets in a name are not markup
            image, last = Text("" if rank else printable(str(file))), rank + 1 == len(said)
            table.add_row(image, name, f"{each['probability']:.1%}", end_section=last)
    console.print(table)
