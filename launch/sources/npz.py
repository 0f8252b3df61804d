"""An npz file with the four arrays of MNIST or Fashion-MNIST: Keras' names (x_train, …), or trainInps and so on.

Nothing in it is unpickled, and an array takes no more memory than the file has bytes for it, whatever its header says.
"""

import math
import zipfile
from pathlib import Path

import numpy as np
import torch

from ..data.dataset import DIGITS, DataSet, Shape, Split
from ..errors import Refused, first_line

LIMIT = 4 << 30  # bytes of all arrays
KEYS = (("x_train", "y_train", "x_test", "y_test"), ("trainInps", "trainTargs", "testInps", "testTargs"))


def matches(path: Path) -> bool:
    return path.suffix == ".npz" and not path.is_dir()


def read(path: Path, shape: Shape) -> DataSet:
    """Images (1, 28, 28), classes "0" to "9".

    Raises Refused: 1 if there is no such file, 4 if its arrays are other ones or cannot be read, or if the recipe takes images
    in colour.
    """
    if shape[0] != 1:
        raise Refused(f"--data {path}: npz files are read for MNIST and Fashion-MNIST only, not for this recipe", 4)
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > LIMIT:
                raise Refused(f"{path}: unpacks to {size:,} bytes; the limit is {LIMIT:,}", 4)
            has = [name.removesuffix(".npy") for name in archive.namelist()]
            keys = next((keys for keys in KEYS if set(keys) <= set(has)), None)
            if keys is None:
                known = " or ".join(", ".join(keys) for keys in KEYS)
                raise Refused(f"{path}: has {', '.join(has) or 'no arrays'}; expected {known}", 4)
            x_train, y_train, x_test, y_test = (_array(archive, key) for key in keys)
    except Refused:
        raise
    except FileNotFoundError as error:
        raise Refused(f"--data {path}: no such file") from error
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for broken files
        raise Refused(f"{path}: cannot be read: {first_line(error)}", 4) from error
    train, test = _split(x_train, y_train, f"{path}: train"), _split(x_test, y_test, f"{path}: test")
    return DataSet(str(path), DIGITS, train, test)


def _array(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """An array of an npz file. Raises ValueError and whatever NumPy does."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version > (2, 0):
            raise ValueError(f"{key} has named fields; expected a plain array")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{key} holds Python objects, which only unpickling could read; save it as numbers")
        size = math.prod(shape) * dtype.itemsize
        content = file.read(size + 1) if 0 <= size <= LIMIT else b""
    if len(content) != size:
        raise ValueError(f"header of {key} says {dtype}{shape}, but its data has another size")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")


def _split(pixels: np.ndarray, labels: np.ndarray, where: str) -> Split:
    """Images (n, 28, 28) or (n, 784), values 0 to 255 or 0 to 1; labels (n,), (n, 1) or one-hot (n, classes)."""
    shapes = pixels.ndim >= 2 and labels.ndim in (1, 2) and len(pixels) == len(labels)
    if not shapes or pixels.dtype.kind not in "uif" or labels.dtype.kind not in "uif":
        has = f"images {pixels.dtype}{pixels.shape} and labels {labels.dtype}{labels.shape}"
        raise Refused(f"{where} has {has}; expected numbers, (n, 28, 28) and (n,)", 4)
    if pixels.shape[1:] not in ((784,), (28, 28), (28, 28, 1), (1, 28, 28)):
        raise Refused(f"{where} has images {pixels.shape}; expected (n, 28, 28) or (n, 784)", 4)
    if not len(pixels):
        raise Refused(f"{where} has no images", 4)
    if not (np.isfinite(pixels).all() and np.isfinite(labels).all()):
        raise Refused(f"{where} has values that are NaN or infinite", 4)
    if pixels.dtype.kind == "f":  # 0 to 1, or 0 to 255
        pixels = np.rint(pixels * (255 if pixels.max() <= 1 else 1))
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        if not ((labels == 1).sum(axis=1) == 1).all() or np.count_nonzero(labels) != len(labels):
            raise Refused(f"{where} has labels {labels.shape} that are not one-hot: a single 1 in each row, 0 elsewhere", 4)
        labels = labels.argmax(axis=1)
    whole = labels.astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 255 or labels.min() < 0 or labels.max() > 9 or (whole != labels).any():
        raise Refused(f"{where} has pixels outside 0 to 255, or labels other than 0 to 9", 4)
    return Split(torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 28, 28), torch.from_numpy(whole))
