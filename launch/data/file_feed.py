"""Images that nobody has checked, as batches: threads read those of the coming batches, as they do in a training.

Files, arrays and images of PIL's. Nothing is kept of what was read: memory does not grow with their number.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import Refused, first_line
from .dataset import Shape
from .image_file import opened_image, read_image
from .resize import ResizeRule

BATCH = 64  # images, fewer if they are large
VALUES = 1 << 24  # pixel values in a batch, at most
A_THREAD = 8 * 3 * 224**2  # the same on a CPU, for each thread: more are no faster, and the net needs memory for each of them
AHEAD = 2  # batches that are read while one is computed


class Read(NamedTuple):
    """What was read of a batch: the images' places among all, their `pixels` uint8 (n, C, H, W), and why others cannot be."""

    places: list[int]
    pixels: Tensor
    unread: dict[int, str]


def batches(
    images: Iterable[Any], shape: Shape, rule: ResizeRule | None, device: torch.device, largest: int = 0
) -> Iterator[Read]:
    """`images`, each a path, an array or an image of PIL's, in their order, as a net on `device` of images of `shape` takes them.

    `largest` is the number of pixel values of an image inside the net, if it is more than that of `shape`.
    """
    threads, numbered, coming = torch.get_num_threads(), enumerate(images), deque[list[tuple[int, Future[Tensor]]]]()
    values = min(A_THREAD * threads, VALUES) if device.type == "cpu" else VALUES
    count = min(BATCH, max(values // max(math.prod(shape), largest), 1))
    # One thread of torch's own in each of them: more would be in each other's way.
    pool = ThreadPoolExecutor(threads, "images", torch.set_num_threads, (1,))
    read = partial(_read, shape=shape, rule=rule)
    try:
        while True:
            while len(coming) <= AHEAD and (batch := list(itertools.islice(numbered, count))):
                coming.append([(place, pool.submit(read, image)) for place, image in batch])
            if not coming:
                return
            yield _gathered(coming.popleft(), shape)
    finally:
        pool.shutdown(cancel_futures=True)


def _gathered(batch: list[tuple[int, "Future[Tensor]"]], shape: Shape) -> Read:
    channels, height, width = shape
    rows = torch.empty(len(batch), height, width, channels, dtype=torch.uint8)
    places, unread = list[int](), dict[int, str]()
    for place, job in batch:
        try:
            rows[len(places)] = job.result().permute(1, 2, 0)
            places.append(place)
        except Refused as error:
            unread[place] = str(error)
    return Read(places, rows[: len(places)].permute(0, 3, 1, 2), unread)


def _read(image: Any, shape: Shape, rule: ResizeRule | None) -> Tensor:
    """uint8 (C, H, W). Raises Refused (1)."""
    import numpy as np
    from PIL import Image

    if not isinstance(image, np.ndarray | Image.Image):
        return read_image(image, shape, rule)
    try:
        return opened_image(image, shape, rule)
    except Exception as error:  # PIL raises a dozen kinds
        raise Refused(f"cannot be used as an image: {first_line(error)}") from error
