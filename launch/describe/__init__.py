"""What a net is before it trains: its table, the pixels that its layers see, its shapes, its price.

Source  document 001, sections 2.2 and 2.3 (the table); document 000, section 2 (receptive field; its example of a 3×3 and a 2×2
        convolution gives 5 only with stride 2 in the first, with stride 1 it is 4); document 004 (sizes, 1×1 convolutions)

All but `conv_macs` run the net once on zeros, in eval mode, without gradients, on the net's device, and leave its modes, its
buffers and the random numbers as they were. `shape` is that of one image, (C, H, W), or of a batch, (N, C, H, W).
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import Refused, first_line

aten = torch.ops.aten

# -------------------------------------------------------------------------------------------------------------------- table


def summary(net: nn.Module, shape: Sequence[int], depth: int = 3) -> str:
    """The document's table: layers down to `depth`, output shapes, parameters (frozen ones in parentheses), mult-adds, sizes.

    Mult-adds and sizes are those of the whole batch, of one image if `shape` is (C, H, W), and of layers with parameters only;
    the size of a pass is that of their outputs, twice for the gradients; 1 MB is 10⁶ bytes. Raises Refused (4) as `shape_walk`.
    """
    import torchinfo  # only this function needs it

    images = _zeros(net, shape)
    with _untouched(net):
        try:
            text = str(torchinfo.summary(net, input_data=images, depth=depth, mode="eval", verbose=0))
        except RuntimeError:  # torchinfo makes it of every error
            shape_walk(net, shape)  # says in which layer, and why
            raise
        finally:
            torchinfo.torchinfo._cached_forward_pass.clear()  # it would keep the net in memory
    for name, sign in {"MEGABYTES": "M", "GIGABYTES": "G", "TERABYTES": "T"}.items():
        text = text.replace(f"(Units.{name})", f"({sign})")  # torchinfo 1.8 prints its enum's name since Python 3.11
    return text


def conv_macs(in_channels: int, out_channels: int, kernel: int, height: int, width: int) -> int:
    """Multiply-adds of a kernel × kernel convolution with an output of height × width, for one image, without the bias.

    Document 004's argument for 1×1 convolutions: 5×5 from 192 to 32 channels at 28 × 28 takes 120,422,400; through 16 channels,
    made by a 1×1, it takes 2,408,448 + 10,035,200 = 12,443,648.
    """
    return in_channels * out_channels * kernel**2 * height * width


# ------------------------------------------------------------------------------------------------------------------- shapes


class Step(NamedTuple):
    """A layer, the shape that it is given and the shape that it gives."""

    name: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]


def shape_walk(net: nn.Module, shape: Sequence[int]) -> list[Step]:
    """Each layer that is a module, in the order of the forward pass, with its input's and its output's shape.

    Raises Refused (4) if the net cannot take images of this shape: the layer at which it fails, the size that this layer
    expects and the size that it got.
    """
    images = _zeros(net, shape)
    with _untouched(net), _calls(net) as (running, done):
        try:
            net(images)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            before = f"; before it, {done[-1].name} gives {done[-1].gives}" if done else ""
            where = f"{type(net).__name__} cannot take {tuple(images.shape)}: {_reason(*running[-1], error)}"
            raise Refused(where + before, 4) from error
    return done


def _reason(name: str, module: nn.Module, takes: tuple[int, ...], error: Exception) -> str:
    """What `module` expects and what it got, in words where the module says what it expects, else in torch's."""
    sizes = {"in_features": -1, "in_channels": 1, "num_features": 1, "num_channels": 1}  # what layers call it -> its axis
    for attribute, axis in sizes.items():
        expected = getattr(module, attribute, None)
        if expected and not any(module.children()) and len(takes) > 1 and takes[axis] != expected:
            return f"{name} expects {expected} {'features' if axis < 0 else 'channels'}, got {takes[axis]}"
    return f"{name} fails on an input of {takes}: {first_line(error)}"


# ---------------------------------------------------------------------------------------------------------- receptive field


