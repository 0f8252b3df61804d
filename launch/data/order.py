"""Random parts of the data, as functions of the random seed, epoch and position: order, micro-batches, numbers, folds.

Nothing here has state: no sampler, no worker, no generator. The step alone determines the batch, so there is nothing to save,
to restore or to keep in sync between processes.
"""

import numpy as np
import torch
from torch import Tensor


def order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of `n` samples in `epoch` (from 0): a permutation, int64 (n,), the same on every machine.

    It sorts NumPy's raw Philox stream, which NumPy guarantees never to change; neither NumPy's nor torch's `permutation` is.
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)  # from a plain list, numbers beyond 63 bits would be rounded
    random = np.random.Philox(key=key).random_raw(n)
    return torch.from_numpy(np.argsort(random, kind="stable"))


def micro_batch_bounds(n: int, micro_batches: int) -> list[int]:
    """The `micro_batches + 1` positions that cut `n` samples into contiguous micro-batches; the first are longer by one."""
    short, longer = divmod(n, micro_batches)
    return [index * short + min(index, longer) for index in range(micro_batches + 1)]


def with_neighbour(ids: Tensor, start: int, end: int) -> Tensor:
    """The samples from `start` to `end` of a batch, int64 (n,), led by the one before them, as in a ring: int64 (n + 1,)."""
    return torch.cat((ids[start - 1 : start] if start else ids[-1:], ids[start:end]))


def micro_batch_seed(seed: int, step: int, index: int) -> int:
    """The random seed for dropout and the like in micro-batch `index` of `step`: 63 bits, mixed as in splitmix64."""
    mixed = 0
    for number in (seed, step, index):
        mixed = (mixed ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


def random_integers(seed: int, epoch: int, ids: Tensor, kind: int, n: int) -> Tensor:
    """A random integer below `n` for each sample of `ids` (int64, any shape): int64, same shape and device.

    A function of (seed, epoch, sample, kind) alone; `kind` says what it is for. Mixed as in splitmix64, in
    int64 arithmetic, which is the same on every device; the masks turn >>, which copies the sign bit, into a logical shift.
    """

    def mix(x: Tensor) -> Tensor:
        x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as a signed number
        x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
        return x ^ (x >> 31 & (1 << 33) - 1)

    key = micro_batch_seed(seed, epoch, kind)
    return (mix(mix(ids + key)) & (1 << 31) - 1) % n


def folds(labels: Tensor, k: int, seed: int) -> list[Tensor]:
    """`k` disjoint stratified folds of the samples with `labels`, int64 (N,), as sorted ids, int64.

    Sizes differ by at most one, and so do the counts of each class.
    """
    fold = torch.empty(len(labels), dtype=torch.int64)
    dealt = 0
    for label in labels.unique():
        (members,) = (labels == label).nonzero(as_tuple=True)
        shuffled = members[order(len(members), seed, int(label))]
        fold[shuffled] = (torch.arange(len(members)) + dealt) % k  # deal on from where the last class ended
        dealt += len(members)
    return [(fold == index).nonzero().flatten() for index in range(k)]


def held_out(labels: Tensor, fraction: float) -> Tensor:
    """The samples to validate on, this `fraction` of each class of `labels`, int64 (N,), rounded: sorted ids, int64.

    A function of the labels alone: runs with other seeds validate on the same samples, so that they can be compared.
    """
    chosen = [torch.empty(0, dtype=torch.int64)]
    for label in labels.unique():
        (members,) = (labels == label).nonzero(as_tuple=True)
        chosen.append(members[order(len(members), seed=0, epoch=int(label))[: int(len(members) * fraction + 0.5)]])
    return torch.cat(chosen).sort().values
