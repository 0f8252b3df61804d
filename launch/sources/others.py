"""Images that a trained net is measured on, other than its own: of a folder, split or not, of a table, or of the hub."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..console import complain
from ..data.dataset import Shape, Split
from ..data.disk_feed import DiskSplit
from ..data.images import Images
from ..data.resize import ResizeRule
from ..data.store import Store
from ..data.task import SEVERAL, Task
from ..errors import Refused
from . import custom_images, layout
from .dataset_report import DatasetReport, dataset_report
from .folder import entries, is_image
from .in_memory import stacked
from .listing import ListedImage, Reading, located
from .options import FRACTION, DataOptions
from .split import NAMES, read

UNNAMED = 4  # classes at most that a message names


def needs(data: Path, classes: Sequence[str]) -> bool:
    """Whether the folder `data` has images, but not as recipes of one size of image want them: split, all classes in each."""
    content = entries(located(data)) if data.is_dir() else []
    if not any(is_image(entry) for entry in content):
        return False
    with suppress(Refused):
        there = {(image.split, image.label) for image in layout.read(located(data), content, Reading(known=classes)).images}
        return not there >= {(split, name) for split in ("train", "test") for name in classes}
    return False


def images(
    data: str,
    like: Images,
    shape: Shape,
    rule: ResizeRule | None,
    fingerprint: str,
    options: DataOptions,
    *,
    task: Task,
    validation: float | None = None,
    limit: int = 0,
) -> Images:
    """The images at `data` for a net of the `task`, with classes, mean and std of `like`, as uint8 of `shape` or by the `rule`.

    Images that are not split are all test images, and so are those for validation where there are none to test; a class may be
    missing, which is said. Where they are the data of `fingerprint`, they are split as for the training, as the options say.
    Raises Refused: 1 if they cannot be read, 4 for bad files (unless `options.skip_bad`), unknown classes, or no test images.
    """
    from rich.progress import Progress

    with Progress(disable=True) as bar:
        fraction = FRACTION if validation is None else validation
        report = dataset_report(Path(data), options.reading(like.classes), None, fraction, options.test, bar)
    where = report.listing.source
    if report.bad and not options.skip_bad:
        custom_images.name_bad(report)
        raise Refused(f"{where}: {len(report.bad):,} bad file{'s' * (len(report.bad) > 1)}; repair or remove them", 4)
    if rule and (trained_on := _as_trained_on(report, rule, fingerprint, options.split, limit, validation)):
        return replace(trained_on, mean=like.mean, std=like.std)
    if report.listing.multi_label != (task is SEVERAL):
        has, gives = ("several labels each", "one") if report.listing.multi_label else ("one label each", "several")
        raise Refused(f"{where}: its images have {has}, and the net gives {gives}; --multi-label reads a table otherwise", 4)
    if strange := [name for name in report.listing.classes if name not in like.classes]:
        has = ", ".join(strange[:UNNAMED]) + (f" and {len(strange) - UNNAMED} more" if len(strange) > UNNAMED else "")
        theirs = ", ".join(like.classes[:10]) + (f" and {len(like.classes) - 10} more" if len(like.classes) > 10 else "")
        raise Refused(f"{where} has the class{'es' * (len(strange) > 1)} {has}; the net knows {theirs}", 4)
    made = not any(image.split for image in report.listing.images)
    sides = {name: [image for image in report.good if ("test" if made else report.splits[image.path]) == name] for name in NAMES}
    if not sides["test"]:
        sides["test"], sides["validation"] = sides["validation"], []
    if not sides["test"]:
        raise Refused(f"{where}: no test images", 4)
    there = {label for image in sides["test"] for label in report.listing.labels_of(image)}
    if absent := [name for name in like.classes if name not in there]:
        complain(f"{where}: no test images of {', '.join(absent[:10])}: measured without")
    splits = {name: _split(report, some, like.classes, shape, rule) for name, some in sides.items() if some}
    return replace(
        like,
        train=splits.get("train", splits["test"]),  # not there: nobody can ask for it
        test=splits["test"],
        validation=splits.get("validation"),
        source=str(where),
        fingerprint="",
        held=None,
    )


def _as_trained_on(
    report: DatasetReport, rule: ResizeRule, fingerprint: str, split: str, limit: int, validation: float | None
) -> Images | None:
    """The images as they were trained on, if they are those of `fingerprint`."""
    candidates = [report.splits]
    with suppress(Refused):
        candidates += [read(Path(split), report.listing, [image.path for image in report.good])] if split else []
    for splits in candidates:
        with suppress(Refused):
            held = None if any(image.split for image in report.listing.images) or splits is not report.splits else validation
            images = custom_images.images_of(replace(report, splits=splits), rule, limit, held, kept=False)
            if images.fingerprint == fingerprint:
                return images
    return None


def _split(
    report: DatasetReport, images: Sequence[ListedImage], classes: Sequence[str], shape: Shape, rule: ResizeRule | None
) -> Split | DiskSplit:
    labels = custom_images.labels_of(report.listing, [image.label for image in images], classes)
    if rule is None:
        return Split(stacked(report.listing, images, shape), labels)
    return DiskSplit(labels, [custom_images.stored_image(report, image, rule) for image in images], Store(rule), rule)
