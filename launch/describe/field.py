"""Receptive fields of a net's layers, followed through torch's operators.

Source  DLwPT ch. 8, section 2 of the notes (their example of a 3×3 and a 2×2 convolution gives 5 only with stride 2 in the first;
        with stride 1 it is 4)
"""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from .forward import untouched, watched, zeros
from .shapes import shape_walk

aten = torch.ops.aten


class Layer(NamedTuple):
    """A convolution or pooling layer: its name, its output's shape, and what one of its outputs sees of the image.

    `field` is the receptive field in pixels and `jump` the distance in pixels between two neighbouring outputs (the product of
    the strides), each the larger of height and width. A field may be larger than the image: the rest is padding. None: unknown,
    because the net has rearranged the image before.
    """

    name: str
    shape: tuple[int, ...]
    field: int | None  # rounded up after an adaptive pool whose windows are not all equal
    jump: int | Fraction | None  # a Fraction after such a pool


def receptive_field(net: nn.Module, shape: Sequence[int]) -> list[Layer]:
    """The convolution and pooling layers, modules or functions, in the order of the forward pass.

    Where branches meet, the output sees what any of them sees. A slice with a step counts as a stride, not as a layer. A mean or
    pool over its whole input sees the whole image, and so does what is computed from it. The statistics of normalisation layers
    are ignored, as is usual. A function is listed under its name and a number. Raises Refused (4) as `shape_walk`.
    """
    images = zeros(net, shape)
    shape_walk(net, shape)
    with untouched(net), watched(net) as (running, _), _Trace(images, running) as trace:
        net(images)
    return trace.layers


class _Axis(NamedTuple):
    """Along height or width, output i sees the image's pixels from first + i jump to last + i jump."""

    first: int | Fraction
    last: int | Fraction
    jump: int | Fraction


class _Sight(NamedTuple):
    """View of the image from the elements of a tensor (…, H, W); no `axes`: its last two axes are no longer the image's."""

    axes: tuple[_Axis, ...]
    whole: bool  # each element sees the whole image


class _Window(NamedTuple):
    """A window that slides over a tensor (…, H, W); each entry is for (height, width)."""

    kernel: Sequence[int] = (1, 1)
    stride: Sequence[int | Fraction] = (1, 1)
    padding: Sequence[int] = (0, 0)
    dilation: Sequence[int] = (1, 1)


_LAYERS = {
    aten.convolution: "conv2d",
    aten.max_pool2d_with_indices: "max_pool2d",
    aten.avg_pool2d: "avg_pool2d",
    aten._adaptive_avg_pool2d: "adaptive_avg_pool2d",
    aten.adaptive_max_pool2d: "adaptive_max_pool2d",
}
_REDUCTIONS = {aten.mean: "mean", aten.sum: "sum", aten.amax: "amax"}
_PADS = (aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d)


class _Trace(TorchDispatchMode):
    """Follows what is computed from `images` through torch's operators and collects the layers among them.

    At this level modules, functions and methods are the same few operators. `running` comes from `watched`.
    """

    def __init__(self, images: Tensor, running: list):
        super().__init__()
        self.image, self.running = images.shape[2:], running
        self.layers: list[Layer] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.sights = WeakIdKeyDictionary()
        self.sights[images] = _Sight((_Axis(0, 0, 1), _Axis(0, 0, 1)), whole=False)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = function(*args, **(kwargs or {}))
        seen = [(x, self.sights[x]) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x in self.sights]
        outputs = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
        if seen and outputs:
            operator, (x, sight) = function.overloadpacket, seen[0]
            given = {argument.name: argument.default_value for argument in function._schema.arguments} | (kwargs or {})
            given |= zip(given, args, strict=False)
            window = _window(operator, given, x)
            if window and sight.axes:
                sight = _through(sight, window, self.image, single=operator in _REDUCTIONS or outputs[0].shape[-2:] == (1, 1))
            else:
                sight = _joined(seen, outputs[0], rearranged=operator in _LAYERS or _rearranges(operator, given, x.ndim))
            for x in outputs:
                self.sights[x] = sight
            if operator in _LAYERS or (operator in _REDUCTIONS and window and sight.axes):
                self.layers.append(self._layer((_LAYERS | _REDUCTIONS)[operator], outputs[0], sight))
        return output

    def _layer(self, function: str, output: Tensor, sight: _Sight) -> Layer:
        name = self.running[-1].name
        if not self.running[-1].is_layer:
            self.counts[name, function] += 1
            name = f"{name}." * (len(self.running) > 1) + f"{function}_{self.counts[name, function]}"
        fields = self.image if sight.whole else [math.ceil(axis.last - axis.first + 1) for axis in sight.axes]
        jumps = [axis.jump for axis in sight.axes]
        return Layer(name, tuple(output.shape), max(fields, default=None), max(jumps, default=None))


