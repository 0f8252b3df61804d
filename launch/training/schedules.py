"""Schedules: how a learning rate changes while a training goes on. A recipe passes one to `train`.

A schedule maps the epochs done, a float from 0, to a factor for the optimizer's learning rates. It has no state: a run resumes in
the middle of it, and `oneloop describe` draws it, without being told where it stands.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def linear(epochs: float, end: float = 0.0) -> Schedule:
    """From 1 straight down to `end`."""
    return lambda epoch: 1 + (end - 1) * min(epoch / epochs, 1.0)


def cosine(epochs: float, end: float = 0.0) -> Schedule:
    """From 1 down to `end` on half a cosine. Source: Loshchilov and Hutter, SGDR (arXiv:1608.03983), without restarts."""
    return lambda epoch: end + (1 - end) * (1 + math.cos(math.pi * min(epoch / epochs, 1.0))) / 2


def step(every: float, factor: float = 0.1) -> Schedule:
    """Times `factor` after each `every` epochs, as torch's StepLR."""
    return lambda epoch: factor ** math.floor(epoch / every)


def one_cycle(epochs: float, up: float = 0.3, start: float = 1 / 25, end: float = 1e-4) -> Schedule:
    """From `start` up to 1 in the part `up` of the epochs, then down to `start` × `end`, both on half a cosine.

    Source: Smith and Topin, Super-Convergence (arXiv:1708.07120); torch's OneCycleLR, without its change of momentum.
    """

    def factor(epoch: float) -> float:
        done = min(epoch / epochs, 1.0)
        if done < up:
            return start + (1 - start) * (1 - math.cos(math.pi * done / up)) / 2
        return start * end + (1 - start * end) * (1 + math.cos(math.pi * (done - up) / (1 - up))) / 2

    return factor


def warm_up(epochs: float, then: Schedule, start: float = 0.01) -> Schedule:
    """Straight up from `start` to 1 in the first `epochs`; from there on `then`, which counts from its own 0.

    Source: Goyal et al., Accurate, Large Minibatch SGD (arXiv:1706.02677), section 2.2.
    """
    return lambda epoch: start + (1 - start) * epoch / epochs if epoch < epochs else then(epoch - epochs)
