"""The exponential moving average of a net's weights, which often is better than the net."""

from contextlib import AbstractContextManager
from functools import cached_property

import torch
from torch import Tensor, nn

from ..processes import broadcast
from ..weights.tensors import other_weights, weights


class Average:
    """Exponential moving average of `net`'s floating-point parameters and buffers, by `decay` a step; others are copied.

    In the first steps it moves faster, by 9 / (10 + step) at least, so that the first weights are soon forgotten. Source: Polyak
    and Juditsky (1992); the ramp is TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.net, self.decay = net, decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in weights(net).items()}

    @cached_property
    def pairs(self) -> tuple[list[list[Tensor]], list[tuple[Tensor, Tensor]]]:
        """(the average's floats, the net's), and what else both have. Not before the first step: DDP moves the net's tensors."""
        both = [(self.tensors[name], tensor) for name, tensor in weights(self.net).items()]
        floats = [pair for pair in both if pair[0].is_floating_point()]
        return [[*part] for part in zip(*floats, strict=True)], [pair for pair in both if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the net, which had made `step` steps before the last one."""
        (mine, its), others = self.pairs
        torch._foreach_lerp_(mine, its, max(1 - self.decay, 9 / (10 + step)))
        for its_copy, other in others:
            its_copy.copy_(other)

    def of_main(self, world: int) -> None:
        """Have the main process's: of running statistics, which are its own between evaluations, others average what they have.

        Collective.
        """
        learned = {name for name, _ in self.net.named_parameters()}
        broadcast([tensor for name, tensor in self.tensors.items() if name not in learned], world)

    def applied(self) -> AbstractContextManager[None]:
        """Context manager: temporarily load the averaged weights into the net."""
        return other_weights(self.net, self.tensors)
