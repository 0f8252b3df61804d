"""A data set in memory, and how it reaches a net: uint8 pixels become normalised float32 batches on the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refused
from .dataset import Split
from .disk_feed import Augmented, DiskFeed, DiskSplit, uneven
from .features import FeatureFeed
from .normalise import normaliser
from .order import held_out

SIZE_LIMIT = 4096  # pixels a side


@dataclass(frozen=True)
class Images:
    """What a recipe trains on and evaluates, as the functions of `launch.sources` return it.

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
    def chooser(self) -> str:
        """The split whose accuracy chooses the best weights."""
        return "test" if self.validation is None else "validation"


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
    labels = images.train.labels
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[held_out(labels, fraction)] = True
    train, validation = (images.train.select(chosen.nonzero().flatten()) for chosen in (~held, held))
    for name, split in (("training", train), ("validation", validation)):
        counts = split.labels.bincount(minlength=len(images.classes))
        if empty := [images.classes[label] for label in labels.unique() if not counts[label]]:
            raise Refused(f"--validation {fraction} leaves no {name} image of {', '.join(empty)}; choose another fraction", 2)
    return replace(images, train=train, validation=validation)


class MemoryFeed:
    """Batches of a split: its pixels stay uint8, and each batch is normalised on the device.

    The pixels are on `device` if they take less than half of its free memory, else in main memory. An image is a row of (H, W, C)
    values, so that a batch is one `index_select` and comes out in channels-last layout, the fastest one for convolutions.

    Augmentations draw on the device `drawn_on`. Evaluation takes `batches` images at a time: a fixed number, so that the result
    does not depend on the number of processes.
    """

    batches = 500
    uneven: tuple[int, ...] = ()  # see DiskFeed

    def __init__(self, split: Split, images: Images, device: torch.device):
        channels, height, width = split.shape
        self.drawn_on = device
        self.shape = (-1, height, width, channels)
        self.device, self.size = device, images.size
        rows = split.pixels.permute(0, 2, 3, 1).reshape(len(split), -1)
        home = device if _fits(rows, device) else torch.device("cpu")
        self.rows, self.labels = rows.to(home), split.labels.to(home)
        self.normalise = normaliser(images.mean, images.std, height * width, device)

    @property
    def resident(self) -> bool:
        """Whether the pixels are where they are needed."""
        return self.rows.device.type == self.device.type

    def expect(self, micro_batches: Sequence[Tensor]) -> None:
        """As DiskFeed.expect. Nothing needs to be prepared here."""

    def order(self, ids: Tensor) -> Tensor:
        """`ids` (int64) on the rows' device: moved once an epoch, not once a batch."""
        return ids.to(self.rows.device)

    def batch(self, ids: Tensor, augments: Sequence[Augmented] = ()) -> tuple[Tensor, Tensor]:
        """The samples `ids`, int64 (n,): normalised images float32 (n, C, H, W), channels last in memory; labels int64 (n,).

        Each of `augments` maps pixels uint8 (n, H, W, C) and ids to pixels, the same, before they are normalised and resized.
        """
        rows = self.rows.index_select(0, ids).to(self.device, non_blocking=True)
        labels = self.labels.index_select(0, ids).to(self.device, non_blocking=True)
        for augment in augments:
            rows = augment(rows.view(self.shape), ids.to(self.device)).flatten(1)
        pixels = self.normalise(rows).view(self.shape).permute(0, 3, 1, 2)
        return resized(pixels, self.size), labels


AnyFeed = MemoryFeed | DiskFeed | FeatureFeed


def feed_of(split: Split | DiskSplit, images: Images, device: torch.device) -> AnyFeed:
    """Batches of a split of `images`."""
    if isinstance(split, DiskSplit) and split.features:
        return FeatureFeed(split.labels, split.features, uneven(split.labels), device)
    if isinstance(split, DiskSplit):
        return DiskFeed(split, images.mean, images.std, device)
    return MemoryFeed(split, images, device)


def resized(images: Tensor, size: int) -> Tensor:
    """Images float (n, C, H, W) as (n, C, size, size): bilinear, antialiased where they shrink; unchanged if `size` is 0."""
    if size == 0 or images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=size < max(images.shape[-2:]))


def _fits(rows: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return rows.numel() < free // 2
