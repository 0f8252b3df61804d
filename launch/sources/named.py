"""Where images come from: `sources.cifar10(run.data)` and its like are what a recipe calls.

`data` is the value of `--data`:
    hub         the Hugging Face hub (hub.py)
    synthetic   drawings, for trying a recipe without a network (synthetic.py)
    a folder    `train/<class>/*.png`, `test/<class>/*.png`, or files that `datasets` can read, such as the hub's parquet files
                (in_memory.py); for MNIST and Fashion-MNIST also the four idx files, gzipped or not (idx.py)
    a file      an npz file, for MNIST and Fashion-MNIST (npz.py)

To add a data set, write a function here like `cifar10`. To add a source, write a file beside this one whose `read` returns a
`DataSet`, and add a line to `_read`. decoded.py alone knows where decoded images are kept, and in what format.
"""

from pathlib import Path

import torch

from ..data.dataset import DIGITS, DataSet, Shape, Split
from ..data.images import Images
from ..data.order import order
from ..errors import Refused
from . import idx, in_memory, listing, npz, synthetic
from .custom_images import custom as custom

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(data: str = "hub", keep: tuple[str, ...] = CIFAR10_CLASSES, limit: int = 0) -> Images:
    """CIFAR-10, or its classes `keep`, labelled 0, 1, … in that order: images (3, 32, 32); 50,000 train, 10,000 test.

    mean and std are those of chapter 7 of Deep Learning with PyTorch. `limit` is the number of training images to use (0: all).

    Raises Refused if the data cannot be had, its images are not (3, 32, 32), or a class has no images.
    """
    data_set = _read(data, "uoft-cs/cifar10", keep, (3, 32, 32))
    mean, std = (0.4915, 0.4823, 0.4468), (0.2470, 0.2435, 0.2616)
    return _select(data_set, data_set.classes, keep, limit, (3, 32, 32), mean, std)


def mnist(data: str = "hub", limit: int = 0, normalised: bool = True) -> Images:
    """MNIST, classes "0" to "9": images (1, 28, 28); 60,000 train, 10,000 test.

    `normalised` uses mean and std over all training images; without it pixels are only divided by 255. `limit` and errors as for
    `cifar10`.
    """
    return _grey(data, "ylecun/mnist", DIGITS, limit, normalised, 0.1307, 0.3081)


def fashion_mnist(data: str = "hub", limit: int = 0, normalised: bool = True) -> Images:
    """Fashion-MNIST: images (1, 28, 28); 60,000 train, 10,000 test. Arguments and errors as for `mnist`."""
    return _grey(data, "zalando-datasets/fashion_mnist", FASHION_CLASSES, limit, normalised, 0.2860, 0.3530)


def _grey(data: str, hub_name: str, classes: tuple[str, ...], limit: int, normalised: bool, mean: float, std: float) -> Images:
    data_set = _read(data, hub_name, classes, (1, 28, 28))
    names = classes if _same(data_set.classes, classes) else data_set.classes
    return _select(data_set, names, classes, limit, (1, 28, 28), *(((mean,), (std,)) if normalised else ((0.0,), (1.0,))))


def _same(data_set: tuple[str, ...], classes: tuple[str, ...]) -> bool:
    """Whether `found` are `classes`: idx and npz files have only numbers, and the hub puts other spaces into the names."""
    return len(data_set) == len(classes) and all(
        name.isdigit() or name.replace(" ", "") == ours.replace(" ", "") for name, ours in zip(data_set, classes, strict=True)
    )


def located(data: str) -> str:
    """`--data` as a run records it: "hub", "synthetic", owner/name of the hub, or an absolute path.

    Raises Refused (2) if it is empty or not a path.
    """
    if data in ("hub", "synthetic"):
        return data
    if not data.strip():
        raise Refused("--data is empty; it takes hub, synthetic or the path of a folder", 2)
    return str(listing.located(Path(data)))


def _read(data: str, hub_name: str, classes: tuple[str, ...], shape: Shape) -> DataSet:
    """Everything that `data` has. The one place where a source is chosen: a new one is a line here."""
    if data == "synthetic":
        return synthetic.read(classes, shape)
    if data == "hub":
        return in_memory.read_hub(hub_name, shape)
    path = Path(data)
    try:
        if npz.matches(path):
            return npz.read(path, shape)
        if not path.is_dir():
            wrong = "not a folder" if path.exists() else "no such folder"
            grey = ", or an npz file" if shape[0] == 1 else ""
            raise Refused(f"--data {path}: {wrong}; --data takes hub, synthetic or a folder that `datasets` can read{grey}")
        if idx.matches(path):
            return idx.read(path)
        return in_memory.read_folder(path.resolve(), shape)
    except OSError as error:  # no permission, a name that is too long, a failing disk
        raise Refused(f"--data {path}: {error.strerror or error}") from error


def _select(
    data_set: DataSet,
    names: tuple[str, ...],
    keep: tuple[str, ...],
    limit: int,
    shape: Shape,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Images:
    """The images of the classes `keep`, and `limit` of those to train on. `names` is what the recipe calls `data_set.classes`."""
    source = data_set.source
    if missing := [name for name in keep if name not in names]:
        raise Refused(f"{source}: no class {', '.join(map(repr, missing))}; its classes are {', '.join(names)}", 4)
    splits = {}
    for split, (pixels, labels) in (("train", data_set.train), ("test", data_set.test)):
        if tuple(pixels.shape[1:]) != shape:
            has, takes = ("×".join(map(str, size)) for size in (pixels.shape[1:], shape))
            wrong = f"{source}: the {split} images are {has} (channels×height×width), this recipe takes {takes}"
            raise Refused(f"{wrong}; resize them first", 4)
        if tuple(keep) != names:
            relabel = torch.full((len(names),), -1)
            relabel[[names.index(name) for name in keep]] = torch.arange(len(keep))
            chosen = (relabel[labels] >= 0).nonzero().flatten()
            pixels, labels = pixels[chosen], relabel[labels[chosen]]
        splits[split] = Split(pixels, labels)
    for split, (_, labels) in splits.items():
        if empty := [keep[index] for index, count in enumerate(labels.bincount(minlength=len(keep))) if not count]:
            raise Refused(f"{source}: no {split} images of {', '.join(empty)}; every class needs at least one", 4)
    train, test = splits["train"], splits["test"]
    if limit and limit < len(train):
        # A fixed random sample, not the first ones: the images of a folder are sorted by class.
        sample = order(len(train), seed=0, epoch=0)[:limit].sort().values
        train = Split(train.pixels[sample], train.labels[sample])
    return Images(train, test, tuple(keep), mean, std, source, data_set.fingerprint)
