"""How an image file is decoded: rotated as its EXIF data says, 16-bit grey scaled to 8 bits, transparent parts over white.

Training, `oneloop predict` and `oneloop explain` decode an image in this one way.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import Refused, first_line
from .dataset import Shape

VERSION = 2  # raise it when a file gives other pixels than before: folders cached earlier are then decoded again


def read_image(path: Path, shape: Shape) -> Tensor:
    """An image file as uint8 (C, H, W), stretched to `shape` with antialiasing. Raises Refused (1), naming the file."""
    channels, height, width = shape
    try:
        picture = _decode(path, channels)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        array = np.array(picture)
    except FileNotFoundError as error:
        raise Refused(f"{path}: no such file") from error
    except Exception as error:  # PIL raises a dozen kinds for broken files
        raise Refused(f"{path} cannot be read as an image: {first_line(error)}") from error
    return torch.from_numpy(array.reshape(height, width, channels)).permute(2, 0, 1)


def stack(files: Iterable[tuple[str, BinaryIO | Path | str]], count: int, shape: Shape) -> Tensor:
    """`count` image files, each with its name in messages, as uint8 (count, C, H, W).

    Raises Refused (4) for the first one that cannot be decoded or is not of `shape`: nothing is resized.
    """
    channels, height, width = shape
    pixels = np.empty((count, height, width, channels), dtype=np.uint8)
    for index, (name, file) in enumerate(files):
        try:
            picture = _decode(file, channels)
        except Exception as error:  # PIL raises a dozen kinds for broken files
            raise Refused(f"{name} cannot be decoded: {first_line(error)}", 4) from error
        if picture.size != (width, height):
            has = "×".join(map(str, picture.size))
            raise Refused(f"{name} is {has} (width×height), this recipe takes {width}×{height}; resize the images first", 4)
        pixels[index] = np.asarray(picture).reshape(pixels.shape[1:])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _decode(file: BinaryIO | Path | str, channels: int) -> Image.Image:
    """An image file in 8 bits per channel: grey (1) or RGB (3). Raises whatever PIL does, and ValueError."""
    with Image.open(file) as opened:
        opened.load()
        picture: Image.Image = opened
        mode = opened.mode
        if mode == "F" or (mode == "I" and opened.format not in ("PNG", "PPM")):  # in PNG and PPM, mode I is 16 bits
            raise ValueError(f"pixel values have no known range (PIL mode {mode}); save it with 8 or 16 bits")
        with contextlib.suppress(Exception):  # broken EXIF data is ignored
            picture = ImageOps.exif_transpose(picture)
        if mode[0] == "I":
            levels = np.asarray(picture).astype(np.int64)
            clear = picture.info.get("transparency")
            picture = Image.fromarray(((levels + 128) // 257).astype(np.uint8))  # rounded: 65,535 is 257 × 255
            if clear is not None:
                picture.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
        if picture.has_transparency_data:  # PIL would show whatever colour is stored under the transparent parts
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("RGB" if channels == 3 else "L")
