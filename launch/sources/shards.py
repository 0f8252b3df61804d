"""Images in archives: WebDataset's tar shards, through `datasets`, and the arrays of an npz file, as MedMNIST has them."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Refused, first_line
from . import hub, image_table, parquet
from .image_table import Part
from .listing import ListedImage, Listing
from .several import AS_FOUND, Rules, joined

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress

ARRAYS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))  # names of images and labels
PARTS = {"train": "train", "val": "validation", "test": "test"}


def is_webdataset(file: Path) -> bool:
    """Whether a tar file has an image and a label of one name, as 000001.jpg and 000001.cls."""
    import tarfile

    try:
        with tarfile.open(file) as archive:
            names = [member.name for member in (archive.next() for _ in range(20)) if member and member.isfile()]
    except (OSError, tarfile.TarError):
        return False
    return any(name.endswith((".cls", ".json")) for name in names)


def read_tar(source: Path, files: Sequence[Path], wanted: Mapping[str, str], bar: "Progress", rules: Rules = AS_FOUND) -> Listing:
    """The images of WebDataset shards, which are called train-000000.tar, val-… . Raises Refused as image_table.read."""
    root = source if source.is_dir() else source.parent
    splits = parquet.splits_of(source, [file.relative_to(root) for file in files])
    data_files: dict[str, list[str]] = {}
    for file, split in zip(files, splits, strict=True):
        data_files.setdefault(split or "train", []).append(str(file))
    try:
        with hub.giving_way(bar):
            tables = hub.load("webdataset", data_files=data_files)
    except Exception as error:  # `datasets` raises many kinds
        raise Refused(f"{source}: `datasets` cannot read its shards: {first_line(error)}", 4) from error
    parts = []
    for name, table in tables.items():
        paths = [Path(file["filename"]) for file in table.cache_files]
        split = name if any(splits) else ""
        parts.append(Part(name, split, max(path.stat().st_mtime_ns for path in paths), paths))
    return image_table.read(source, root, parts, wanted, rules=rules)


def read_npz(file: Path) -> Listing:
    """The images of an npz file: train_images (n, h, w) or (n, h, w, 3) of uint8, train_labels (n,) or (n, 1), val_…, test_….

    Raises Refused (4) for other arrays. Nothing is unpickled.
    """
    import numpy as np

    images: list[ListedImage] = []
    multi_label = False
    pixels: dict[str, np.ndarray] = {}
    try:
        with np.load(file) as arrays:
            kind = next(
                (kind for kind in ARRAYS if kind[0].format("train") in arrays and kind[1].format("train") in arrays), None
            )
            if kind is None:
                raise Refused(
                    f"{file}: it has {', '.join(arrays)}; expected train_images and train_labels, or x_train and y_train", 4
                )
            for name, split in PARTS.items():
                if kind[0].format(name) in arrays:
                    pixels[name], labels = arrays[kind[0].format(name)], arrays[kind[1].format(name)]
                    _check(file, name, pixels[name], labels)
                    size, time = pixels[name][0].nbytes, file.stat().st_mtime_ns
                    if images and multi_label != _are_several(labels):
                        raise Refused(f"{file}: the {name} labels are {labels.shape}, others are not of that kind", 4)
                    multi_label = _are_several(labels)
                    texts = (
                        [joined([*map(str, row.nonzero()[0])]) for row in labels]
                        if _are_several(labels)
                        else map(str, labels.reshape(-1).tolist())
                    )
                    numbers = enumerate(texts)
                    images += [ListedImage(f"{name}#{number}", label, split, size, time) for number, label in numbers]
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{file}: cannot be read: {first_line(error)}", 4) from error

    def opened(path: str) -> BytesIO:
        name, _, number = path.partition("#")
        image = pixels[name][int(number)]
        height, width = image.shape[:2]
        kind = b"P6" if image.ndim == 3 and image.shape[2] == 3 else b"P5"  # formats without compression: the same bytes anywhere
        return BytesIO(b"%s %d %d 255\n" % (kind, width, height) + image.tobytes())

    if {image.split for image in images} == {"train"}:
        images = [image._replace(split="") for image in images]
    notes = ("several labels: those whose column is 1, called by its number",) if multi_label else ()
    return Listing(file, file.parent, images, row=opened, notes=notes, multi_label=multi_label)


def _check(file: Path, name: str, pixels: "np.ndarray", labels: "np.ndarray") -> None:
    import numpy as np

    fits = pixels.dtype == "uint8" and pixels.ndim in (3, 4) and pixels.shape[3:] in ((), (1,), (3,)) and len(pixels) > 0
    if not fits:
        raise Refused(f"{file}: the {name} images are {pixels.dtype}{pixels.shape}; expected uint8 (n, h, w) or (n, h, w, 3)", 4)
    several = _are_several(labels) and {*np.unique(labels).tolist()} <= {0, 1}
    if labels.dtype.kind not in "iu" or len(labels) != len(pixels) or (labels.size != len(labels) and not several):
        expected = "a whole number for each image, or 0 and 1 for each of its labels"
        raise Refused(f"{file}: the {name} labels are {labels.dtype}{labels.shape}; expected {expected}", 4)


def _are_several(labels: "np.ndarray") -> bool:
    """Whether there is a column for each of several labels of an image."""
    return labels.ndim == 2 and labels.shape[1] > 1
