"""How far a net's probabilities can be trusted: the temperature that corrects them, and what is right above a threshold.

Source  Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, section 4.2 (temperature scaling)
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from .runs import read_json, read_result, used

LEAST, MOST = 0.1, 10.0  # of a temperature: a validation set without a mistake would ask for 0
STEPS = 60  # of the search, each of which leaves 62 % of the range
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # of the page


def temperature(logits: Tensor, labels: Tensor) -> float:
    """What to divide logits float (N, K) by, so that the loss on these labels int64 (N,) is least: found by golden section.

    The loss has one minimum in 1 / temperature, so also in its logarithm.
    """
    logits, ratio = logits.double(), (math.sqrt(5) - 1) / 2

    def loss(log: float) -> float:
        return F.cross_entropy(logits / math.exp(log), labels).item()

    low, high = math.log(LEAST), math.log(MOST)
    for _ in range(STEPS):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, second) if loss(first) <= loss(second) else (first, high)
    return math.exp((low + high) / 2)


def coverage(logits: Tensor, labels: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> list[dict]:
    """For each of `thresholds` the share of images whose probability reaches it ("coverage"), and the "accuracy" on these.

    The accuracy is None where no image does.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    rows = []
    for threshold in thresholds:
        sure = confidence >= threshold
        right = (predicted == labels)[sure]
        accuracy = right.double().mean().item() if len(right) else None
        rows.append({"threshold": threshold, "coverage": sure.double().mean().item(), "accuracy": accuracy})
    return rows


def recorded(folder: Path, weights: str) -> float:
    """The temperature of the training in `folder`, fitted for the weights that are used unless told otherwise; 1 for others."""
    if weights != used(read_result(folder) or {}):
        return 1.0
    value = ((read_json(folder / "predictions.json") or {}).get("calibration") or {}).get("temperature", 1.0)
    return float(value) if isinstance(value, int | float) and LEAST <= value <= MOST else 1.0
