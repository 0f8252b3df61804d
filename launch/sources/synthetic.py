"""Drawings over noise, for trying a recipe without a network: the same at every start.

To add a class, draw it in `_DRAWINGS`: lines between points of the square from -1 to 1 (x to the right, y up).
"""

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import DataSet, Shape, Split

COUNTS = {"train": 2000, "test": 500}

_SEGMENTS = {  # of a digit on a display
    "a": [(-0.5, 0.9), (0.5, 0.9)], "b": [(0.5, 0.9), (0.5, 0)], "c": [(0.5, 0), (0.5, -0.9)], "d": [(-0.5, -0.9), (0.5, -0.9)],
    "e": [(-0.5, 0), (-0.5, -0.9)], "f": [(-0.5, 0.9), (-0.5, 0)], "g": [(-0.5, 0), (0.5, 0)],
}  # fmt: skip
_DIGITS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
_DRAWINGS = {str(digit): [_SEGMENTS[name] for name in names] for digit, names in enumerate(_DIGITS)} | {
    "airplane": [[(-0.9, 0), (0.9, 0)], [(0.1, 0), (-0.4, 0.8)], [(0.1, 0), (-0.4, -0.8)], [(-0.9, 0), (-1.0, 0.35)]],
    "automobile": [[(-1, -0.3), (-1, 0.1), (-0.5, 0.1), (-0.3, 0.5), (0.3, 0.5), (0.6, 0.1), (1, 0.1), (1, -0.3), (-1, -0.3)]],
    "bird": [[(-1.0, 0.3), (-0.5, 0.5), (0, 0), (0.5, 0.5), (1.0, 0.3)], [(0, 0), (0.1, -0.35)]],
    "cat": [[(-0.6, 0.9), (-0.6, -0.4), (0, -0.8), (0.6, -0.4), (0.6, 0.9), (0.2, 0.4), (-0.2, 0.4), (-0.6, 0.9)]],
    "deer": [[(0, -0.9), (0, 0.2)], [(0, 0.2), (-0.6, 0.9)], [(0, 0.2), (0.6, 0.9)], [(-0.3, 0.55), (-0.7, 0.4)]],
    "dog": [[(-0.8, -0.8), (-0.8, 0.1), (0.5, 0.1), (0.9, 0.6)], [(0.5, 0.1), (0.5, -0.8)]],
    "frog": [
        [(-0.9, -0.6), (-0.4, 0.2), (0.4, 0.2), (0.9, -0.6), (-0.9, -0.6)],
        [(-0.4, 0.2), (-0.4, 0.7)],
        [(0.4, 0.2), (0.4, 0.7)],
    ],
    "horse": [[(-0.9, -0.9), (-0.7, 0.2), (0.3, 0.2), (0.7, 0.9), (1, 0.6)], [(0.3, 0.2), (0.4, -0.9)]],
    "ship": [[(-1, 0), (-0.6, -0.6), (0.6, -0.6), (1, 0), (-1, 0)], [(0, 0), (0, 0.9), (0.5, 0.3), (0, 0.3)]],
    "truck": [[(-1, -0.5), (-1, 0.6), (0.3, 0.6), (0.3, 0.2), (0.8, 0.2), (1, -0.5), (-1, -0.5)], [(0.3, 0.2), (0.3, -0.5)]],
    "T-shirt/top": [[(-1, 0.4), (-0.5, 0.8), (0.5, 0.8), (1, 0.4)], [(-0.5, 0.8), (-0.5, -0.8), (0.5, -0.8), (0.5, 0.8)]],
    "Trouser": [[(-0.4, -1), (-0.4, 0.9), (0.4, 0.9), (0.4, -1)], [(0, 0.2), (0, -1)]],
    "Pullover": [[(-1, -0.6), (-0.5, 0.8), (0.5, 0.8), (1, -0.6)], [(-0.5, 0.8), (-0.5, -0.8), (0.5, -0.8), (0.5, 0.8)]],
    "Dress": [[(-0.2, 0.9), (-0.2, 0.2), (-0.7, -0.9), (0.7, -0.9), (0.2, 0.2), (0.2, 0.9)]],
    "Coat": [[(-0.6, -0.9), (-0.6, 0.9), (0.6, 0.9), (0.6, -0.9), (-0.6, -0.9)], [(0, 0.9), (0, -0.9)]],
    "Sandal": [[(-1, -0.4), (1, -0.4)], [(-0.6, -0.4), (0, 0.2), (0.4, -0.4)]],
    "Shirt": [[(-0.5, -0.8), (-0.5, 0.7), (0.5, 0.7), (0.5, -0.8), (-0.5, -0.8)], [(-0.3, 0.7), (0, 0.3), (0.3, 0.7)]],
    "Sneaker": [[(-1, -0.4), (-1, 0.2), (-0.3, 0.1), (0.4, -0.2), (1, -0.2), (1, -0.4), (-1, -0.4)]],
    "Bag": [[(-0.8, -0.7), (-0.8, 0.2), (0.8, 0.2), (0.8, -0.7), (-0.8, -0.7)], [(-0.4, 0.2), (-0.3, 0.8), (0.4, 0.2)]],
    "Ankle boot": [[(-0.7, 0.8), (-0.1, 0.8), (0, 0), (0.9, -0.3), (0.9, -0.7), (-0.7, -0.7), (-0.7, 0.8)]],
}
DRAWN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # CIFAR-10's


