"""What features show about a data set: labels that may be wrong, images that are there twice, images unlike all others.

Sources  Northcutt, Jiang and Chuang, Confident Learning (JAIR 2021), section 3.1, for labels; Sun et al., Out-of-distribution
         detection with deep nearest neighbours (ICML 2022), for outliers
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.disk_feed import DiskReader, DiskSplit
from .classify import K, folds_by_content, nearest, out_of_fold
from .seen import Seen

COSINE = 0.6  # of features, from which two images are compared by their pixels
SIDE, ALIKE = 32, 0.9  # pixels of a thumbnail; the correlation of two from which they are near-duplicates
NEAR = 5  # neighbours that are compared
FAR = 5.0  # robust deviations from the median, from which an image is an outlier
SIDES = ("train", "validation", "test")


class Doubt(NamedTuple):
    """A label that may be wrong, and the one that is more likely, with the probabilities of both."""

    path: str
    label: str
    suggestion: str
    probability: float  # of the suggestion
    of_label: float


class Twins(NamedTuple):
    """Two images of different content that show the same; `alike` is the correlation of their thumbnails."""

    paths: tuple[str, str]
    labels: tuple[str, str]
    splits: tuple[str, str]
    alike: float


class Outlier(NamedTuple):
    """An image unlike its nearest neighbours, by so many deviations more than usual."""

    path: str
    label: str
    deviations: float


class Findings(NamedTuple):
    """Of a data set; each list with the clearest first."""

    net: str
    images: int
    accuracy: float  # of the logistic regression that doubts labels
    doubts: list[Doubt]
    twins: list[Twins]
    outliers: list[Outlier]


def findings(net: str, seen: Seen, splits: Mapping[str, str]) -> Findings:
    """What the features show; `splits` of each path."""
    classes, labels = seen.images.classes, seen.labels
    logits, _ = out_of_fold(seen.features, labels, folds_by_content(labels, seen.contents), len(classes))
    cosines, ids = nearest(seen.features, seen.contents)
    names = [classes[label] for label in labels.tolist()]
    doubts = [
        Doubt(seen.paths[index], names[index], classes[other], likely, own)
        for index, other, likely, own in confident(logits.softmax(1), labels)
    ]
    pairs = twins(seen, cosines, ids)
    return Findings(
        net,
        len(labels),
        float((logits.argmax(1) == labels).double().mean()),
        doubts,
        [_twins(seen, names, splits, one, other, alike) for one, other, alike in pairs],
        [Outlier(seen.paths[index], names[index], far) for index, far in outliers(cosines)],
    )


def _twins(seen: Seen, names: Sequence[str], splits: Mapping[str, str], one: int, other: int, alike: float) -> Twins:
    paths = seen.paths[one], seen.paths[other]
    return Twins(paths, (names[one], names[other]), (splits[paths[0]], splits[paths[1]]), alike)


def confident(probabilities: Tensor, labels: Tensor) -> list[tuple[int, int, float, float]]:
    """Confident learning: (index, more likely class, its probability, the label's) of each label in doubt, clearest first.

    `probabilities` float (N, classes) are of classifiers that have not seen the image. A class is confident of an image if its
    probability is at least what it is on average for the images with that label; a label is in doubt if others are and the most
    likely of them is not the label.
    """
    classes = probabilities.shape[1]
    own = probabilities.gather(1, labels[:, None])[:, 0]
    counts = labels.bincount(minlength=classes)
    thresholds = torch.zeros(classes, dtype=probabilities.dtype).index_add_(0, labels, own) / counts.clamp(min=1)
    thresholds[counts == 0] = torch.inf
    sure = probabilities.where(probabilities >= thresholds, -torch.inf)
    likely, other = sure.max(1)
    wrong = (other != labels) & likely.isfinite()
    order = (likely - own).where(wrong, -torch.inf).argsort(descending=True, stable=True)[: int(wrong.sum())]
    return [(index, int(other[index]), float(likely[index]), float(own[index])) for index in order.tolist()]


def twins(seen: Seen, cosines: Tensor, ids: Tensor) -> list[tuple[int, int, float]]:
    """Pairs of near-duplicates and the correlation of their thumbnails, highest first.

    Neighbours by features, cosines float (N, k) and ids int64 (N, k), are compared by their pixels: as they are, and mirrored.
    """
    near = {
        (min(index, other), max(index, other))
        for index, (values, others) in enumerate(zip(cosines[:, :NEAR].tolist(), ids[:, :NEAR].tolist(), strict=True))
        for value, other in zip(values, others, strict=True)
        if value >= COSINE
    }
    wanted, pairs = sorted({index for pair in near for index in pair}), []
    small = dict(zip(wanted, thumbnails(seen, wanted), strict=True))
    for one, other in sorted(near):
        alike = max(float((small[one] * turned).sum()) for turned in (small[other], small[other].flip(1)))
        if alike >= ALIKE:
            pairs.append((one, other, alike))
    return sorted(pairs, key=lambda pair: -pair[2])


def thumbnails(seen: Seen, wanted: Sequence[int]) -> list[Tensor]:
    """The images `wanted`, shrunk to SIDE × SIDE, less their mean and of length 1: the sum of two's product is a correlation."""
    parts = [split for name in SIDES if isinstance(split := getattr(seen.images, name), DiskSplit)]
    places = [(DiskReader(split), index) for split in parts for index in range(len(split))]
    small = []
    for place in wanted:
        reader, index = places[place]
        pixels = torch.from_numpy(reader.reduced(index)).permute(2, 0, 1)[None].float()
        thumbnail = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        small.append(F.normalize((thumbnail - thumbnail.mean()).flatten(), dim=0).view(SIDE, SIDE, 3))
    return small


def outliers(cosines: Tensor) -> list[tuple[int, float]]:
    """Images whose mean cosine with their neighbours, float (N, K), is FAR below the median: index, deviations; farthest first.

    A deviation is 1.4826 times the median absolute one, which for normal numbers is their standard deviation.
    """
    near = cosines[:, :K].mean(1)
    middle = near.median()
    deviations = (middle - near) / (1.4826 * (near - middle).abs().median()).clamp(min=1e-6)
    return [(index, far) for index in deviations.argsort(descending=True).tolist() if (far := float(deviations[index])) >= FAR]


def together(splits: Mapping[str, str], pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """`splits` of each path, near-duplicates on one side: where most of a group are; of several sides the first of SIDES."""
    joined = {path: path for pair in pairs for path in pair}

    def root(path: str) -> str:
        while joined[path] != path:
            path = joined[path]
        return path

    for one, other in pairs:
        joined[root(other)] = root(one)
    groups = defaultdict(list)
    for path in joined:
        groups[root(path)].append(path)
    moved: dict[str, str] = {}
    for group in groups.values():
        counts = Counter(splits[path] for path in group)
        side = max(SIDES, key=lambda side: (counts[side], -SIDES.index(side)))
        moved |= dict.fromkeys(group, side)
    return {**splits, **moved}
