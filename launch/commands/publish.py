"""`oneloop publish`: a trained net as a folder that timm and transformers load, checked by loading it; or on the hub."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import Refused, printable
from ..trained import WORDS, described, find_run, rebuild
from .arguments import add_trained_net, command_parser


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "publish",
        usage="RUN [OUT | --push owner/name [--public]] --licence NAME",
        description="Write a trained net as a folder: weights, config.json, a model card, plots. Nets of timm load with\n"
        'timm.create_model("local-dir:OUT", pretrained=True) and transformers.pipeline("image-classification", "OUT"); the\n'
        "folder is loaded so, and compared with the net, before it gets its name. Other nets load with oneloop.load(OUT).\n"
        "Images of the training are never part of it.",
        example="runs/custom/timm/resnet18-0a1b2c3d ants --licence apache-2.0",
    )
    add_trained_net(parser)
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="the folder to make; default: published in RUN")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face hub instead, as a private model")
    parser.add_argument("--public", action="store_true", help="with --push: a model that everybody sees")
    parser.add_argument("--licence", required=True, metavar="NAME", help="what others may do: apache-2.0, mit, cc-by-4.0 …")
    chosen = parser.parse_args(args)
    if chosen.push and chosen.out:
        raise Refused("either OUT or --push: a folder is made or uploaded", 2)
    if chosen.public and not chosen.push:
        raise Refused("--public is for --push", 2)
    record, stage = find_run(chosen.run)
    out = chosen.out or record.folder / stage / "published"
    if out.exists():
        raise Refused(f"{out} exists: choose another folder, or remove it", 2)
    if described(record, stage, chosen.weights)["threshold"] is not None:
        raise Refused(
            f"{chosen.run} gives an image several labels, which is not published yet; `oneloop export` writes its graph", 2
        )
    from ..publish.folder import made
    from ..publish.push import ask, push

    if chosen.push:
        ask(chosen.push)
    trained = rebuild(record, stage, weights=chosen.weights, recipe=chosen.recipe)
    with made(record, stage, trained, chosen.licence, out) as published:
        checked = published.checked
        if checked is None:
            print(printable(f"{trained.about['net']} is no net of timm's: it loads with oneloop.load"), file=sys.stderr)
        elif not checked.transformers:
            print("transformers is not installed: the folder was loaded with timm only", file=sys.stderr)
        if chosen.push:
            where = push(published.folder, chosen.push, chosen.public)
        else:
            published.folder.rename(out)
            where = str(out)
    print(printable(f"{where}: {trained.about['net']}, with the {WORDS[trained.weights]}"))
    if checked:
        by = "timm and transformers" if checked.transformers else "timm"
        print(f"loaded by {by}: probabilities of {checked.images} images {checked.words}")
        if checked.real:
            print(f"accuracy on them: {checked.own:.4f} as in training, {checked.theirs:.4f} with their transform")
