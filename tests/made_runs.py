"""Run folders as `train` leaves them, written in a moment instead of trained."""

import json
from pathlib import Path

from launch.report.compare import Comparison, compare
from launch.report.runs import find


def write_run(
    folder: Path, accuracies=(0.7, 0.8), *, finished=True, seed=1, stage="", stopped=None, started=10, validation=(), **options
):
    """Write a run folder of 100 images as `train` leaves it, with test accuracies by epoch; training accuracy is 0.1 higher.

    `validation` are validation accuracies by epoch: then the test images are measured after the last epoch only.
    """
    inner = folder / stage
    inner.mkdir(parents=True, exist_ok=True)
    config = {"recipe": "mine", "net": "Net", "epochs": 2, "batch": 50, "data": "hub", "micro_batches": 0, "seed": seed} | options
    machine = {"device": "cpu", "world_size": 1, "threads": 1, "precision": "no"}
    environment = {"started": f"2026-01-01T{started:02}:00:00+0000", **machine}
    data = {"fingerprint": "61" * 32, "train": 100}
    about = {"format": 1, "config": config, "micro_batches": 1, "parameters": 7, "resumed": [], "data": data, **environment}
    (folder / "config.json").write_text(json.dumps(about))
    events = []
    for epoch, accuracy in enumerate(accuracies, 1):
        head = {"step": 2 * epoch, "epoch": epoch, "images": 100 * epoch}
        clock = {"images_per_second": 50.0 * epoch, "seconds": 10.0 * epoch}
        events.append({"event": "train", **head, "loss": 1 - accuracy, **clock})
        if validation:
            choosing = validation[epoch - 1]
            events.append({"event": "eval", **head, "split": "validation", "loss": 2 - choosing, "accuracy": choosing})
        if not validation or (finished and epoch == len(accuracies)):
            events.append({"event": "eval", **head, "split": "test", "loss": 2 - accuracy, "accuracy": accuracy})
    (inner / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if finished:
        end = {"test": {"accuracy": accuracy, "loss": 2 - accuracy}, "train": {"accuracy": accuracy + 0.1, "loss": 0.0}}
        best = {"accuracy": max(accuracies), "epoch": 1}
        if validation:
            place = validation.index(max(validation))
            best = {"accuracy": validation[place], "epoch": place + 1, "test": {"accuracy": accuracies[place], "loss": 0.0}}
            end["validation"] = {"accuracy": validation[-1], "loss": 0.0}
        end |= {"net": "Net", "parameters": 7, "epochs": 2, "best": best, "images_per_second": 60.0, "seconds": 21.0}
        (inner / "result.json").write_text(json.dumps(end))
    if stopped:
        (folder / "stopped.json").write_text(json.dumps({"code": stopped, "why": "it was so"}))
    return folder


def write_two_designs(runs: Path) -> None:
    """Two designs in the folder `runs`: a1, a2 and b1 are finished, b2 was interrupted."""
    for seed in (1, 2):
        write_run(runs / f"a{seed}", (0.7, 0.8 if seed == 1 else 0.9), seed=seed, started=10)
    write_run(runs / "b1", (0.6, 0.7), net="a|b", started=12)
    write_run(runs / "b2", (0.5,), net="a|b", seed=2, finished=False, started=11)


def compared(place: Path) -> Comparison:
    comparison, complaints = compare(find([place]))
    assert complaints == []
    return comparison
