"""Where pixels come from: the hub, a folder, or drawn here. Images are decoded once and then read from a cache.

`data` is what the user gave as `--data`: "hub" (Hugging Face `datasets`), "synthetic" (drawn by this file), or the path of a
folder: an image folder `train/<class>/*.png`, `test/<class>/*.png`, or what `datasets` can read, as the hub's parquet layout.
For the grey sets also a folder with the four idx files, gzipped or not, or an npz file (document 002, section 2.1).

An image is read in one way, by training, `oneloop predict` and `oneloop explain`: turned as its EXIF says, 16-bit grey scaled to
8 bits, transparent parts over white.

The cache lies in $ONELOOP_CACHE, else in ~/.cache/oneloop: one safetensors file a data set, written beside and renamed, with
the sha256 of its pixels and labels, which is checked at every start. What is cached is never asked for again: deleting the
file is the way to fetch it anew. A folder is read again when the name, size or time of modification (mtime) of one of its files
has changed. Nothing else is looked at: a file replaced by one of equal size and mtime is not noticed.
"""

import contextlib
import glob
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import filelock
import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image, ImageOps

from ..errors import Refused, first_line
from .images import Images, Split
from .order import order

IDX_LIMIT, NPZ_LIMIT = 1 << 30, 4 << 30  # bytes
NPZ_KEYS = (("x_train", "y_train", "x_test", "y_test"), ("trainInps", "trainTargs", "testInps", "testTargs"))
HUB_PROBE_SECONDS = 10  # the ordinary client would try for minutes when a hub hangs
SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}  # and their names: the first that is there
READING = 2  # of image files, counted up when a file gives other pixels than before: folders cached earlier are then read again

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(data: str = "hub", keep: tuple[str, ...] = CIFAR10_CLASSES, limit: int = 0) -> Images:
    """CIFAR-10, or the classes `keep` of it, labelled 0, 1, … in that order. Images (3, 32, 32); 50,000 train, 10,000 test.

    mean and std are the book's (chapter 7). `limit` keeps that many training images (0: all).

    Raises Refused if the data cannot be had, is not (3, 32, 32) or lacks one of the classes.
    """
    found = synthetic(keep) if data == "synthetic" else _found(data, "uoft-cs/cifar10", (3, 32, 32))
    mean, std = (0.4915, 0.4823, 0.4468), (0.2470, 0.2435, 0.2616)
    return _select(found, keep, limit, (3, 32, 32), mean, std)


def mnist(data: str = "hub", limit: int = 0, normalised: bool = True) -> Images:
    """MNIST, images (1, 28, 28), classes "0" to "9"; 60,000 train, 10,000 test.

    `data` may also be the path of an npz file or of a folder with the four idx files. Without `normalised` pixels are x / 255
    and no more, as in document 002; with it mean and std are those over all training images (document 004's course).
    """
    return _grey(data, "ylecun/mnist", tuple("0123456789"), limit, normalised, 0.1307, 0.3081)


def fashion_mnist(data: str = "hub", limit: int = 0, normalised: bool = True) -> Images:
    """Fashion-MNIST, images (1, 28, 28); 60,000 train, 10,000 test. `data` and `normalised` as for `mnist`."""
    return _grey(data, "zalando-datasets/fashion_mnist", FASHION_CLASSES, limit, normalised, 0.2860, 0.3530)


def _grey(data: str, name: str, classes: tuple[str, ...], limit: int, normalised: bool, mean: float, std: float) -> Images:
    found = synthetic(classes, channels=1, size=28) if data == "synthetic" else _found(data, name, (1, 28, 28))
    # idx and npz files have numbers only, and the hub's names have spaces of their own; an image folder has its own order.
    if len(found["classes"]) == len(classes) and all(
        name.isdigit() or name.replace(" ", "") == ours.replace(" ", "")
        for name, ours in zip(found["classes"], classes, strict=True)
    ):
        found["classes"] = classes
    return _select(found, classes, limit, (1, 28, 28), *(((mean,), (std,)) if normalised else ((0.0,), (1.0,))))


def located(data: str) -> str:
    """`--data` as a run records it: "hub", "synthetic", or an absolute path. Raises Refused (2) where it cannot be one."""
    if data in ("hub", "synthetic"):
        return data
    if not data.strip():
        raise Refused("--data is empty; it takes hub, synthetic or the path of a folder", 2)
    try:
        return str(Path(data).expanduser().resolve())
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody, links in a circle
        raise Refused(f"--data {data}: {first_line(error)}", 2) from error


