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

from ..errors import Refused, first_line, printable

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from torch import Tensor, nn

    from ..data.dataset import Split
    from ..data.disk_feed import DiskSplit
    from ..data.feed import Feed
    from ..data.images import Images
    from .run_log import Running

NAME = "predictions.parquet"


class Answers(NamedTuple):
    """Test images that a net classified correctly, bool (N,), and the sha256 of these images and of the validation images.

    `validation` is "" without them, or where it was not recorded yet.
    """

    right: "np.ndarray | None"  # None of images with several labels each
    images: str
    validation: str = ""


def logits_of(run: "Running", net: "nn.Module", feed: "Feed") -> "Tensor":
    """Logits of every image of `feed` in eval mode: float32 (N, classes), on the CPU."""
    import torch

    was_training = net.training
    net.eval()
    try:
        parts = []
        with torch.no_grad():
            for pixels, _ in feed.stream(feed.order(torch.arange(len(feed.labels))).split(feed.evaluation_batch)):
                with run.accelerator.autocast():
                    parts.append(net(pixels).float())
    finally:
        net.train(was_training)
    return torch.cat(parts).cpu()  # host-device sync


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


def out_of_fold(folders: Sequence[Path], target: Path) -> Answers:
    """Put together the predictions in `folders`, one for each fold, as those of all images, which this returns.

    `target`/predictions.parquet has a row for each image, by path, with the number of its fold, from 1, as a further column.
    Raises Refused: 1 if it cannot be written, 4 if an image is in two folds or a file is damaged.
    """
    import numpy as np
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    try:
        parts = []
        for number, folder in enumerate(folders, 1):
            part = pyarrow.parquet.read_table(folder / NAME)
            parts.append(part.append_column("fold", pyarrow.array([number] * len(part), pyarrow.int32())))
        table = pyarrow.concat_tables(parts).unify_dictionaries().combine_chunks()
        table = table.take(pyarrow.compute.sort_indices(table["path"]))
        paths, labels, predicted = (table[name].to_pylist() for name in ("path", "label", "predicted"))
    except (OSError, pyarrow.ArrowException, KeyError) as error:
        raise Refused(
            f"{target}: the predictions of its folds cannot be read ({first_line(error)}); --fresh starts over", 4
        ) from error
    if len({*paths}) < len(paths):
        raise Refused(f"{target}: an image is in two folds, so the data or their groups have changed; --fresh starts over", 4)
    images = hashlib.sha256(json.dumps([*zip(paths, labels, strict=True)]).encode()).hexdigest()
    table = table.set_column(table.schema.get_field_index("id"), "id", pyarrow.array(range(len(table)), pyarrow.int32()))
    target.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"images": images}), target / NAME)
    return Answers(np.array(labels) == np.array(predicted), images)


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
