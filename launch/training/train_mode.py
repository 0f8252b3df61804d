"""What is done to a net for a while and then undone: its mode, its buffers."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def mode_kept(net: nn.Module) -> Iterator[None]:
    """Train or eval mode is as before afterwards."""
    training = net.training
    try:
        yield
    finally:
        net.train(training)


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """The layers that keep running statistics."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def other_buffers(net: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """The buffers that are not batch norm's, with their modules and names: a forward may change them, as spectral norm does."""
    found = []
    for module in net.modules():
        # Those of torch and timm leave their statistics alone when `track_running_stats` says so; somebody else's may not.
        if not (isinstance(module, _BatchNorm) and type(module).__module__.partition(".")[0] in ("torch", "timm")):
            found += [(module, name, buffer) for name, buffer in module._buffers.items() if buffer is not None]
    return found


@contextlib.contextmanager
def buffers_kept(net: nn.Module) -> Iterator[None]:
    """What a forward does to the buffers is undone; buffers that it creates stay."""
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in net.named_buffers():
            if name in kept:
                buffer.detach().copy_(kept[name])
