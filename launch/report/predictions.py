"""predictions.parquet: a net's prediction for each test image. Written at the end of a run, read by `oneloop compare`.

    id                place in the test set, from 0
    label, predicted  class indexes
    true, guess       their names
    probabilities     float32, one for each class
    path              of the image's file, for your own images

Of images with several labels each: "labels" that it has, those that are "unknown" and those "given", lists of names, in place of
label, predicted, true and guess; the threshold of "given" is in the metadata.

pyarrow's own conversions would import pandas, which takes half a second. Reading loads no torch.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import printable

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from torch import Tensor

    from ..data.dataset import Split
    from ..data.disk_feed import DiskSplit
    from ..data.images import Images

NAME = "predictions.parquet"


class Answers(NamedTuple):
    """Test images that a net classified correctly, bool (N,), and the sha256 of these images and of the validation images.

    `validation` is "" without them, or where it was not recorded yet.
    """

    right: "np.ndarray | None"  # None of images with several labels each
    images: str
    validation: str = ""


def write(folder: Path, logits: "Tensor", images: "Images", threshold: float | None = None) -> None:
    """Write the file from logits float32 (N, classes) of the test images in order, on the CPU. Raises OSError."""
    import pyarrow
    import pyarrow.parquet
    import torch

    from ..data.disk_feed import DiskSplit

    labels, names = images.test.labels, _texts(images.classes)
    columns = {"id": _numbers(torch.arange(len(labels)))}
    if threshold is None:
        for index, name, values in (("label", "true", labels), ("predicted", "guess", logits.argmax(1))):
            columns[index] = _numbers(values)
            columns[name] = pyarrow.DictionaryArray.from_arrays(columns[index], names)
    else:
        from . import several  # which loads torch

        columns |= several.columns(logits, labels, threshold, images.classes)
    probabilities = images.task.probabilities(logits)
    columns["probabilities"] = pyarrow.FixedSizeListArray.from_arrays(_numbers(probabilities), logits.shape[1])
    if isinstance(images.test, DiskSplit):
        columns["path"] = _texts([image.name for image in images.test.images])
    table = pyarrow.table(columns).replace_schema_metadata(
        {"images": _sha256(images.test, images.classes)}
        | ({} if threshold is None else {"threshold": repr(threshold)})
        | ({"validation": _sha256(images.validation, images.classes)} if images.validation is not None else {})
    )
    pyarrow.parquet.write_table(table, folder / NAME)


def read(folder: Path) -> Answers | None:
    """Read the file of a training; None without a sound one."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(folder / NAME) as file:
            several = "given" in file.schema_arrow.names
            table = file.read(columns=[] if several else ["label", "predicted"])
        right = None
        if not several:
            label, predicted = (np.from_dlpack(table[name].combine_chunks()) for name in ("label", "predicted"))
            right = label == predicted
        of = {name: table.schema.metadata.get(name.encode(), b"").decode() for name in ("images", "validation")}
        return Answers(right, of["images"], of["validation"])
    except (OSError, pyarrow.ArrowException, BufferError, KeyError, TypeError, ValueError):
        return None


def _numbers(values: "Tensor") -> "pyarrow.Array":
    import pyarrow

    values = values.flatten() if values.is_floating_point() else values.int()
    kind = pyarrow.float32() if values.is_floating_point() else pyarrow.int32()
    return pyarrow.Array.from_buffers(kind, values.numel(), [None, pyarrow.py_buffer(values.contiguous().numpy())])


def _texts(values: Sequence[str]) -> "pyarrow.Array":
    import numpy as np
    import pyarrow

    encoded = [printable(value).encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"".join(encoded))]
    return pyarrow.Array.from_buffers(pyarrow.large_string(), len(encoded), buffers)


def _sha256(split: "Split | DiskSplit", classes: Sequence[str]) -> str:
    """Digest of a split's images and labels: runs are compared on the same ones only."""
    from ..data.dataset import Split

    digest = hashlib.sha256(json.dumps(classes).encode())
    digest.update(split.labels.numpy().data)
    if isinstance(split, Split):
        digest.update(split.pixels.contiguous().numpy().data)
    else:
        digest.update("".join(image.sha256 for image in split.images).encode())
    return digest.hexdigest()
