"""The only loop: training_loop of DLwPT ch. 8 (section 4), on any number of processes; its validate is in evaluate.py.

All that a step depends on is a function of (seed, step): the samples, the learning rate, and the random numbers that a net draws.
Hence a checkpoint is parameters, buffers, optimizer and step, and a run resumes from it as if nothing had happened.

One update is `launch.training.step`; what surrounds it (resume, lines, checkpoints) is `launch.training.job`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ..data.augment import Augment
from ..data.images import Images
from ..data.mix import Mix
from ..memory import give_back_freed_memory
from ..processes import any_process, lost_process
from ..run import Run
from ..stop import Stop
from .begin import begin
from .evaluate import measure_best, validate
from .finish import finish, reset_for_next_stage
from .job import Plan
from .profiler import profiled
from .schedules import Schedule
from .step import Loss, Step


def train(
    run: Run,
    model: nn.Module,
    images: Images,
    optimizer: torch.optim.Optimizer,
    loss: Loss | None = None,
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
    plots: Callable[[Path], None] | None = None,
    stage: str = "",
) -> dict:
    """Train `model` on `images.train`, evaluate it on `images.test`, leave everything in the run folder.

    With `run.validation`, or `images.validation`, each evaluation measures the validation images, and these choose the best
    weights. The test images are measured at the end only: with the last weights, and with the best ("test" of "best").

    `loss` maps logits (n, classes) and labels int64 (n,) to the mean over those n; a step minimises its mean over the global
    batch of `batch` images, also when the last one is shorter. By default it is cross-entropy; for images with several labels,
    uint8 (n, classes), it is binary cross-entropy (launch/data/task.py), and mean average precision stands for accuracy.
    Without a `schedule` (schedules.py) the learning rates are constant. Without `shuffle` every epoch sees the images as they
    come. `augment` is applied to the training images in batch, one or several in their order (launch.data.augment); `mix` mixes
    them, and `loss` gets labels float (n, classes) then
    (launch.data.mix). `clip` is the norm that gradients are clipped to, 0: none. With `ema`, a decay such as 0.999, a moving
    average of the weights is kept (launch.training.ema): it is evaluated beside the net, chooses the best epoch and is its best.
    With `patience` the training ends when that many epochs have brought no better accuracy.

    `measured_in` "train" evaluates as DLwPT did, with dropout and the batch's own statistics, in batches of `batch`. `plots`
    is called at the end, on the main process, with the run folder; the PNG files that it writes there also go to report.html and
    to W&B. A recipe that trains several times names each `stage`: it has a folder of its own in the run's, and a finished one is
    not trained again: net and optimizer are as it left them.

    Returns what result.json holds. Collective: every process calls it with the same arguments and ends with the same weights.
    Raises Refused: a process lost (1), wrong numbers or net (2), non-finite loss or weights (3), mismatch (4), folder in use (5),
    out of time (75), stopped by a signal (130, 138, 143).
    """
    augments = [augment] if callable(augment) else augment
    train_mode_batch = batch if measured_in == "train" else 0  # as the chapter measured
    plan = Plan(epochs, batch, schedule, shuffle, augments, mix, patience, train_mode_batch, stage)
    job = begin(run, model, images, optimizer, plan, ema)
    if job.result is not None:  # already finished: net and optimizer are restored to their final state
        return job.result
    run, net, state = job.run, job.net, job.state  # the run, or its stage
    step = Step(run, net, job.training_feed, optimizer, loss or images.task.loss, clip, job.average)

    with (
        lost_process(run.world, run.accelerator.device.type, lambda: state.step),
        job.track() as track,
        Stop(run.stop_when, run.max_seconds) as stop,
        profiled(run, step, track.say) as profile_step,
    ):
        step.warm_up(batch, state.step)  # collective
        for epoch in job.epochs_left():
            net.train()
            for global_batch in job.batches():
                # Zero the gradients, forward, loss, backward, optimizer.step: see launch/training/step.py.
                batch_loss, stopping = step(global_batch, stop.requested(state.step))
                job.after_step(batch_loss, len(global_batch.ids))
                profile_step()
                track.progress(state.step, f"epoch {epoch + 1}/{epochs}")
                if job.within_epoch and job.every(run.log_every):
                    job.write_train_line(step)
                if stopping or (job.within_epoch and job.every(run.save_every)):
                    job.save(step)
                if stopping:
                    raise stop.refusal(run.folder, state.step)

            # All steps of this epoch are done; a run stopped here resumes with its evaluation.
            reading = job.read_meter(step)  # host-device sync
            results = validate(job, stop)
            if results is None:
                job.save(step)
                raise stop.refusal(run.folder, state.step)
            job.close_epoch(reading, results)
            if job.save_due():
                job.save(step)
                give_back_freed_memory()  # seldom: pages come back at a price
        if not measure_best(job, stop):  # the last checkpoint has everything else
            raise stop.refusal(run.folder, state.step)
        result = finish(job, plots)
        if stage and any_process(stop.requested(state.step), run.world, run.accelerator.device):
            raise stop.refusal(run.folder, state.step)
    step.running.restore()
    reset_for_next_stage(job)
    return result
