"""Captured steps: on a GPU, all the work of a step launched at once, as a CUDA graph.

A step of a small net is dozens of kernels of some µs each, and launching them one by one takes the host longer than the GPU
computes. A replay launches the same kernels on the same memory, so the bits are those of a step that was not captured.
"""

import contextlib
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..console import complain

EAGER = 3  # calls for a size of batch before it is captured: meanwhile the optimizer makes its state, libraries choose kernels


class Captured:
    """Call it as `work`: ids int64 (n,), on the device -> the mean loss, there. Captures it once for each n.

    `work` sets the gradients of `parameters` and updates them; between two calls only what tensors hold may change. A net that
    reads a number on the host or draws one there in its forward cannot be captured: said once, then `work` is called each time.
    """

    def __init__(self, work: Callable[[Tensor], Tensor], parameters: Sequence[nn.Parameter]):
        self.work, self.parameters = work, parameters
        self.calls: Counter[int] = Counter()
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, list[Tensor | None]]] = {}
        self.pool, self.refused = torch.cuda.graph_pool_handle(), False

    def __call__(self, ids: Tensor) -> Tensor:
        n = len(ids)
        if self.refused:
            return self.work(ids)
        if n not in self.graphs:
            self.calls[n] += 1
            if self.calls[n] < EAGER:
                return self.work(ids)
            if self.calls[n] == EAGER:
                return self._observed(ids)
            if why := self._capture(ids):
                self._refuse(why)
                return self.work(ids)
        graph, static_ids, loss, gradients = self.graphs[n]
        static_ids.copy_(ids)
        graph.replay()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient  # a step of another size has put its own there
        return loss

    def _observed(self, ids: Tensor) -> Tensor:
        """`work(ids)`, looking for what a capture would miss."""
        mode = torch.cuda.get_sync_debug_mode()
        before = _host_draws()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loss = self.work(ids)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        if _host_draws() != before:
            self._refuse("it draws random numbers on the host")
        elif any("synchronizing CUDA operation" in str(warning.message) for warning in seen):
            self._refuse("it reads numbers on the host")
        return loss

    def _capture(self, ids: Tensor) -> str:
        """Add the graph for this many ids, which runs nothing yet. Returns why it cannot be captured, or ""."""
        graph, static_ids, stream = torch.cuda.CUDAGraph(), ids.clone(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                loss = self.work(static_ids)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())  # the old one still counts for the graph
            return str(error).splitlines()[0]
        self.graphs[len(ids)] = graph, static_ids, loss, [parameter.grad for parameter in self.parameters]
        return ""

    def _refuse(self, why: str) -> None:
        self.refused = True
        complain(f"the steps of this net are launched kernel by kernel, which is slower for small nets: {why}")


def _host_draws() -> tuple:
    """The state of the host's random number generators, to be compared."""
    return torch.default_generator.get_state().numpy().tobytes(), random.getstate()


class DeviceLearningRates:
    """An optimizer's learning rates as tensors on its device: numbers of the host would be fixed in a captured step."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.optimizer = optimizer
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.values = [math.nan for _ in self.rates]  # what they hold

    def follow(self) -> None:
        """Have the tensors hold the optimizer's learning rates."""
        for index, (rate, group) in enumerate(zip(self.rates, self.optimizer.param_groups, strict=True)):
            if self.values[index] != group["lr"]:
                rate.fill_(group["lr"])
                self.values[index] = group["lr"]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Context manager: the optimizer has the tensors as learning rates, and may be captured."""
        groups = self.optimizer.param_groups
        changes = [
            {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
            for group, rate in zip(groups, self.rates, strict=True)
        ]
        before = [{name: group[name] for name in change} for group, change in zip(groups, changes, strict=True)]
        try:
            for group, change in zip(groups, changes, strict=True):
                group.update(change)
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)
