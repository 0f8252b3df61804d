"""Images that a trained net is measured on, other than its own: of a folder, split or not, of a table, or of the hub."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from ..console import complain
from ..data.dataset import Shape, Split
from ..data.disk_feed import DiskSplit
from ..data.image_file import stack
from ..data.images import Images
from ..data.resize import ResizeRule
from ..data.store import Store
from ..errors import Refused
from . import custom_images, path_table
from .listing import class_folders, entries, is_image
from .split import NAMES, read
from .survey import Survey, located, survey

UNNAMED = 4  # classes at most that a message names


def needs(data: Path, classes: Sequence[str]) -> bool:
    """Whether the folder `data` has images, but not as recipes of one size of image want them: split, all classes in each."""
    found = entries(located(data)) if data.is_dir() else []
    if not any(is_image(entry) for entry, _ in found):
        return False
    with suppress(Refused):
        there = {(each.split, each.label) for each in class_folders(located(data), found).images}
        return not there >= {(split, name) for split in ("train", "test") for name in classes}
    return False


def images(
    data: str,
    like: Images,
    shape: Shape,
    rule: ResizeRule | None,
    fingerprint: str,
    *,
    validation: float | None = None,
    test: float = custom_images.FRACTION,
    split: str = "",
    columns: Sequence[str] = (),
    skip_bad: bool = False,
    limit: int = 0,
) -> Images:
    """The images at `data` with the classes, mean and std of `like`, as uint8 of `shape` or by the `rule` for size.

    Images that are not split are all test images, and so are those for validation where there are none to test; a class may be
    missing, which is said. Where they are the data of `fingerprint`, they are split as for the training, as the options say.
    Raises Refused: 1 if they cannot be read, 4 for bad files (unless `skip_bad`), unknown classes, or no test images.
    """
    from rich.progress import Progress

    with Progress(disable=True) as bar:
        chosen = path_table.chosen(columns)
        fraction = custom_images.FRACTION if validation is None else validation
        found = survey(Path(data), chosen, None, fraction, test, bar, known=like.classes)
    where = found.listing.source
    if found.bad and not skip_bad:
        custom_images.name_bad(found)
        raise Refused(f"{where}: {len(found.bad):,} bad file{'s' * (len(found.bad) > 1)}; repair or remove them", 4)
    if rule and (trained_on := _own(found, rule, fingerprint, split, limit, validation)):
        return replace(trained_on, mean=like.mean, std=like.std)
    if strange := [name for name in found.listing.classes if name not in like.classes]:
        has = ", ".join(strange[:UNNAMED]) + (f" and {len(strange) - UNNAMED} more" if len(strange) > UNNAMED else "")
        theirs = ", ".join(like.classes[:10]) + (f" and {len(like.classes) - 10} more" if len(like.classes) > 10 else "")
        raise Refused(f"{where} has the class{'es' * (len(strange) > 1)} {has}; the net knows {theirs}", 4)
    made = not any(each.split for each in found.listing.images)
    sides = {name: [each for each in found.good if ("test" if made else found.splits[each.path]) == name] for name in NAMES}
    if not sides["test"]:
        sides["test"], sides["validation"] = sides["validation"], []
    if not sides["test"]:
        raise Refused(f"{where}: no test images", 4)
    there = {each.label for each in sides["test"]}
    if absent := [name for name in like.classes if name not in there]:
        complain(f"{where}: no test images of {', '.join(absent[:10])}: measured without")
    splits = {name: _split(found, those, like.classes, shape, rule) for name, those in sides.items() if those}
    return replace(
        like,
        train=splits.get("train", splits["test"]),  # not there: nobody can ask for it
        test=splits["test"],
        validation=splits.get("validation"),
        source=str(where),
        fingerprint="",
        held=None,
    )


def _own(found: Survey, rule: ResizeRule, fingerprint: str, split: str, limit: int, validation: float | None) -> Images | None:
    """The images as they were trained on, if they are those of `fingerprint`."""
    splits = [found.splits]
    with suppress(Refused):
        splits += [read(Path(split), found.listing, [each.path for each in found.good])] if split else []
    for given in splits:
        with suppress(Refused):
            held = None if any(each.split for each in found.listing.images) or given is not found.splits else validation
            images = custom_images.images_of(replace(found, splits=given), rule, limit, held, kept=False)
            if images.fingerprint == fingerprint:
                return images
    return None


def _split(found: Survey, those: list, classes: Sequence[str], shape: Shape, rule: ResizeRule | None) -> Split | DiskSplit:
    labels = torch.tensor([classes.index(each.label) for each in those])
    if rule is None:
        files = [(str(found.listing.root / each.path), found.listing.root / each.path) for each in those]
        return Split(stack(files, len(those), shape), labels)
    return DiskSplit(labels, [custom_images.wanted_by(found, each, rule) for each in those], Store(rule), rule)
