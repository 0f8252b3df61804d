"""Images that a recipe trains on and evaluates, and its validation images."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import Refused
from .dataset import Split
from .disk_feed import DiskSplit
from .order import held_out
from .task import SEVERAL, Task, task_of

SIZE_LIMIT = 4096  # pixels a side


@dataclass(frozen=True)
class Images:
    """Images that a recipe trains on and evaluates, as the functions of `launch.sources` return it.

    `mean` and `std` are per channel, for pixels scaled to 0..1. `source` and `fingerprint` are those of everything the source
    has, before classes and a limit were applied (see `DataSet`). With `validation` images, these choose the best weights, and
    the test images are measured at the end only; without, the test images choose. Raises Refused (2) if `size` is out of range.
    """

    train: Split | DiskSplit
    test: Split | DiskSplit
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    fingerprint: str
    size: int = 0  # height and width the net sees; batches are resized on the device. 0: not resized
    validation: Split | DiskSplit | None = None
    held: float | None = None  # the --validation by which its source made the validation images, if it made them
    files: Mapping[str, bytes] = field(default_factory=dict)  # what the run folder is to have of it, such as split.csv

    def __post_init__(self) -> None:
        if not 0 <= self.size <= SIZE_LIMIT:
            raise Refused(f"--size {self.size} is out of range; it takes 1 to {SIZE_LIMIT} pixels, or 0 for no resizing", 2)

    @property
    def task(self) -> Task:
        """What nets are trained for on them."""
        return task_of(self.train.labels)

    @property
    def multi_label(self) -> bool:
        """True if an image has any number of labels."""
        return self.task is SEVERAL

    @property
    def model_selection_split(self) -> str:
        """The split whose accuracy, or mean average precision, chooses the best weights."""
        return "test" if self.validation is None else "validation"


def prepared(
    images: Images, mean: tuple[float, ...], std: tuple[float, ...], crop: float = 0.0, interpolation: str = ""
) -> Images:
    """`images` preprocessed as weights want them: `mean` and `std`, and for images of any size `crop` and `interpolation`.

    Those that are 0 or empty stay as they are.
    """
    changed: dict[str, Any] = {name: value for name, value in (("crop", crop), ("interpolation", interpolation)) if value}

    def split(of: Split | DiskSplit) -> Split | DiskSplit:
        return replace(of, rule=of.rule._replace(**changed)) if isinstance(of, DiskSplit) else of

    validation = images.validation and split(images.validation)
    return replace(images, mean=mean, std=std, train=split(images.train), test=split(images.test), validation=validation)


def with_validation(images: Images, fraction: float | None) -> Images:
    """`images` with this `fraction` of its training images, 0 to 0.9, as validation images instead; unchanged if it is None or 0.

    Which ones depends on the images alone, see `held_out`. Raises Refused (2) if a class would have no image on one side, or if
    there are validation images already.
    """
    if fraction is None or fraction == images.held:
        return images
    if images.validation is not None:
        raise Refused(f"{images.source} has validation images of its own; leave out --validation", 2)
    if fraction == 0:
        return images
    task, classes = images.task, len(images.classes)
    strata = task.strata(images.train.labels)
    held = torch.zeros(len(strata), dtype=torch.bool)
    held[held_out(strata, fraction)] = True
    there = task.counts(images.train.labels, classes)
    train, validation = (images.train.select(chosen.nonzero().flatten()) for chosen in (~held, held))
    for name, split in (("training", train), ("validation", validation)):
        counts = task.counts(split.labels, classes)
        if empty := [images.classes[label] for label in there.nonzero().flatten() if not counts[label]]:
            raise Refused(f"--validation {fraction} leaves no {name} image of {', '.join(empty)}; choose another fraction", 2)
    return replace(images, train=train, validation=validation)
