"""A net by its name: the package's own, torchvision's, timm's; and its parts, whatever the architecture: heads and last block.

Source  transfer notes, sections 2.1 (torchvision's architectures) and 2.3 (the last layer replaced, the last block unlocked)
Shapes  images float (N, 3, H, W) -> logits float (N, num_classes)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import cifar2, residual, small, zoo

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
        net = _timm(name.removeprefix(TIMM), num_classes, pretrained)
    elif name in OWN:
        net = OWN[name](in_channels=3, num_classes=num_classes)
    else:
        if name not in zoo.names():
            near = [other for other in (*OWN, *zoo.names()) if other[:3].lower() == name[:3].lower()]
            raise ValueError(
                f"unknown net {name!r}; {'similar' if near else 'known'}: {', '.join(near or (*OWN, *zoo.names()))}, or timm/NAME"
            )
        zoo.check_size(name, size)
        return zoo.zoo(name, num_classes=num_classes, state=state)
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


def _timm(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:8]
        raise ValueError(f"unknown net timm/{name}; {'similar: ' + ', '.join(near) if near else 'timm.list_models() lists them'}")
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)


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
