"""State of a net besides its parameters: its mode, its running statistics and other buffers."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import Refused
from ..processes import broadcast


@contextlib.contextmanager
def mode_kept(net: nn.Module) -> Iterator[None]:
    """Context manager: restore train or eval mode."""
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
    buffers = []
    for module in net.modules():
        # Those of torch and timm leave their statistics alone when `track_running_stats` says so; somebody else's may not.
        if not (isinstance(module, _BatchNorm) and type(module).__module__.partition(".")[0] in ("torch", "timm")):
            buffers += [(module, name, buffer) for name, buffer in module._buffers.items() if buffer is not None]
    return buffers


@contextlib.contextmanager
def buffers_kept(net: nn.Module) -> Iterator[None]:
    """Context manager: restore the buffers; those that a forward creates stay."""
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in net.named_buffers():
            if name in kept:
                buffer.detach().copy_(kept[name])


class RunningState:
    """A net's running statistics and other buffers, which follow micro-batch 0: one update a step.

    Every micro-batch finds what the step found, as if each had a process of its own.
    """

    def __init__(self, net: nn.Module, several: bool):
        """`several`: of micro-batches in a step."""
        self.batch_norms, self.others, self.several = batch_norms(net), other_buffers(net), several
        self.before: list[Tensor] = []  # the other buffers before this step
        self.after: list[Tensor] = []  # as micro-batch 0 has left them, on its process

    def begin_step(self) -> None:
        self.before = [buffer.clone() for _, _, buffer in self.others] if self.several else []

    def begin_micro_batch(self, index: int) -> None:
        for module in self.batch_norms:
            if module.track_running_stats != (index == 0):
                module.track_running_stats = index == 0

    def end_micro_batch(self, index: int) -> None:
        self._put_back()
        if self.before:
            if index == 0:
                self.after = [buffer.clone() for _, _, buffer in self.others]
            self._set(self.before)

    def end_step(self, world: int) -> None:
        """Collective."""
        if self.before:
            self._set(self.after)
            broadcast((buffer for _, _, buffer in self.others), world)  # collective: micro-batch 0 is the main process's

    def restore(self) -> None:
        """Have every batch norm follow its batches again, as before the first step."""
        for module in self.batch_norms:
            module.track_running_stats = True

    def _set(self, values: list[Tensor]) -> None:
        for (_, _, buffer), value in zip(self.others, values, strict=False):  # no values on a process without micro-batch 0
            buffer.copy_(value)

    def _put_back(self) -> None:
        """Copy what a forward has put in a buffer's place into the buffer, and put that back: others hold on to it."""
        for module, name, buffer in self.others:
            if (now := module._buffers[name]) is not buffer:
                if now is None or (now.shape, now.dtype) != (buffer.shape, buffer.dtype):
                    raise Refused(
                        f"forward changes the shape or type of {name} of {type(module).__name__}, which no checkpoint can hold", 2
                    )
                buffer.copy_(now.detach())
                module._buffers[name] = buffer
