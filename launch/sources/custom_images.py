"""Images of one's own as a recipe trains on them: found, checked, split and decoded once."""

import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from ..console import complain, say
from ..data import decode, native
from ..data.disk_feed import DiskSplit
from ..data.images import Images
from ..data.order import order
from ..data.resize import OF_DATA, ResizeRule, reduced_size
from ..data.store import Store, StoredImage, image_of
from ..data.task import UNKNOWN, task_of
from ..errors import Refused, printable
from . import several, synthetic
from .check import LOST
from .dataset_report import DatasetReport, dataset_report, duplicates, notes, reasons
from .listing import ListedImage, Listing, open_image
from .options import FRACTION, DataOptions
from .split import NAMES, as_csv, folds_by_content

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
WORTH_COMPILING = 1000  # images, from which on it is worth a line that torch resizes them
SHOWN = 50  # bad files that are named on the screen
NAMED, CUT = 10, 40  # classes in the first line, and characters of a name


def custom(
    data: str,
    rule: ResizeRule,
    options: DataOptions = DataOptions(),
    limit: int = 0,
    validation: float | None = None,
    *,
    classes: tuple[str, ...] = (),
    main: bool = True,
) -> Images:
    """The images at `data`, of any sizes, as nets see them by `rule`: images (3, size, size), normalised as ImageNet's.

    `data` is a folder, a table, a data set of the hub (owner/name), or "synthetic". Splits are those of the file `options.split`,
    else those that `data` has, else made by content: the fraction `validation` (None: FRACTION) and `options.test` of each
    class. Where there is no test split, the validation images are the test images, and choose the best weights. With
    `options.fold`, one part in K of the training and validation images is the test split, the others train, and the images that
    were to test are left out. `limit` is the number of training images to use (0: all).

    An image is decoded when it is first opened and then kept, as far as the disk allowance goes (launch/data/store.py); not
    for a run with `classes`, which only rebuilds its net. `main`: on the main process, which says what it finds.

    Raises Refused: 1 if `data` cannot be read or the cache not written, 2 for wrong arguments, 4 if there are bad files (unless
    `options.skip_bad`), or if a split lacks a class.
    """
    if options.fold and validation:
        raise Refused("--fold tests on a fold and keeps nothing for --validation: leave one of them out", 2)
    if data == "synthetic":
        drawn = _drawings(rule._replace(white=max(rule.white, 0)), classes, limit)
        fold = options.fold_of()
        return _announced(_folded(drawn, *fold) if fold else drawn, main and not classes)
    if data == "hub":
        raise Refused("--data hub names no data set: it takes a folder, a table, owner/name of the hub, or synthetic", 2)
    reading, split = options.reading(classes), Path(options.split) if options.split else None
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not main or not console.is_terminal) as bar:
        fraction = FRACTION if validation is None else validation
        kept = None if classes or limit else rule  # with a limit, few of them may be wanted
        report = dataset_report(Path(data), reading, split, fraction, options.test, bar, kept, options.fold_of())
        if all(info.problem == LOST for info in report.files.values()):
            raise Refused(f"{data}: none of its {len(report.files):,} images is there, such as {next(iter(report.files))}")
        if report.bad and not options.skip_bad:
            _refuse_bad(report, main)
        if main and not classes:
            for note in notes(report, rule.white):
                complain(f"{report.listing.source}: {note}")
            for kind, count in report.listing.ignored.items():
                if kind.startswith("images "):
                    complain(f"{report.listing.source}: {kind}: {count:,}, left out")
            if len(report.good) >= WORTH_COMPILING and not native.library():
                complain("no C compiler that works (cc, gcc or clang): torch resizes images, at half the speed")
        if main:
            _say_duplicates(report)
        made = not split and not options.fold and not any(image.split for image in report.listing.images)
        rule = rule._replace(white=report.white) if rule.white == OF_DATA else rule
        images = images_of(report, rule, limit, held=validation if made else None, kept=not classes)
    images = _announced(images, main and not classes)
    if main and not classes and images.multi_label:
        _say_labels(images)
    return images


