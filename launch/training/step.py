"""One update of a net, the same whatever the number of processes.

The global batch is cut into `run.micro_batches` contiguous micro-batches; of W processes each works on its block of them, one
after the other, and adds up their gradients. So 8 micro-batches on 1 process and 1 on each of 8 are the same step; what is called
gradient accumulation or per-device batch elsewhere are two placements of one computation.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import cast

import torch
import torch.distributed
from torch import Tensor, nn

from ..data.order import micro_batch_seed
from ..errors import Refused
from ..run import Run
from .batches import Batch, MicroBatch, TrainingFeed
from .cuda_graph import Captured, DeviceLearningRates
from .ema import Average
from .finite import Finite, poll_steps
from .optimizers import make_momentum
from .train_mode import RunningState, buffers_kept

Loss = Callable[[Tensor, Tensor], Tensor]


class Step:
    """One update of the net, the same whatever the number of processes: call it with a global batch."""

    def __init__(
        self,
        run: Run,
        net: nn.Module,
        feed: TrainingFeed,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        clip: float = 0.0,
        average: Average | None = None,
    ):
        """Arguments as in `loop.train`; `average` follows its `ema`."""
        device, poll = run.accelerator.device, poll_steps(run, optimizer)
        self.run, self.net, self.feed, self.optimizer, self.loss = run, net, feed, optimizer, loss
        self.clip, self.average = clip, average
        self.wrapped = _wrapped(run, net)  # for forward and backward; checkpoints take the net itself, under its own names
        self.parameters = list(net.parameters())
        self.trainable = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
        self.running = RunningState(net, several=run.micro_batches > 1)
        self.finite = Finite(run, net, feed, self.trainable, poll)
        self.device_lrs = DeviceLearningRates(optimizer, device) if poll > 1 else None
        capturable = run.captured and feed.feed.resident and device.type == "cuda" and poll > 1 and run.micro_batches == 1
        self.captured = Captured(self._whole, self.parameters) if capturable else None
        self.named: Callable[[str], AbstractContextManager] = nullcontext  # see profiler.py
        self.number = 0  # of the step, from 0
        if run.accelerator.scaler is not None:
            make_momentum(optimizer)

    def __call__(self, batch: Batch, stop: bool) -> tuple[Tensor, bool]:
        """Update the net with a global batch. Returns its mean loss, on the device, and whether to stop.

        Any process may ask to `stop`; all learn of it at the same step. Raises Refused, before the update, on all processes: a
        loss that is not finite (3), a parameter without gradient (2).
        """
        self.number = batch.step
        wish: bool | Tensor = stop
        if self.device_lrs:
            self.device_lrs.follow()
        if self.captured:  # on a GPU: what follows below, launched at once; a bad update was skipped there
            self._seed(0)
            loss = self.captured(batch.ids)
            polled = self.finite.look(batch, loss)
        else:
            loss = self._gradients(batch)
            if self.run.world > 1:
                both = torch.stack((loss, self.finite.one if stop else self.finite.zero))
                torch.distributed.all_reduce(both)  # collective: loss and wish to stop
                loss, wish = both
            self.finite.note(loss)
            polled = self.finite.look(batch, loss)
            with self.named("optimizer"):
                self._update()
        if self.average:
            self.average.update(batch.step)
        return loss, polled and bool(wish)  # host-device sync, on several processes: at a poll only

    # --------------------------------------------------------------------------------------------------------- micro-batches

    def _gradients(self, batch: Batch) -> Tensor:
        """Set the gradients to those of the global batch, on every process; returns this process's part of its loss."""
        self.running.begin_step()
        first, *others = batch.blocks
        loss = self._block(batch, first)
        for block in others:
            gradients = [parameter.grad for parameter in self.parameters]
            loss = loss + self._block(batch, block)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None and parameter.grad is not None:
                    parameter.grad += gradient
        self.running.end_step(self.run.world)  # collective
        self._check_used()
        return loss

    def _block(self, batch: Batch, block: list[MicroBatch]) -> Tensor:
        """Set the gradients to the sum over the micro-batches in `block`; returns their part of the loss."""
        losses = []
        for micro_batch in block:
            self._seed(micro_batch.index)
            first, last = micro_batch is block[0], micro_batch is block[-1]
            losses.append(self._backward(micro_batch, batch.images, first, last))
        return sum(losses[1:], losses[0])

    def _whole(self, ids: Tensor) -> Tensor:
        """All the work of a step of one micro-batch on one process, except what the host does: for `Captured`."""
        micro_batch = self.feed.whole(ids)
        loss = self._backward(micro_batch, self.feed.stream([micro_batch]), first=True, last=True)
        self._check_used()
        self.finite.note(loss)
        self._update()
        return loss

    def _backward(self, micro_batch: MicroBatch, images: Iterator[tuple[Tensor, Tensor]], first: bool, last: bool) -> Tensor:
        """Forward, loss, zero the gradients (for the first), backward: one micro-batch, weighted by its part of the batch."""
        weight, world, accelerator = micro_batch.weight, self.run.world, self.run.accelerator
        self.running.begin_micro_batch(micro_batch.index)
        with self.named("data"):
            pixels, labels = next(images)
        with nullcontext() if last else accelerator.no_sync(self.wrapped):
            with self.named("forward"):
                logits = self.wrapped(pixels)
            with self.named("loss"):
                loss = self.loss(logits, labels)
            if first:
                for parameter in self.parameters:  # also those that the optimizer lacks, or that were locked meanwhile
                    parameter.grad = None
            # DDP divides by the number of processes; with the last micro-batch it reduces the gradients (collective).
            with self.named("backward"):
                accelerator.backward(loss * (weight * world) if weight * world != 1 else loss)
        self.running.end_micro_batch(micro_batch.index)
        return loss.detach() * weight if weight != 1 else loss.detach()

    def _seed(self, index: int) -> None:
        """Seed what micro-batch `index` of this step draws, dropout and the like."""
        seed, device = micro_batch_seed(self.run.seed, self.number, index), self.run.accelerator.device
        if device.type in ("cuda", "cpu"):  # torch.manual_seed would seed every GPU of the machine
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)

    def _check_used(self) -> None:
        """One process could go on without a gradient; DDP cannot, and a net must not work on one and fail on two."""
        if unused := [name for name, parameter in self.trainable if parameter.grad is None]:
            raise Refused(
                f"{', '.join(unused[:4])} of {type(self.net).__name__} got no gradient at step {self.number + 1}: the loss does "
                "not depend on it; use it in forward, or lock it with requires_grad_(False)",
                2,
            )

    # ---------------------------------------------------------------------------------------------------------------- update

    def _update(self) -> None:
        scaler = self.run.accelerator.scaler
        if self.clip:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if scaler is not None:
            scaler.step(self.optimizer)  # skips the update on overflow, on all processes alike
            scaler.update()
            return
        if self.finite.poll > 1:
            self.optimizer.found_inf = self.finite.found_inf  # type: ignore[attr-defined]  # fused optimizers look for it
        with self.device_lrs.used() if self.device_lrs else nullcontext():
            self.optimizer.step()

    # ------------------------------------------------------------------------------------------------------- before and after

    def warm_up(self, batch: int, step: int) -> None:
        """One micro-batch of a `batch` forward and backward that counts for nothing, before a launch's first step. Collective.

        DDP rebuilds its buckets after its first backward. With 3 processes or more their layout decides how sums round, so
        without this a resumed run would make its first step in another layout than the run that went through.
        """
        if self.run.world == 1:
            return
        self.number, feed = step, self.feed.feed
        ids = feed.order(torch.arange(min(len(feed.labels), max(2, batch // self.run.micro_batches))))
        micro_batch = replace(self.feed.whole(ids), index=self.feed.cut(ids)[0][0].index, weight=0.0)
        self.net.train()
        with buffers_kept(self.net):
            self._seed(micro_batch.index)
            self._backward(micro_batch, self.feed.stream([micro_batch]), first=True, last=True)
        self._check_used()
        for parameter in self.parameters:
            parameter.grad = None


def _wrapped(run: Run, net: nn.Module) -> nn.Module:
    """The net as torch.compile, DDP and autocast wrap it."""
    with warnings.catch_warnings():  # torch 2.15 renames an option that accelerate 1.15 still passes by its old name
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        if run.compile:
            torch.compiler.reset()  # what was compiled for an earlier stage counts towards the limit of recompilations
            # A graph for each shape: else the shape that comes first, another one after a resume, decides the kernels.
            net = cast(nn.Module, torch.compile(net, dynamic=False))
        # Inside nn.Sequential, as accelerate marks and patches what it prepares. This mode is without DDP.
        return run.accelerator.prepare_model(nn.Sequential(net), evaluation_mode=run.world == 1)
