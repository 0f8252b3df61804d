"""What is done to a net for a while and then undone: its mode, its buffers."""

import contextlib
from collections.abc import Iterator

from torch import nn
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


@contextlib.contextmanager
def buffers_kept(net: nn.Module, wanted: bool = True) -> Iterator[None]:
    """If `wanted`, what a forward does to the buffers is undone; buffers that it creates stay."""
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()} if wanted else {}
    try:
        yield
    finally:
        for name, buffer in net.named_buffers():
            if name in kept:
                buffer.detach().copy_(kept[name])
