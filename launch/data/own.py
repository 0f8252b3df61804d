"""Pictures of one's own, surveyed (launch/pictures/survey.py), as a recipe trains on them."""

import hashlib
import io
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from PIL import Image

from ..errors import Refused
from ..pictures import decode
from ..pictures.rule import Rule, reduced_size
from ..pictures.split import NAMES
from ..pictures.store import Store, Wanted, store
from ..pictures.survey import Survey
from . import synthetic
from .images import Images
from .order import order
from .pictures import PictureSplit

if TYPE_CHECKING:
    from rich.progress import Progress

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def pictures(found: Survey, rule: Rule, bar: "Progress", limit: int = 0) -> Images:
    """The good pictures of a survey, of any sizes, as nets see them by `rule`: images (3, size, size), normalised as ImageNet's.

    They are decoded once, as far as the disk allowance goes (launch/pictures/store.py), while `bar` shows how far it is. Where
    there are no test images, those for validation are the test images, and choose the best weights. `limit` is the number of
    training images to use (0: all).

    Raises Refused: 1 if the cache cannot be written, 4 if a split lacks a class or a picture cannot be decoded any more.
    """
    listing, classes = found.listing, found.listing.classes
    numbers = {name: number for number, name in enumerate(classes)}
    wanted: dict[str, list[Wanted]] = {name: [] for name in NAMES}
    labels: dict[str, list[int]] = {name: [] for name in NAMES}
    digest = hashlib.sha256(json.dumps([classes, rule, decode.VERSION]).encode())
    for each in found.good:
        facts, side, label = found.facts[each.path], found.splits[each.path], numbers[each.label]
        size = reduced_size(facts.width, facts.height, rule)
        wanted[side].append(Wanted(facts.sha256, *size, each.path, partial(_opened, listing.root / each.path)))
        labels[side].append(label)
        digest.update(f"{facts.sha256} {label} {side}\n".encode())
    sides = {name: name for name in NAMES if wanted[name]}
    if "test" not in sides and "validation" in sides:
        sides["test"] = sides.pop("validation")
    for name in ("train", "test"):
        there = {*labels[sides[name]]} if name in sides else set()
        if absent := [label for number, label in enumerate(classes) if number not in there]:
            raise Refused(f"{listing.source}: no {name} pictures of {', '.join(absent[:10])}; every class needs at least one", 4)
    stored = store(listing.source, [each for side in sides.values() for each in wanted[side]], rule, bar)
    splits = {name: PictureSplit(torch.tensor(labels[side]), wanted[side], stored, rule) for name, side in sides.items()}
    train = splits["train"]
    if limit and limit < len(train):
        train = train.select(order(len(train), seed=0, epoch=0)[:limit].sort().values)
    test, validation = splits["test"], splits.get("validation")
    return Images(train, test, classes, MEAN, STD, str(listing.source), digest.hexdigest(), validation=validation)


def drawings(rule: Rule, classes: tuple[str, ...] = ()) -> Images:
    """Drawings of CIFAR-10's classes as pictures of 32×32, for trying a recipe without any: 400 to train, 100 to test.

    With `classes` these are their names, with noise where there is no drawing: for the net of a run whose pictures are not here.
    """
    names = classes or synthetic.DRAWN
    drawn = synthetic.read(names, (3, 32, 32), {"train": 400, "test": 100})
    splits = {}
    for name, images in (("train", drawn.train), ("test", drawn.test)):
        wanted = []
        for number, pixels in enumerate(images.pixels):
            file = io.BytesIO()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "png")
            size = reduced_size(32, 32, rule)
            wanted.append(Wanted(f"{name}{number}", *size, f"drawing {number}", partial(io.BytesIO, file.getvalue())))
        splits[name] = PictureSplit(images.labels, wanted, Store(Path(), {}), rule)
    return Images(splits["train"], splits["test"], names, MEAN, STD, "synthetic", drawn.fingerprint)


def _opened(path: Path) -> BinaryIO:
    return open(path, "rb")
