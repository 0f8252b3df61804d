"""One update of a net, the same whatever the number of processes.

The global batch is cut into `run.micro_batches` contiguous micro-batches; of W processes each works on its block of them, one
after the other, and adds up their gradients. So 8 micro-batches on 1 process and 1 on each of 8 are the same step; what is called
gradient accumulation or per-device batch elsewhere are two placements of one computation.
"""

import contextlib
import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn

from ..data.augment import Augment, EpochDraws
from ..data.images import AnyFeed
from ..data.mix import Mix, mixed
from ..data.order import micro_batch_bounds, micro_batch_seed, part
from ..errors import Refused
from ..processes import broadcast
from ..run import Run
from .cuda_graph import Captured, replaced
from .ema import Average
from .train_mode import batch_norms, buffers_kept, other_buffers

POLL_STEPS = 16  # how often a GPU is asked for a non-finite loss or a stop; a CPU is asked at every step

Loss = Callable[[Tensor, Tensor], Tensor]


class Step:
    """One update of the net, the same whatever the number of processes: call it with the samples of the global batch."""

    def __init__(
        self,
        run: Run,
        net: nn.Module,
        feed: AnyFeed,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        augments: Sequence[Augment] = (),
        mix: Mix | None = None,
        classes: int = 0,
        clip: float = 0.0,
        average: Average | None = None,
    ):
        """`classes` is needed to `mix`; the others as in `loop.train`, `average` following its `ema`."""
        self.augments, self.draws = augments, EpochDraws(run.seed, len(feed.labels), feed.drawn_on)
        self.mix, self.classes, self.clip, self.average = mix, classes, clip, average
        self.accelerator, self.net, self.feed, self.optimizer, self.loss = run.accelerator, net, feed, optimizer, loss
        self.seed, self.micro_batches, self.world = run.seed, run.micro_batches, run.world
        rank, device = run.rank, run.accelerator.device
        mine = range(rank * self.micro_batches // self.world, (rank + 1) * self.micro_batches // self.world)
        # Two processes sum up their halves of the micro-batches and then add the two sums. One does so too, to round the same.
        half = len(mine) // 2 if self.world == 1 and self.micro_batches % 2 == 0 else 0
        self.blocks = [mine[:half], mine[half:]] if half else [mine]
        # Checkpoints take the net itself, under its own names, never this wrapping of it by torch.compile and DDP.
        with warnings.catch_warnings():  # torch 2.15 renames an option that accelerate 1.15 still passes by its old name
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            if run.compile:
                torch.compiler.reset()  # what was compiled for an earlier stage counts towards the limit of recompilations
                # A graph for each shape: else the shape that comes first, another one after a resume, decides the kernels.
                net = cast(nn.Module, torch.compile(net, dynamic=False))
            # Inside nn.Sequential, as accelerate marks and patches what it prepares. This mode is without DDP.
            self.wrapped = run.accelerator.prepare_model(nn.Sequential(net), evaluation_mode=run.world == 1)
        self.parameters = list(self.net.parameters())
        self.learning = [(name, p) for name, p in self.net.named_parameters() if p.requires_grad]
        self.statistics = batch_norms(self.net)
        self.running = other_buffers(self.net)
        self.before: list[Tensor] = []  # what `running` had before this step, if it has several micro-batches
        self.after: list[Tensor] = []  # and what micro-batch 0 has left there, where it is
        self.generators: list[Any]
        if device.type == "cuda":  # the host's, too; torch.manual_seed would seed every GPU of the machine
            self.generators = [torch.default_generator, torch.cuda.default_generators[torch.cuda.current_device()]]
        else:
            self.generators = [torch.default_generator if device.type == "cpu" else torch]
        # On a CPU the host sees every loss at no cost. A GPU is asked now and then: until then a fused optimizer skips, on the
        # device, the updates for which its `found_inf` is 1. For others, and with fp16's scaler, it is asked at every step.
        fused = all(group.get("fused") for group in optimizer.param_groups)
        self.poll = POLL_STEPS if device.type != "cpu" and fused and run.accelerator.scaler is None else 1
        if run.accelerator.scaler is not None and isinstance(optimizer, torch.optim.SGD):
            # torch 2.15 leaves the momentum of a first step that the scaler skips uninitialised.
            for group in optimizer.param_groups:
                for parameter in group["params"] if group["momentum"] else []:
                    optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        # 1 from the first loss or gradient on that is not finite; the kernel that looks wants float32, whatever the net's dtype.
        self.found_inf = torch.zeros((), dtype=torch.float32, device=device)
        self.broken = torch.zeros((), device=device)  # steps since then
        self.latest = self.broken  # the loss of the last step
        self.recent: deque[Tensor] = deque(maxlen=self.poll)  # the samples of the steps that the host has not looked at
        self.no, self.yes = torch.zeros_like(self.found_inf), torch.ones_like(self.found_inf)
        # On a GPU the learning rates are there, too: numbers of the host would be fixed in a captured step.
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups] if self.poll > 1 else []
        self.held = [math.nan for _ in self.rates]  # what they hold
        capturable = run.captured and feed.resident and device.type == "cuda" and self.poll > 1 and self.micro_batches == 1
        self.captured = Captured(self._whole, self.parameters) if capturable else None
        self.named: Callable[[str], contextlib.AbstractContextManager] = contextlib.nullcontext  # see profile.py
        self.number = 0  # of the step, from 0

    def __call__(self, ids: Tensor, epoch: int, step: int, stop: bool) -> tuple[Tensor, bool]:
        """Update the net with the samples `ids` int64 (n,). Returns their mean loss, on the device, and whether to stop.

        `epoch` and `step` count from 0. Any process may ask to `stop`; all learn of it at the same step. Raises Refused, before
        the update, on all processes: a loss that is not finite (3), a parameter without gradient (2).
        """
        self.number = step
        self.draws.begin(epoch)
        self.recent.append(ids)
        self._hold_rates()
        asked, wish = step % self.poll == 0, None
        if self.captured:
            self._seed(step, 0)
            self.latest = self.captured(ids)
            if self.average:
                self.average.update(step)
            if asked:
                self.check(step + 1)  # a broken update was skipped on the device
            return self.latest, asked and stop
        self.before = [tensor.clone() for _, _, tensor in self.running] if self.micro_batches > 1 else []
        loss = self._gradients(ids, step)
        if self.before:
            self._set_running(self.after)
            broadcast((tensor for _, _, tensor in self.running), self.world)  # collective: micro-batch 0 is the main process's
        self._check_used(step)
        if self.world > 1:
            shared = torch.stack((loss, self.yes if stop else self.no))
            torch.distributed.all_reduce(shared)  # collective: loss and wish to stop
            loss, wish = shared
        self._note_broken(loss)
        self.latest = loss
        if asked:
            self.check(step + 1)
        with self.named("optimizer"):
            self._update()
        if self.average:
            self.average.update(step)
        return loss, asked and (stop if wish is None else bool(wish.item()))  # host-device sync, as above

    def _whole(self, ids: Tensor) -> Tensor:
        """All the work of a step of one micro-batch on one process, except what the host does: for `Captured`."""
        loss = self._backward(self._part(ids, 0, len(ids)), 1.0, 0, first=True, last=True)
        self._check_used(self.number)
        self._note_broken(loss)
        self._update()
        return loss

    def _note_broken(self, loss: Tensor) -> None:
        """Note on the device whether this loss or a gradient is not finite."""
        gradients = [p.grad for _, p in self.learning if p.grad is not None] if self.accelerator.scaler is None else []
        # GradScaler's check, with a scale of 1: one kernel for all. fp16's own scaler looks at the gradients itself.
        torch._amp_foreach_non_finite_check_and_unscale_([loss, *gradients], self.found_inf, self.yes)
        self.broken += self.found_inf

    def _check_used(self, step: int) -> None:
        """One process could go on without a gradient; DDP cannot, and a net must not work on one and fail on two."""
        if unused := [name for name, parameter in self.learning if parameter.grad is None]:
            raise Refused(
                f"{', '.join(unused[:4])} of {type(self.net).__name__} got no gradient at step {step + 1}: the loss does not "
                "depend on it; use it in forward, or lock it with requires_grad_(False)",
                2,
            )

    def check(self, steps: int) -> None:
        """Raise Refused (3), on all processes, if a loss or gradient was not finite in the `steps` so far. Host-device sync."""
        if broken := int(self.broken.item()):
            samples = self._culprits(self.recent[-broken]) if broken <= len(self.recent) else ""
            cure = "Look at these images" if samples else "A smaller --lr is the usual cure"
            sound, what = steps - broken, "the loss"
            if broken > 1:
                what = "the loss or a gradient"
            elif self.latest.isfinite():
                names = [name for name, p in self.learning if p.grad is not None and not p.grad.isfinite().all()]
                what = f"the gradient of {', '.join(names[:4])}"
            raise Refused(
                f"{what} is not finite at step {sound + 1}{samples}; the weights are those after step {sound}. {cure}; "
                "the last checkpoint is sound",
                3,
                everywhere=True,
            )

    def warm_up(self, batch: int, step: int) -> None:
        """One micro-batch of a `batch` forward and backward that counts for nothing, before a launch's first step. Collective.

        DDP rebuilds its buckets after its first backward. With 3 processes or more their layout decides how sums round, so
        without this a resumed run would make its first step in another layout than the run that went through.
        """
        if self.world == 1:
            return
        ids = self.feed.order(torch.arange(min(len(self.feed.labels), max(2, batch // self.micro_batches))))
        self.net.train()
        with buffers_kept(self.net):
            self._micro_batch(self._part(ids, 0, len(ids)), 0.0, step, self.blocks[0][0], first=True, last=True)
        self._check_used(step)
        for parameter in self.parameters:
            parameter.grad = None

    def restore_batch_norm(self) -> None:
        """Every batch norm follows its batches again, as before the first step."""
        for module in self.statistics:
            module.track_running_stats = True

    @torch.no_grad()
    def _culprits(self, ids: Tensor) -> str:
        """Which of the samples alone give non-finite outputs, in words; "" if none or all do. Collective."""
        cuts, found = micro_batch_bounds(len(ids), self.micro_batches), list[tuple[int, int]]()
        for module in self.statistics:  # the broken batch is in them; the run ends here
            module.track_running_stats = True
            module.reset_running_stats()
        self.net.eval()
        for index in (index for block in self.blocks for index in block if cuts[index] < cuts[index + 1]):
            these = ids[cuts[index] : cuts[index + 1]]
            with self.accelerator.autocast():
                finite = self.net(self.feed.batch(these, self._augmented())[0]).isfinite().flatten(1).all(1)
            found += [(number, index) for number in these[~finite.to(these.device)].tolist()]  # host-device sync
        self.net.train()
        if self.world > 1:
            everywhere: list[list[tuple[int, int]]] = [[] for _ in range(self.world)]
            torch.distributed.all_gather_object(everywhere, found)  # collective
            found = [each for part in everywhere for each in part]
        if not 0 < len(found) < len(ids):
            return ""
        ranks = {index: index * self.world // self.micro_batches for _, index in found}
        named = [f"{number} (micro-batch {index}, process {ranks[index]})" for number, index in found[:4]]
        return f", from training image {', '.join(named)}{' and others' if len(found) > 4 else ''}"

    def _hold_rates(self) -> None:
        """Have the tensors of the learning rates hold those of this step."""
        for index, (rate, group) in enumerate(zip(self.rates, self.optimizer.param_groups, strict=bool(self.rates))):
            if self.held[index] != group["lr"]:
                rate.fill_(group["lr"])
                self.held[index] = group["lr"]

    def _update(self) -> None:
        if self.clip:
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.step(self.optimizer)  # skips the update on overflow, on all processes alike
            self.accelerator.scaler.update()
            return
        if self.poll > 1:
            self.optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]  # fused optimizers look for it
        with replaced(self.optimizer, self.rates) if self.rates else contextlib.nullcontext():
            self.optimizer.step()

    def _gradients(self, ids: Tensor, step: int) -> Tensor:
        """The gradients of the global batch, in every process; returns this process's share of its loss."""
        cuts = micro_batch_bounds(len(ids), self.micro_batches)
        busy = [[index for index in block if cuts[index] < cuts[index + 1]] for block in self.blocks]
        if not any(busy):  # a last batch with fewer images than micro-batches: join the reduction with a gradient of 0
            return self._micro_batch(self._part(ids, 0, 2), 0.0, step, self.blocks[0][0], first=True, last=True)
        first, *second = [block for block in busy if block]
        loss = self._block(first, ids, cuts, step)
        for block in second:
            kept = [parameter.grad for parameter in self.net.parameters()]
            loss = loss + self._block(block, ids, cuts, step)
            for parameter, gradient in zip(self.net.parameters(), kept, strict=True):
                if gradient is not None and parameter.grad is not None:
                    parameter.grad += gradient
        return loss

    def _block(self, block: list[int], ids: Tensor, cuts: list[int], step: int) -> Tensor:
        """Set the gradients to the sum over the micro-batches in `block`; returns their share of the loss."""
        shares = []
        for index in block:
            start, end = cuts[index], cuts[index + 1]
            weight, first, last = (end - start) / len(ids), index == block[0], index == block[-1]
            shares.append(self._micro_batch(self._part(ids, start, end), weight, step, index, first, last))
        return sum(shares[1:], shares[0])

    def _part(self, ids: Tensor, start: int, end: int) -> Tensor:
        """The samples that a micro-batch needs: its own, and one before them if images are mixed."""
        return part(ids, start, end, before=self.mix is not None)

    def _augmented(self) -> list[Callable[[Tensor, Tensor], Tensor]]:
        return [partial(lambda augment, pixels, ids: augment(pixels, self.draws.of(ids)), augment) for augment in self.augments]

    def _seed(self, step: int, index: int) -> None:
        """Seed what micro-batch `index` of this step draws, dropout and the like."""
        for generator in self.generators:
            generator.manual_seed(micro_batch_seed(self.seed, step, index))

    def _micro_batch(self, ids: Tensor, weight: float, step: int, index: int, first: bool, last: bool) -> Tensor:
        self._seed(step, index)
        loss = self._backward(ids, weight, index, first, last)
        if self.before:
            # Every micro-batch finds what this step found, as if each had a process of its own.
            if index == 0:
                self.after = [tensor.clone() for _, _, tensor in self.running]
            self._set_running(self.before)
        return loss

    def _set_running(self, values: list[Tensor]) -> None:
        for (_, _, tensor), value in zip(self.running, values, strict=False):  # no values on a process without micro-batch 0
            tensor.copy_(value)

    def _put_back(self) -> None:
        """Where a forward has put another tensor in a buffer's place, that one gets its values: others hold on to it."""
        for module, name, tensor in self.running:
            if (now := module._buffers[name]) is not tensor:
                if now is None or (now.shape, now.dtype) != (tensor.shape, tensor.dtype):
                    raise Refused(
                        f"forward changes the shape or type of {name} of {type(module).__name__}, which no checkpoint can hold", 2
                    )
                tensor.copy_(now.detach())
                module._buffers[name] = tensor

    def _backward(self, ids: Tensor, weight: float, index: int, first: bool, last: bool) -> Tensor:
        """Forward, loss, zero the gradients (for the first), backward: one micro-batch, weighted by its part of the batch."""
        for module in self.statistics:  # running statistics follow micro-batch 0: one update a step
            if module.track_running_stats != (index == 0):
                module.track_running_stats = index == 0
        with self.named("data"):
            pixels, labels = self.feed.batch(ids, self._augmented())
            if self.mix:
                pixels, labels = mixed(self.mix, pixels, labels, self.draws.of(ids[1:]), self.classes)
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            with self.named("forward"):
                logits = self.wrapped(pixels)
            with self.named("loss"):
                loss = self.loss(logits, labels)
            if first:
                for parameter in self.parameters:  # also those that the optimizer lacks, or that were locked meanwhile
                    parameter.grad = None
            # DDP divides by the number of processes; with the last micro-batch it reduces the gradients (collective).
            with self.named("backward"):
                self.accelerator.backward(loss * (weight * self.world) if weight * self.world != 1 else loss)
        self._put_back()
        return loss.detach() * weight if weight != 1 else loss.detach()
