"""A loss or gradient that is not finite: noted on the device at each step, found at a poll, and named."""

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn

from ..errors import Refused
from ..run import Run
from .batches import Batch, TrainingFeed
from .train_mode import batch_norms

POLL_STEPS = 16  # how often a GPU is asked for a non-finite loss or a stop; a CPU is asked at every step


def poll_steps(run: Run, optimizer: torch.optim.Optimizer) -> int:
    """Return after how many steps the host looks at the device.

    On a CPU the host sees every loss at no cost. A GPU is asked now and then: until then a fused optimizer skips, on the device,
    the updates for which its `found_inf` is 1. For others, and with fp16's scaler, it is asked at every step.
    """
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return POLL_STEPS if run.accelerator.device.type != "cpu" and fused and run.accelerator.scaler is None else 1


class Finite:
    """Watch over the losses and gradients of a training: all must be finite."""

    def __init__(self, run: Run, net: nn.Module, feed: TrainingFeed, trainable: Sequence[tuple[str, nn.Parameter]], poll: int):
        self.run, self.net, self.feed, self.trainable, self.poll = run, net, feed, trainable, poll
        # 1 from the first loss or gradient on that is not finite; the kernel that looks wants float32, whatever the net's dtype.
        self.found_inf = torch.zeros((), dtype=torch.float32, device=run.accelerator.device)
        self.zero, self.one = torch.zeros_like(self.found_inf), torch.ones_like(self.found_inf)
        self.bad_steps = torch.zeros((), device=run.accelerator.device)  # since then
        self.last_loss = self.bad_steps
        self.recent: deque[Batch] = deque(maxlen=poll)  # those of the steps that the host has not looked at

    def note(self, loss: Tensor) -> None:
        """Note on the device whether this loss or a gradient is not finite."""
        unscaled = self.run.accelerator.scaler is None  # fp16's own scaler looks at the gradients itself
        gradients = [p.grad for _, p in self.trainable if p.grad is not None] if unscaled else []
        # GradScaler's check, with a scale of 1: one kernel for all.
        torch._amp_foreach_non_finite_check_and_unscale_([loss, *gradients], self.found_inf, self.one)
        self.bad_steps += self.found_inf

    def look(self, batch: Batch, loss: Tensor) -> bool:
        """At a poll, `check` this step and those before it; returns whether it is one."""
        self.last_loss = loss
        self.recent.append(batch)
        polled = batch.step % self.poll == 0
        if polled:
            self.check(batch.step + 1)
        return polled

    def check(self, steps: int) -> None:
        """Raise Refused (3), on all processes, if a loss or gradient was not finite in the `steps` so far. Host-device sync."""
        bad = int(self.bad_steps.item())
        if not bad:
            return
        samples = self._culprits(self.recent[-bad]) if bad <= len(self.recent) else ""
        cure = "Look at these images" if samples else "A smaller --lr is the usual cure"
        sound, what = steps - bad, "the loss"
        if bad > 1:
            what = "the loss or a gradient"
        elif self.last_loss.isfinite():
            names = [name for name, p in self.trainable if p.grad is not None and not p.grad.isfinite().all()]
            what = f"the gradient of {', '.join(names[:4])}"
        raise Refused(
            f"{what} is not finite at step {sound + 1}{samples}; the weights are those after step {sound}. {cure}; "
            "the last checkpoint is sound",
            3,
            everywhere=True,
        )

    @torch.no_grad()
    def _culprits(self, batch: Batch) -> str:
        """Name the samples that alone give non-finite outputs; "" if none or all do. Collective."""
        for module in batch_norms(self.net):  # the bad batch is in their statistics; the run ends here
            module.track_running_stats = True
            module.reset_running_stats()
        self.net.eval()
        culprits = list[tuple[int, int]]()  # sample, micro-batch
        micro_batches = [micro_batch for block in batch.blocks for micro_batch in block if micro_batch.weight]
        for micro_batch, (ids, images) in zip(micro_batches, self.feed.alone(micro_batches), strict=True):
            with self.run.accelerator.autocast():
                finite = self.net(images).isfinite().flatten(1).all(1)
            culprits += [(sample, micro_batch.index) for sample in ids[~finite.to(ids.device)].tolist()]  # host-device sync
        self.net.train()
        world = self.run.world
        if world > 1:
            by_process: list[list[tuple[int, int]]] = [[] for _ in range(world)]
            torch.distributed.all_gather_object(by_process, culprits)  # collective
            culprits = [culprit for one in by_process for culprit in one]
        if not 0 < len(culprits) < len(batch.ids):
            return ""
        named = [
            f"{sample} (micro-batch {index}, process {index * world // self.run.micro_batches})" for sample, index in culprits[:4]
        ]
        return f", from training image {', '.join(named)}{' and others' if len(culprits) > 4 else ''}"
