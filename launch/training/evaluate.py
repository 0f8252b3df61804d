"""The chapter's validate (section 4.1), on any number of processes: every sample once, loss and accuracy."""

import math

import torch
import torch.distributed
from torch import Tensor, nn

from ..data.disk_feed import DiskSplit
from ..data.feed import Feed
from ..data.images import Images
from ..data.order import micro_batch_seed, order
from ..data.task import SEVERAL, THRESHOLD, measured, task_of
from ..errors import Refused
from ..processes import broadcast
from ..run import Run
from ..stop import Stop
from .job import Job
from .publish import best_weights
from .train_mode import buffers_kept, mode_kept

ENOUGH = 200  # training images on disk that are measured at the end, if there are fewer test images


def evaluate(run: Run, model: nn.Module, images: Images, split: str = "test") -> dict:
    """Loss (cross-entropy) and accuracy of `model` on a split of `images`, every sample once, in eval mode.

    Returns {"loss": float, "accuracy": float, "count": int}, the same on every process and for any number of them; also
    "balanced_accuracy", the mean of the classes' recalls, if the split has classes of uneven sizes. Of images with several
    labels it is binary cross-entropy, and in place of the accuracy what `measured` in launch/data/task.py has, at THRESHOLD.
    Collective: every process calls it. Raises Refused (3) for a loss that is not finite.
    """
    return _evaluate(run, model, images, split, THRESHOLD)


def evaluate_with_logits(
    run: Run, model: nn.Module, images: Images, split: str = "test", threshold: float = THRESHOLD
) -> tuple[dict, Tensor]:
    """Return what `evaluate` does, and the logits of all samples in order: float32 (N, classes) on the CPU, on every process."""
    outputs = list[tuple[Tensor, Tensor]]()
    result = _evaluate(run, model, images, split, threshold, outputs)
    return result, _gathered(run, outputs, result["count"], len(images.classes))


def validate(job: Job, stop: Stop) -> dict[str, dict] | None:
    """Evaluate what the end of this epoch needs: the results by split; None, on all processes, if one was asked to stop."""
    results: dict[str, dict] = {}
    for split in job.splits_to_evaluate(results):
        threshold = None
        if split not in ("ema", job.images.model_selection_split) or job.images.validation is None:
            threshold = results.get("validation", {}).get("threshold", THRESHOLD)
        with job.weights_of(split):
            feed, outputs = _feed_of(job, split), list[tuple[Tensor, Tensor]]()
            kept = outputs if feed is job.feeds["test"] and job.state.epochs + 1 == job.plan.epochs else None
            result = measure(job.run, job.net, feed, job.state.step, stop, job.plan.train_mode_batch, threshold, kept)
        if result is None:
            return None
        results[split] = result
        if kept is not None and not job.plan.train_mode_batch:  # not by its length: a process may have no batch
            job.logits[split] = _gathered(job.run, kept, result["count"], len(job.images.classes))  # collective
    return results


def _feed_of(job: Job, split: str) -> Feed:
    """What a split is measured on. Of training images on disk, as many as there are test images, the same for every seed.

    All of them would take a third of an epoch.
    """
    train, count = job.images.train, max(ENOUGH, len(job.images.test))
    if split != "train" or not isinstance(train, DiskSplit) or len(train) <= count:
        return job.feeds[split]
    return train.select(order(len(train), 0, 0)[:count].sort().values).feed(job.images, job.run.accelerator.device)


def measure_best(job: Job, stop: Stop) -> bool:
    """Measure the best weights on the test images, where others have chosen them: "test" of State.best. Collective.

    Says so if somebody deleted their file. Returns False, on all processes, if one was asked to stop.
    """
    run, best = job.run, job.state.best
    if job.images.model_selection_split == "test":
        return True
    if job.best_is_last:
        result: dict | None = job.state.results["test"]
    elif run.on_main(lambda: not (run.folder / "best.safetensors").exists()):  # collective
        gone = f"{run.folder / 'best.safetensors'} is gone: the best weights, of epoch {best['epoch']}, are lost"
        job.record.say(f"{gone}. The last ones are measured and used in their place")
        return True
    else:
        with best_weights(run, job.net, best):
            threshold = best.get("threshold", THRESHOLD)
            result = measure(run, job.net, job.feeds["test"], job.state.step, stop, job.plan.train_mode_batch, threshold)
    if result is not None:
        job.state.best = best | {"test": result}
    return result is not None