def _window(operator: Any, given: dict[str, Any], x: Tensor) -> _Window | None:
    """The window of an operator on `x` (…, H, W) with its arguments; None for one without, or a transposed one."""
    size, last_two = tuple(x.shape[-2:]), (x.ndim - 2, x.ndim - 1)
    if operator == aten.convolution and given["weight"].ndim == 4 and not given["transposed"]:
        return _Window(given["weight"].shape[2:], *(_pair(given[name]) for name in ("stride", "padding", "dilation")))
    if operator in (aten.max_pool2d_with_indices, aten.avg_pool2d):
        kernel = _pair(given["kernel_size"])
        return _Window(kernel, _pair(given["stride"] or kernel), _pair(given["padding"]), _pair(given.get("dilation", 1)))
    if operator in (aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d):
        pairs = list(zip(size, given["output_size"], strict=True))
        # Window i spans ⌊i n / m⌋ to ⌈(i + 1) n / m⌉: take the widest, at their mean distance.
        kernel = [max(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in pairs]
        return _Window(kernel, [Fraction(n, m) for n, m in pairs])
    if operator in _REDUCTIONS and {axis % x.ndim for axis in given.get("dim") or range(x.ndim)} >= set(last_two):
        return _Window(size, size)
    if operator == aten.slice and given["dim"] % x.ndim in last_two:
        along = [axis == given["dim"] % x.ndim for axis in last_two]
        start = range(x.shape[given["dim"]])[given["start"] :].start
        return _Window(stride=[given["step"] if here else 1 for here in along], padding=[-start * here for here in along])
    if operator in _PADS:
        pad = [*given["pad" if "pad" in given else "padding"], 0, 0]
        left, top = pad[0], pad[2]
        return _Window(padding=(top, left))
    return None


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    """(height, width) of an operator's argument, which may be a single number."""
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _through(sight: _Sight, window: _Window, image: Sequence[int], single: bool) -> _Sight:
    """The view of the outputs of a window that slides over a tensor with `sight`; `single`: it has only one position."""
    axes = []
    for axis, kernel, stride, padding, dilation in zip(sight.axes, *window, strict=True):
        jump = axis.jump * stride
        first, last = axis.first - padding * axis.jump, axis.last + (dilation * (kernel - 1) - padding) * axis.jump
        axes.append(_Axis(first, last, jump if jump.denominator > 1 else int(jump)))
    covers = all(axis.first <= 0 and axis.last >= pixels - 1 for axis, pixels in zip(axes, image, strict=True))
    return _Sight(tuple(axes), sight.whole or (single and covers))


def _joined(seen: list[tuple[Tensor, _Sight]], output: Tensor, rearranged: bool) -> _Sight:
    """The view of an output computed pixel by pixel: all that its inputs see, if their pixels are still in place."""
    whole = any(sight.whole for _, sight in seen)
    pixels = [sight for x, sight in seen if x.shape[-2:] == output.shape[-2:]]
    others = [sight for x, sight in seen if x.shape[-2:] != output.shape[-2:] and not sight.whole]
    if rearranged or others or not pixels or not all(sight.axes for sight in pixels):
        return _Sight((), whole)
    axes = [
        _Axis(min(axis.first for axis in same), max(axis.last for axis in same), max(axis.jump for axis in same))
        for same in zip(*(sight.axes for sight in pixels), strict=True)
    ]
    return _Sight(tuple(axes), whole)


def _rearranges(operator: Any, given: dict[str, Any], ndim: int) -> bool:
    """Return whether an operator moves one of the last two of `ndim` axes."""
    moved: Sequence[int] = ()
    if operator == aten.permute:
        moved = [place for place, axis in enumerate(given["dims"]) if axis % ndim != place]
    elif operator == aten.transpose:
        moved = [given["dim0"] % ndim, given["dim1"] % ndim]
    return operator == aten.t or any(place >= ndim - 2 for place in moved)
