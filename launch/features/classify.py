"""Classifiers on features that take seconds: nearest neighbours and logistic regression, each image judged by others only.

Images with the same content are one: none of them is judged by another, and a fold has all of them.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

K = 10  # neighbours
FOLDS = 5
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the logistic regressions, as scikit-learn has it: 1 / (λ · images)
ROWS = 1024  # images that are compared with all at a time
STEPS = 300  # of L-BFGS, at most


def unit(features: Tensor) -> Tensor:
    """Features float (N, width), less their mean and of length 1: the products of two are their cosine."""
    return F.normalize(features - features.mean(0), dim=1)


def nearest(features: Tensor, contents: Sequence[str], k: int = K) -> tuple[Tensor, Tensor]:
    """The `k` images of other `contents` with the highest cosine, or all there are: cosines float (N, k), ids int64 (N, k)."""
    numbers = {content: number for number, content in enumerate(dict.fromkeys(contents))}
    same, rows = torch.tensor([numbers[content] for content in contents]), unit(features)
    k, found = min(k, len(numbers) - 1), []
    for first in range(0, len(rows), ROWS):
        part = slice(first, first + ROWS)
        cosines = rows[part] @ rows.T
        cosines[same[part, None] == same] = -torch.inf
        found.append(cosines.topk(k))
    return torch.cat([values for values, _ in found]), torch.cat([ids for _, ids in found])


def by_neighbours(neighbours: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The class that most of an image's `neighbours`, int64 (N, k), have, the first of several: int64 (N,)."""
    return F.one_hot(labels[neighbours], classes).sum(1).argmax(1)


def folds_by_content(labels: Tensor, contents: Sequence[str], k: int = FOLDS) -> Tensor:
    """Which of `k` folds each image is in, int64 (N,): a function of its content, and as many of each class as can be."""
    by_class: dict[int, list[str]] = defaultdict(list)
    for label, content in sorted(set(zip(labels.tolist(), contents, strict=True))):
        by_class[label].append(content)
    placed: dict[str, int] = {}
    dealt = 0
    for ordered in by_class.values():  # sha256 digests: their order is as good as a random one
        for content in ordered:
            if content not in placed:
                placed[content] = dealt % k
                dealt += 1
    return torch.tensor([placed[content] for content in contents])


def logistic_regression(features: Tensor, labels: Tensor, classes: int, strength: float, start: Tensor | None = None) -> Tensor:
    """Weights and biases, float64 (width + 1, classes), that minimise the sum of losses · `strength` + half the squared weights.

    `features` are float64 (N, width), `start` the weights to begin from. By L-BFGS (Liu and Nocedal, 1989).
    """
    weights = torch.zeros(features.shape[1] + 1, classes, dtype=torch.float64) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=STEPS, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )
    penalty = 1 / (2 * strength * len(labels))

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weights[:-1] + weights[-1], labels) + penalty * weights[:-1].pow(2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def out_of_fold(features: Tensor, labels: Tensor, folds: Tensor, classes: int) -> tuple[Tensor, float]:
    """What logistic regressions on the other folds say of each image, and their strength: logits float64 (N, classes).

    The strength is that of STRENGTHS with the smallest loss on the images that were left out. Features are standardised.
    """
    logits = {strength: torch.zeros(len(labels), classes, dtype=torch.float64) for strength in STRENGTHS}
    for fold in folds.unique():
        left, seen, weights = folds == fold, folds != fold, None
        mean, std = features[seen].double().mean(0), features[seen].double().std(0, correction=0)
        scaled = (features.double() - mean) / std.where(std > 0, 1.0)
        for strength in STRENGTHS:  # from strong to weak, each from the one before
            weights = logistic_regression(scaled[seen], labels[seen], classes, strength, weights)
            logits[strength][left] = scaled[left] @ weights[:-1] + weights[-1]
    best = min(STRENGTHS, key=lambda strength: float(F.cross_entropy(logits[strength], labels)))
    return logits[best], best


def interval(right: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, its ends. Source: Wilson, Probable Inference (1927)."""
    z, share = 1.96, right / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return middle - half, middle + half