class Layer(NamedTuple):
    """A convolution or pooling layer: its name, its output's shape, and what one of its outputs sees of the image.

    `field` is the receptive field in pixels and `jump` the pixels between two neighbouring outputs (the product of the
    strides): the larger of height and width. A field may be larger than the image: the rest is padding. None: it cannot be
    told, since the net has rearranged the image before.
    """

    name: str
    shape: tuple[int, ...]
    field: int | None
    jump: int | Fraction | None  # a Fraction after an adaptive pool whose windows are not all equal


def receptive_field(net: nn.Module, shape: Sequence[int]) -> list[Layer]:
    """The convolution and pooling layers, modules or functions, in the order of the forward pass.

    Branches that meet see what any of them sees. A slice with a step counts as a stride, not as a layer. A mean, or a pool, over
    all of its input sees the whole image, and so does what is computed from it. What normalisation layers gather over an image
    is left out, as is usual. Functions have the name of the function and a number. Raises Refused (4) as `shape_walk`.
    """
    images = _zeros(net, shape)
    shape_walk(net, shape)
    with _untouched(net), _calls(net) as (running, _), _Trace(images, running) as trace:
        net(images)
    return trace.layers


class _Axis(NamedTuple):
    """What is seen along height or width: output i sees the image's pixels from first + i jump to last + i jump."""

    first: int
    last: int
    jump: int | Fraction


class _Sight(NamedTuple):
    """What the elements of a tensor (…, H, W) see; `axes` None: its last two axes are no longer the image's."""

    axes: tuple[_Axis, ...] | None
    whole: bool  # each element sees the whole image


class _Window(NamedTuple):
    """A window that slides over a tensor (…, H, W), each entry for (height, width)."""

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
    """Follows what is computed from `images` through torch's operators, and notes the layers among them.

    At this level modules, functions and methods are the same few operators. `running` is that of `_calls`.
    """

    def __init__(self, images: Tensor, running: list):
        super().__init__()
        self.image, self.running, self.layers, self.counts = images.shape[2:], running, [], Counter()
        self.sights = WeakIdKeyDictionary()
        self.sights[images] = _Sight((_Axis(0, 0, 1), _Axis(0, 0, 1)), whole=False)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
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
        name, module, _ = self.running[-1]
        if any(module.children()):
            self.counts[name, function] += 1
            name = f"{name}." * (len(self.running) > 1) + f"{function}_{self.counts[name, function]}"
        fields = self.image if sight.whole else [axis.last - axis.first + 1 for axis in sight.axes or ()]
        jumps = [axis.jump for axis in sight.axes or ()]
        return Layer(name, tuple(output.shape), max(fields, default=None), max(jumps, default=None))


