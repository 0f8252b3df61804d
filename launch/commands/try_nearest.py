"""The training images that are most like an image, by the features of `oneloop.Model.embed`. Those are computed once and kept."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data import decode
from ..data.disk_feed import DiskSplit
from ..data.images import Images
from ..data.store import decoded
from ..errors import Refused
from ..features.store import FeatureStore, key_of
from ..weights.tensors import weights, weights_sha256

if TYPE_CHECKING:
    from oneloop import Model

NEAREST = 6  # images that are shown
BLOCK = 16  # images that are computed at a time: who asks meanwhile waits for so many
ROWS = 1 << 15  # features that are compared at a time
SIDE = 256  # pixels of an image that is shown


class Neighbour(NamedTuple):
    """A training image: its number, its class, the cosine of its features with those that were asked for, and its name."""

    id: int
    label: str
    cosine: float
    name: str


class TrainingImages:
    """The training images of `images`, and what `model` sees in them. Not for several threads at a time.

    `missing` are ids of images whose features are still to be computed; `failed` is why that is given up, "" if it is not. Raises
    Refused: 1 if the cache cannot be read or written, 4 for a net without features.
    """

    def __init__(self, model: "Model", images: Images):
        self.model, self.split, self.classes = model, images.train, images.classes
        shape = self.split.shape
        width = model.features(model.batch(torch.zeros(1, *shape, dtype=torch.uint8))).shape[1]
        about = {name: model.about[name] for name in ("net", "shape", "size", "mean", "std", "cache_size", "white", "crop")}
        about |= {"by": "embed", "weights": weights_sha256(weights(model.net)), "views": model.tta}
        about |= {"versions": [decode.VERSION, PIL.__version__, torch.__version__]}
        self.store = FeatureStore(Path(images.source), about, width)
        self.keys = [*_keys(self.split)]
        first = {key: index for index, key in reversed([*enumerate(self.keys)])}  # each content once
        self.missing = [index for key, index in first.items() if key not in self.store.rows]
        self.store.reserve(len(self.missing))
        self.failed = ""
        self._take_in()

    def __len__(self) -> int:
        return len(self.keys)

    def compute_some(self) -> int:
        """Compute features that are missing, and keep them; returns of how many images."""
        ids = self.missing[:BLOCK]
        try:
            pixels = self.split.some(torch.tensor(ids)).pixels
            self.store.add([self.keys[index] for index in ids], self.model.features(self.model.batch(pixels)))
        except Refused as error:
            self.failed = str(error)
            return 0
        self.missing = self.missing[BLOCK:]
        self._take_in()
        return len(ids)

    def _take_in(self) -> None:
        """Map the features, once all are there."""
        if not self.missing:
            self.table = self.store.table()
            self.rows = torch.tensor([self.store.rows[key] for key in self.keys])
            self.mean = torch.stack([part.mean(0) * len(part) for part in self.table.split(ROWS)]).sum(0) / len(self.table)

    def nearest(self, features: Tensor) -> list[Neighbour]:
        """The NEAREST images of other contents by the cosine of their features, less the mean, with `features` (1, D)."""
        wanted = F.normalize(features - self.mean, dim=1)[0]
        cosines = torch.cat([F.normalize(part - self.mean, dim=1) @ wanted for part in self.table.split(ROWS)])[self.rows]
        found: dict[bytes, Neighbour] = {}
        for index in cosines.argsort(descending=True).tolist():
            label = self.classes[int(self.split.labels[index])]
            found.setdefault(self.keys[index], Neighbour(index, label, float(cosines[index]), self._name(index)))
            if len(found) == NEAREST:
                break
        return [*found.values()]

    def _name(self, index: int) -> str:
        return self.split.images[index].name if isinstance(self.split, DiskSplit) else f"number {index}"

    def png(self, index: int) -> bytes:
        """An image, SIDE pixels at most. Raises Refused (4) for one that has changed."""
        if isinstance(self.split, DiskSplit):
            pixels = decoded(self.split.images[index], self.split.rule)  # not by the store, which would keep it
        else:
            pixels = self.split.pixels[index].permute(1, 2, 0).numpy()
        return png(pixels)


def png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 1 or 3), SIDE pixels at most."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "png", compress_level=1)
    return file.getvalue()


def _keys(split: object) -> Iterator[bytes]:
    """What each image's features are kept under: 32 bytes, those of its content."""
    if isinstance(split, DiskSplit):
        yield from (key_of(image.sha256) for image in split.images)
    else:
        yield from (hashlib.sha256(pixels.contiguous().numpy().data).digest() for pixels in split.pixels)  # type: ignore[attr-defined]
