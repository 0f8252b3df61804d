"""Labels that a table corrects: --relabel FILE, with the columns path and label, a row for each image whose label is wrong."""

from dataclasses import replace
from pathlib import Path

from ..errors import Refused
from . import table
from .labels import tidy
from .listing import Listing
from .several import parts


def relabelled(listing: Listing, path: Path) -> Listing:
    """`listing` with the labels that the file `path` gives; other images keep theirs, and classes stay those that there were.

    Raises Refused: 1 if the file cannot be read, 4 if it names an image or a class that `listing` lacks, or two labels for one.
    """
    classes, paths = listing.classes, {image.path for image in listing.images}
    labels: dict[str, str] = {}
    for number, (name, label) in enumerate(table.rows(path, ("path", "label")), 1):
        name, label = name if name in paths else name.strip(), label if label in classes else tidy(label)
        names = [name for kind in parts(label) for name in kind] if listing.multi_label else [label]
        if name not in paths:
            raise Refused(f"{path}: row {number} names {name}, which is not in {listing.source}", 4)
        if not {*names} <= {*classes}:
            some = ", ".join(classes[:10]) + (" …" if len(classes) > 10 else "")
            raise Refused(f"{path}: row {number} has the label {label!r}; the classes are {some}", 4)
        if labels.setdefault(name, label) != label:
            raise Refused(f"{path}: {name} is {labels[name]} and, in row {number}, {label}", 4)
    images = [image._replace(label=labels.get(image.path, image.label)) for image in listing.images]
    changed = sum(new != old for new, old in zip(images, listing.images, strict=True))
    note = f"{changed:,} label{'s' * (changed != 1)} as {path} has {'them' if changed != 1 else 'it'}"
    return replace(listing, images=images, notes=(*listing.notes, note))
