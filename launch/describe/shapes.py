"""Shapes of a net's layers, and the cost of a convolution.

Source  Inception notes (sizes, 1×1 convolutions)
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ..errors import Refused, first_line
from .forward import Call, untouched, watched, zeros


def conv_macs(in_channels: int, out_channels: int, kernel: int, height: int, width: int) -> int:
    """Multiply-adds of a kernel × kernel convolution with an output of height × width, for one image, without the bias.

    The notes' argument for 1×1 convolutions: 5×5 from 192 to 32 channels at 28 × 28 costs 120,422,400; reduced to 16 channels
    by a 1×1 first, it costs 2,408,448 + 10,035,200 = 12,443,648.
    """
    return in_channels * out_channels * kernel**2 * height * width


class Step(NamedTuple):
    """A layer, the shape of its input and of its output."""

    name: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]


def shape_walk(net: nn.Module, shape: Sequence[int]) -> list[Step]:
    """Each layer that is a module, in the order of the forward pass, with the shapes of its input and output.

    Raises Refused (4) if the net cannot take images of this shape, naming the layer that fails, the size that it expects and the
    size that it got.
    """
    return [Step(call.name, call.takes, call.gives) for call in calls(net, shape) if call.is_layer]


def calls(net: nn.Module, shape: Sequence[int]) -> list[Call]:
    """The modules that a forward pass runs, in the order in which they begin. Raises Refused (4) as `shape_walk`."""
    images = zeros(net, shape)
    with untouched(net), watched(net) as (running, began):
        try:
            net(images)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            done = [call for call in began if call.is_layer and call not in running]
            before = f"; before it, {done[-1].name} gives {done[-1].gives}" if done else ""
            where = f"{type(net).__name__} cannot take {tuple(images.shape)}: {_reason(running[-1], error)}"
            raise Refused(where + before, 4) from error
    return began


def _reason(call: Call, error: Exception) -> str:
    """Describe what a module expects and what it got, in our words if the module has the number, else in torch's."""
    sizes = {"in_features": -1, "in_channels": 1, "num_features": 1, "num_channels": 1}  # what layers call it -> its axis
    for attribute, axis in sizes.items():
        expected = getattr(call.module, attribute, None)
        if expected and call.is_layer and len(call.takes) > 1 and call.takes[axis] != expected:
            return f"{call.name} expects {expected} {'features' if axis < 0 else 'channels'}, got {call.takes[axis]}"
    return f"{call.name} fails on an input of {call.takes}: {first_line(error)}"
