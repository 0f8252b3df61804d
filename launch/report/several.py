"""Report of a net that gives an image several labels: what predictions.json, predictions.parquet and report.html have of it."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..data.disk_feed import DiskSplit
from ..data.images import Images
from ..data.task import SEVERAL, UNKNOWN, by_label, measured
from ..errors import printable

if TYPE_CHECKING:
    import pyarrow


def summary(logits: Tensor, images: Images, threshold: float, most: int) -> dict:
    """The content of predictions.json, from logits float (N, K) of the test images in order, but for the pictures of mistakes.

    `most` images are listed under "wrong", those with the highest loss of which a label is missed or wrongly given.
    """
    labels, probabilities = images.test.labels, SEVERAL.probabilities(logits.double())
    if logits.shape[1] != len(images.classes):
        raise ValueError(f"the net has {logits.shape[1]} outputs for {len(images.classes)} classes")
    given = probabilities >= threshold
    missed, too_many = (labels == 1) & ~given, (labels == 0) & given
    wrong = (missed | too_many).any(1)
    losses = SEVERAL.losses(logits, labels).mean(1).where(wrong, -1.0)
    worst = losses.argsort(descending=True, stable=True)[: min(most, int(wrong.sum()))].tolist()
    files = [image.name for image in images.test.images] if isinstance(images.test, DiskSplit) else None

    def of(image: int, labels: Tensor) -> list[list[float]]:
        return [[number, probabilities[image, number].item()] for number in labels[image].nonzero().flatten().tolist()]

    return {
        "classes": images.classes,
        "threshold": threshold,
        "labels": by_label(logits, labels, threshold),
        "scores": {
            **{name: value for name, value in measured(logits, labels, threshold).items() if name != "threshold"},
            "exact": 1 - wrong.double().mean().item(),
        },
        "wrong": [
            {"id": image, "missed": of(image, missed), "wrong": of(image, too_many), "loss": losses[image].item()}
            | ({"path": printable(files[image])} if files else {})
            for image in worst
        ],
        "images_wrong": int(wrong.sum()),
        "source": printable(images.source),
    }


def columns(logits: Tensor, labels: Tensor, threshold: float, classes: tuple[str, ...]) -> "dict[str, pyarrow.Array]":
    """Columns of predictions.parquet: "labels", "unknown" and "given", lists of names."""
    import pyarrow

    def names(of: Tensor) -> "pyarrow.Array":
        rows, numbers = of.nonzero(as_tuple=True)
        ends = [0, *rows.bincount(minlength=len(of)).cumsum(0).tolist()]
        return pyarrow.ListArray.from_arrays(
            pyarrow.array(ends, pyarrow.int32()),
            pyarrow.array([printable(classes[number]) for number in numbers.tolist()], "string"),
        )

    given = SEVERAL.probabilities(logits.double()) >= threshold
    return {"labels": names(labels == 1), "unknown": names(labels == UNKNOWN), "given": names(given)}