def _found(data: str, name: str, shape: tuple[int, int, int]) -> dict:
    if data == "hub":
        return _cached_hub(name, shape)
    path = Path(data)
    try:
        if path.suffix == ".npz" and not path.is_dir():
            if shape[0] == 1:
                return _npz(path)
            raise Refused(f"--data {path}: npz files are read for the grey sets, MNIST and Fashion-MNIST; this recipe is not", 4)
        if not path.is_dir():
            wrong = "is a file" if path.exists() else "no such folder"
            grey = ", or an npz file" if shape[0] == 1 else ""
            raise Refused(f"--data {path}: {wrong}; it takes hub, synthetic or a folder that `datasets` can read{grey}")
        if any(path.glob("train-images*idx3-ubyte*")):
            return _idx(path)
        return _cached_folder(path.resolve(), shape)
    except OSError as error:  # not permitted, a name that is too long, a disk that fails
        raise Refused(f"--data {path}: {error.strerror or error}") from error


# ---------------------------------------------------------------------------------------------------------------- selection


def _select(found: dict, keep: tuple[str, ...], limit: int, shape: tuple[int, int, int], mean, std) -> Images:
    """The images of the classes `keep`, checked against what the recipe takes."""
    source, classes = found["source"], found["classes"]
    if missing := [name for name in keep if name not in classes]:
        raise Refused(f"{source}: no class {', '.join(map(repr, missing))}; its classes are {', '.join(classes)}", 4)
    splits = {}
    for name in ("train", "test"):
        pixels, labels = found[name]
        if tuple(pixels.shape[1:]) != shape:
            has, takes = ("×".join(map(str, size)) for size in (pixels.shape[1:], shape))
            wrong = f"{source}: the {name} images are {has} (channels×height×width), this recipe takes {takes}"
            raise Refused(f"{wrong}: resize them first", 4)
        if tuple(keep) != tuple(classes):
            relabel = torch.full((len(classes),), -1)
            relabel[[classes.index(wanted) for wanted in keep]] = torch.arange(len(keep))
            chosen = (relabel[labels] >= 0).nonzero().flatten()
            pixels, labels = pixels[chosen], relabel[labels[chosen]]
        splits[name] = Split(pixels, labels)
    for name, split in splits.items():
        if none := [keep[index] for index, count in enumerate(split.labels.bincount(minlength=len(keep))) if not count]:
            raise Refused(f"{source}: no {name} image of {', '.join(none)}; every class needs one at least", 4)
    if limit and limit < len(splits["train"]):
        # A fixed sample, not the first: a folder's images come sorted by class.
        some = order(len(splits["train"]), seed=0, epoch=0)[:limit].sort().values
        splits["train"] = Split(splits["train"].pixels[some], splits["train"].labels[some])
    return Images(**splits, classes=tuple(keep), mean=mean, std=std, source=source, fingerprint=found["fingerprint"])


# -------------------------------------------------------------------------------------------------------------- hub, folder


def _cached_hub(name: str, shape: tuple[int, int, int]) -> dict:
    slug = "hub-" + name.replace("/", "--")
    if cached := _newest(slug):
        return _read(cached)
    offline = _reach(name)
    with _lock(slug):  # one process decodes, the others wait here and then find the file
        if cached := _newest(slug):
            return _read(cached)
        import datasets  # 1 s to import, and not needed once the images are cached

        try:
            found = _load(name, datasets)
        except Exception as error:  # whatever the network, the hub or the disk does, the ways out are the same
            raise _unreachable(name, offline or error) from error
        return _write(slug, _decode(found, name, shape))


def _reach(name: str) -> Exception | None:
    """Ask the hub for the data set's existence: seconds, where `load_dataset` tries a hub that hangs for minutes.

    Returns the error if the hub cannot be reached; this process is offline from then on, as with HF_HUB_OFFLINE=1, and takes
    what `datasets` itself may have cached.
    """
    import datasets
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=HUB_PROBE_SECONDS)
        with contextlib.suppress(huggingface_hub.errors.EntryNotFoundError):  # files come from another server than answers
            file = huggingface_hub.hf_hub_url(name, "README.md", repo_type="dataset")
            huggingface_hub.get_hf_file_metadata(file, timeout=HUB_PROBE_SECONDS)
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        endpoint = huggingface_hub.constants.ENDPOINT
        raise Refused(f"{endpoint} has no data set {name!r} that you may read; another mirror: HF_ENDPOINT") from error
    except Exception as error:  # whatever the network does, the way out is the same
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        return error
    return None


