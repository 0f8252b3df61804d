"""What the page of `oneloop try` shows of an image: its classes, where the net looks, and the training images most like it."""

import base64
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.file_feed import Read
from ..data.image_file import file_image
from ..errors import Refused, first_line
from .explain import grad_cam
from .try_nearest import Neighbour, TrainingImages, png

if TYPE_CHECKING:
    from oneloop import Model

MOST_BYTES = 32 << 20  # of an image file
MOST_PIXELS = 50_000_000  # of an image: to decode so many takes up to 0.9 GiB
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # by an image's content, whatever it is called
HEAT = 0.6  # how much the heat map covers


class Unusable(Exception):
    """What is wrong with an image, in one line, and the HTTP status for it."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


def answer(model: "Model", training: TrainingImages | str, unsure: float, content: bytes) -> dict[str, Any]:
    """What is shown of the image file `content`, as JSON takes it. Raises Unusable."""
    pixels = _pixels(model, content)
    read = Read([0], pixels[None], {})
    (prediction,) = model.predictions(read)
    heat, where = _heat_map(model, pixels, prediction.label)
    nearest: list[Neighbour] = []
    if isinstance(training, str):
        why = training
    elif training.missing:
        why = training.failed or f"{len(training) - len(training.missing):,} of {len(training):,} are compared: try again later"
    else:
        nearest, why = training.nearest(model.features(model.batch(pixels[None]))), ""
    return {
        "classes": [{"name": name, "probability": value} for name, value in prediction.probabilities.items()],
        "sure": prediction.probability >= unsure,
        "seen": _address(png(pixels.permute(1, 2, 0).numpy())),
        "heat": _address(heat) if heat else "",
        "where": where,
        "nearest": [image._asdict() for image in nearest],
        "why": why,
    }


def _pixels(model: "Model", content: bytes) -> Tensor:
    """The image as `oneloop predict` has it, uint8 (C, H, W). Raises Unusable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # of broken metadata
            opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large() from error
    except Exception as error:  # PIL raises a dozen kinds
        raise Unusable(415, f"no image of a kind that is taken here: {', '.join(FORMATS)}") from error
    with opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise _too_large()
        try:
            return file_image(opened, model.shape, model.rule)
        except Exception as error:  # as above
            raise Unusable(422, f"cannot be read as an image: {first_line(error)}") from error


def _too_large() -> Unusable:
    return Unusable(413, f"the image has more than {MOST_PIXELS // 1_000_000} million pixels")


def _heat_map(model: "Model", pixels: Tensor, name: str) -> tuple[bytes, str]:
    """PNG: a grey copy of the image under a heat map of what supports the class `name`, and the layer it is from, or why none."""
    import matplotlib

    try:
        layer, heat = grad_cam(model.net, model.batch(pixels[None]), model.classes.index(name), pixels.shape[1:])
    except Refused as error:
        return b"", str(error)
    except RuntimeError as error:  # of a layer without a gradient
        return b"", f"no heat map: {first_line(error)}"
    if not heat.any():
        return b"", "nothing in it supports this class"
    colours = matplotlib.colormaps["inferno"](heat.cpu().numpy())[..., :3] * 255  # host-device sync
    grey = pixels.float().mean(0).numpy()[..., None]
    return png((HEAT * colours + (1 - HEAT) * grey).astype(np.uint8)), f"from {layer}"


def _address(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
