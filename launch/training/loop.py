"""The only loop: document 000's training_loop and validate (sections 4 and 4.1), on any number of processes.

All that a step depends on is a function of (seed, step): the samples, the learning rate, and the random numbers that a net draws.
Hence a checkpoint is parameters, buffers, optimizer and step, and a run resumes from it as if nothing had happened.

One update is `launch.training.step`; what surrounds it (resume, lines, checkpoints, the end) is `launch.training.job`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.augment import Augment
from ..data.disk_feed import DiskFeed
from ..data.images import AnyFeed, Images, feed_of
from ..data.mix import Mix
from ..data.order import micro_batch_seed
from ..errors import Refused
from ..processes import Stop, any_process, broadcast, lost_process
from ..run import Run
from .begin import begin
from .finish import finish, reset_for_next_stage
from .job import Job, Plan
from .profiler import profiled
from .publish import best_weights
from .schedules import Schedule
from .step import Loss, Step
from .train_mode import buffers_kept, mode_kept


def train(
    run: Run,
    model: nn.Module,
    images: Images,
    optimizer: torch.optim.Optimizer,
    loss: Loss = F.cross_entropy,
    *,
    epochs: int,
    batch: int,
    schedule: Schedule | None = None,
    shuffle: bool = True,
    augment: Augment | Sequence[Augment] = (),
    mix: Mix | None = None,
    clip: float = 0.0,
    ema: float = 0.0,
    patience: int = 0,
    measured_in: Literal["eval", "train"] = "eval",
    draw: Callable[[Path], None] | None = None,
    stage: str = "",
) -> dict:
    """Train `model` on `images.train`, evaluate it on `images.test`, leave everything in the run folder.

    With `run.validation`, or `images.validation`, each evaluation measures the validation images, and these choose the best
    weights. The test images are measured at the end only: with the last weights, and with the best ("test" of "best").

    `loss` maps logits (n, classes) and labels int64 (n,) to the mean over those n; a step minimises its mean over the global
    batch of `batch` images, also when the last one is shorter. Without a `schedule` (schedules.py) the learning rates are
    constant. Without `shuffle` every epoch sees the images as they come. `augment` is applied to the training images in batch,
    one or several in their order (launch.data.augment); `mix` mixes them, and `loss` gets labels float (n, classes) then
    (launch.data.mix). `clip` is the norm that gradients are clipped to, 0: none. With `ema`, a decay such as 0.999, a moving
    average of the weights is kept (launch.training.ema): it is evaluated beside the net, chooses the best epoch and is its best.
    With `patience` the training ends when that many epochs have brought no better accuracy.

    `measured_in` "train" evaluates as the book did, with dropout and the batch's own statistics, in batches of `batch`. `draw` is
    called at the end, on the main process, with the run folder; the PNG files that it writes there also go to report.html and to
    W&B. A recipe that trains several times names each `stage`: it has a folder of its own in the run's, and a finished one is not
    trained again: net and optimizer are as it left them.

    Returns what result.json holds. Collective: every process calls it with the same arguments and ends with the same weights.
    Raises Refused: a process lost (1), wrong numbers or net (2), non-finite loss or weights (3), mismatch (4), folder in use (5),
    out of time (75), stopped by a signal (130, 138, 143).
    """
    plan = Plan(epochs, batch, schedule, shuffle, mixed=mix is not None, patience=patience, stage=stage)
    job = begin(run, model, images, optimizer, plan, ema)
    if job.result is not None:  # already finished: net and optimizer are restored to their final state
        return job.result
    run, net, state = job.run, job.net, job.state  # the run, or its stage
    train_mode_batch = batch if measured_in == "train" else 0  # as the book measured
    augments = [augment] if callable(augment) else augment
    options = augments, mix, len(job.images.classes), clip, job.average
    step = Step(run, net, job.feeds["train"], optimizer, loss, *options)

    with (
        lost_process(run.world, run.accelerator.device.type, lambda: state.step),
        job.track() as track,
        Stop(run.stop_when, run.max_seconds) as stop,
        profiled(run, step, track.say) as after_step,
    ):
        step.warm_up(batch, state.step)  # collective
        for epoch in job.epochs_left():
            net.train()
            for ids in job.batches_left():
                job.set_learning_rates()
                job.meter.start()
                # Zero the gradients, forward, loss, backward, optimizer.step: see launch/training/step.py.
                batch_loss, stopping = step(ids, epoch, state.step, stop.requested(state.step))
                job.count(batch_loss, len(ids))
                after_step()
                track.progress(state.step, f"epoch {epoch + 1}/{epochs}")
                if job.within_epoch and job.due(run.log_every):
                    step.check(state.step)
                    job.write_train_line()
                if stopping or (job.within_epoch and job.due(run.save_every)):
                    job.save(step)
                if stopping:
                    raise stop.refusal(run.folder, state.step)

            # All steps of this epoch are done; a run stopped here resumes with its evaluation.
            reading = job.meter.read(net)  # host-device sync
            step.check(state.step)
            results: dict[str, dict] = {}
            for split in job.splits_due(results):
                with job.weights_of(split):
                    result = _validate(run, net, job.feeds[split], state.step, stop, train_mode_batch)
                if result is None:
                    job.save(step)
                    raise stop.refusal(run.folder, state.step)
                results[split] = result
            job.close_epoch(reading, results)
            if job.save_due():
                job.save(step)
        if job.images.chooser != "test":
            tested = _test_best(job, stop, train_mode_batch)
            if tested is None:  # the last checkpoint has everything else
                raise stop.refusal(run.folder, state.step)
            state.best = state.best | ({"test": tested} if tested else {})
        result = finish(job, draw)
        if stage and any_process(stop.requested(state.step), run.world, run.accelerator.device):
            raise stop.refusal(run.folder, state.step)
    step.restore_batch_norm()
    reset_for_next_stage(job)
    return result


def evaluate(run: Run, model: nn.Module, images: Images, split: str = "test") -> dict:
    """Loss (cross-entropy) and accuracy of `model` on a split of `images`, every sample once, in eval mode.

    Returns {"loss": float, "accuracy": float, "count": int}, the same on every process and for any number of them; also
    "balanced_accuracy", the mean of the classes' recalls, if the split has classes of uneven sizes.
    Collective: every process calls it. Raises Refused (3) for a loss that is not finite.
    """
    return _evaluate(run, model, images, split)


def evaluate_with_logits(run: Run, model: nn.Module, images: Images, split: str = "test") -> tuple[dict, Tensor]:
    """As `evaluate`, and the logits of the split's samples in order: float32 (N, classes) on the CPU, on every process."""
    device, outputs = run.accelerator.device, list[tuple[Tensor, Tensor]]()
    result = _evaluate(run, model, images, split, outputs)
    logits = torch.zeros(result["count"], len(images.classes), device=device)
    for ids, found in outputs:
        logits[ids.to(device)] = found
    if run.world > 1:
        torch.distributed.all_reduce(logits)  # collective: each row is one process's, plus zeros
    return result, logits.cpu()  # host-device sync