def _unreachable(name: str, error: Exception) -> Refused:
    reason = first_line(error)
    return Refused(
        f"cannot get the data set {name!r}: {reason}. Ways out: HF_ENDPOINT=<a mirror's address>; "
        "HF_HUB_OFFLINE=1 if `datasets` has it cached; --data PATH to a folder; --data synthetic"
    )


def _cached_folder(folder: Path, shape: tuple[int, int, int]) -> dict:
    files = sorted(_files(folder), key=str)
    facts = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if not facts:
        raise Refused(f"--data {folder}: the folder is empty")
    # A part of the name, for people; the rest of it may be too long for a file's, or have a meaning in patterns.
    name = re.sub(r"[^\w.-]", "_", folder.name)[:40]
    slug = f"folder-{name}-{_digest(str(folder))}"
    state = _digest(json.dumps([READING, shape[0], facts]))
    if cached := _newest(slug, state):
        return _read(cached)
    with _lock(slug):
        if cached := _newest(slug, state):
            return _read(cached)
        return _write(slug, _image_folder(folder, files, shape) or _datasets_folder(folder, files, shape), state)


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files in a folder and the folders in it, through links, but not in circles. Hidden ones are not looked at."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not path.name.startswith("__"):  # __MACOSX, __pycache__
                yield from _files(path, (*above, real))
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise Refused(f"--data {path}: a link to {os.readlink(path)}, which is not there", 4)


