"""What a net is trained for: the one class of each image, or each of several labels by itself.

A task is what the two do not share: the loss, the probabilities, and the measure that chooses the best weights. The labels say
which it is: int64 (N,), numbers of classes; or uint8 (N, K), 1 where an image has a label, 0 where it has not, UNKNOWN where
nobody knows. Mixed images have shares of labels, float (N, K).

The tests compare the measures of several labels with scikit-learn's, which would be a dependency of a hundred megabytes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

UNKNOWN = 255  # of a label: it counts neither in the loss nor in a measure
THRESHOLD = 0.5  # of a probability, where no validation images choose another
SAME = 1e-9  # of two means of F1: they differ by rounding


class OneLabel:
    """Each image has one class, int64 (N,): cross-entropy, softmax, accuracy."""

    measure = "accuracy"

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over the images."""
        return F.cross_entropy(logits, labels, reduction="sum")

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the images."""
        return F.cross_entropy(logits, labels)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class; they add up to 1."""
        return logits.softmax(1)

    def counts(self, labels: Tensor, classes: int) -> Tensor:
        """Images by class, int64 (classes,)."""
        return labels.bincount(minlength=classes)

    def strata(self, labels: Tensor) -> Tensor:
        """What a split keeps in proportion, int64 (N,): the classes."""
        return labels


class SeveralLabels:
    """Each image has any number of labels, uint8 (N, K): binary cross-entropy, sigmoid, mean average precision."""

    measure = "mean_average_precision"

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of each label, float (N, K)."""
        return _binary(logits, labels)

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over the images of the mean over the labels."""
        return _binary(logits, labels).sum() / labels.shape[1]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over images and labels. One that is unknown counts 0 of the same number, so that micro-batches add up."""
        return _binary(logits, labels).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each label by itself."""
        return logits.sigmoid()

    def counts(self, labels: Tensor, classes: int) -> Tensor:
        """Images that have each label, int64 (classes,)."""
        return (labels == 1).sum(0)

    def strata(self, labels: Tensor) -> Tensor:
        """What a split keeps in proportion, int64 (N,): the rarest label that an image has; K for one without any."""
        classes = labels.shape[1]
        rank = self.counts(labels, classes).argsort(stable=True).argsort()  # 0 is the rarest label
        least = rank.where(labels == 1, classes).amin(1)
        return torch.cat((rank.argsort(), torch.tensor([classes])))[least]


ONE, SEVERAL = OneLabel(), SeveralLabels()
Task = OneLabel | SeveralLabels


def task_of(labels: Tensor) -> Task:
    """The task that has such labels."""
    return ONE if labels.ndim == 1 else SEVERAL


def binary_loss(logits: Tensor, labels: Tensor, positive: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """`SeveralLabels.loss`, with the weight `positive`, float (K,), of having each label.

    `smoothing` moves labels, or shares of them, by that part of the way to 1/2.
    """
    return _binary(logits, labels, positive, smoothing).mean()


def _binary(logits: Tensor, labels: Tensor, positive: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of each label, float (N, K); 0 of unknown ones, so that they have no gradient either."""
    known = labels <= 1
    shares = labels.where(known, 0).to(logits.dtype)
    if smoothing:
        shares = shares * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, shares, pos_weight=positive, reduction="none") * known


# ---------------------------------------------------------------------------------------------- measures of several labels


def measured(logits: Tensor, labels: Tensor, threshold: float | None) -> dict[str, float]:
    """Measures of logits float32 (N, K) and labels uint8 (N, K), on the CPU.

    "mean_average_precision", and "f1", the mean over the labels of their F1 at "threshold": the one given, or if it is None that
    with the highest mean F1. Labels that no image has do not count; an image whose label is unknown does not count for it.
    """
    if threshold is None:
        threshold = best_threshold(logits, labels)
    rows = [row for row in by_label(logits, labels, threshold) if row["count"]]
    names = {"average_precision": "mean_average_precision", "f1": "f1"}
    means = {name: sum(row[column] for row in rows) / max(len(rows), 1) for column, name in names.items()}
    return means | {"threshold": threshold}


def by_label(logits: Tensor, labels: Tensor, threshold: float) -> list[dict[str, float]]:
    """Of each label: "count", the images that have it; "average_precision"; "precision", "recall" and "f1" at `threshold`.

    0 where a measure is not defined.
    """
    rows = []
    for scores, truth in _known(logits, labels):
        given = scores.double().sigmoid() >= threshold
        hits, there, all_given = (int(of.sum()) for of in (given & truth, truth, given))
        rows.append(
            {
                "count": there,
                "average_precision": average_precision(scores, truth),
                "precision": hits / max(all_given, 1),
                "recall": hits / max(there, 1),
                "f1": 2 * hits / max(there + all_given, 1),
            }
        )
    return rows


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """The mean of the precisions at each step of the recall, of scores float (N,) and truth bool (N,); 0 if none is true.

    Images with the same score are given together, as scikit-learn's average_precision_score has it.
    """
    if not truth.any():
        return 0.0
    ordered, order = scores.sort(descending=True, stable=True)
    ends = _ends(ordered)
    hits = truth[order].double().cumsum(0)[ends]
    ranks = torch.arange(1, len(scores) + 1, dtype=torch.float64)[ends]
    return float((hits.diff(prepend=hits.new_zeros(1)) * hits / ranks).sum() / hits[-1])


def best_threshold(logits: Tensor, labels: Tensor) -> float:
    """The threshold of probabilities at which the labels' mean F1 is highest; of several such ones that nearest to 1/2.

    It lies halfway between the two probabilities that it parts, or is 1/2 if that parts the same ones.
    """
    probabilities, gains = [], []
    for scores, truth in _known(logits, labels):
        if not truth.any():
            continue
        ordered, order = scores.double().sigmoid().sort(descending=True, stable=True)
        given = torch.arange(1, len(scores) + 1, dtype=torch.float64)
        f1 = 2 * truth[order].double().cumsum(0) / (given + truth.sum())  # with so many of the most probable images given
        probabilities.append(ordered)
        gains.append(f1.diff(prepend=f1.new_zeros(1)))
    if not gains:
        return THRESHOLD
    above, order = torch.cat(probabilities).sort(descending=True, stable=True)
    ends = _ends(above)
    means, above = (torch.cat(gains)[order].cumsum(0) / len(gains))[ends], above[ends]
    below = torch.cat((above[1:], above.new_zeros(1)))
    thresholds = ((above + below) / 2).where((below >= THRESHOLD) | (above < THRESHOLD), THRESHOLD)
    best = thresholds[means >= means.max() - SAME]
    return float(best[(best - THRESHOLD).abs().argmin()])


def _known(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each label the scores, and whether they should be high, bool, of the images where it is known."""
    for scores, values in zip(logits.unbind(1), labels.unbind(1), strict=True):
        known = values != UNKNOWN
        yield scores[known], values[known] == 1


def _ends(ordered: Tensor) -> Tensor:
    """Where a run of equal values ends, bool."""
    return torch.cat((ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)))
