"""README.md of a published folder: a model card with what was trained, on what, how well, and how to load it."""

import html
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import printable, public_address
from ..report.runs import Record, tested, used
from .loaded import Checked

SHOWN = 20  # classes of the confusion matrix
Z = 1.959964  # of a normal distribution's 95 %
HIDDEN = ("recipe", "data", "source", "split", "sha256", "limit")  # options that are told elsewhere, or name files of a machine


def card(record: Record, about: dict, result: dict, shown: dict | None, licence: str, checked: Checked | None) -> str:
    """The card, in Markdown.

    `about` is what the weights say of their net, `result` of the training, `shown` of its predictions.json; `checked`: how the
    folder does in timm and transformers, None for a net of neither.
    """
    data, name = record.config["data"], printable(about["net"])
    source = printable(public_address(str(data["source"]))).rstrip("/").rpartition("/")[2] or "images"
    lines = [
        "---",
        f"license: {json.dumps(licence)}",
        "pipeline_tag: image-classification",
        *(["library_name: timm"] if checked else []),
        "tags: [image-classification, oneloop]",
        "---",
        "",
        f"# {_safe(name)} for {len(about['classes']):,} classes",
        "",
        f"{_safe(name)}, {result['parameters']:,} parameters, trained by oneloop {record.config['versions']['oneloop']}.",
        f"It tells apart: {_some(about['classes'])}.",
        "",
        "## Data",
        "",
        f"{_safe(source)}: {_counts(data)} images. sha256 of classes, images and labels: `{data['fingerprint'][:16]}`.",
        "",
        "## Accuracy",
        "",
        *_accuracy(result, shown, checked),
        "",
        *_loading(about, checked),
        "",
        "## Limits",
        "",
        "- It knows these classes only: an image of anything else gets one of them.",
        "- The accuracy is that of images like those it was trained on.",
        *(["- The stand-in images of this recipe are drawings."] if data["source"] == "synthetic" else []),
        "",
        "## Settings",
        "",
        *_table(("option", "value"), ((key, _text(value)) for key, value in record.options.items() if key not in HIDDEN)),
        "",
        f"{result['epochs']:,} epoch{'s' * (result['epochs'] != 1)}, {_weights(result)}.",
        "",
        f"## Licence\n\n{_safe(licence)}",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def interval(accuracy: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy measured on `count` images."""
    middle = accuracy + Z**2 / (2 * count)
    half = Z * math.sqrt(accuracy * (1 - accuracy) / count + Z**2 / (4 * count**2))
    return (middle - half) / (1 + Z**2 / count), (middle + half) / (1 + Z**2 / count)


def _accuracy(result: dict, shown: dict | None, checked: Checked | None) -> list[str]:
    test = tested(result)
    low, high = interval(test["accuracy"], test["count"])
    lines = [f"{test['accuracy']:.4f} on {test['count']:,} test images (95 % interval {low:.4f} to {high:.4f})."]
    if checked and checked.real:
        lines += [
            "",
            f"On {checked.images:,} of them: {checked.own:.4f} with images cut as in training, {checked.theirs:.4f} with the",
            "transform that timm and transformers make of config.json.",
        ]
    elif checked:
        lines += ["", "The test images were not there when this was published: accuracy under timm's transform was not measured."]
    if shown and len(shown["classes"]) <= SHOWN:
        header = ("true \\ predicted", *map(_safe, shown["classes"]))
        rows = ((_safe(name), *map(str, row)) for name, row in zip(shown["classes"], shown["counts"], strict=True))
        lines += ["", *_table(header, rows, escaped=True)]
    return lines


def _loading(about: dict, checked: Checked | None) -> list[str]:
    python = ["```python", "import oneloop", "", 'oneloop.load("FOLDER").predict(["image.jpg"])', "```"]
    if checked is None:
        return ["## Load", "", "timm and transformers do not have this net; `oneloop` makes it by its name:", "", *python]
    return [
        "## Load", "", "```python", "import timm, transformers", "",
        'timm.create_model("local-dir:FOLDER", pretrained=True)    # hf-hub:OWNER/NAME',
        'transformers.pipeline("image-classification", "FOLDER")    # OWNER/NAME', "```", "",
        f"Before this was written it was loaded by {'timm and transformers' if checked.transformers else 'timm'}, and its",
        f"probabilities were compared with the trained net's on {checked.images:,} images: they {checked.words}.", "",
        "With images cut as in training:", "", *python,
    ]  # fmt: skip


def _counts(data: Mapping[str, Any]) -> str:
    return ", ".join(f"{data[split]:,} {split}" for split in ("train", "validation", "test") if split in data)


def _weights(result: Mapping[str, Any]) -> str:
    return {"best": "the best weights", "ema": "the average of the weights", "last": "the last weights"}[used(result)]


def _table(header: Iterable[str], rows: Iterable[Iterable[str]], escaped: bool = False) -> list[str]:
    cells = [[text if escaped else _safe(text) for text in row] for row in rows]
    header = [*header]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *cells)]


def _some(names: list[str], most: int = 50) -> str:
    return ", ".join(map(_safe, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _safe(text: str) -> str:
    """A name as Markdown shows it: names may come from anyone."""
    shown = html.escape(printable(text))
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in shown)