def _image_folder(folder: Path, files: list[Path], shape: tuple[int, int, int]) -> dict | None:
    """The images `train/<class>/…`, `test/<class>/…` among `files`, in their order; None if that is not how the folder is made.

    Not by `datasets`, which takes a file's name for its split's (train/bird/test-1.png), and no links or brackets in paths.
    """
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    pictures = [path for path in files if path.suffix.lower() in known]
    parts = {path: path.relative_to(folder).parts for path in pictures}
    names = {part[0] for part in parts.values()}
    if not any(len(part) > 2 and part[0] == "train" for part in parts.values()):
        return None
    decoded, classes = {"source": str(folder)}, set()
    for split in SPLITS:
        name = _called(split, names, str(folder))
        decoded[split] = [path for path in pictures if parts[path][0] == name]
        if stray := [path for path in decoded[split] if len(parts[path]) == 2]:
            raise Refused(f"{stray[0]} is in no folder of a class: {folder / name / '<class>' / stray[0].name} would be", 4)
        classes |= {path.name for path in (folder / name).iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    decoded["classes"] = tuple(sorted(classes))
    for split in SPLITS:
        labels = torch.tensor([decoded["classes"].index(parts[path][1]) for path in decoded[split]])
        decoded[split] = Split(_pixels(((str(path), path) for path in decoded[split]), len(labels), shape), labels)
    return decoded


def _datasets_folder(folder: Path, files: list[Path], shape: tuple[int, int, int]) -> dict:
    import datasets

    with _plain(folder, files) as place:
        try:
            found = _load(str(place), datasets)
        except Exception as error:  # the readers of `datasets` raise what they like for files that are not data
            reason = first_line(error).replace(str(place), str(folder))
            raise Refused(f"--data {folder}: `datasets` cannot read it: {reason}", 4) from error
        return _decode(found, str(folder), shape)


@contextlib.contextmanager
def _plain(folder: Path, files: list[Path]) -> Iterator[Path]:
    """A folder with the same `files`, whose path `datasets` does not take for a pattern, and without linked folders."""
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


def _load(name: str, datasets) -> dict:
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets.load_dataset(name)


def _decode(found: dict, source: str, shape: tuple[int, int, int]) -> dict:
    """The splits of a `datasets.DatasetDict` as tensors; images are of `shape` (C, H, W), C 1 (grey) or 3 (RGB)."""
    import datasets

    decoded = {"source": source}
    for split in SPLITS:
        name = _called(split, found, source)
        table = found[name]
        features = table.features
        images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
        labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        if len(images) != 1 or len(labels) != 1:
            columns = ", ".join(f"{column}: {type(kind).__name__}" for column, kind in features.items())
            raise Refused(
                f"{source}: {name} needs one image column and one label column, it has {columns}; their kinds in `datasets` are "
                "Image and ClassLabel",
                4,
            )
        classes = tuple(features[labels[0]].names)
        decoded["classes"] = classes  # `datasets` gives all splits the same ones
        numbers = table[labels[0]][:]
        for index, number in enumerate(numbers):
            if number is None or not 0 <= number < len(classes):  # -1: none, in `datasets`
                has = "no label" if number in (None, -1) else f"the label {number}"
                raise Refused(f"{source}: {name} image {index} has {has}, there are {len(classes)} classes", 4)
        rows = table.select_columns(images[0]).cast_column(images[0], datasets.Image(decode=False))
        pixels = _pixels(_encoded(rows, f"{source}: {name}"), len(numbers), shape)
        decoded[split] = Split(pixels, torch.tensor(numbers, dtype=torch.int64))
    return decoded


def _called(split: str, names: Iterable[str], source: str) -> str:
    """What a data set with splits of these `names` calls its `split`."""
    for name in SPLITS[split]:
        if name in names:
            return name
    way = "an image folder has train/<class>/… and test/<class>/…"
    raise Refused(f"{source}: no {split} split, only {', '.join(sorted(names))}; {way}", 4)


def _encoded(rows: Iterable[dict], where: str) -> Iterator[tuple[str, BinaryIO | str]]:
    """Of each row of a table with one image column: its name in messages, and the file."""
    for index, row in enumerate(rows):
        (image,) = row.values()
        if image is None or (image["bytes"] is None and not image["path"]):
            raise Refused(f"{where} image {index} is null: there is nothing in its place", 4)
        yield f"{where} image {index}", image["path"] if image["bytes"] is None else BytesIO(image["bytes"])


def _pixels(files: Iterable[tuple[str, BinaryIO | Path | str]], count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """uint8 (count, C, H, W) of encoded images, each with its name in messages. Raises Refused (4) for the first wrong one."""
    channels, height, width = shape
    pixels = np.empty((count, height, width, channels), dtype=np.uint8)
    for index, (name, file) in enumerate(files):
        try:
            picture = _upright(file, channels)
        except Exception as error:  # PIL raises a dozen kinds for broken files
            raise Refused(f"{name} cannot be decoded: {first_line(error)}", 4) from error
        if picture.size != (width, height):
            has = "×".join(map(str, picture.size))
            raise Refused(f"{name} is {has} (width×height), this recipe takes {width}×{height}: resize them first", 4)
        pixels[index] = np.asarray(picture).reshape(pixels.shape[1:])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


# ------------------------------------------------------------------------------------------------------------------- images


def read_image(path: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    """An image file as uint8 (C, H, W), read as those of a training are, and stretched to `shape` with antialiasing.

    Raises Refused (1), naming the file.
    """
    channels, height, width = shape
    try:
        picture = _upright(path, channels)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        array = np.array(picture)
    except FileNotFoundError as error:
        raise Refused(f"{path}: no such file") from error
    except Exception as error:  # PIL raises a dozen kinds for broken files
        raise Refused(f"{path} cannot be read as an image: {first_line(error)}") from error
    return torch.from_numpy(array.reshape(height, width, channels)).permute(2, 0, 1)


def _upright(file: BinaryIO | Path | str, channels: int) -> Image.Image:
    """An encoded image in 8 bits, grey (1) or RGB (3), turned as its EXIF says. Raises whatever PIL does.

    Where it is transparent, white shows through, as on a page: PIL alone would show what colour lies hidden there.
    """
    with Image.open(file) as picture:
        picture.load()
        kind = picture.mode
        if kind == "F" or (kind == "I" and picture.format not in ("PNG", "PPM")):  # in those two, I are 16 bits
            raise ValueError(f"its pixels are numbers without a known white (PIL calls them {kind}); save it with 8 or 16 bits")
        with contextlib.suppress(Exception):  # EXIF that cannot be read says nothing
            picture = ImageOps.exif_transpose(picture)
        if kind[0] == "I":
            levels = np.asarray(picture).astype(np.int64)
            clear = picture.info.get("transparency")
            picture = Image.fromarray(((levels + 128) // 257).astype(np.uint8))  # 65,535 is 257 × 255
            if clear is not None:
                picture.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("RGB" if channels == 3 else "L")


# ------------------------------------------------------------------------------------------------------------ idx and npz


def _idx(folder: Path) -> dict:
    """The four idx files of MNIST's home page; dashed or dotted names, gzipped or not."""
    found = {"source": str(folder), "classes": tuple("0123456789")}
    for name, stem in (("train", "train"), ("test", "t10k")):
        pixels = _idx_array(_idx_file(folder, f"{stem}-images", "idx3-ubyte"), dimensions=3)
        labels = _idx_array(_idx_file(folder, f"{stem}-labels", "idx1-ubyte"), dimensions=1)
        if len(pixels) != len(labels):
            raise Refused(f"{folder}: {len(pixels)} {name} images and {len(labels)} labels", 4)
        if labels.size and labels.max() > 9:
            raise Refused(f"{folder}: {name} label {labels.max()}; they are 0 to 9", 4)
        found[name] = Split(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels).long())
    found["fingerprint"] = _fingerprint(found["classes"], found["train"], found["test"])
    return found


def _idx_file(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{joint}{kind}{end}" for joint in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise Refused(f"{folder}: none of {', '.join(names)}", 4)


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file, shaped as its header says, which must agree with what is there."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 * (1 + dimensions))
            if len(header) < 4 * (1 + dimensions):
                raise Refused(f"{path}: too short for an idx file", 4)
            magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
            if magic != 0x800 + dimensions:
                raise Refused(f"{path}: magic number {magic}, an idx file of this kind has {0x800 + dimensions}", 4)
            size = math.prod(shape)
            if size > IDX_LIMIT:
                raise Refused(f"{path}: its header claims {size:,} bytes; {IDX_LIMIT:,} are believed", 4)
            content = file.read(size + 1)  # never more than the header claims, whatever a gzip file unpacks to
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"{path}: cannot be read: {error}", 4) from error
    if len(content) != size:
        has = "more" if len(content) > size else f"{len(content):,}"
        raise Refused(f"{path}: its header claims {size:,} bytes, it has {has}", 4)
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _npz(path: Path) -> dict:
    """An npz file with Keras' keys (x_train, …) or the other known ones (trainInps, …: rows of 784, labels one-hot)."""
    found = {"source": str(path), "classes": tuple("0123456789")}
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > NPZ_LIMIT:
                raise Refused(f"{path}: unpacks to {size:,} bytes; {NPZ_LIMIT:,} are believed", 4)
            has = [name.removesuffix(".npy") for name in archive.namelist()]
            keys = next((keys for keys in NPZ_KEYS if set(keys) <= set(has)), None)
            if keys is None:
                known = " or ".join(", ".join(keys) for keys in NPZ_KEYS)
                raise Refused(f"{path}: has {', '.join(has) or 'nothing'}; it takes {known}", 4)
            arrays = [_npy(archive, key) for key in keys]
    except Refused:
        raise
    except FileNotFoundError as error:
        raise Refused(f"--data {path}: no such file") from error
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for broken files
        raise Refused(f"{path}: cannot be read: {first_line(error)}", 4) from error
    for name, pixels, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        found[name] = _npz_split(pixels, labels, f"{path}: {name}")
    found["fingerprint"] = _fingerprint(found["classes"], found["train"], found["test"])
    return found


def _npy(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """An array of an npz file. Unlike `np.load`, it takes no more memory than there are bytes, whatever the header claims."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version > (2, 0):
            raise ValueError(f"{key} has names of fields, which arrays of numbers do not")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{key} holds Python objects, which only unpickling could read")
        size = math.prod(shape) * dtype.itemsize
        content = file.read(size + 1) if 0 <= size <= NPZ_LIMIT else b""
    if len(content) != size:
        raise ValueError(f"{key} is {shape} of {dtype} by its header, which is not what is there")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")


def _npz_split(pixels: np.ndarray, labels: np.ndarray, where: str) -> Split:
    """Images (n, 28, 28) or rows of 784, from 0 to 255 or from 0 to 1, and labels (n,), (n, 1) or one-hot (n, classes)."""
    shapes = pixels.ndim >= 2 and labels.ndim in (1, 2) and len(pixels) == len(labels)
    if not shapes or pixels.dtype.kind not in "uif" or labels.dtype.kind not in "uif":
        raise Refused(f"{where} images {pixels.dtype}{pixels.shape} and labels {labels.dtype}{labels.shape}", 4)
    if pixels.shape[1:] not in ((784,), (28, 28), (28, 28, 1), (1, 28, 28)):
        raise Refused(f"{where} images {pixels.shape}; they are (n, 28, 28), or rows of 784", 4)
    if not len(pixels):
        raise Refused(f"{where} has no images", 4)
    if not (np.isfinite(pixels).all() and np.isfinite(labels).all()):
        raise Refused(f"{where} has values that are no numbers", 4)
    if pixels.dtype.kind == "f":  # 0 to 1, or 0 to 255
        pixels = np.rint(pixels * (255 if pixels.max() <= 1 else 1))
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        if not ((labels == 1).sum(axis=1) == 1).all() or np.count_nonzero(labels) != len(labels):
            raise Refused(f"{where} labels {labels.shape} are not one-hot: a 1 in each row, and else 0", 4)
        labels = labels.argmax(axis=1)
    whole = labels.astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 255 or labels.min() < 0 or labels.max() > 9 or (whole != labels).any():
        raise Refused(f"{where} has pixels beyond 0 to 255 or labels that are not 0 to 9", 4)
    return Split(torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28), torch.from_numpy(whole))


# -------------------------------------------------------------------------------------------------------------------- cache


def cache_folder() -> Path:
    """Where decoded images are kept: $ONELOOP_CACHE, else $XDG_CACHE_HOME/oneloop, else ~/.cache/oneloop. Raises Refused."""
    if given := os.environ.get("ONELOOP_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oneloop"
    except RuntimeError as error:
        raise Refused("there is no home folder to keep decoded images in; ONELOOP_CACHE=FOLDER names another place") from error


@contextlib.contextmanager
def _lock(slug: str) -> Iterator[None]:
    """One process decodes, the others wait here and then find the file."""
    folder = cache_folder()
    lock = filelock.FileLock(folder / f"{slug}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter where the file system knows no locks
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(folder: Path, error: Exception) -> Refused:
    reason = getattr(error, "strerror", None) or first_line(error)
    return Refused(f"cannot write the cache {folder}: {reason}; choose another with ONELOOP_CACHE")


def _newest(slug: str, state: str = "*") -> Path | None:
    folder = cache_folder()
    try:
        return max(folder.glob(f"{slug}.{state}.safetensors"), key=lambda path: path.stat().st_mtime_ns, default=None)
    except FileNotFoundError:  # another process has just put a newer one in its place
        return None
    except OSError as error:
        raise _unwritable(folder, error) from error


def _fingerprint(classes: tuple[str, ...], train: Split, test: Split) -> str:
    """sha256 over the class names, shapes, pixels and labels of both splits."""
    digest = hashlib.sha256(json.dumps([classes, [list(split.pixels.shape) for split in (train, test)]]).encode())
    for split in (train, test):
        digest.update(split.pixels.contiguous().numpy())
        digest.update(split.labels.numpy())
    return digest.hexdigest()


def _write(slug: str, decoded: dict, state: str = "") -> dict:
    decoded["fingerprint"] = _fingerprint(decoded["classes"], decoded["train"], decoded["test"])
    path = cache_folder() / f"{slug}.{state or decoded['fingerprint'][:16]}.safetensors"
    tensors = {f"{name}.{part}": getattr(decoded[name], part) for name in ("train", "test") for part in Split._fields}
    facts = {key: decoded[key] for key in ("source", "classes", "fingerprint")}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask leaves; safetensors makes files for their owner alone
        safetensors.torch.save_file(tensors, temporary, metadata={"oneloop": json.dumps(facts)})
        temporary.chmod(mode)
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:  # the latter when the disk is full
        temporary.unlink(missing_ok=True)
        raise _unwritable(path.parent, error) from error
    for older in cache_folder().glob(f"{slug}.*.safetensors"):
        if older != path:
            with contextlib.suppress(OSError):  # it may be another user's
                older.unlink()
    return decoded


def _read(path: Path) -> dict:
    try:
        path.open("rb").close()  # to safetensors, what may not be read is not there
        with safetensors.safe_open(path, framework="pt") as file:
            found = json.loads(file.metadata()["oneloop"])
            for name in ("train", "test"):
                found[name] = Split(*(file.get_tensor(f"{name}.{part}") for part in Split._fields))
    except PermissionError as error:
        raise Refused(f"the cached data {path} may not be read by you; choose another cache with ONELOOP_CACHE") from error
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"the cached data {path} cannot be read ({error}); delete it, and it is made anew", 4) from error
    found["classes"] = tuple(found["classes"])
    if (now := _fingerprint(found["classes"], found["train"], found["test"])) != found["fingerprint"]:
        raise Refused(
            f"the cached data {path} is damaged: sha256 {now[:16]}, recorded {found['fingerprint'][:16]}; "
            "delete it, and it is made anew",
            4,
        )
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------- synthetic

# A class is a drawing: lines between points of the square from -1 to 1 (x to the right, y up).
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
    "frog": [[(-0.9, -0.6), (-0.4, 0.2), (0.4, 0.2), (0.9, -0.6), (-0.9, -0.6)], [(-0.4, 0.2), (-0.4, 0.7)], [(0.4, 0.2), (0.4, 0.7)]],  # noqa: E501
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


def synthetic(classes: tuple[str, ...], train: int = 2000, test: int = 500, channels: int = 3, size: int = 32) -> dict:
    """Simple drawings over noise, (channels, size, size), for trying a recipe without a network; the same at every start.

    Place, size, turn, colours and contrast of each drawing vary, so that a net has something to learn and is not done at once.
    """
    found = {"source": "synthetic", "classes": classes}
    for number, (name, count) in enumerate({"train": train, "test": test}.items()):
        labels = torch.arange(count) % len(classes)
        found[name] = Split(_draw([_DRAWINGS[name] for name in classes], labels.numpy(), channels, size, number), labels)
    found["fingerprint"] = _fingerprint(classes, found["train"], found["test"])
    return found


def _draw(drawings: list, labels: np.ndarray, channels: int, size: int, stream: int) -> torch.Tensor:
    random, n = np.random.Generator(np.random.Philox(key=[20, stream])), len(labels)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(-axis, axis, indexing="ij")
    turn, scale = (random.uniform(*span, n).astype(np.float32) for span in ((-0.5, 0.5), (0.5, 0.9)))
    shift = random.uniform(-0.25, 0.25, (2, n)).astype(np.float32)
    width = random.uniform(0.1, 0.2, n).astype(np.float32)
    ink = np.zeros((n, size, size), dtype=np.float32)
    for label, drawing in enumerate(drawings):
        (these,) = np.nonzero(labels == label)
        cos, sin = (f(turn[these])[:, None, None] for f in (np.cos, np.sin))
        left, up = (x - shift[0, these][:, None, None], y - shift[1, these][:, None, None])
        u, v = ((cos * left + sin * up) / scale[these][:, None, None], (cos * up - sin * left) / scale[these][:, None, None])
        near = np.full(u.shape, np.inf, dtype=np.float32)
        for line in drawing:
            for (x0, y0), (x1, y1) in itertools.pairwise(line):
                dx, dy = x1 - x0, y1 - y0
                along = np.clip(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy), 0, 1)
                near = np.minimum(near, np.hypot(u - x0 - along * dx, v - y0 - along * dy))
        reach = width[these][:, None, None]
        ink[these] = np.clip((reach * 1.5 - near) / reach, 0, 1)

    def vary(low: float, high: float, channels: int = channels) -> np.ndarray:
        return random.uniform(low, high, (n, channels, 1, 1)).astype(np.float32)

    # Grey images are bright on dark, as MNIST's.
    behind, drawn = ((0.4, 0.9), (0.0, 0.5)) if channels == 3 else ((0.0, 0.2), (0.7, 1.0))
    sky = vary(*behind) + vary(-0.2, 0.2) * y
    mixed = sky + ink[:, None] * vary(0.6, 1.0, channels=1) * (vary(*drawn) - sky)
    mixed += random.standard_normal(mixed.shape, dtype=np.float32) * vary(0.02, 0.1, channels=1)
    return torch.from_numpy((np.clip(mixed, 0, 1) * 255).round().astype(np.uint8))
