"""The one rule for size: how a picture of any size becomes what a net sees. Loads no torch until a picture is read.

A picture is reduced so that its shorter side has `stored` pixels, and never enlarged. Training crops the reduced picture at
random (`random_resized_crop` in launch/data/augment.py). Everything else sees its central square, 7/8 of the shorter side, as
`size` × `size` pixels: evaluation, `oneloop predict`, `explain`, and whoever feeds an exported net.
"""

from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from PIL import Image

from . import decode

if TYPE_CHECKING:
    import numpy as np

CENTRE = 7 / 8  # of the shorter side: what torchvision sees of an image, 224 of 256
ROOM = 2  # `stored` for 1 of `size`, if nobody says: small parts of a picture are then not blurred


class Rule(NamedTuple):
    """`size` and `stored` in pixels, both at least 1 and `stored` at least `size`; `white` from 0 to 65,535."""

    size: int  # height and width that the net sees
    stored: int  # the shorter side of what is kept
    white: int = 0  # the pixel value of 16-bit grey that is white; 0: 65,535


def rule_for(size: int, stored: int = 0, white: int = 0) -> Rule:
    """The rule for nets that see `size` × `size` pixels; `stored` 0: with room for crops."""
    return Rule(size, stored or ROOM * size, white)


def reduced_size(width: int, height: int, rule: Rule) -> tuple[int, int]:
    """Width and height of a picture of these, reduced."""
    shorter, longer = sorted((width, height))
    if shorter <= rule.stored:
        return width, height
    other = round(longer * rule.stored / shorter)
    return (rule.stored, other) if width <= height else (other, rule.stored)


def read(file: IO[bytes] | Path | str, rule: Rule) -> "np.ndarray":
    """An image file, decoded as launch/data/decode.py says and reduced: uint8 (h, w, 3), RGB.

    Raises whatever PIL does, and ValueError.
    """
    import numpy as np

    with Image.open(file) as opened:
        width, height = opened.size
        decode.draft(opened, rule.stored)
        drafted = opened.size
        picture = decode.converted(opened, 3, rule.white)
    if picture.size != drafted:  # turned, as its EXIF data say
        width, height = height, width
    reduced = reduced_size(width, height, rule)
    pixels = np.array(picture)
    return pixels if picture.size == reduced else resized(pixels, *reduced)


def centred(pixels: "np.ndarray", rule: Rule) -> "np.ndarray":
    """The central square of a reduced picture, uint8 (h, w, 3): uint8 (size, size, 3)."""
    height, width = pixels.shape[:2]
    side = round(min(width, height) * CENTRE) or 1
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
