"""What `datasets` reads, from the hub or from a folder: a table for each split, with a column of images and one of labels."""

import contextlib
import glob
import tempfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from ..data import image_file
from ..data.dataset import DataSet, Shape, Split, split_name
from ..errors import Refused, first_line
from .hub import load

if TYPE_CHECKING:
    import datasets


def read(folder: Path, files: list[Path], shape: Shape) -> DataSet:
    """The `files` of `folder`, which `datasets` recognises by their names. Raises Refused (4) if it cannot read them."""
    with _plain(folder, files) as place:
        try:
            tables = load(str(place))
        except Exception as error:  # `datasets` raises many kinds of errors for files that are not data
            reason = first_line(error).replace(str(place), str(folder))
            raise Refused(f"--data {folder}: `datasets` cannot read it: {reason}", 4) from error
        return decode(tables, str(folder), shape)


@contextlib.contextmanager
def _plain(folder: Path, files: list[Path]) -> Iterator[Path]:
    """A folder with the same `files`, without linked folders and with a path that `datasets` does not take for a pattern."""
    folders = {above for file in files for above in file.parents}
    if not glob.has_magic(str(folder)) and not any(each.is_symlink() for each in folders):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="oneloop-") as place:
        for file in files:
            link = Path(place, file.relative_to(folder))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        yield Path(place)


def decode(tables: "datasets.DatasetDict", source: str, shape: Shape) -> DataSet:
    """The train and test tables as tensors, images of `shape`.

    Raises Refused (4) for other columns than one of images and one of labels, a missing label, a missing or broken image, and
    an image of another size.
    """
    import datasets

    splits, classes = {}, ()
    for split in ("train", "test"):
        name = split_name(split, tables, source)
        table = tables[name]
        features = table.features
        images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
        labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        if len(images) != 1 or len(labels) != 1:
            columns = ", ".join(f"{column}: {type(kind).__name__}" for column, kind in features.items())
            wanted = "one image column (datasets.Image) and one label column (datasets.ClassLabel)"
            raise Refused(f"{source}: {name} needs {wanted}; it has {columns}", 4)
        classes = tuple(features[labels[0]].names)  # the same ones for all splits
        numbers = table[labels[0]][:]
        for index, number in enumerate(numbers):
            if number is None or not 0 <= number < len(classes):  # `datasets` writes -1 for no label
                has = "no label" if number in (None, -1) else f"label {number}"
                raise Refused(f"{source}: {name} image {index} has {has}; labels are 0 to {len(classes) - 1}", 4)
        rows = table.select_columns(images[0]).cast_column(images[0], datasets.Image(decode=False))
        pixels = image_file.stack(_encoded(rows, f"{source}: {name}"), len(numbers), shape)
        splits[split] = Split(pixels, torch.tensor(numbers, dtype=torch.int64))
    return DataSet(source, classes, **splits)


def _encoded(rows: Iterable[dict], where: str) -> Iterator[tuple[str, BinaryIO | str]]:
    """For each row of a table with one image column: the image's name in messages, and its file."""
    for index, row in enumerate(rows):
        (image,) = row.values()
        if image is None or (image["bytes"] is None and not image["path"]):
            raise Refused(f"{where} image {index} is null; remove the row or add the image", 4)
        yield f"{where} image {index}", image["path"] if image["bytes"] is None else BytesIO(image["bytes"])