def _announced(images: Images, main: bool) -> Images:
    """`images`, after saying on the main process which classes were found."""
    if main:
        names = [name if len(name) <= CUT else f"{name[: CUT - 1]}…" for name in images.classes[:NAMED]]
        more = f" and {len(images.classes) - NAMED:,} more" if len(images.classes) > NAMED else ""
        sides = {"train": images.train, "validation": images.validation, "test": images.test}
        counts = ", ".join(f"{len(split):,} {name}" for name, split in sides.items() if split is not None)
        say(printable(f"{images.source}: {len(images.classes):,} classes: {', '.join(names)}{more}; images: {counts}"))
    return images


def _say_labels(images: Images) -> None:
    """Say how many labels images have, and which of them no image has that is measured on."""
    labels = images.train.labels
    none = int((labels != 1).all(1).sum())
    unknown = f", {(labels == UNKNOWN).sum():,} unknown labels, which count nowhere" * bool((labels == UNKNOWN).any())
    mean = (labels == 1).sum() / len(labels)
    say(f"several labels an image: {mean:.2f} of {len(images.classes):,} on average; none: {none:,}{unknown}")
    for name, split in (("validation", images.validation), ("test", images.test)):
        if split is not None and (
            absent := [images.classes[number] for number in (split.labels != 1).all(0).nonzero().flatten()]
        ):
            complain(printable(f"no {name} images of {', '.join(absent[:NAMED])}: means are over the other labels"))


def _refuse_bad(report: DatasetReport, main: bool) -> None:
    """Name the bad files, and raise Refused (4)."""
    where, bad = report.listing.source, report.bad
    if main:
        name_bad(report)
    counts = Counter(label for image in bad for label in report.listing.labels_of(image))
    by_class = ", ".join(f"{label} {counts[label]}" for label in report.listing.classes if counts[label])
    files = f"{len(bad):,} bad file{'s' * (len(bad) > 1)} ({by_class})"
    raise Refused(f"{where}: {files}; repair or remove them, or train without them: --skip-bad", 4)


def name_bad(report: DatasetReport) -> None:
    """Say of the bad files what is wrong with each, of SHOWN at most."""
    lines = [*reasons((image.path, report.files[image.path].problem) for image in report.bad)]
    for line in lines[:SHOWN]:
        complain(line)
    if len(lines) > SHOWN:
        complain(f"… and {len(lines) - SHOWN:,} more: oneloop data {report.listing.source} names them all")


def stored_image(report: DatasetReport, image: ListedImage, rule: ResizeRule) -> StoredImage:
    """A good image, as the store keeps it by the `rule` for size."""
    info = report.files[image.path]
    size = reduced_size(info.width, info.height, rule)
    return StoredImage(info.sha256, *size, image.path, partial(open_image, report.listing, image))


def _say_duplicates(report: DatasetReport) -> None:
    """Say that images are there twice, where that spoils what is learned or measured."""
    twice, where = duplicates(report), report.listing.source
    for what, trouble in (("across_classes", "in several classes"), ("across_splits", "in several splits")):
        if count := len(twice[what]):
            are = "images are" if count > 1 else "image is"
            complain(f"{where}: {count:,} {are} {trouble}; oneloop data {where} names them")


