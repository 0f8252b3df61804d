"""A net by its name: the package's own, torchvision's, timm's; and its parts, whatever the architecture: heads and last block.

Source  transfer notes, sections 2.1 (torchvision's architectures) and 2.3 (the last layer replaced, the last block unlocked)
Shapes  images float (N, 3, H, W) -> logits float (N, num_classes)
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import cifar2, residual, small, zoo
from .sizes import preprocessing, timm_net

OWN = {
    "Net": cifar2.Net,
    "NetWidth": cifar2.NetWidth,
    "NetDropout": cifar2.NetDropout,
    "NetBatchNorm": cifar2.NetBatchNorm,
    "NetResDeep": cifar2.NetResDeep,
    "MyNet1": small.MyNet1,
    "CifarResNet": residual.CifarResNet,  # of 20 layers
}
TIMM = "timm/"
ENCODER = "it is an encoder without a classifier; take a net that has one"
LARGE, SMALL = 0.6, 0.02  # parts of the parameters: a stage with more is looked into for its blocks, one with less is no stage


def build(name: str, num_classes: int, size: int, state: dict[str, Tensor] | None = None, pretrained: bool = False) -> nn.Module:
    """The net `name` for RGB images of `size` × `size`: one of OWN, a name of torchvision's, or timm/NAME.

    `state`: torchvision's published weights, see `zoo`. `pretrained`: timm downloads its own.

    Raises ValueError for an unknown name, a net that gives no logits and a size that the net cannot take; ImportError without
    timm; for weights that cannot be downloaded, whatever timm raises.
    """
    if name.startswith(TIMM):
        net = timm_net(name.removeprefix(TIMM), num_classes, size, pretrained)
    elif name in OWN:
        net = OWN[name](in_channels=3, num_classes=num_classes)
    else:
        if name not in zoo.names():
            near = [other for other in (*OWN, *zoo.names()) if other[:3].lower() == name[:3].lower()]
            raise ValueError(
                f"unknown net {name!r}; {'similar' if near else 'known'}: {', '.join(near or (*OWN, *zoo.names()))}, or timm/NAME"
            )
        zoo.check_size(name, size)
        return zoo.zoo(name, num_classes=num_classes, state=state, size=size)
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # whatever a forward raises
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{name} cannot take images of {size}×{size}: {why}") from error
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        what = "×".join(map(str, logits.shape)) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"{name} gives {what} for an image, not 1×{num_classes}: {ENCODER}")
    return net.train()


def published_preprocessing(name: str) -> dict[str, Any]:
    """mean, std, crop, interpolation and size that the published weights of `name` want; of the package's own nets, nothing.

    Raises ValueError for an unknown name; ImportError without timm.
    """
    if name.startswith(TIMM):
        import timm

        config = timm.get_pretrained_cfg(name.removeprefix(TIMM)) if timm.is_model(name.removeprefix(TIMM)) else None
        return preprocessing(dataclasses.asdict(config)) if config else {}
    return zoo.published_preprocessing(name) if name in zoo.names() else {}


def scale(net: nn.Module) -> dict[str, tuple[float, ...]]:
    """Mean and std that the published weights of `net` expect: timm's nets name them, others have ImageNet's."""
    known = getattr(net, "pretrained_cfg", None) or {}
    return {name: tuple(known.get(name) or usual) for name, usual in zoo.published_scale(channels=3).items()}


def heads(net: nn.Module, num_classes: int) -> tuple[str, ...]:
    """The names in `named_modules` of the last layers, which give the logits. Raises ValueError if there is none.

    Most nets have one. Some of timm's average the logits of several: those that follow the number of classes.
    """
    layers = {
        name: module.weight.shape
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == num_classes
    }
    if architecture := (getattr(net, "pretrained_cfg", None) or {}).get("architecture"):
        import timm

        with torch.device("meta"):  # the same net for one class more, without its numbers
            other = timm.create_model(architecture, num_classes=num_classes + 1).state_dict()
        found = tuple(name for name, shape in layers.items() if other[f"{name}.weight"].shape != shape)
    else:
        found = tuple(layers)[-1:]
    if not found:
        raise ValueError(f"{type(net).__name__} has no last layer of {num_classes} outputs: {ENCODER}")
    return found


def head(net: nn.Module, num_classes: int) -> str:
    """The last of the `heads`."""
    return heads(net, num_classes)[-1]


@contextlib.contextmanager
def without(net: nn.Module, head: str) -> Iterator[None]:
    """Context manager: `net` without its layer `head`, so that it gives the features which that gets."""
    layer = net.get_submodule(head)
    net.set_submodule(head, nn.Identity())
    try:
        yield
    finally:
        net.set_submodule(head, layer)


def last_block(net: nn.Module, heads: str | Sequence[str]) -> str:
    """The name of the last block before the `heads`: a ResNet's last residual block, a transformer's last layer."""
    heads = (heads,) if isinstance(heads, str) else heads
    whole, name, part = sum(p.numel() for p in net.parameters()), "", 1.0
    while part > LARGE:
        stages = {}
        for child, module in net.get_submodule(name).named_children():
            path = f"{name}.{child}" if name else child
            size = sum(p.numel() for p in module.parameters()) / whole
            if size >= SMALL and not any(f"{head}.".startswith(f"{path}.") for head in heads):
                stages[path] = size
        if not stages:
            break
        name, part = list(stages.items())[-1]
    return name


def depths(net: nn.Module) -> dict[str, int]:
    """How many layers lie between each parameter and the output, by name: timm's groups where it has them, else its blocks.

    A block is what stands in a list of them, as a residual block or a transformer's layer; a norm beside them belongs to the
    block before it.
    """
    matcher: Any = getattr(net, "group_matcher", None)
    if matcher:
        from timm.models import group_parameters

        layers = group_parameters(net, matcher(coarse=False), reverse=True)
        numbers = {number: place for place, number in enumerate(sorted({*layers.values()}))}
        layers = {name: numbers[number] for name, number in layers.items()}
    else:
        layers, seen, current = {}, set[str](), -1
        for name, parameter in net.named_parameters():
            block = _block(net, name)
            if block not in seen and (parameter.ndim > 1 or current < 0):
                current += 1
            seen.add(block)
            layers[name] = max(current, 0)
    last = max(layers.values(), default=0)
    return {name: last - layer for name, layer in layers.items()}


def _block(net: nn.Module, name: str) -> str:
    """The block that a parameter is in: the outermost element of a list of modules, else the net's child."""
    module, parts = net, name.split(".")[:-1]
    for depth, part in enumerate(parts, 1):
        in_list, module = isinstance(module, nn.Sequential | nn.ModuleList), module.get_submodule(part)
        if in_list and not isinstance(module, nn.Sequential | nn.ModuleList):
            return ".".join(parts[:depth])
    return ".".join(parts[:1])
