"""Image files as tensors. How one is decoded, for training, `oneloop predict` and `explain`, says launch/data/decode.py."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import Refused, first_line
from .dataset import Shape
from .decode import decode
from .resize import ResizeRule, centred, read, resized


def read_image(path: Path, shape: Shape, rule: ResizeRule | None = None) -> Tensor:
    """An image file as uint8 (C, H, W) of `shape`: by the `rule` of images of any size, else stretched with antialiasing.

    Raises Refused (1), naming the file.
    """
    channels, height, width = shape
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is not a file")
        if rule:
            return torch.from_numpy(centred(read(path, rule), rule).copy()).permute(2, 0, 1)
        image = decode(path, channels)
        array = np.array(image).reshape(image.height, image.width, channels)
        if image.size != (width, height):
            array = resized(array, width, height)  # not Pillow's, which gives other pixels in other versions
    except FileNotFoundError as error:
        raise Refused(f"{path}: no such file") from error
    except Exception as error:  # PIL raises a dozen kinds for broken files
        raise Refused(f"{path} cannot be read as an image: {first_line(error)}") from error
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
