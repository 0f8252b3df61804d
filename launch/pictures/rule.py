"""The one rule for size: how a picture of any size becomes what a net sees. Loads no torch.

A picture is reduced so that its shorter side has `stored` pixels, and never enlarged. Training crops the reduced picture at
random (`random_resized_crop` in launch/data/augment.py). Everything else sees its central square, `size` / `stored` of the
shorter side, as `size` × `size` pixels: evaluation, `oneloop predict`, `explain`, and whoever feeds an exported net.
"""

from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from . import decode

ROOM = 8 / 7  # `stored` for 1 of `size`, if nobody says: 256 for 224


class Rule(NamedTuple):
    """In pixels, both at least 1 and `stored` at least `size`."""

    size: int  # height and width that the net sees
    stored: int  # the shorter side of what is kept


def rule_for(size: int, stored: int = 0) -> Rule:
    """The rule for nets that see `size` × `size` pixels; `stored` 0: with room for crops."""
    return Rule(size, stored or round(size * ROOM))


def reduced_size(width: int, height: int, rule: Rule) -> tuple[int, int]:
    """Width and height of a picture of these, reduced."""
    shorter, longer = sorted((width, height))
    if shorter <= rule.stored:
        return width, height
    other = round(longer * rule.stored / shorter)
    return (rule.stored, other) if width <= height else (other, rule.stored)


def read(file: BinaryIO | Path | str, rule: Rule) -> Image.Image:
    """An image file, decoded as launch/pictures/decode.py says and reduced: RGB. Raises whatever PIL does, and ValueError."""
    with Image.open(file) as opened:
        width, height = opened.size
        if opened.format == "JPEG":
            opened.draft(None, (rule.stored, rule.stored))  # decodes at 1/2, 1/4 or 1/8, if that is still large enough
        drafted = opened.size
        picture = decode.converted(opened, 3)
    if picture.size != drafted:  # turned, as its EXIF data say
        width, height = height, width
    reduced = reduced_size(width, height, rule)
    return picture if picture.size == reduced else picture.resize(reduced, Image.Resampling.BILINEAR)


def centred(picture: Image.Image, rule: Rule) -> Image.Image:
    """The central square of a reduced picture, `size` × `size`."""
    width, height = picture.size
    side = min(width, height) * rule.size / rule.stored
    if side == rule.size:
        left, top = (width - rule.size) // 2, (height - rule.size) // 2
        return picture.crop((left, top, left + rule.size, top + rule.size))
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return picture.resize((rule.size, rule.size), Image.Resampling.BILINEAR, box=box)
