"""report.html: a run's configuration, result and plots on one page, which opens from disk and loads nothing from elsewhere.

The page shows every PNG in the run folder; PLOTS has the captions. Layout and style are in launch/templates/.
"""

import base64
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..templates.render import render
from .compare import compare
from .runs import WORDS, command, describe, home, measure_of, recorded_json, stages, tested, used

PLOTS = {  # file -> caption, in the order of the page
    "curves": "Loss and {measure} by epoch. The ring marks the best epoch, which the {selecting} images chose",
    "confusion": "Test images by true class (rows) and predicted class (columns), in eval mode, {weights}",
    "labels": "Average precision of each label, and F1 at the threshold, on the test images, {weights}",
    "kernels": "The first layer's kernels, on a common scale",
}
USED = {"best": "with the best weights", "ema": "with the average of the weights", "last": "with the last weights"}
SCORES = {
    "f1": "mean F1",
    "exact": "images without a mistake",
    "top_5": "top-5 accuracy",
    "calibration_error": "calibration error",
}


def write(folder: Path, result: dict) -> Path:
    """Write report.html into the folder of a run or stage, from `result` and the files there. Raises OSError."""
    page = render("run.html", _content(folder, result))
    write_atomically(path := folder / "report.html", page)
    return path


def _content(folder: Path, result: dict) -> dict[str, Any]:
    place, recorded = home(folder)
    ours = [folder / f"{name}.png" for name in PLOTS]
    plots = [*filter(Path.exists, ours), *sorted({*folder.glob("*.png")} - {*ours, folder / "mistakes.png"})]
    stage = folder.resolve().relative_to(place).parts
    selecting = "validation" if "validation" in result else "test"
    measure = WORDS[measure_of(result.get("test", {}))]
    weights = USED[used(result)] if "test" in result and "best" in result else ""
    captions = {name: caption.format(selecting=selecting, weights=weights, measure=measure) for name, caption in PLOTS.items()}
    return {
        "title": " · ".join((result["recipe"], *([result["net"]] if "net" in result else []), *stage)),
        "summary": describe(result),
        "plots": [
            (path.stem, captions.get(path.stem, "Drawn by the recipe"), base64.b64encode(path.read_bytes()).decode())
            for path in plots
        ],
        **(_several(folder) if stages(folder) else _one(folder, result)),
        "tables": {
            "Configuration": {
                key: _text(value) for key, value in (recorded["config"] | {"micro_batches": recorded["micro_batches"]}).items()
            },
            "Data": {key: _text(value) for key, value in recorded["data"].items()},
            "Environment": {
                **{name: recorded[name] for name in ("device", "world_size", "threads", "precision", "started", "git")},
                **recorded["versions"],
            },
            "Result": {key: _text(value) for key, value in result.items() if key != "stages"},
        },
        "command": command(recorded),
        "resumed": [launch["started"] for launch in recorded["resumed"]],
    }


def _one(folder: Path, result: dict) -> dict[str, Any]:
    """The parts that only the page of one training has."""
    shown = recorded_json(folder / "predictions.json")
    calibration = shown.get("calibration", {})  # runs before 0.3 have none
    test, best = tested(result), result["best"]
    on, measure = " on validation" if "validation" in result else "", measure_of(test)
    multi_label = "labels" in shown
    return {
        "figures": {
            f"test {WORDS[measure]}": f"{test[measure]:.4f}",
            **({"balanced": f"{test['balanced_accuracy']:.4f}"} if "balanced_accuracy" in test else {}),
            "test loss": f"{test['loss']:.4f}",
            **{name: f"{shown['scores'][key]:.4f}" for key, name in SCORES.items() if key in shown["scores"]},
            **_calibrated(calibration),
            f"best{on}, epoch {best['epoch']}": f"{best[measure]:.4f}",
            "epochs": f"{result['epochs']:,}",
            "parameters": f"{result['parameters']:,}",
            "images/s": f"{result['images_per_second']:,.0f}",
            "seconds": f"{result['seconds']:,.1f}",
        },
        **(_of_labels(shown) if multi_label else _of_classes(shown, test["count"])),
        "trainings": None,
    }