def _evaluate(
    run: Run, model: nn.Module, images: Images, split: str, threshold: float, outputs: list[tuple[Tensor, Tensor]] | None = None
) -> dict:
    """Return what `evaluate` does; `outputs` as for `measure`."""
    device = run.accelerator.device
    result = measure(run, model.to(device), getattr(images, split).feed(images, device), threshold=threshold, outputs=outputs)
    assert result is not None  # no Stop was passed
    return result


@torch.no_grad()
def measure(
    run: Run,
    net: nn.Module,
    feed: Feed,
    step: int = 0,
    stop: Stop | None = None,
    train_mode_batch: int = 0,
    threshold: float | None = THRESHOLD,
    outputs: list[tuple[Tensor, Tensor]] | None = None,
) -> dict | None:
    """Return what `evaluate` does, after `step` steps; None, on all processes, if any of them was asked to stop meanwhile.

    `train_mode_batch` is 0, or the size of the batches in which the net is measured in train mode, as the book did: the random
    numbers are the step's, the running statistics stay as they are. Several labels are measured at `threshold`; if it is None, at
    the one that suits these images best. `outputs` gets ids and logits of this process's batches.
    """
    task = task_of(feed.labels)
    if outputs is None and task is SEVERAL:
        outputs = []
    count, waited = len(feed.labels), feed.waited
    batches = feed.order(torch.arange(count)).split(train_mode_batch or feed.evaluation_batch)
    mine = range(run.rank, len(batches), run.world)
    broadcast(net.buffers(), run.world)  # running statistics are those of micro-batch 0, which the main process has
    rows, classes = len(batches) + 1, len(feed.uneven)
    numbers = torch.zeros(2 * rows + classes, device=run.accelerator.device)
    sums = numbers[: 2 * rows].view(rows, 2)  # (loss, correct) of each batch; the wish to stop
    correct_by_class = numbers[2 * rows :]
    with mode_kept(net), buffers_kept(net):
        net.train(train_mode_batch > 0)
        for number, (pixels, labels) in zip(mine, feed.stream(batches[number] for number in mine), strict=True):
            if train_mode_batch:
                torch.manual_seed(micro_batch_seed(run.seed, step, number))
            with run.accelerator.autocast():
                logits = net(pixels).float()
            if outputs is not None:
                outputs.append((batches[number], logits))
            sums[number, 0] = task.loss_sum(logits, labels)
            if task is not SEVERAL:
                right = logits.argmax(dim=1) == labels
                sums[number, 1] = right.sum()
            if classes:
                correct_by_class.index_add_(0, labels, right.float())
            if stop and stop.requested(step, number):
                sums[-1, 0] = 1
                break  # the others learn of it in the sum below, which every process comes to
    feed.waited = waited  # what is said of waiting is of the training's steps
    if run.world > 1:
        torch.distributed.all_reduce(numbers)  # collective: a batch has one process's numbers, plus zeros; counts are whole
    numbers = numbers.cpu()  # host-device sync
    *of_batches, (stopped, _) = numbers[: 2 * rows].view(rows, 2).tolist()
    if stopped:
        return None
    correct, loss = round(sum(correct for _, correct in of_batches)), math.fsum(loss for loss, _ in of_batches) / count
    if not math.isfinite(loss):
        raise Refused("the loss of the evaluation is not finite; a smaller --lr is the usual cure", 3, everywhere=True)
    if task is SEVERAL:
        assert outputs is not None
        logits = _gathered(run, outputs, count, feed.labels.shape[1])
        return {"loss": loss, **measured(logits, feed.labels.cpu(), threshold), "count": count}  # host-device sync
    result = {"loss": loss, "accuracy": correct / count, "count": count}
    if classes:
        recalls = [right / of for right, of in zip(numbers[2 * rows :].tolist(), feed.uneven, strict=True) if of]
        result["balanced_accuracy"] = math.fsum(recalls) / len(recalls)
    return result


def _gathered(run: Run, outputs: list[tuple[Tensor, Tensor]], count: int, classes: int) -> Tensor:
    """The logits of all `count` samples in order, float32 (count, classes) on the CPU, from those of each process. Collective."""
    logits = torch.zeros(count, classes, device=run.accelerator.device)
    for ids, batch_logits in outputs:
        logits[ids.to(logits.device)] = batch_logits
    if run.world > 1:
        torch.distributed.all_reduce(logits)  # collective: each row is one process's, plus zeros
    return logits.cpu()  # host-device sync