def _evaluate(run: Run, model: nn.Module, images: Images, split: str, outputs: list[tuple[Tensor, Tensor]] | None = None) -> dict:
    """As `evaluate`; `outputs` as for `_validate`."""
    device = run.accelerator.device
    result = _validate(run, model.to(device), feed_of(getattr(images, split), images, device), outputs=outputs)
    assert result is not None  # no Stop was passed
    return result


def _test_best(job: Job, stop: Stop, train_mode_batch: int) -> dict | None:
    """The best weights on the test images: as `_validate`; empty, with a line, if somebody deleted their file. Collective."""
    if job.best_is_last:
        return job.state.results["test"]
    if job.run.on_main(lambda: not (job.run.folder / "best.safetensors").exists()):  # collective
        gone = f"{job.run.folder / 'best.safetensors'} is gone: the best weights, of epoch {job.state.best['epoch']}, are lost"
        job.record.say(f"{gone}. The last ones are measured and used in their place")
        return {}
    with best_weights(job.run, job.net, job.state.best):
        return _validate(job.run, job.net, job.feeds["test"], job.state.step, stop, train_mode_batch)


@torch.no_grad()
def _validate(
    run: Run,
    net: nn.Module,
    feed: AnyFeed,
    step: int = 0,
    stop: Stop | None = None,
    train_mode_batch: int = 0,
    outputs: list[tuple[Tensor, Tensor]] | None = None,
) -> dict | None:
    """As `evaluate`, after `step` steps; None, on all processes, if any of them was asked to stop meanwhile.

    `train_mode_batch` is 0, or the size of the batches in which the net is measured in train mode, as the book did: the random
    numbers are the step's, the running statistics stay as they are. `outputs` gets ids and logits of this process's batches.
    """
    count, waited = len(feed.labels), getattr(feed, "waited", 0.0)
    parts = feed.order(torch.arange(count)).split(train_mode_batch or feed.batches)
    feed.expect(parts[run.rank :: run.world])
    broadcast(net.buffers(), run.world)  # running statistics are those of micro-batch 0, which the main process has
    rows, classes = len(parts) + 1, len(feed.uneven)
    numbers = torch.zeros(2 * rows + classes, device=run.accelerator.device)
    sums = numbers[: 2 * rows].view(rows, 2)  # (loss, correct) of each batch; the wish to stop
    correct_by_class = numbers[2 * rows :]
    with mode_kept(net), buffers_kept(net):
        net.train(train_mode_batch > 0)
        for number in range(run.rank, len(parts), run.world):
            if train_mode_batch:
                torch.manual_seed(micro_batch_seed(run.seed, step, number))
            pixels, labels = feed.batch(parts[number])
            with run.accelerator.autocast():
                logits = net(pixels).float()
            if outputs is not None:
                outputs.append((parts[number], logits))
            sums[number, 0] = F.cross_entropy(logits, labels, reduction="sum")
            right = logits.argmax(dim=1) == labels
            sums[number, 1] = right.sum()
            if classes:
                correct_by_class.index_add_(0, labels, right.float())
            if stop and stop.requested(step, number):
                sums[-1, 0] = 1
                break  # the others learn of it in the sum below, which every process comes to
    if isinstance(feed, DiskFeed):
        feed.waited = waited  # what is said of waiting is of the training's steps
    if run.world > 1:
        torch.distributed.all_reduce(numbers)  # collective: a batch has one process's numbers, plus zeros; counts are whole
    numbers = numbers.cpu()  # host-device sync
    *batches, (stopped, _) = numbers[: 2 * rows].view(rows, 2).tolist()
    if stopped:
        return None
    correct, loss = round(sum(correct for _, correct in batches)), math.fsum(loss for loss, _ in batches) / count
    if not math.isfinite(loss):
        raise Refused("the loss of the evaluation is not finite; a smaller --lr is the usual cure", 3, everywhere=True)
    result = {"loss": loss, "accuracy": correct / count, "count": count}
    if classes:
        recalls = [right / of for right, of in zip(numbers[2 * rows :].tolist(), feed.uneven, strict=True) if of]
        result["balanced_accuracy"] = math.fsum(recalls) / len(recalls)
    return result
