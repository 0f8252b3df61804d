"""A published folder as others see it: loaded through timm and transformers, and compared with the net that it is of."""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import Refused, first_line
from ..trained import Trained, feed

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

CHECKED = 200  # test images whose accuracy is measured under both transforms
PIPED = 8  # of them through transformers' pipeline, which takes one at a time
TOLERANCE = 1e-3  # of a probability


class Checked(NamedTuple):
    """What the comparison found, on so many test `images`, which may be drawings that stand in for them (`real` is False)."""

    images: int
    real: bool
    difference: float  # of a probability, at most
    own: float  # accuracy under the run's rule for size
    theirs: float  # under timm's transform
    transformers: bool  # whether it was loaded there, too

    @property
    def words(self) -> str:
        return f"differ by {self.difference:.0e} at most" if self.difference else "are equal"


def check(folder: Path, trained: Trained, real: bool) -> Checked:
    """Load `folder` and compare. Raises Refused (4) if it is not the net, in probabilities or names."""
    import timm
    import torch
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    images, ids = trained.images, _spread(len(trained.images.test))
    labels, pixels = images.test.labels[ids], images.test.some(ids).pixels
    opened = [*_opened(trained, ids)]
    try:
        net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # of any kind, of a library that reads what we wrote
        raise Refused(f"timm cannot load what was made of {trained.about['net']}: {first_line(error)}", 4) from error
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    own, again, theirs = [], [], []
    with torch.no_grad():
        source = feed(trained, pixels)
        for part in torch.arange(len(ids)).split(32):
            batch, _ = source.batch(part)
            own.append(trained.net(batch).softmax(1))
            again.append(net(batch).softmax(1))
            batch = torch.stack([transform(opened[place]) for place in part.tolist()])
            theirs.append(net(batch).softmax(1))
    expected, found, transformed = torch.cat(own), torch.cat(again), torch.cat(theirs)
    difference = (found - expected).abs().max().item() if found.shape == expected.shape else float("inf")
    if not difference <= TOLERANCE:
        raise Refused(f"what timm loads is not the net: probabilities differ by {difference:.1e}; nothing was written", 4)
    piped = _through_transformers(folder, opened[:PIPED], images.classes, transformed)
    own_accuracy, their_accuracy = ((of.argmax(1) == labels).double().mean().item() for of in (expected, transformed))
    return Checked(len(ids), real, difference, own_accuracy, their_accuracy, piped)


def _through_transformers(folder: Path, opened: list["Image"], classes: tuple[str, ...], expected: "Tensor") -> bool:
    """Whether transformers is installed; what it makes of the images is compared. Raises Refused (4)."""
    if not importlib.util.find_spec("transformers"):
        return False
    with _quiet():
        import transformers  # type: ignore[import-not-found,unused-ignore]  # where it is installed

        try:
            pipe = transformers.pipeline("image-classification", model=str(folder), device="cpu")
            answers = [pipe(image, top_k=len(classes)) for image in opened]
        except Exception as error:  # of any kind, as above
            raise Refused(f"transformers cannot load the folder: {first_line(error)}; nothing was written", 4) from error
    for answer, probabilities in zip(answers, expected.tolist(), strict=False):
        found = {of["label"]: of["score"] for of in answer}
        if found.keys() != {*classes}:
            raise Refused(f"transformers calls the classes {', '.join([*found][:4])} …; nothing was written", 4)
        difference = max(abs(found[name] - value) for name, value in zip(classes, probabilities, strict=True))
        if not difference <= TOLERANCE:
            what = f"what transformers loads is not the net: probabilities differ by {difference:.1e}"
            raise Refused(f"{what}; nothing was written", 4)
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' bars and hints are not ours to show."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _spread(count: int) -> "Tensor":
    """The ids of CHECKED of `count` images, evenly spread over them; all if there are fewer."""
    import torch

    return torch.linspace(0, count - 1, min(CHECKED, count)).round().long()


def _opened(trained: Trained, ids: "Tensor") -> Iterator["Image"]:
    """The test images `ids` as PIL opens them, in RGB."""
    from PIL import Image

    from ..data.disk_feed import DiskSplit

    split = trained.images.test
    for index in ids.tolist():
        if isinstance(split, DiskSplit):
            with split.images[index].open() as file:
                yield Image.open(file).convert("RGB")
        else:
            yield Image.fromarray(split.pixels[index].permute(1, 2, 0).numpy()).convert("RGB")
