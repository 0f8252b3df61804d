"""Images as tensors: files, and those that are opened. How one is decoded for all purposes says launch/data/decode.py."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..errors import Refused, first_line
from .dataset import Shape
from .decode import converted, decode, open_image, pixels_of
from .resize import ResizeRule, centred, reduced, reduced_size, resized


def read_image(path: Path, shape: Shape, rule: ResizeRule | None = None) -> Tensor:
    """An image file as uint8 (C, H, W) of `shape`: by the `rule` of images of any size, else stretched with antialiasing.

    Raises Refused (1), naming the file.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is not a file")
        with open_image(path, rule.bands if rule else (), rule.white if rule else 0) as opened:
            return file_image(opened, shape, rule)
    except FileNotFoundError as error:
        raise Refused(f"{path}: no such file") from error
    except Exception as error:  # PIL raises a dozen kinds for broken files
        raise Refused(f"{path} cannot be read as an image: {first_line(error)}") from error


def file_image(opened: Image.Image, shape: Shape, rule: ResizeRule | None = None) -> Tensor:
    """As `read_image`, of a file that `Image.open` has opened. Raises whatever PIL does, and ValueError."""
    if not rule:
        return _stretched(converted(opened, shape[0]), shape)
    pixels = reduced(*pixels_of(opened, rule.cache_size, rule.white), rule)
    return torch.from_numpy(centred(pixels, rule).copy()).permute(2, 0, 1)


def opened_image(image: Image.Image | np.ndarray, shape: Shape, rule: ResizeRule | None = None) -> Tensor:
    """As `read_image`, of an image of PIL's or an array (H, W) or (H, W, C), uint8 or, of grey, uint16.

    Raises whatever PIL does, and ValueError.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_checked(image))
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    image = converted(image.copy() if turned else image, shape[0], rule.white if rule else 0)  # which turns it in place
    if not rule:
        return _stretched(image, shape)
    pixels, reduced = np.array(image), reduced_size(*image.size, rule)
    pixels = pixels if image.size == reduced else resized(pixels, *reduced)
    return torch.from_numpy(centred(pixels, rule).copy()).permute(2, 0, 1)


def _checked(pixels: np.ndarray) -> np.ndarray:
    """An array as PIL takes it. Raises ValueError."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8 and (pixels.dtype != np.uint16 or pixels.ndim != 2):
        raise ValueError(f"an array of {pixels.dtype} has no known range; give uint8, or uint16 of grey")
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] not in (3, 4)):
        raise ValueError(f"an array of shape {pixels.shape} is no image; give (H, W) or (H, W, channels)")
    return pixels


def _stretched(image: Image.Image, shape: Shape) -> Tensor:
    """uint8 (C, H, W) of `shape`."""
    channels, height, width = shape
    array = np.array(image).reshape(image.height, image.width, channels)
    if image.size != (width, height):
        array = resized(array, width, height)  # not Pillow's, which gives other pixels in other versions
    return torch.from_numpy(array).permute(2, 0, 1)


def stack(files: Iterable[tuple[str, BinaryIO | Path | str]], count: int, shape: Shape) -> Tensor:
    """`count` image files, each with its name in messages, as uint8 (count, C, H, W).

    Raises Refused (4) for the first one that cannot be decoded or is not of `shape`: nothing is resized.
    """
    channels, height, width = shape
    pixels = np.empty((count, height, width, channels), dtype=np.uint8)
    for index, (name, file) in enumerate(files):
        try:
            image = decode(file, channels)
        except Exception as error:  # PIL raises a dozen kinds for broken files
            raise Refused(f"{name} cannot be decoded: {first_line(error)}", 4) from error
        if image.size != (width, height):
            has = "×".join(map(str, image.size))
            raise Refused(f"{name} is {has} (width×height), this recipe takes {width}×{height}; resize the images first", 4)
        pixels[index] = np.asarray(image).reshape(pixels.shape[1:])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