def read(classes: tuple[str, ...], shape: Shape, counts: Mapping[str, int] = COUNTS) -> DataSet:
    """Images of `shape` (C, H, H), C 1 or 3: 2,000 train, 500 test, the classes in turn. A class without a drawing is noise.

    Position, size, rotation, colours and contrast of each drawing vary, so that a net has something to learn and takes a while.
    """
    channels, size, _ = shape
    splits = {}
    for stream, (split, count) in enumerate(counts.items()):
        labels = torch.arange(count) % len(classes)
        drawings = [_DRAWINGS.get(name, []) for name in classes]
        splits[split] = Split(_draw(drawings, labels.numpy(), channels, size, stream), labels)
    return DataSet("synthetic", classes, **splits)


def _draw(drawings: list, labels: np.ndarray, channels: int, size: int, stream: int) -> Tensor:
    """uint8 (n, channels, size, size): image i is drawn as `drawings[labels[i]]`; each split has a random `stream` of its own."""
    random, n = np.random.Generator(np.random.Philox(key=[20, stream])), len(labels)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(-axis, axis, indexing="ij")
    turn, scale = (random.uniform(*span, n).astype(np.float32) for span in ((-0.5, 0.5), (0.5, 0.9)))
    shift = random.uniform(-0.25, 0.25, (2, n)).astype(np.float32)
    width = random.uniform(0.1, 0.2, n).astype(np.float32)
    ink = np.zeros((n, size, size), dtype=np.float32)
    for label, drawing in enumerate(drawings):
        (members,) = np.nonzero(labels == label)
        cos, sin = (f(turn[members])[:, None, None] for f in (np.cos, np.sin))
        left, up = (x - shift[0, members][:, None, None], y - shift[1, members][:, None, None])
        u, v = ((cos * left + sin * up) / scale[members][:, None, None], (cos * up - sin * left) / scale[members][:, None, None])
        near = np.full(u.shape, np.inf, dtype=np.float32)
        for line in drawing:
            for (x0, y0), (x1, y1) in itertools.pairwise(line):
                dx, dy = x1 - x0, y1 - y0
                along = np.clip(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy), 0, 1)
                near = np.minimum(near, np.hypot(u - x0 - along * dx, v - y0 - along * dy))
        reach = width[members][:, None, None]
        ink[members] = np.clip((reach * 1.5 - near) / reach, 0, 1)

    def vary(low: float, high: float, channels: int = channels) -> np.ndarray:
        return random.uniform(low, high, (n, channels, 1, 1)).astype(np.float32)

    # Grey images are bright on dark, like MNIST.
    behind, drawn = ((0.4, 0.9), (0.0, 0.5)) if channels == 3 else ((0.0, 0.2), (0.7, 1.0))
    sky = vary(*behind) + vary(-0.2, 0.2) * y
    mixed = sky + ink[:, None] * vary(0.6, 1.0, channels=1) * (vary(*drawn) - sky)
    mixed += random.standard_normal(mixed.shape, dtype=np.float32) * vary(0.02, 0.1, channels=1)
    return torch.from_numpy((np.clip(mixed, 0, 1) * 255).round().astype(np.uint8))
