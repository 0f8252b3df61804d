"""Where pixels come from: the hub, a folder, or drawn here. Images are decoded once and then read from a cache.

`data` is what the user gave as `--data`: "hub" (Hugging Face `datasets`), "synthetic" (drawn by this file), or the path of a
folder that `datasets` can read: the hub's parquet layout, or an image folder `train/<class>/*.png`, `test/<class>/*.png`. For
the grey sets also a folder with the four idx files, gzipped or not, or an npz file (document 002, section 2.1).

The cache lies in $ONELOOP_CACHE, else in ~/.cache/oneloop: one safetensors file a data set, written beside and renamed, with
the sha256 of its pixels and labels, which is checked at every start. What is cached is never asked for again: deleting the
file is the way to fetch it anew.
"""

import contextlib
import gzip
import hashlib
import itertools
import json
import math
import os
import struct
import sys
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import filelock
import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image

from .data import Images, Split, order
from .errors import Refused, first_line

IDX_LIMIT, NPZ_LIMIT = 1 << 30, 4 << 30  # bytes
NPZ_KEYS = (("x_train", "y_train", "x_test", "y_test"), ("trainInps", "trainTargs", "testInps", "testTargs"))
HUB_PROBE_SECONDS = 10  # the ordinary client would try for minutes when a hub hangs

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(data: str = "hub", keep: tuple[str, ...] = CIFAR10_CLASSES, limit: int = 0) -> Images:
    """CIFAR-10, or the classes `keep` of it, labelled 0, 1, … in that order. Images (3, 32, 32); 50,000 train, 10,000 test.

    mean and std are the book's (chapter 7). `limit` keeps that many training images (0: all).

    Raises Refused if the data cannot be had, is not (3, 32, 32) or lacks one of the classes.
    """
    found = synthetic(keep) if data == "synthetic" else _found(data, "uoft-cs/cifar10", channels=3)
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
    found = synthetic(classes, channels=1, size=28) if data == "synthetic" else _found(data, name, channels=1)
    # idx and npz files have numbers only, and the hub's names have spaces of their own; an image folder has its own order.
    if len(found["classes"]) == len(classes) and all(
        name.isdigit() or name.replace(" ", "") == ours.replace(" ", "")
        for name, ours in zip(found["classes"], classes, strict=True)
    ):
        found["classes"] = classes
    return _select(found, classes, limit, (1, 28, 28), *(((mean,), (std,)) if normalised else ((0.0,), (1.0,))))


def _found(data: str, name: str, channels: int) -> dict:
    path = Path(data)
    if data == "hub":
        return _cached_hub(name, channels)
    if path.suffix == ".npz":
        return _npz(path)
    if any(path.glob("train-images*idx3-ubyte*")):
        return _idx(path)
    return _cached_folder(path, channels)


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
            raise Refused(f"{source}: no {name} image of {', '.join(none)}", 4)
    if limit and limit < len(splits["train"]):
        # A fixed sample, not the first: a folder's images come sorted by class.
        some = order(len(splits["train"]), seed=0, epoch=0)[:limit].sort().values
        splits["train"] = Split(splits["train"].pixels[some], splits["train"].labels[some])
    return Images(**splits, classes=tuple(keep), mean=mean, std=std, source=source, fingerprint=found["fingerprint"])


# -------------------------------------------------------------------------------------------------------------- hub, folder


def _cached_hub(name: str, channels: int) -> dict:
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
        return _write(slug, _decode(found, name, channels))


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


def _cached_folder(folder: Path, channels: int) -> dict:
    if not folder.is_dir():
        raise Refused(f"--data {folder}: no such folder; it takes hub, synthetic or a folder that `datasets` can read")
    folder = folder.resolve()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if not facts:
        raise Refused(f"--data {folder}: the folder is empty")
    slug = f"folder-{folder.name}-{_digest(str(folder))}"
    state = _digest(json.dumps([channels, facts]))
    with _lock(slug):
        cached = _newest(slug)
        if cached and cached.stem.endswith(state):
            return _read(cached)
        import datasets

        try:
            found = _load(str(folder), datasets)
        except Exception as error:  # the readers of `datasets` raise what they like for files that are not data
            reason = first_line(error)
            raise Refused(f"--data {folder}: `datasets` cannot read it: {reason}", 4) from error
        return _write(slug, _decode(found, str(folder), channels), state)


def _load(name: str, datasets) -> dict:
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets.load_dataset(name)


def _decode(found: dict, source: str, channels: int) -> dict:
    """The splits of a `datasets.DatasetDict` as tensors; `channels` is 1 (grey) or 3 (RGB)."""
    import datasets

    decoded = {"source": source}
    for split, names in {"train": ("train",), "test": ("test", "validation", "valid", "val")}.items():
        name = next((name for name in names if name in found), None)
        if name is None:
            raise Refused(f"{source}: no {split} split, only {', '.join(found)}", 4)
        table = found[name]
        features = table.features
        images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
        labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        if len(images) != 1 or len(labels) != 1:
            columns = ", ".join(f"{column}: {type(kind).__name__}" for column, kind in features.items())
            raise Refused(f"{source}: {name} needs one image column and one label column, it has {columns}", 4)
        classes = tuple(features[labels[0]].names)
        if decoded.setdefault("classes", classes) != classes:
            raise Refused(f"{source}: the classes of {name} are {classes}, those of train {decoded['classes']}", 4)
        decoded[split] = _pixels(table, images[0], labels[0], f"{source}: {name}", len(classes), channels)
    return decoded


