"""Profile of a step: a trace for Perfetto, and ten lines of text."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..run import Run
from .step import Step

SKIPPED, TRACED = 5, 10  # steps of a launch: the first ones start up
OPERATORS = 5  # that are named
PARTS = {"data": "batch and augmentation", "forward": "forward", "loss": "loss", "backward": "backward", "optimizer": "optimizer"}


@contextlib.contextmanager
def profiled(run: Run, step: Step, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """With `run.profile`, the main process traces some steps of this launch; call what this yields after each step.

    Writes profile.json into the run folder and says where the time went. No step is captured as a CUDA graph then.
    """
    if not run.profile or run.rank:
        yield lambda: None
        return
    made, path = 0, run.folder / "profile.json"
    step.captured, step.named = None, record_function  # not always: it takes some µs for each part, also outside a profile
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else it reports that there is no GPU
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    tracer = profile(activities=activities)

    def after_step() -> None:
        nonlocal made
        made += 1
        if made == SKIPPED:
            tracer.start()
        if made == SKIPPED + TRACED:
            tracer.stop()
            tracer.export_chrome_trace(str(path))
            for line in _report(tracer):
                say(line)
            say(f"{path}: open it at https://ui.perfetto.dev")

    yield after_step
    if made < SKIPPED + TRACED:
        say(f"no profile: it takes {SKIPPED + TRACED} steps in one launch, and there were {made}")
        if made >= SKIPPED:
            tracer.stop()


def _report(tracer: profile) -> Iterator[str]:
    """Ten lines: the mean time of a step, its parts, and the operators that took the most time."""
    events = tracer.events() or []
    starts = [event.time_range.start for event in events if event.name == "data"]
    end = max(event.time_range.end for event in events)
    whole = (end - min(starts)) / TRACED if starts else 0.0  # µs
    yield f"a step takes {whole / 1000:.2f} ms (mean of {TRACED}):"
    left = whole
    for name, title in PARTS.items():
        took = sum(event.time_range.elapsed_us() for event in events if event.name == name) / TRACED
        left -= took
        yield f"  {took / 1000:8.2f} ms {took / whole:6.1%}  {title}"
    yield f"  {max(left, 0.0) / 1000:8.2f} ms {max(left, 0.0) / whole:6.1%}  everything else"
    averages = [event for event in tracer.key_averages() if event.key not in PARTS and not event.key.startswith("Optimizer.")]

    def own_time(event: Any) -> float:
        return max(event.self_device_time_total, event.self_cpu_time_total)

    for event in sorted(averages, key=own_time, reverse=True)[:OPERATORS]:
        took = own_time(event) / TRACED
        yield f"  {took / 1000:8.2f} ms {took / whole:6.1%}  of it in {event.key}, {event.count // TRACED} times"
