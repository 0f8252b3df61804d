"""How an image file is decoded: rotated as its EXIF data says, 16-bit grey scaled to 8 bits, transparent parts over white.

Of an animated file, the first frame. Training, `oneloop predict`, `explain` and `data` decode an image in this one way.
"""

import contextlib
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

VERSION = 2  # raise it when a file gives other pixels than before: what was cached earlier is then decoded again


def decode(file: BinaryIO | Path | str, channels: int) -> Image.Image:
    """An image file in 8 bits per channel: grey (1) or RGB (3). Raises whatever PIL does, and ValueError."""
    with Image.open(file) as opened:
        return converted(opened, channels)


def converted(opened: Image.Image, channels: int) -> Image.Image:
    """The same of a file that `Image.open` has opened."""
    opened.load()
    refuse_unknown_range(opened)
    picture: Image.Image = opened
    with contextlib.suppress(Exception):  # broken EXIF data is ignored
        ImageOps.exif_transpose(picture, in_place=True)  # else it would be copied, also where nothing is turned
    if opened.mode[0] == "I":
        picture = _in_8_bits(picture)
    if picture.has_transparency_data:  # PIL would show whatever colour is stored under the transparent parts
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    mode = "RGB" if channels == 3 else "L"
    return picture if picture.mode == mode else picture.convert(mode)  # which would copy


def refuse_unknown_range(opened: Image.Image) -> None:
    """Raises ValueError if nobody can say which pixel value is white."""
    mode = opened.mode
    if mode == "F" or (mode == "I" and opened.format not in ("PNG", "PPM")):  # in PNG and PPM, mode I is 16 bits
        raise ValueError(f"pixel values have no known range (PIL mode {mode}); save it with 8 or 16 bits")


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8 bits, with the level that is transparent, if any."""
    import numpy as np  # takes 0.1 s, and few files need it

    levels = np.asarray(picture).astype(np.int64)
    grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))  # rounded: 65,535 is 257 × 255
    if (clear := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return grey
