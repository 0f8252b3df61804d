"""The only loop: the document's own training_loop and validate (document 000, sections 4 and 4.1), made to hold anywhere.

`batch` is the global batch. It is cut into `run.shards` contiguous slices; of W processes each takes its block of slices, one
after the other, and adds up their gradients. So 8 slices on 1 process and 1 slice on each of 8 are the same step, and what is
called gradient accumulation or per-device batch elsewhere are two placements of one computation.

All that a step depends on is a function of (seed, step): the samples, the learning rate, and the random numbers that a net draws.
Hence a checkpoint is parameters, buffers, optimizer and step, and a run goes on from it as if nothing had happened.
"""

import contextlib
import hashlib
import itertools
import json
import math
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import checkpoint, shorter
from .data import Augment, Feed, Images, Split, bounds, order, slice_seed
from .errors import Refused, first_line
from .processes import START_SECONDS, set_timeout
from .record.runs import Record, read_json, read_metrics
from .record.track import Track
from .run import Run
from .screen import complain

EVALUATION_BATCH = 500  # images; fixed, so that the result does not depend on the number of processes
FEW_IMAGES = 16  # below which batch norm's statistics of a slice are poor
POLL_STEPS = 16  # how often a GPU is asked for a broken loss or a stop; a CPU is asked at every step
SILENCE_SECONDS = 300  # after which a process that takes no part is given up: longer than anything that one does alone in a run

Loss = Callable[[Tensor, Tensor], Tensor]


