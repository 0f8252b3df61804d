"""Forward pass on zeros that is watched and leaves the net as it was."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass
class Call:
    """A module that ran, or runs: its name, the shapes of its input and its output (none yet: ()), the output's bytes."""

    name: str
    module: nn.Module
    takes: tuple[int, ...]
    gives: tuple[int, ...] = ()
    size: int = 0

    @property
    def is_layer(self) -> bool:
        return not any(self.module.children())


@contextlib.contextmanager
def watched(net: nn.Module) -> Iterator[tuple[list[Call], list[Call]]]:
    """Watches a forward pass: the running modules, outermost first, and all that began, in turn.

    A module that fails stays among the running ones: the hook that would remove it is not called.
    """
    running, calls = list[Call](), list[Call]()

    def enter(module: nn.Module, args: tuple) -> None:
        running.append(Call(names[module], module, _shape_and_size(args)[0]))
        calls.append(running[-1])

    def leave(_module: nn.Module, _args: tuple, output: Any) -> None:
        call = running.pop()
        call.gives, call.size = _shape_and_size(output)

    names = {module: name or type(net).__name__ for name, module in net.named_modules()}
    hooks = [module.register_forward_pre_hook(enter) for module in names]
    hooks += [module.register_forward_hook(leave) for module in names]
    try:
        yield running, calls
    finally:
        for hook in hooks:
            hook.remove()


def _shape_and_size(value: Any) -> tuple[tuple[int, ...], int]:
    """Shape and bytes of the first tensor in a module's input or output."""
    return next(((tuple(x.shape), x.nbytes) for x in tree_leaves(value) if isinstance(x, Tensor)), ((), 0))
