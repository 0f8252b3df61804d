"""The end of a training: its weights, its plots and its result, in the run folder."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .. import processes
from ..data.disk_feed import DiskSplit
from ..data.feed import Feed
from ..report import predictions
from ..report.runs import WORDS, tested, used
from ..weights.tensors import whole_of
from .job import Job
from .publish import best_weights, publish

EVALUATED = {"best": "test", "last": "test", "ema": "ema"}  # which of the last epoch's evaluations measured these weights
WORTH_SAYING = 0.1  # of the time of the training


def finish(job: Job, plots: Callable[[Path], None] | None) -> dict:
    """Publish the weights, draw the plots, record the result, which this returns. Collective."""
    run, state = job.run, job.state
    state.seconds = time.perf_counter() - job.began
    if run.world > 1:
        processes.set_timeout(processes.START_SECONDS)  # while the main process draws
    thresholds = {split: result.get("threshold") for split, result in state.results.items()}
    digest = publish(run, job.net, job.images, "model.safetensors", threshold=thresholds["test"])
    if job.average:
        with job.weights_of("ema"):
            publish(run, job.net, job.images, "ema.safetensors", threshold=thresholds["ema"])
    result = {
        "recipe": run.recipe,
        "net": run.config.get("net", job.facts["model"]),
        "parameters": job.facts["parameters"],
        "trainable": job.facts["trainable"],
        "epochs": state.epochs,
        "steps": state.step,
        **state.results,
        "best": state.best,
        "images_per_second": state.epochs * job.samples / max(job.meter.train_seconds, 1e-9),
        "seconds": state.seconds,
        "world_size": run.world,
        "precision": run.accelerator.mixed_precision,
        "weights_sha256": digest,
    }
    waited = job.waited / max(job.meter.train_seconds - job.trained_before, 1e-9)
    if waited > WORTH_SAYING and job.feeds["train"].threads:
        job.record.say(f"{waited:.0%} of the training's time was waiting for images{_cure(job.feeds['train'])}")
    if state.epochs < job.plan.epochs:
        job.record.say(f"ended early: no better {WORDS[job.images.task.measure]} since epoch {state.best['epoch']}")
    result["weights"] = used(result)
    with _weights(job, result["weights"]):  # collective
        job.record.finish(result, lambda: _show(job, result, plots))
    run.record(result)  # last, as the mark of a finished run: what is killed before shows itself when it resumes
    return result


def _cure(feed: Feed) -> str:
    """Say what took the threads' time, and what helps."""
    more = "more cores" if feed.threads >= processes.cores() else "more --threads"
    if slow := feed.slow_augmentations():
        return f", most of it for {slow}: a lighter augmentation (recipes/custom.py: --augment crop), or {more}"
    return f": {more}, a smaller --cache-size, or a larger ONELOOP_STORED_GIB if not all are stored"


def _weights(job: Job, name: str) -> contextlib.AbstractContextManager[None]:
    """Context manager: temporarily load the weights called `name`, "last", "ema" or "best". Collective."""
    if name == "best" and not job.best_is_last:
        return best_weights(job.run, job.net, job.state.best)
    return job.weights_of("ema" if name == "ema" else "test")


def reset_for_next_stage(job: Job) -> None:
    """Reset what the next stage sees, so that it does not depend on when, or on how many processes, this one ran."""
    torch.manual_seed(job.run.seed)
    for group, rate in zip(job.optimizer.param_groups, job.rates, strict=True):
        group["lr"] = rate
    if job.plan.stage:
        job.run.accelerator.free_memory()  # it holds every net that it has prepared


def _show(job: Job, result: dict, plots: Callable[[Path], None] | None) -> None:
    """The recipe's own plots and those of every run: main process only, nothing in it is collective."""
    if plots:
        plots(job.run.folder)
    logits = None if result["weights"] == "best" and not job.best_is_last else job.logits.get(EVALUATED[result["weights"]])
    if not job.run.quiet:
        from ..report import show  # matplotlib takes half a second: only where it draws

        feeds = job.feeds
        show.show(job.run, job.net, feeds["test"], job.images, result, feeds.get("validation"), whole_of(job.net), logits)
    elif isinstance(job.images.test, DiskSplit):  # a fold's, whose predictions are put together with others
        logits = predictions.logits_of(job.run, job.net, job.feeds["test"]) if logits is None else logits
        predictions.write(job.run.folder, logits, job.images, tested(result).get("threshold"))