def _window(operator, given: dict[str, Any], x: Tensor) -> _Window | None:
    """The window of an operator on `x` (…, H, W), with its arguments; None for one that has none, or that looks backwards."""
    size, last_two = tuple(x.shape[-2:]), (x.ndim - 2, x.ndim - 1)
    if operator == aten.convolution and given["weight"].ndim == 4 and not given["transposed"]:
        return _Window(given["weight"].shape[2:], *(_pair(given[name]) for name in ("stride", "padding", "dilation")))
    if operator in (aten.max_pool2d_with_indices, aten.avg_pool2d):
        kernel = _pair(given["kernel_size"])
        return _Window(kernel, _pair(given["stride"] or kernel), _pair(given["padding"]), _pair(given.get("dilation", 1)))
    if operator in (aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d):
        pairs = list(zip(size, given["output_size"], strict=True))
        # Window i goes from ⌊i n / m⌋ to ⌈(i + 1) n / m⌉: the widest of them, at their mean distance.
        kernel = [max(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in pairs]
        return _Window(kernel, [Fraction(n, m) for n, m in pairs])
    if operator in _REDUCTIONS and {axis % x.ndim for axis in given.get("dim") or range(x.ndim)} >= set(last_two):
        return _Window(size, size)
    if operator == aten.slice and given["dim"] % x.ndim in last_two:
        along = [axis == given["dim"] % x.ndim for axis in last_two]
        start = range(x.shape[given["dim"]])[given["start"] :].start
        return _Window(stride=[given["step"] if here else 1 for here in along], padding=[-start * here for here in along])
    if operator in _PADS:
        left, _, top, *_ = (*given.get("pad", given.get("padding")), 0, 0)
        return _Window(padding=(top, left))
    return None


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    """(height, width) of an operator's argument, which may be one number for both."""
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _through(sight: _Sight, window: _Window, image: Sequence[int], single: bool) -> _Sight:
    """What the outputs of a window see that slides over a tensor with `sight`; `single`: it has only one place."""
    axes = []
    for axis, kernel, stride, padding, dilation in zip(sight.axes, *window, strict=True):
        jump = axis.jump * stride
        first, last = axis.first - padding * axis.jump, axis.last + (dilation * (kernel - 1) - padding) * axis.jump
        axes.append(_Axis(first, math.ceil(last), jump if jump.denominator > 1 else int(jump)))
    covers = all(axis.first <= 0 and axis.last >= pixels - 1 for axis, pixels in zip(axes, image, strict=True))
    return _Sight(tuple(axes), sight.whole or (single and covers))


def _joined(seen: list[tuple[Tensor, _Sight]], output: Tensor, rearranged: bool) -> _Sight:
    """What an output sees that is computed pixel by pixel: all that its inputs see, if their pixels are still in their places."""
    whole = any(sight.whole for _, sight in seen)
    pixels = [sight for x, sight in seen if x.shape[-2:] == output.shape[-2:]]
    others = [sight for x, sight in seen if x.shape[-2:] != output.shape[-2:] and not sight.whole]
    if rearranged or others or not pixels or any(sight.axes is None for sight in pixels):
        return _Sight(None, whole)
    axes = [
        _Axis(min(axis.first for axis in same), max(axis.last for axis in same), max(axis.jump for axis in same))
        for same in zip(*(sight.axes for sight in pixels), strict=True)
    ]
    return _Sight(tuple(axes), whole)


def _rearranges(operator, given: dict[str, Any], ndim: int) -> bool:
    """Whether an operator moves one of the last two of `ndim` axes to another place."""
    moved: Sequence[int] = ()
    if operator == aten.permute:
        moved = [place for place, axis in enumerate(given["dims"]) if axis % ndim != place]
    elif operator == aten.transpose:
        moved = [given["dim0"] % ndim, given["dim1"] % ndim]
    return operator == aten.t or any(place >= ndim - 2 for place in moved)


# ------------------------------------------------------------------------------------------------------- a forward pass, seen


def _zeros(net: nn.Module, shape: Sequence[int]) -> Tensor:
    """Images of zeros (N, C, H, W) of the net's dtype, on its device. Raises Refused (2) for what is no shape of images."""
    if len(shape) not in (3, 4) or any(size < 1 for size in shape):
        raise Refused(f"images have the shape (C, H, W) or (N, C, H, W), not {tuple(shape)}", 2)
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros((1, *shape)[-4:], dtype=like.dtype, device=like.device)


@contextlib.contextmanager
def _untouched(net: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients within; after it the mode of each module and the random numbers are as before."""
    modes = {module: module.training for module in net.modules()}  # not all alike where layers are frozen
    cuda = {p.device for p in net.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        net.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


@contextlib.contextmanager
def _calls(net: nn.Module) -> Iterator[tuple[list[tuple[str, nn.Module, tuple[int, ...]]], list[Step]]]:
    """Watches a forward pass: the modules that are running, outermost first, as (name, module, shape of the input), and the
    steps done. A module that fails stays among the running: the hook that takes it away is not called.
    """
    running, done = [], []

    def enter(module: nn.Module, args: tuple) -> None:
        running.append((names[module], module, _shape(args)))

    def leave(module: nn.Module, _args: tuple, output: Any) -> None:
        name, _, takes = running.pop()
        if not any(module.children()):
            done.append(Step(name, takes, _shape(output)))

    names = {module: name or type(net).__name__ for name, module in net.named_modules()}
    hooks = [module.register_forward_pre_hook(enter) for module in names]
    hooks += [module.register_forward_hook(leave) for module in names]
    try:
        yield running, done
    finally:
        for hook in hooks:
            hook.remove()


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of the first tensor in what a module takes or gives."""
    return next((tuple(x.shape) for x in tree_leaves(value) if isinstance(x, Tensor)), ())