def train(
    run: Run,
    model: nn.Module,
    images: Images,
    optimizer: torch.optim.Optimizer,
    loss: Loss = F.cross_entropy,
    *,
    epochs: int,
    batch: int,
    schedule: Callable[[float], float] | None = None,
    shuffle: bool = True,
    augment: Augment | None = None,
    measured_in: Literal["eval", "train"] = "eval",
    draw: Callable[[Path], None] | None = None,
    stage: str = "",
) -> dict:
    """Train `model` on `images.train`, evaluate it on `images.test`, leave everything in the run folder.

    `loss` maps logits (n, classes) and labels int64 (n,) to the mean over those n; a step minimises its mean over the global
    batch of `batch` images, also when the last one is shorter. `schedule` maps the epochs done, a float from 0, to a factor for
    the optimizer's learning rates; without it they are constant. Without `shuffle` every epoch sees the images as they come.
    `augment` is applied to the training images in batch (see launch.data). `measured_in` "train" evaluates as the book did, with
    dropout and the batch's own statistics, in batches of `batch`. `draw` is called at the end, on the main process, with the run
    folder; the PNG files that it writes there also go to report.html and to W&B. A recipe that trains several times names each
    `stage`: it has a folder of its own in the run's, and a finished one is not trained again: net and optimizer are as it left
    them.

    Returns what result.json holds. Collective: every process calls it with the same arguments and ends with the same weights.
    Raises Refused: a process lost (1), wrong numbers or net (2), non-finite loss or weights (3), mismatch (4), folder in use (5),
    stopped by a signal (130, 138, 143).
    """
    if epochs < 1 or batch < 1:
        raise Refused(f"--epochs and --batch must be at least 1, they are {epochs} and {batch}", 2)
    samples, steps = len(images.train), math.ceil(len(images.train) / batch)  # of an epoch
    net = model.to(run.accelerator.device, memory_format=torch.channels_last)
    _check(run, net, images, optimizer, {batch if batch <= samples else 0, samples % batch})
    facts = {
        "model": type(net).__name__,
        "parameters": sum(p.numel() for p in net.parameters()),
        "trainable": sum(p.numel() for p in net.parameters() if p.requires_grad),
    }
    run.open(images, facts)
    if stage:
        run = run.stage(stage)
    if recorded := run.on_main(lambda: read_json(run.folder / "result.json")):  # a stage, or a run whose data have moved
        _, _, complaints = _restore(run, net, optimizer, images)
        if checkpoint.weights_sha256(checkpoint.weights(net)) != recorded["weights_sha256"]:  # host-device sync
            why = "; ".join(complaints) or f"{run.folder / 'checkpoints'} lacks it"
            raise Refused(f"{run.folder} is finished, and its last checkpoint cannot be had: {why}. --fresh starts anew", 4)
        if not stage:
            run.say_finished(recorded)
        torch.manual_seed(run.seed)
        return recorded
    feeds = {name: Feed(getattr(images, name), images, run.accelerator.device) for name in ("train", "test")}
    rates = [group["lr"] for group in optimizer.param_groups]
    start = checkpoint.weights_sha256(checkpoint.weights(net))  # host-device sync
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    settings = Settings(groups, schedule, steps)
    state, meter, complaints = _restore(run, net, optimizer, images)
    if not state.step:
        begun = run.on_main(lambda: bool(read_metrics(run.folder / "metrics.jsonl")))
        if not stage and not run.fresh:
            state, meter, notes = _start_from_shorter(run, net, optimizer, images, start, settings)
            complaints += notes
        if begun and not state.step:
            complaints.append(f"{run.folder} has no checkpoint: starts again from step 0")
        state.start = state.start or start
    step, before = Step(run, net, feeds["train"], optimizer, loss, augment), state.step
    began = time.perf_counter() - state.seconds

    def event(kind: str) -> dict:
        """The head of a line of metrics.jsonl; `images` counts from the start of the run."""
        done = min((state.step - state.epochs * steps) * batch, samples)
        return {"event": kind, "step": state.step, "epoch": epoch + 1, "images": state.epochs * samples + done}

    def train_line(mean: float, speed: float, norm: float) -> dict:
        lr, seconds = optimizer.param_groups[0]["lr"], time.perf_counter() - began
        known = math.isfinite(norm) and run.accelerator.scaler is None  # fp16 leaves gradients scaled
        gradient = {"gradient_norm": norm} if known else {}
        return event("train") | {"loss": mean, "lr": lr, **gradient, "images_per_second": speed, "seconds": seconds}

    def save() -> None:
        step.check(state.step)
        meter.stop()
        state.seconds = time.perf_counter() - began
        run.on_main(track.sync)  # the record first: a checkpoint is never ahead of it
        _save(run, net, optimizer, images, state, meter, settings if state.epochs == epochs else None)

    # An epoch that was stopped at its end, before its lines were complete, writes them again.
    kept = state.step - (state.step == (state.epochs + 1) * steps)
    record = Track(run, images, facts, state.step, total=epochs * steps, kept=kept)
    with _company(run, state), record as track, Stop() as stop:
        for line in (*run.notes, *complaints):
            (complain if run.quiet else track.say)(line)  # a trial says nothing else
        if step.statistics and batch // run.shards < FEW_IMAGES:
            track.say(f"batch norm sees {batch // run.shards} images at a time: --batch is {batch}, in {run.shards} slices")
        if run.world > 1 and state.step < epochs * steps:
            step.warm_up(feeds["train"].order(torch.arange(min(samples, max(2, batch // run.shards)))), state.step)
        while state.epochs < epochs:
            epoch, last, stopping = state.epochs, state.epochs + 1 == epochs, False
            ids = feeds["train"].order(order(samples, run.seed, epoch) if shuffle else torch.arange(samples))
            step.epoch = epoch
            net.train()
            for start in range((state.step - epoch * steps) * batch, samples, batch):
                if schedule:
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * schedule(state.step / steps)
                meter.start()
                these = ids[start : start + batch]
                batch_loss, stopping = step(these, state.step, stop.requested())
                meter.add(batch_loss, len(these))
                state.step += 1
                if run.world > 1 and state.step == before + (steps if run.compile else 1):  # nobody compiles any more
                    run.accelerator.wait_for_everyone()  # collective: else a fast process gives up one that still prepares
                    _wait_at_most(run, SILENCE_SECONDS)
                track.progress(state.step, f"epoch {epoch + 1}/{epochs}")
                if start + batch >= samples:
                    break  # the end of the epoch has its own lines and its own checkpoint
                if run.log_every and state.step % run.log_every == 0:
                    step.check(state.step)
                    track.write(train_line(*meter.read(net)))
                    meter.reset()
                if stopping or (run.save_every and state.step % run.save_every == 0):
                    save()
                if stopping:
                    raise stop.refusal(run.folder, state.step)

            mean, speed, norm = meter.read(net)
            step.check(state.step)
            results = {}
            if not stopping and (last or (epoch + 1) % run.eval_every == 0):
                for split in ("test", "train") if last else ("test",):
                    as_book = (batch, state.step) if measured_in == "train" else None
                    results[split] = _evaluate(run, net, feeds[split], stop, as_book)
            if stopping or None in results.values():  # the epoch stays open: the next launch begins with its evaluation
                save()
                raise stop.refusal(run.folder, state.step)
            track.write(
                train_line(mean, speed, norm),
                *(event("eval") | {"split": split} | result for split, result in results.items()),
            )
            track.epoch(f"epoch {epoch + 1:>{len(str(epochs))}}/{epochs}", mean, speed, results)
            meter.reset()
            state.epochs, state.results = state.epochs + 1, results
            if results and results["test"]["accuracy"] > state.best["accuracy"]:
                digest = checkpoint.weights_sha256(checkpoint.weights(net))  # host-device sync
                state.best = {"accuracy": results["test"]["accuracy"], "epoch": state.epochs, "weights_sha256": digest}
                run.on_main(lambda: _publish(run, net, images, "best.safetensors", state.best["weights_sha256"]))
            if last or not run.save_every or state.step % run.save_every == 0:
                save()
        state.seconds = time.perf_counter() - began
        result = _result(run, net, facts, state, meter, samples)
        _wait_at_most(run, START_SECONDS)  # while the main process draws
        run.on_main(lambda: _publish(run, net, images, "model.safetensors", result["weights_sha256"]))
        track.finish(result, lambda: _show(run, net, feeds["test"], images, result, draw))
        run.finish(result)  # last, as the mark of a finished run: what is killed before shows itself when it goes on
        if stage and _any(run, stop.requested()):
            raise stop.refusal(run.folder, state.step)
    # What a next stage begins with does not depend on whether this one was trained now, before, or on how many processes.
    torch.manual_seed(run.seed)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for module in step.statistics:
        module.track_running_stats = True
    if stage:
        run.accelerator.free_memory()  # it holds every net that it has prepared
    return result


def evaluate(run: Run, model: nn.Module, images: Images, split: str = "test") -> dict:
    """Loss (cross-entropy) and accuracy of `model` on a split of `images`, every sample once, in eval mode.

    Returns {"loss": float, "accuracy": float, "count": int}, the same on every process and for any number of them.
    Collective: every process calls it.
    """
    device = run.accelerator.device
    return _evaluate(run, model.to(device), Feed(getattr(images, split), images, device), stop=None)


# ----------------------------------------------------------------------------------------------------------------- one step


class Step:
    """One update of the net, the same whatever the number of processes: call it with the samples of the global batch."""

    def __init__(
        self,
        run: Run,
        net: nn.Module,
        feed: Feed,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        augment: Augment | None = None,
    ):
        self.augment, self.epoch = augment, 0  # the epoch is what augmentation depends on, besides seed and sample
        self.accelerator, self.net, self.feed, self.optimizer, self.loss = run.accelerator, net, feed, optimizer, loss
        self.seed, self.shards, self.world = run.seed, run.shards, run.world
        rank, device = run.rank, run.accelerator.device
        mine = range(rank * self.shards // self.world, (rank + 1) * self.shards // self.world)
        # Two processes sum up their halves of the slices and then add the two sums. One process does so too, to round the same.
        half = len(mine) // 2 if self.world == 1 and self.shards % 2 == 0 else 0
        self.blocks = [mine[:half], mine[half:]] if half else [mine]
        # Checkpoints take the net itself, under its own names, never this wrapping of it by torch.compile and DDP.
        with warnings.catch_warnings():  # torch 2.15 renames an option that accelerate 1.15 still passes by its old name
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            if run.compile:
                torch.compiler.reset()  # what was compiled for an earlier stage counts towards the limit of recompilations
                # A graph for each shape: else the shape that comes first, another one after a resume, decides the kernels.
                net = torch.compile(net, dynamic=False)
            # In a shell of its own, as accelerate marks and patches what it prepares. This mode is without DDP.
            self.wrapped = run.accelerator.prepare_model(nn.Sequential(net), evaluation_mode=run.world == 1)
        self.parameters = list(self.net.parameters())
        self.learning = [(name, p) for name, p in self.net.named_parameters() if p.requires_grad]
        self.statistics = [m for m in self.net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
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
        self.found_inf = torch.zeros((), device=device)  # 1 from the first loss or gradient on that is not finite
        self.broken = torch.zeros((), device=device)  # steps since then
        self.latest = self.broken  # the loss of the last step
        self.recent: deque[Tensor] = deque(maxlen=self.poll)  # the samples of the steps that the host has not looked at
        self.no, self.yes = torch.zeros((), device=device), torch.ones((), device=device)

    def __call__(self, ids: Tensor, step: int, stop: bool) -> tuple[Tensor, bool]:
        """Update the net with the samples `ids` (n,). Returns their mean loss, on the device, and whether to stop.

        Any process may ask to `stop`; all learn of it at the same step. Raises Refused, before the update, on all processes: a
        loss that is not finite (3), a parameter without gradient (2).
        """
        loss = self._gradients(ids, step)
        self.recent.append(ids)
        self._check_used(step)
        wish = None
        gradients = [parameter.grad for _, parameter in self.learning] if self.accelerator.scaler is None else []
        if self.world > 1:
            shared = torch.stack((loss, self.yes if stop else self.no))
            torch.distributed.all_reduce(shared)  # collective: loss and wish to stop
            loss, wish = shared
        # GradScaler's check, with a scale of 1: one kernel for all. fp16's own scaler looks at the gradients itself.
        torch._amp_foreach_non_finite_check_and_unscale_([loss, *gradients], self.found_inf, self.yes)
        self.broken += self.found_inf
        self.latest = loss
        if self.poll > 1:
            self.optimizer.found_inf = self.found_inf
        asked = step % self.poll == 0
        if asked:
            self.check(step + 1)
        self._update()
        return loss, asked and (stop if wish is None else bool(wish.item()))  # host-device sync, as above

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
                names = [name for name, parameter in self.learning if not parameter.grad.isfinite().all()]
                what = f"the gradient of {', '.join(names[:4])}"
            raise Refused(
                f"{what} is not finite at step {sound + 1}{samples}; the weights are those after step {sound}. {cure}; "
                "the last checkpoint is sound",
                3,
            )

    def warm_up(self, ids: Tensor, step: int) -> None:
        """One slice forward and backward that counts for nothing, before the first step of a launch. Collective.

        DDP lays its buckets out anew after its first backward. With 3 processes or more their layout decides how sums round, so
        without this a resumed run would make its first step in another layout than the run that went through.
        """
        self.net.train()
        with _buffers_kept(self.net):
            self._slice(ids, 0.0, step, self.blocks[0][0], first=True, last=True)
        self._check_used(step)
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def _culprits(self, ids: Tensor) -> str:
        """Which of the samples break the net, each judged apart from its batch; "" if none or all do. Collective."""
        cuts, found = bounds(len(ids), self.shards), []
        for module in self.statistics:  # the broken batch is in them; the run ends here
            module.track_running_stats = True
            module.reset_running_stats()
        self.net.eval()
        for index in (index for block in self.blocks for index in block if cuts[index] < cuts[index + 1]):
            these = ids[cuts[index] : cuts[index + 1]]
            with self.accelerator.autocast():
                finite = self.net(self.feed.batch(these, self._augment())[0]).isfinite().flatten(1).all(1)
            found += [(number, index) for number in these[~finite.to(these.device)].tolist()]  # host-device sync
        self.net.train()
        if self.world > 1:
            everywhere = [[]] * self.world
            torch.distributed.all_gather_object(everywhere, found)  # collective
            found = [each for part in everywhere for each in part]
        if not 0 < len(found) < len(ids):
            return ""
        named = [f"{number} (slice {index}, process {index * self.world // self.shards})" for number, index in found[:4]]
        return f", from training image {', '.join(named)}{' and others' if len(found) > 4 else ''}"

    def _update(self) -> None:
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.step(self.optimizer)  # skips the update on overflow, on all processes alike
            self.accelerator.scaler.update()
        else:
            self.optimizer.step()

    def _gradients(self, ids: Tensor, step: int) -> Tensor:
        """The gradients of the global batch, in every process; returns this process's share of its loss."""
        cuts = bounds(len(ids), self.shards)
        busy = [[index for index in block if cuts[index] < cuts[index + 1]] for block in self.blocks]
        if not any(busy):  # a last batch with fewer images than slices: join the reduction with a gradient of 0
            return self._slice(ids[:2], 0.0, step, self.blocks[0][0], first=True, last=True)
        first, *second = [block for block in busy if block]
        loss = self._block(first, ids, cuts, step)
        for block in second:
            kept = [parameter.grad for parameter in self.net.parameters()]
            loss = loss + self._block(block, ids, cuts, step)
            for parameter, gradient in zip(self.net.parameters(), kept, strict=True):
                if gradient is not None:
                    parameter.grad += gradient
        return loss

    def _block(self, block: list[int], ids: Tensor, cuts: list[int], step: int) -> Tensor:
        """Set the gradients to the sum over the slices in `block`; returns their share of the loss."""
        loss = None
        for index in block:
            these = ids[cuts[index] : cuts[index + 1]]
            share = self._slice(these, len(these) / len(ids), step, index, first=index == block[0], last=index == block[-1])
            loss = share if loss is None else loss + share
        return loss

    def _augment(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        return self.augment and (lambda pixels, ids: self.augment(pixels, ids, self.seed, self.epoch))

    def _slice(self, ids: Tensor, weight: float, step: int, index: int, first: bool, last: bool) -> Tensor:
        """Forward, loss, zero the gradients (for the first), backward: one slice, weighted by its part of the batch."""
        for generator in self.generators:
            generator.manual_seed(slice_seed(self.seed, step, index))
        for module in self.statistics:  # running statistics follow slice 0: one update a step, wherever the slices lie
            if module.track_running_stats != (index == 0):
                module.track_running_stats = index == 0
        pixels, labels = self.feed.batch(ids, self._augment())
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            loss = self.loss(self.wrapped(pixels), labels)
            if first:
                for parameter in self.parameters:  # also those that the optimizer lacks, or that were locked meanwhile
                    parameter.grad = None
            # DDP divides by the number of processes; with the last slice it reduces the gradients (collective).
            self.accelerator.backward(loss * (weight * self.world) if weight * self.world != 1 else loss)
        return loss.detach() * weight if weight != 1 else loss.detach()


# --------------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def _evaluate(
    run: Run, net: nn.Module, feed: Feed, stop: "Stop | None", as_book: tuple[int, int] | None = None
) -> dict | None:
    """As `evaluate`; None, on all processes, if any of them was asked to stop meanwhile.

    `as_book`, (batch, step), measures in train mode; the random numbers are the step's, the running statistics stay as they are.
    """
    world, rank = run.world, run.rank
    count, batch = len(feed.labels), as_book[0] if as_book else EVALUATION_BATCH
    cuts = range(0, count, batch)
    _share_buffers(run, net)
    sums = torch.zeros(len(cuts) + 1, 2, device=run.accelerator.device)  # (loss, correct) of each batch; the wish to stop
    ids = feed.order(torch.arange(count))
    was_training, kept = net.training, [buffer.clone() for buffer in net.buffers()] if as_book else []
    net.train(bool(as_book))
    try:
        for number in range(rank, len(cuts), world):
            if as_book:
                torch.manual_seed(slice_seed(run.seed, as_book[1], number))
            pixels, labels = feed.batch(ids[cuts[number] : cuts[number] + batch])
            with run.accelerator.autocast():
                logits = net(pixels).float()
            sums[number, 0] = F.cross_entropy(logits, labels, reduction="sum")
            sums[number, 1] = (logits.argmax(dim=1) == labels).sum()
            if stop and stop.requested():
                sums[-1, 0] = 1
                break
    finally:
        net.train(was_training)
        for buffer, before in zip(net.buffers(), kept, strict=False):
            buffer.copy_(before)
    if world > 1:
        torch.distributed.all_reduce(sums)  # collective: each batch has one process's numbers, plus zeros, so no rounding
    *batches, (stopped, _) = sums.tolist()  # host-device sync
    if stopped:
        return None
    correct, loss = round(sum(correct for _, correct in batches)), math.fsum(loss for loss, _ in batches) / count
    if not math.isfinite(loss):
        raise Refused("the loss of the evaluation is not finite; a smaller --lr is the usual cure", 3)
    return {"loss": loss, "accuracy": correct / count, "count": count}


def _share_buffers(run: Run, net: nn.Module) -> None:
    """Running statistics are those of slice 0, which lies with the main process: hand them to the others."""
    if run.world > 1:
        for buffer in net.buffers():
            torch.distributed.broadcast(buffer, 0)  # collective


# --------------------------------------------------------------------------------------------------------- state, stop, end


@dataclass
class State:
    """Where a run stands, besides its tensors and its sums."""

    step: int = 0  # updates made
    epochs: int = 0  # epochs closed: trained, evaluated and logged
    start: str = ""  # sha256 of the weights before the first step
    seconds: float = 0.0  # since the start of the run, over all launches
    best: dict = field(default_factory=lambda: {"accuracy": -1.0, "epoch": 0})  # on the test split
    results: dict = field(default_factory=dict)  # of the last epoch's evaluation, by split


class Meter:
    """The sums since the last train line, and the clock that runs during training steps only."""

    def __init__(self, device: torch.device):
        self.loss = torch.zeros((), device=device)  # sum over images; read when a line is logged
        self.images, self.seconds, self.train_seconds = 0, 0.0, 0.0
        self.norm = math.nan  # of the gradient, when the loss was read
        self.started: float | None = None

    def start(self) -> None:
        if self.started is None:
            self.started = time.perf_counter()

    def stop(self) -> None:
        if self.started is not None:
            passed = time.perf_counter() - self.started
            self.seconds, self.train_seconds, self.started = self.seconds + passed, self.train_seconds + passed, None

    def add(self, mean_loss: Tensor, images: int) -> None:
        self.loss.add_(mean_loss, alpha=images)
        self.images += images

    def read(self, net: nn.Module) -> tuple[float, float, float]:
        """Mean loss, images per second, norm of the last step's gradient. Host-device sync; stops the clock."""
        gradients = [p.grad for p in net.parameters() if p.requires_grad and p.grad is not None]
        if gradients:  # else no step was taken since a restart: the norm is that of before
            loss, self.norm = torch.stack((self.loss, nn.utils.get_total_norm(gradients).float())).tolist()
        else:
            loss = self.loss.item()
        self.stop()
        return loss / self.images, self.images / max(self.seconds, 1e-9), self.norm

    def reset(self) -> None:
        self.loss.zero_()
        self.images, self.seconds = 0, 0.0


class Stop:
    """Notices SIGINT, SIGTERM and SIGUSR1 (a queue's last warning); asked between steps and between evaluation batches."""

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, error: type | None, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if error and self.signal:  # the process is ending: the death of its launcher, which got the signal too, changes nothing
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _note(self, number: int, _frame) -> None:
        self.signal = self.signal or number

    def requested(self) -> bool:
        return self.signal is not None

    def refusal(self, folder, step: int) -> Refused:
        number = signal.Signals(self.signal or signal.SIGTERM)  # another process may have got it
        return Refused(f"stopped by {number.name} at step {step:,}, saved in {folder}; the same command goes on", 128 + number)


def _any(run: Run, wish: bool) -> bool:
    """Whether any process wishes it. Collective."""
    wishes = torch.tensor(float(wish), device=run.accelerator.device)
    if run.world > 1:
        torch.distributed.all_reduce(wishes)  # collective
    return wishes.item() > 0  # host-device sync


def _check(run: Run, net: nn.Module, images: Images, optimizer: torch.optim.Optimizer, batches: set[int]) -> None:
    """Raise Refused (2) for what would train, and then fail: with these sizes of batches, or when it is saved."""
    own = {id(parameter) for parameter in net.parameters()}
    if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
        raise Refused("the optimizer has a parameter that is not the net's: no checkpoint would hold it; make it the net's", 2)
    cuts = {size: bounds(size, run.shards) for size in batches}
    alone = [size for size, cut in cuts.items() if any(end - start == 1 for start, end in itertools.pairwise(cut))]
    if alone and any(isinstance(module, _BatchNorm) for module in net.modules()):
        feed = Feed(Split(*(tensor[:1] for tensor in images.train)), images, run.accelerator.device)
        try:
            with _buffers_kept(net), torch.no_grad():
                net.train()(feed.batch(feed.order(torch.zeros(1, dtype=torch.int64)))[0])
        except ValueError as error:
            raise Refused(
                f"a batch of {alone[0]} images in {run.shards} slices leaves one image by itself, which {type(net).__name__}'s "
                f"batch norm cannot normalise ({first_line(error)}); another --batch, --limit or --shards will do",
                2,
            ) from error
    if optimizer.state:  # made by its constructor, before the net took its device and layout: laid out as a resume does it
        tensors, scalars = checkpoint.optimizer_state(optimizer, net), checkpoint.optimizer_scalars(optimizer, net)
        checkpoint.load_optimizer_state(optimizer, net, tensors, scalars)


@contextlib.contextmanager
def _buffers_kept(net: nn.Module) -> Iterator[None]:
    """What a forward does to the buffers is undone; those that it makes stay."""
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in net.named_buffers():
            if name in kept:
                buffer.detach().copy_(kept[name])


def _wait_at_most(run: Run, seconds: float) -> None:
    """In a collective, for the other processes."""
    if run.world > 1:
        set_timeout(timedelta(seconds=seconds))


@contextlib.contextmanager
def _company(run: Run, state: State) -> Iterator[None]:
    """Make the loss of another process a Refused (1) that names the step, on those that are left."""
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" in str(error):
            what, _, _ = first_line(error).partition(" does not")
            raise Refused(f"{what} has no kernel that repeats itself: leave out --deterministic, or change the net", 2) from error
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            device = run.accelerator.device.type
            raise Refused(
                f"{device} memory is full at step {state.step + 1:,}; a smaller --batch or --size, or more --shards needs less", 1
            ) from error
        if run.world == 1 or not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        raise Refused(
            f"another process died, or was silent for {SILENCE_SECONDS} s, at step {state.step + 1:,} "
            f"({first_line(error).split('] ')[-1]}); the same command goes on from the last checkpoint"
        ) from error
    finally:
        _wait_at_most(run, START_SECONDS)


def _origin(run: Run, images: Images, **other) -> str:
    """Of a checkpoint: sha256 of the configuration, the slices and the data, which are all that its numbers come from."""
    parts = run.config | {"seed": run.seed, "shards": run.shards, "fingerprint": images.fingerprint} | other
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _restore(
    run: Run, net: nn.Module, optimizer: torch.optim.Optimizer, images: Images
) -> tuple[State, Meter, list[str]]:
    """Continue from the newest sound checkpoint, if there is one; also a line for each unsound one.

    Raises Refused (4) if it comes from another configuration or other data.
    """
    found, complaints = run.on_main(lambda: checkpoint.latest(run.folder / "checkpoints"))
    if found and found["state"].get("origin") != _origin(run, images):
        where = run.folder / "checkpoints"
        raise Refused(f"{where} comes from another configuration, other data or an older oneloop; --fresh starts anew", 4)
    return *_take(run, net, optimizer, found), complaints


def _take(run: Run, net: nn.Module, optimizer: torch.optim.Optimizer, found: dict | None) -> tuple[State, Meter]:
    """Continue from the checkpoint `found`; from the beginning without one."""
    state, meter = State(), Meter(run.accelerator.device)
    if found:
        meter.loss += found["optimizer"].pop("log/loss").to(meter.loss.device)
        checkpoint.load_weights(net, found["model"])
        described = found["state"]
        checkpoint.load_optimizer_state(optimizer, net, found["optimizer"], described["optimizer"])
        for name, value in described["meter"].items():
            setattr(meter, name, value)
        if run.accelerator.scaler is not None:
            run.accelerator.scaler.load_state_dict(described["scaler"])
        state = State(**{name: described[name] for name in State.__dataclass_fields__ if name in described})
    return state, meter


@dataclass(frozen=True)
class Settings:
    """What the optimizer is told: the options of its `groups` at the start, and at each step the factor of their rates."""

    groups: list[dict]
    schedule: Callable[[float], float] | None
    steps: int  # of an epoch

    def sha256(self, steps: int) -> str:
        """Over the options, and the factors of the first `steps` steps."""
        factors = [self.schedule(step / self.steps) if self.schedule else 1.0 for step in range(steps)]
        return hashlib.sha256(json.dumps([self.groups, factors], default=str).encode()).hexdigest()


def _start_from_shorter(
    run: Run, net: nn.Module, optimizer: torch.optim.Optimizer, images: Images, start: str, settings: Settings
) -> tuple[State, Meter, list[str]]:
    """Continue where a shorter run of the same configuration ended, if one lies beside this; also what to say. Collective.

    `start` is the sha256 of the weights that this run begins with.
    """

    def unlike(record: Record, state: dict) -> str:
        """Why the shorter run is not the beginning of this one; "" if it is."""
        if why := shorter.other_code(record, run):
            return why
        if "settings" not in state or state["origin"] != _origin(run, images, epochs=record.options["epochs"]):
            return "its last checkpoint cannot be used"
        if state["start"] != start:
            return "it began with other weights"
        if state["settings"] != settings.sha256(state["step"]):
            return "the learning rate, or another option of the optimizer, depends on the number of epochs"
        return shorter.take_record(record, run, settings.steps)

    def begin() -> tuple[dict | None, list[str]]:
        first_reason: list[str] = []
        for record in shorter.beside(run.folder, run.config, run.shards, images.fingerprint):
            found, _ = checkpoint.latest(record.folder / "checkpoints")
            why = unlike(record, found["state"] if found else {})
            if not why:
                return found, shorter.remember(record, run)
            first_reason = first_reason or [f"starts from the beginning and not where {record.folder} ended: {why}"]
        return None, first_reason

    found, notes = run.on_main(begin)
    return *_take(run, net, optimizer, found), notes


def _save(
    run: Run,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Images,
    state: State,
    meter: Meter,
    settings: Settings | None,
) -> None:
    """`settings` are given with the last checkpoint: a longer run may start from it."""
    described = asdict(state) | {
        "origin": _origin(run, images),
        "optimizer": checkpoint.optimizer_scalars(optimizer, net),
        "meter": {name: getattr(meter, name) for name in ("images", "seconds", "train_seconds", "norm")},
        "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler is not None else {},
        **({"settings": settings.sha256(state.step)} if settings else {}),
    }

    def write() -> None:
        broken = [name for name, parameter in net.named_parameters() if not parameter.isfinite().all()]  # host-device sync
        if broken:
            raise Refused(
                f"{broken[0]} is not finite after step {state.step}, and was not saved. "
                "A smaller --lr is the usual cure; the last checkpoint is sound",
                3,
            )
        tensors = checkpoint.optimizer_state(optimizer, net) | {"log/loss": meter.loss}
        checkpoint.save(run.folder / "checkpoints", checkpoint.weights(net), tensors, described)

    run.on_main(write)


def _publish(run: Run, net: nn.Module, images: Images, name: str, sha256: str) -> None:
    """Write the net's weights, of this digest, into the run folder, with what their user needs to know."""
    about = {"recipe": run.recipe, "classes": images.classes, "mean": images.mean, "std": images.std}
    about |= {"shape": [*images.train.pixels.shape[1:]], "size": images.size}
    about |= {"net": run.config.get("net", type(net).__name__), "weights_sha256": sha256}
    checkpoint.write_tensors(run.folder / name, checkpoint.weights(net), {"oneloop": json.dumps(about)})


def _result(run: Run, net: nn.Module, facts: dict, state: State, meter: Meter, samples: int) -> dict:
    """What result.json holds, of a run with `samples` training images. Host-device sync."""
    return {
        "recipe": run.recipe,
        "net": run.config.get("net", facts["model"]),
        "parameters": facts["parameters"],
        "trainable": facts["trainable"],
        "epochs": state.epochs,
        "steps": state.step,
        **state.results,
        "best": state.best,
        "images_per_second": state.epochs * samples / max(meter.train_seconds, 1e-9),
        "seconds": state.seconds,
        "world_size": run.world,
        "precision": run.accelerator.mixed_precision,
        "weights_sha256": checkpoint.weights_sha256(checkpoint.weights(net)),
    }


def _show(run: Run, net: nn.Module, feed: Feed, images: Images, result: dict, draw: Callable[[Path], None] | None) -> None:
    """The recipe's own pictures and those of every run: main process only, nothing in it is collective."""
    if draw:
        draw(run.folder)
    if not run.quiet:
        from .record.show import show  # matplotlib takes half a second: only where it draws

        show(run, net, feed, images, result)