def _of_labels(shown: dict) -> dict[str, Any]:
    """The parts about images with several labels each."""
    names = ("average_precision", "f1", "precision", "recall")
    return {
        "labels": [
            (name, of["count"], *(f"{of[key]:.4f}" if of["count"] else "–" for key in names))
            for name, of in zip(shown["classes"], shown["labels"], strict=True)
        ],
        "threshold": f"{shown['threshold']:.3g}",
        "mistakes": [_with_labels(mistake, shown) for mistake in shown["mistakes"]],
        "wrong": shown["images_wrong"],
    }


def _with_labels(mistake: dict, shown: dict) -> dict:
    """A mistake with the names of its labels, as `_named`."""
    words = {
        key: ", ".join(f"{shown['classes'][number]} {probability:.2f}" for number, probability in mistake[key])
        for key in ("missed", "wrong")
    }
    return mistake | words | _file(mistake, shown)


def _of_classes(shown: dict, count: int) -> dict[str, Any]:
    """The parts about images with one label each, of which `count` were tested."""
    calibration, classes = shown.get("calibration", {}), shown["classes"]
    return {
        "classes": [
            (name, sum(row), row[index], f"{row[index] / max(sum(row), 1):.1%}", f"{of['precision']:.1%}", f"{of['f1']:.1%}")
            for index, (name, row, of) in enumerate(zip(classes, shown["counts"], shown["scores"]["classes"], strict=True))
        ],
        "mistakes": [_named(mistake, classes, shown) for mistake in shown["mistakes"]],
        "confused": _confused(shown),
        "thresholds": [
            (f"{row['threshold']:g}", f"{row['coverage']:.1%}", "–" if row["accuracy"] is None else f"{row['accuracy']:.1%}")
            for row in calibration.get("thresholds", [])
        ],
        "wrong": count - sum(row[index] for index, row in enumerate(shown["counts"])),
    }


def _named(mistake: dict, classes: list[str], shown: dict) -> dict:
    """A mistake with the names of its classes, the path of its file, and the file's address if it is there."""
    return mistake | {key: classes[mistake[key]] for key in ("true", "predicted")} | _file(mistake, shown)


def _file(mistake: dict, shown: dict) -> dict[str, str]:
    path = mistake.get("path", "")
    file = Path(shown.get("source", ""), path).absolute()
    try:
        address = file.as_uri() if path and file.is_file() else ""
    except (OSError, ValueError):  # a name that no file can have
        address = ""
    return {"path": path, "address": address}


def _confused(shown: dict) -> list[tuple[str, str, int, list[dict]]]:
    """The pairs of classes that were taken for each other, most often first: true, predicted, how often, and the mistakes."""
    classes, pairs = shown["classes"], defaultdict(list)
    for mistake in shown.get("wrong", []):  # runs before 0.3 have none
        if mistake.get("path"):
            pairs[mistake["true"], mistake["predicted"]].append(_named(mistake, classes, shown))
    found = [(classes[true], classes[guess], shown["counts"][true][guess], of) for (true, guess), of in pairs.items()]
    return sorted(found, key=lambda pair: -pair[2])


def _calibrated(calibration: dict) -> dict[str, str]:
    """The figure of the calibration error after its correction, where validation images fitted one."""
    if (temperature := calibration.get("temperature", 1.0)) == 1:
        return {}
    return {f"the same at temperature {temperature:.2f}": f"{calibration['calibration_error']:.4f}"}


def _several(folder: Path) -> dict[str, Any]:
    """The part that only the page of a run with several stages has: their comparison."""
    compared, _ = compare([folder])
    return {"figures": {}, "trainings": compared.table()}


def _text(value: Any) -> str:
    """A table's value as text: a list as its items, a dict as its keys and values."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)
