"""The one rule for size: how an image of any size becomes what a net sees. Loads no torch until an image is read.

An image is reduced so that its shorter side has `cache_size` pixels, and never enlarged. Training crops the reduced image at
random (`random_resized_crop` in launch/data/augment.py). Everything else sees its central square, 7/8 of the shorter side or what
the weights want that a training starts from, as `size` × `size` pixels: evaluation, `oneloop predict`, `explain`, and whoever
feeds an exported net.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from . import decode, native

if TYPE_CHECKING:
    import numpy as np

    from .normalise import Normaliser

View = Sequence[int]  # a part of an image: top, left, height, width, and 1 if it is mirrored, else 0

INTERPOLATIONS = "bilinear", "bicubic"
CENTER_CROP = 7 / 8  # of the shorter side: what torchvision sees of an image, 224 of 256
CROP_MARGIN = 2  # `cache_size` for 1 of `size`, if nobody says: small parts of an image are then not blurred


OF_DATA = -1  # a rule's `white` until the images are known: it is then as launch/sources/dataset_report.py guesses it


class ResizeRule(NamedTuple):
    """`size` and `cache_size` in pixels, both at least 1 and `cache_size` at least `size`; `white` 0 to 65,535, or OF_DATA."""

    size: int  # height and width that the net sees
    cache_size: int  # the shorter side of what is kept
    white: int = 0  # the pixel value of 16-bit grey that is white; 0: 65,535
    crop: float = CENTER_CROP  # of the shorter side
    interpolation: str = INTERPOLATIONS[0]  # from what is kept to what the net sees; what is kept is reduced bilinearly
    bands: tuple[int, ...] = ()  # of a TIFF, see formats.Bands


def rule_for(size: int, cache_size: int = 0, white: int = 0, bands: Sequence[int] = ()) -> ResizeRule:
    """The rule for nets that see `size` × `size` pixels; `cache_size` 0: with room for crops."""
    return ResizeRule(size, cache_size or CROP_MARGIN * size, white, bands=tuple(bands))


def reduced_size(width: int, height: int, rule: ResizeRule) -> tuple[int, int]:
    """Width and height of an image of these, reduced."""
    shorter, longer = sorted((width, height))
    if shorter <= rule.cache_size:
        return width, height
    other = round(longer * rule.cache_size / shorter)
    return (rule.cache_size, other) if width <= height else (other, rule.cache_size)


def read(file: IO[bytes] | Path | str, rule: ResizeRule) -> "np.ndarray":
    """An image file, decoded as launch/data/decode.py says and reduced: uint8 (h, w, 3), RGB.

    Raises whatever PIL does, and ValueError.
    """
    array, size = decode.pixels(file, rule.cache_size, rule.white, rule.bands)
    return reduced(array, size, rule)


def reduced(pixels: "np.ndarray", size: tuple[int, int], rule: ResizeRule) -> "np.ndarray":
    """What was decoded of a file of this size (width, height), perhaps at a part of it, reduced: uint8 (h, w, 3) -> the same."""
    wanted = reduced_size(*size, rule)
    return pixels if pixels.shape[1::-1] == wanted else resized(pixels, *wanted)


def centre(pixels: "np.ndarray", crop: float = CENTER_CROP) -> View:
    """The central square of a reduced image, uint8 (h, w, 3): `crop` of its shorter side."""
    height, width = pixels.shape[:2]
    side = round(min(width, height) * crop) or 1
    return (height - side) // 2, (width - side) // 2, side, side, 0


def centred(pixels: "np.ndarray", rule: ResizeRule) -> "np.ndarray":
    """The central square of a reduced image, uint8 (h, w, 3): uint8 (size, size, 3)."""
    return _viewed(pixels, centre(pixels, rule.crop), rule.size, rule.size, rule.interpolation)


def resized(pixels: "np.ndarray", width: int, height: int) -> "np.ndarray":
    """uint8 (h, w, 3), or (h, w, 1) -> uint8 (height, width, the same), bilinear, antialiased where it shrinks."""
    if pixels.shape[2] != 3:
        return _by_torch(pixels, height, width)
    return _viewed(pixels, (0, 0, *pixels.shape[:2], 0), height, width)


def _viewed(pixels: "np.ndarray", view: View, height: int, width: int, interpolation: str = INTERPOLATIONS[0]) -> "np.ndarray":
    import numpy as np

    out = np.empty((1, height, width, 3), np.uint8)
    viewed([pixels], [view], out, interpolation=interpolation)
    return out[0]


def viewed(
    images: Sequence["np.ndarray"],
    views: Sequence[View],
    out: "np.ndarray",
    normalise: "Normaliser | None" = None,
    interpolation: str = INTERPOLATIONS[0],
) -> None:
    """A view of each of `images`, uint8 (h, w, 3), resized into `out` (n, height, width, 3): uint8, or float32 normalised.

    Bilinear by native.c, in one pass, where there is a compiler; else by torch, with the same bits. Bicubic by torch.
    """
    factors = (normalise.scale.data_ptr(), normalise.shift.data_ptr()) if normalise else ()
    if interpolation == INTERPOLATIONS[0] and native.resize(images, views, out, *factors):
        return
    import torch

    for pixels, (top, left, height, width, mirrored), target in zip(images, views, out, strict=True):
        part = _by_torch(pixels[top : top + height, left : left + width], out.shape[1], out.shape[2], interpolation)
        part = part[:, ::-1] if mirrored else part
        if normalise:
            rows = torch.from_numpy(part.reshape(len(part), -1))  # copied, from planes to pixels
            normalise(rows, out=torch.from_numpy(target).view(rows.shape))
        else:
            target[:] = part


def _by_torch(pixels: "np.ndarray", height: int, width: int, interpolation: str = INTERPOLATIONS[0]) -> "np.ndarray":
    """By torch's kernel for uint8, which takes a sixth of Pillow's time and gives up Python's lock."""
    import torch
    import torch.nn.functional as F

    # With the axis of the batch in front, torch works on planes, at twice the speed of pixels; with it elsewhere it does not.
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return F.interpolate(image, (height, width), mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()
