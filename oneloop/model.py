"""A trained net that sees images as its training did."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from launch.data.feed import resized
from launch.data.file_feed import Read, batches
from launch.data.normalise import Normaliser
from launch.errors import Refused
from launch.trained import rule_of, seen

from .views import over_views

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    ImageLike = str | os.PathLike[str] | np.ndarray | Image

TOP = 5  # classes of a prediction


class Prediction(NamedTuple):
    """The most probable class of an image, and the `probabilities` of the most probable ones, these first.

    `labels` are those that the image gets: that class, or of a net that gives several, all that reach its threshold.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    labels: tuple[str, ...] = ()


class Model:
    """A trained net, in eval mode, with the classes and the preprocessing of its training. `oneloop.load` makes one.

    `classes` are the names in the order of the logits; `about` is what the weights say of their net.
    """

    def __init__(self, net: nn.Module, about: dict, device: str | torch.device = "", tta: str = ""):
        self.device = torch.device(device) if device else _best_device()
        self.net, self.about = net.to(self.device).to(memory_format=torch.channels_last), about
        self.tta, self._over_views = tta, over_views(self.net, tta)
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.shape: tuple[int, int, int] = tuple(about["shape"])
        self.rule = rule_of(about)
        self._normalise = Normaliser(about["mean"], about["std"], self.shape[1] * self.shape[2], self.device)

    @property
    def threshold(self) -> float | None:
        """From which probability on an image gets a label; None for a net that gives one class."""
        threshold: float | None = self.about["threshold"]
        return threshold

    def predict(self, images: "ImageLike | Iterable[ImageLike]", top: int | None = None) -> list[Prediction]:
        """What each image shows: paths of image files, arrays uint8 (H, W) or (H, W, 3), images of PIL's; one or many.

        `top` is the number of classes whose probabilities are given: by default 5, or all where an image has several. Raises
        Refused (1) for an image that cannot be read.
        """
        return [predicted for read in self.read(images) for predicted in self.predictions(read, top)]

    def predictions(self, read: Read, top: int | None = None) -> list[Prediction]:
        """The same of a batch of images that were `read`. Host-device sync."""
        if not read.places:
            return []
        threshold, logits = self.threshold, self.logits(read) / self.about["temperature"]
        if threshold is None:
            best = logits.softmax(1).topk(min(top or TOP, len(self.classes)))
        else:
            best = logits.cpu().double().sigmoid().sort(descending=True)  # as it was measured
        found = []
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            probabilities = {self.classes[index]: value for index, value in zip(indices, values, strict=True)}
            label = self.classes[indices[0]]
            labels = (label,) if threshold is None else tuple(name for name, of in probabilities.items() if of >= threshold)
            found.append(Prediction(label, values[0], dict([*probabilities.items()][:top]), labels))
        return found

    def embed(self, images: "ImageLike | Iterable[ImageLike]") -> Tensor:
        """Features of each image, float32 (N, D) on the CPU: what the net gives without its last layer.

        Raises Refused: 1 for an image that cannot be read, 4 for a net without a last layer, or with several.
        """
        features = [self.features(self.batch(read.pixels)) for read in self.read(images)]
        return torch.cat(features) if features else torch.empty(0, 0)

    @torch.no_grad()
    def features(self, batch: Tensor) -> Tensor:
        """The same of a `batch`, as `batch` makes it. Raises Refused (4). Host-device sync."""
        from nets.named import heads, without

        try:
            layers = heads(self.net, len(self.classes))
        except ValueError as error:
            raise Refused(f"no features: {error}", 4) from error
        if len(layers) > 1:
            raise Refused(f"no features: the net has several last layers, {', '.join(layers)}", 4)
        with without(self.net, layers[0]):
            return self._over_views(batch).float().flatten(1).cpu()  # host-device sync

    def logits(self, read: Read) -> Tensor:
        """float32 (n, classes), on the net's device, not yet divided by the temperature."""
        with torch.no_grad():
            logits: Tensor = self._over_views(self.batch(read.pixels))
        return logits.float()

    def batch(self, pixels: Tensor) -> Tensor:
        """Images uint8 (n, C, H, W) as the net takes them: normalised, of its size, on its device."""
        rows = pixels.permute(0, 2, 3, 1).flatten(1).to(self.device, non_blocking=True)  # (n, H × W × C)
        channels, height, width = self.shape
        images = self._normalise(rows).view(-1, height, width, channels).permute(0, 3, 1, 2)
        return resized(images, self.about["size"])

    def read(self, images: "ImageLike | Iterable[ImageLike]", skip: bool = False) -> Iterator[Read]:
        """`images` in batches, which threads read while the net computes. Raises Refused (1) for a bad one, unless `skip`."""
        for read in batches(_several(images), self.shape, self.rule, self.device, self.shape[0] * seen(self.about)[1] ** 2):
            if read.unread and not skip:
                place, why = next(iter(read.unread.items()))
                raise Refused(why if why.startswith(os.sep) else f"image {place}: {why}")
            yield read


def _several(images: Any) -> Iterable[Any]:
    """`images`, or the one image that it is."""
    import numpy as np
    from PIL import Image

    single = isinstance(images, str | bytes | os.PathLike | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)
    several: Sequence[Any] = [images] if single else images
    for image in several:
        if isinstance(image, str | os.PathLike):
            yield Path(image)
        elif isinstance(image, np.ndarray | Image.Image):
            yield image
        else:
            raise Refused(f"an image is a path, a NumPy array or an image of PIL's, not a {type(image).__name__}", 2)


def _best_device() -> torch.device:
    """The accelerator, if there is one and the environment does not ask for the CPU."""
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("y", "yes", "t", "true", "on", "1")  # as accelerate reads it
    device = None if forced else torch.accelerator.current_accelerator(check_available=True)
    return device or torch.device("cpu")
