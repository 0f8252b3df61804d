"""The one rule for size: how an image of any size becomes what a net sees. Loads no torch until an image is read.

An image is reduced so that its shorter side has `cache_size` pixels, and never enlarged. Training crops the reduced image at
random (`random_resized_crop` in launch/data/augment.py). Everything else sees its central square, 7/8 of the shorter side, as
`size` × `size` pixels: evaluation, `oneloop predict`, `explain`, and whoever feeds an exported net.
"""

from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from PIL import Image

from . import decode

if TYPE_CHECKING:
    import numpy as np

INTERPOLATIONS = "bilinear", "bicubic"
CENTER_CROP = 7 / 8  # of the shorter side: what torchvision sees of an image, 224 of 256
CROP_MARGIN = 2  # `cache_size` for 1 of `size`, if nobody says: small parts of an image are then not blurred


class ResizeRule(NamedTuple):
    """`size` and `cache_size` in pixels, both at least 1 and `cache_size` at least `size`; `white` from 0 to 65,535."""

    size: int  # height and width that the net sees
    cache_size: int  # the shorter side of what is kept
    white: int = 0  # the pixel value of 16-bit grey that is white; 0: 65,535


def rule_for(size: int, cache_size: int = 0, white: int = 0) -> ResizeRule:
    """The rule for nets that see `size` × `size` pixels; `cache_size` 0: with room for crops."""
    return ResizeRule(size, cache_size or CROP_MARGIN * size, white)


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
    import numpy as np

    with Image.open(file) as opened:
        width, height = opened.size
        decode.draft(opened, rule.cache_size)
        drafted = opened.size
        image = decode.converted(opened, 3, rule.white)
    if image.size != drafted:  # turned, as its EXIF data say
        width, height = height, width
    reduced = reduced_size(width, height, rule)
    pixels = np.array(image)
    return pixels if image.size == reduced else resized(pixels, *reduced)


def centred(pixels: "np.ndarray", rule: ResizeRule) -> "np.ndarray":
    """The central square of a reduced image, uint8 (h, w, 3): uint8 (size, size, 3)."""
    height, width = pixels.shape[:2]
    side = round(min(width, height) * CENTER_CROP) or 1
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    return square if side == rule.size else resized(square, rule.size, rule.size)


def resized(pixels: "np.ndarray", width: int, height: int) -> "np.ndarray":
    """uint8 (h, w, 3) -> uint8 (height, width, 3), bilinear, antialiased where it shrinks.

    By torch's kernel for uint8, which takes a third of Pillow's time and gives up Python's lock.
    """
    import torch
    import torch.nn.functional as F

    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # channels last in memory
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
