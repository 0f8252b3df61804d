"""A forward pass on zeros that is watched and leaves the net as it was."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import Refused


def zeros(net: nn.Module, shape: Sequence[int]) -> Tensor:
    """Images of zeros (N, C, H, W) of the net's dtype, on its device. Raises Refused (2) for a shape that images cannot have."""
    if len(shape) not in (3, 4) or any(size < 1 for size in shape):
        raise Refused(f"the shape of images is (C, H, W) or (N, C, H, W), not {tuple(shape)}", 2)
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros((1, *shape)[-4:], dtype=like.dtype, device=like.device)


@contextlib.contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards each module's mode and the random state are as before."""
    modes = {module: module.training for module in net.modules()}  # they differ where layers are frozen
    cuda = {p.device for p in net.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        net.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


class Step(NamedTuple):
    """A layer, the shape of its input and of its output."""

    name: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]


@contextlib.contextmanager
def watched(net: nn.Module) -> Iterator[tuple[list[tuple[str, nn.Module, tuple[int, ...]]], list[Step]]]:
    """Watches a forward pass: the running modules, outermost first, as (name, module, input shape), and the steps done.

    A module that fails stays among the running ones: the hook that would remove it is not called.
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
    """The shape of the first tensor in a module's input or output."""
    return next((tuple(x.shape) for x in tree_leaves(value) if isinstance(x, Tensor)), ())
