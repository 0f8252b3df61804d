"""Scores of a classifier beyond its accuracy: precision, recall and F1 of each class, top-5, calibration.

They are a few lines each over the confusion matrix, which the plots need anyway; the tests compare them with scikit-learn, which
would be a dependency of a hundred megabytes.
"""

import torch
from torch import Tensor

TOP = 5
BINS = 15  # of confidence


def confusion(labels: Tensor, predicted: Tensor, k: int) -> Tensor:
    """Count how often each of `k` classes (rows) was predicted as each (columns): int64 (k, k), from int64 (N,)."""
    return torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)


def scores(logits: Tensor, labels: Tensor) -> dict:
    """Scores of logits float (N, K) and labels int64 (N,), on the CPU.

    "precision", "recall" and "f1" are means over the classes ("macro"), "classes" has them for each; where a class was never
    predicted or has no images, they are 0. "balanced_accuracy" is the mean recall of the classes that have images.
    "calibration_error" is the mean distance of confidence and accuracy over 15 equal bins, by the number of images (Guo et al.,
    arXiv:1706.04599). "top_5" is there for more than 5 classes.
    """
    k = logits.shape[1]
    confidence, predicted = logits.double().softmax(1).max(1)
    right = predicted == labels
    counts = confusion(labels, predicted, k).double()
    hits, there, guessed = counts.diagonal(), counts.sum(1), counts.sum(0)
    precision, recall = hits / guessed.clamp(min=1), hits / there.clamp(min=1)
    f1 = 2 * hits / (there + guessed).clamp(min=1)
    used = (there + guessed) > 0  # as scikit-learn: a class that is neither there nor predicted does not count
    bins = (confidence * BINS).ceil().clamp(1, BINS).long() - 1
    gap = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, right.double() - confidence)
    found = {
        "precision": precision[used].mean().item(),
        "recall": recall[used].mean().item(),
        "f1": f1[used].mean().item(),
        "balanced_accuracy": recall[there > 0].mean().item(),
        "calibration_error": gap.abs().sum().item() / len(labels),
    }
    if k > TOP:
        found[f"top_{TOP}"] = (logits.topk(TOP, dim=1).indices == labels[:, None]).any(1).double().mean().item()
    columns = {"count": there.long(), "precision": precision, "recall": recall, "f1": f1}
    return found | {
        "classes": [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
    }