def images_of(report: DatasetReport, rule: ResizeRule, limit: int, held: float | None, kept: bool) -> Images:
    """The images of `report` as recipes train on them, `kept` once decoded. Raises Refused (4) if a split lacks a class."""
    listing, classes = report.listing, report.listing.classes
    numbers = {name: number for number, name in enumerate(classes)}
    stored: dict[str, list[StoredImage]] = {name: [] for name in NAMES}
    texts: dict[str, list[str]] = {name: [] for name in NAMES}
    digest = hashlib.sha256(json.dumps([classes, rule[:3], decode.VERSION, *([rule.bands] if rule.bands else [])]).encode())
    for image in report.good:
        side, label = report.splits[image.path], image.label if listing.multi_label else numbers[image.label]
        stored[side].append(stored_image(report, image, rule))
        texts[side].append(image.label)
        digest.update(f"{report.files[image.path].sha256} {label} {side}\n".encode())
    sides = {name: name for name in NAMES if stored[name]}
    if "test" not in sides and "validation" in sides:
        sides["test"] = sides.pop("validation")
    labels = {name: labels_of(listing, texts[side], classes) for name, side in sides.items()}
    for name in ("train", "test"):
        counts = task_of(labels[name]).counts(labels[name], len(classes)).tolist() if name in sides else [0] * len(classes)
        absent = [label for label, count in zip(classes, counts, strict=True) if not count]
        if absent and (name == "train" or name not in sides or not listing.multi_label):
            raise Refused(f"{listing.source}: no {name} images of {', '.join(absent[:10])}; every class needs at least one", 4)
    store = (report.store or Store(rule, listing.source)) if kept else Store(rule)
    store.allow([image for side in sides.values() for image in stored[side]])
    splits = {name: DiskSplit(labels[name], stored[side], store, rule) for name, side in sides.items()}
    train, test, validation = _limited(splits["train"], limit), splits["test"], splits.get("validation")
    return Images(train, test, classes, MEAN, STD, str(listing.source), digest.hexdigest(), 0, validation, held, _lists(report))


def labels_of(listing: Listing, labels: Sequence[str], classes: Sequence[str]) -> Tensor:
    """The `labels` of images, as the listing has them, for a net of these classes: as launch/data/task.py says."""
    numbers = {name: number for number, name in enumerate(classes)}
    if not listing.multi_label:
        return torch.tensor([numbers[label] for label in labels])
    rows = torch.zeros(len(labels), len(classes), dtype=torch.uint8)
    for row, label in enumerate(labels):
        for names, value in zip(several.parts(label), (1, UNKNOWN), strict=True):
            rows[row, [numbers[name] for name in names if name in numbers]] = value
    return rows


def _limited(train: DiskSplit, limit: int) -> DiskSplit:
    """`limit` images of a training split; 0: all."""
    return train.select(order(len(train), seed=0, epoch=0)[:limit].sort().values) if 0 < limit < len(train) else train


def _lists(report: DatasetReport) -> dict[str, bytes]:
    """split.csv, and bad.csv if files were left out."""
    rows = [(image.path, image.label, report.splits[image.path], report.files[image.path].sha256) for image in report.good]
    bad = [(image.path, image.label, report.files[image.path].problem) for image in report.bad]
    return {"split.csv": as_csv(rows)} | ({"bad.csv": as_csv(bad, ("path", "label", "problem"))} if bad else {})


def _drawings(rule: ResizeRule, classes: tuple[str, ...], limit: int) -> Images:
    """Drawings of CIFAR-10's classes as images of 32×32, for trying a recipe without any: `limit` of 400 to train, 100 to test.

    With `classes` these are their names, with noise where there is no drawing: for the net of a run whose images are not here.
    """
    names = classes or synthetic.DRAWN
    drawn = synthetic.read(names, (3, 32, 32), {"train": 400, "test": 100})
    splits = {}
    for name, images in (("train", drawn.train), ("test", drawn.test)):
        wanted = []
        for number, pixels in enumerate(images.pixels):
            file = io.BytesIO()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "png")
            wanted.append(image_of(file.getvalue(), *reduced_size(32, 32, rule), f"drawing {number}"))
        splits[name] = DiskSplit(images.labels, wanted, Store(rule), rule)
    return Images(_limited(splits["train"], limit), splits["test"], names, MEAN, STD, "synthetic", drawn.fingerprint)


def _folded(drawn: Images, number: int, count: int) -> Images:
    """Drawings, of which fold `number` of `count` tests and the others train."""
    train = drawn.train
    assert isinstance(train, DiskSplit)
    contents = [image.sha256 for image in train.images]
    by_class = {str(label): [*itertools.compress(contents, train.labels == label)] for label in train.labels.unique()}
    placed = folds_by_content(by_class, count)
    tests = torch.tensor([placed[content] == number for content in contents])
    return replace(drawn, train=train.select((~tests).nonzero().flatten()), test=train.select(tests.nonzero().flatten()))