def _pixels(table, image: str, label: str, where: str, classes: int, channels: int) -> Split:
    import datasets

    labels = torch.tensor([-1 if number is None else number for number in table[label][:]], dtype=torch.int64)
    if bad := ((labels < 0) | (labels >= classes)).nonzero().flatten().tolist():
        raise Refused(f"{where} image {bad[0]} has the label {labels[bad[0]]}, there are {classes} classes", 4)
    pixels = None
    for index, row in enumerate(table.select_columns(image).cast_column(image, datasets.Image(decode=False))):
        raw = row[image]
        try:
            with Image.open(BytesIO(raw["bytes"]) if raw["bytes"] is not None else raw["path"]) as picture:
                array = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
        except Exception as error:  # PIL raises a dozen kinds for broken files
            reason = first_line(error)
            raise Refused(f"{where} image {index} cannot be decoded: {reason}", 4) from error
        if pixels is None:
            pixels = np.empty((len(labels), *array.shape[:2], channels), dtype=np.uint8)
        if array.shape[:2] != pixels.shape[1:3]:
            (height, width), (first_height, first_width) = array.shape[:2], pixels.shape[1:3]
            raise Refused(f"{where} image {index} is {width}×{height}, image 0 is {first_width}×{first_height}", 4)
        pixels[index] = array.reshape(pixels.shape[1:])
    if pixels is None:
        raise Refused(f"{where} has no images", 4)
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)


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
        with np.load(path, allow_pickle=False) as arrays:
            keys = next((keys for keys in NPZ_KEYS if set(keys) <= set(arrays.files)), None)
            if keys is None:
                known = " or ".join(", ".join(keys) for keys in NPZ_KEYS)
                raise Refused(f"{path}: has {', '.join(arrays.files)}; it takes {known}", 4)
            x_train, y_train, x_test, y_test = (arrays[key] for key in keys)
    except FileNotFoundError as error:
        raise Refused(f"--data {path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Refused(f"{path}: cannot be read: {str(error).splitlines()[0]}", 4) from error
    for name, pixels, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        shapes = pixels.ndim >= 2 and labels.ndim in (1, 2) and len(pixels) == len(labels)
        if not shapes or pixels.dtype.kind not in "uif" or labels.dtype.kind not in "uif":
            raise Refused(f"{path}: {name} images {pixels.dtype}{pixels.shape} and labels {labels.dtype}{labels.shape}", 4)
        if pixels[:1].size != 784:
            raise Refused(f"{path}: {name} images of {pixels[:1].size} pixels; they have 784", 4)
        if not (np.isfinite(pixels).all() and np.isfinite(labels).all()):
            raise Refused(f"{path}: {name} has values that are no numbers", 4)
        if pixels.dtype.kind == "f":  # 0 to 1, or 0 to 255
            pixels = np.rint(pixels * (255 if pixels.max() <= 1 else 1))
        if labels.ndim == 2:  # one-hot
            labels = labels.argmax(axis=1)
        if pixels.min() < 0 or pixels.max() > 255 or labels.min() < 0 or labels.max() > 9:
            raise Refused(f"{path}: {name} has pixels beyond 0 to 255 or labels beyond 0 to 9", 4)
        pixels = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28)
        found[name] = Split(pixels, torch.from_numpy(labels.astype(np.int64)))
    found["fingerprint"] = _fingerprint(found["classes"], found["train"], found["test"])
    return found


# -------------------------------------------------------------------------------------------------------------------- cache


def cache_folder() -> Path:
    """Where decoded images are kept: $ONELOOP_CACHE, else $XDG_CACHE_HOME/oneloop, else ~/.cache/oneloop."""
    if given := os.environ.get("ONELOOP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oneloop"


def _lock(slug: str) -> filelock.BaseFileLock:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot write the cache {folder}: {error.strerror}; choose another with ONELOOP_CACHE") from error
    return filelock.FileLock(folder / f"{slug}.lock")


def _newest(slug: str) -> Path | None:
    return max(cache_folder().glob(f"{slug}.*.safetensors"), key=lambda path: path.stat().st_mtime_ns, default=None)


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
        safetensors.torch.save_file(tensors, temporary, metadata={"oneloop": json.dumps(facts)})
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:  # the latter when the disk is full
        temporary.unlink(missing_ok=True)
        raise Refused(f"cannot write the cache {path.parent}: {error}; choose another with ONELOOP_CACHE") from error
    for older in cache_folder().glob(f"{slug}.*.safetensors"):
        if older != path:
            older.unlink()
    return decoded


def _read(path: Path) -> dict:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = json.loads(file.metadata()["oneloop"])
            for name in ("train", "test"):
                found[name] = Split(*(file.get_tensor(f"{name}.{part}") for part in Split._fields))
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
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
