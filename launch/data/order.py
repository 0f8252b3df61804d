"""What a batch depends on, as functions of (seed, epoch, position): the order of the images, slices, seeds, draws, folds.

Nothing here has a state: no sampler, no worker, no generator. Whoever knows the step knows the batch, so there is nothing to
save, to restore or to keep in step between processes.
"""

import numpy as np
import torch
from torch import Tensor


def order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which `n` samples are seen in `epoch` (from 0): a permutation, int64 (n,), the same on every machine.

    Sorts NumPy's raw Philox stream: NumPy promises that stream for good, and neither its own nor torch's permutation.
    """
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)  # a list of numbers beyond 63 bits would be rounded
    draws = np.random.Philox(key=key).random_raw(n)
    return torch.from_numpy(np.argsort(draws, kind="stable"))


def bounds(n: int, shards: int) -> list[int]:
    """Where `n` samples are cut into `shards` contiguous slices, the first ones longer by one: `shards + 1` positions."""
    short, longer = divmod(n, shards)
    return [index * short + min(index, longer) for index in range(shards + 1)]


def slice_seed(seed: int, step: int, index: int) -> int:
    """The seed for what a net draws (dropout) in slice `index` of `step`: 63 bits, by the mixer of splitmix64."""
    mixed = 0
    for number in (seed, step, index):
        mixed = (mixed ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


def draws(seed: int, epoch: int, ids: Tensor, kind: int, n: int) -> Tensor:
    """An integer below `n` for each sample: int64, as `ids` (int64), a function of (seed, epoch, sample, kind) alone.

    The mixer of splitmix64 in int64 tensors, so the same on every device; >> is made logical by masking the sign's copies.
    """

    def mix(x: Tensor) -> Tensor:
        x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as a signed number
        x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
        return x ^ (x >> 31 & (1 << 33) - 1)

    key = slice_seed(seed, epoch, kind)
    return (mix(mix(ids + key)) & (1 << 31) - 1) % n


def folds(labels: Tensor, k: int, seed: int) -> list[Tensor]:
    """`k` disjoint stratified folds of the samples with `labels` (N,): sorted ids, int64; class counts differ by one at most."""
    fold = torch.empty(len(labels), dtype=torch.int64)
    dealt = 0
    for label in labels.unique():
        (members,) = (labels == label).nonzero(as_tuple=True)
        shuffled = members[order(len(members), seed, int(label))]
        fold[shuffled] = (torch.arange(len(members)) + dealt) % k  # go on dealing where the last class ended
        dealt += len(members)
    return [(fold == index).nonzero().flatten() for index in range(k)]
