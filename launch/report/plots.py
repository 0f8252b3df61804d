"""Plots of one run, and those of recipes, as PNG files. Plots of several runs are in compare_plots.py.

A new plot of a run is a function here and its call in show.py: page and W&B then show it, and its caption goes into page.py.
Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations  # torch appears in annotations only: comparing runs does not import it

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.figure
import matplotlib.font_manager
import numpy as np
from PIL import Image

from ..errors import printable
from .runs import WORDS, measure_of, model_selection_split

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.dataset import Split

MOST_LABELS = 60  # in a plot
AVERAGE = "average, {}"  # the name of its line, by the split that it is measured on
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "SimHei")


def new_figure(width: float, height: float) -> matplotlib.figure.Figure:
    """An empty figure, in inches. No pyplot: its global state would outlive the plot, and its backends may need a display."""
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained", dpi=150)


def curves(path: Path, series: Mapping[str, Sequence[Sequence[float]]], what: str) -> Path:
    """Draw a line with a band for each name: `series[name]` are runs, each with a value per epoch; the band is their range."""
    figure = new_figure(6, 3.8)
    axes = figure.subplots()
    for colour, (name, runs) in zip(COLOURS * 3, series.items(), strict=False):
        values = np.array(runs)
        epochs = range(1, values.shape[1] + 1)
        axes.plot(epochs, values.mean(0), color=colour, label=name, marker="o" if len(epochs) < 15 else None, markersize=4)
        if len(runs) > 1:
            axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="epoch", ylabel=what)
    axes.locator_params("x", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    return path


def maps(path: Path, columns: Sequence[tuple[str, Tensor]], columns_per_row: int = 4) -> Path:
    """Draw float images side by side: (H, W) in grey from their lowest to their highest value, (3, H, W) in [0, 1] as RGB."""
    rows = -(-len(columns) // columns_per_row)
    figure = new_figure(2.1 * min(len(columns), columns_per_row), 2.4 * rows)
    for place, axes in enumerate(figure.subplots(rows, min(len(columns), columns_per_row), squeeze=False).flat):
        axes.axis("off")
        if place < len(columns):
            title, image = columns[place]
            axes.imshow((image.permute(1, 2, 0) if image.ndim == 3 else image).numpy(), cmap="gray", interpolation="nearest")
            axes.set_title(title, fontsize=9)
    figure.savefig(path)
    return path


def export(folder: Path, split: Split, classes: Sequence[str], count: int) -> list[Path]:
    """Write the first `count` images of a split as <number>-<class>.png, lossless, and .jpg, quality 95."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (pixels, label) in enumerate(zip(split.pixels[:count], split.labels[:count].tolist(), strict=True)):
        image = plot(pixels)
        name = re.sub(r"\W+", "-", classes[label])
        for ending in ("png", "jpg"):
            written.append(folder / f"{number}-{name}.{ending}")
            image.save(written[-1], quality=95)  # of JPEG; PNG has none
    return written


def montage(path: Path, pixels: Tensor, columns: int = 10) -> Path:
    """Tile the images `pixels` uint8 (N, C, H, W) pixel for pixel into one plot, `columns` to a row."""
    from torchvision.utils import make_grid  # a second to import

    plot(make_grid(pixels, nrow=columns, padding=2, pad_value=255)).save(path)
    return path


def plot(pixels: Tensor) -> Image.Image:
    """Convert an image, uint8 (C, H, W), grey or RGB, to a PIL image."""
    return Image.fromarray(pixels.squeeze(0).numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())


# ------------------------------------------------------------------------------------------------------------- one run


def history(path: Path, events: Sequence[dict]) -> Path:
    """Draw the events of metrics.jsonl by epoch: the loss on the training images and on those that chose the best epoch, and
    beside them the accuracy on the latter; also of the average of the weights, if one is kept: then this chose."""
    split = model_selection_split(events)
    lines = {"train": [event for event in events if event["event"] == "train"]}
    for name, of in ((split, split), (AVERAGE.format(split), "ema")):
        lines[name] = [event for event in events if event["event"] == "eval" and event["split"] == of]
    lines = {name: those for name, those in lines.items() if those}
    chose = [*lines][-1]
    chosen = lines[chose]
    measure = measure_of(chosen[-1])
    samples = chosen[-1]["images"] / chosen[-1]["epoch"]  # per epoch
    with plain_names():
        figure = new_figure(8, 3.2)
        losses, accuracies = figure.subplots(1, 2)
        for colour, (name, those) in zip(COLOURS, lines.items(), strict=False):
            few = {"marker": "o", "markersize": 3.5} if len(those) < 15 else {}
            epochs = [event["images"] / samples for event in those]
            losses.plot(epochs, [event["loss"] for event in those], color=colour, label=name, linewidth=1.4, **few)
            if name != "train":
                accuracies.plot(epochs, [event[measure] for event in those], color=colour, linewidth=1.4, **few)
        best = max(chosen, key=lambda event: event[measure])
        accuracies.plot(best["epoch"], best[measure], "o", color=COLOURS[-1], markersize=6, fillstyle="none")
        end, what = chosen[-1][measure], chose.partition(",")[0]
        title = f"{what}: {end:.4f} at the end, best {best[measure]:.4f} after epoch {best['epoch']}"
        accuracies.set_title(title, fontsize=9 if what == "test" else 8)  # the longer words, too, have room for 3-digit epochs
        losses.set(xlabel="epoch", ylabel="loss")
        losses.legend(frameon=False)
        accuracies.set(xlabel="epoch", ylabel=WORDS[measure])
        for axes in (losses, accuracies):
            axes.spines[["top", "right"]].set_visible(False)
            axes.locator_params("x", integer=True, min_n_ticks=1)  # with one epoch, too
        figure.savefig(path)
    return path


def confusion(path: Path, counts: Tensor, classes: Sequence[str]) -> Path:
    """Draw counts int64 (K, K), a row for each true class, shaded by the square root of the share: rare mistakes stay visible."""
    k = len(classes)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    cell = 0.75 if k < 4 else 0.5 if k <= 20 else 7 / k  # inches
    with plain_names():
        figure = new_figure(k * cell + 2.4, k * cell + 1.4)
        axes = figure.subplots()
        axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="true")
        axes.tick_params(length=0)
        named = range(k) if k <= 40 else range(0, k, 10)
        small = 9 if k <= 20 else 6
        axes.set_yticks(named, [short(classes[index]) for index in named], fontsize=small)
        axes.set_xticks(named, [short(classes[index]) for index in named], fontsize=small, rotation=0 if k < 4 else 90)
        for row in range(k) if k <= 20 else ():
            for column in range(k):
                if count := int(counts[row, column]):
                    colour = "white" if shares[row, column] > 0.4 else "black"
                    axes.text(column, row, f"{count:,}", color=colour, ha="center", va="center", fontsize=9 if k < 4 else 7)
            axes.text(k - 0.35, row, f"{float(shares[row, row]):.1%}", va="center", fontsize=small)
        right, total = int(counts.diag().sum()), int(counts.sum())
        axes.set_title(f"{right:,} of {total:,} test images correct: {right / max(total, 1):.4f}", fontsize=9)
        figure.savefig(path)
    return path


def labels(path: Path, rows: Sequence[dict], classes: Sequence[str], threshold: float) -> Path:
    """Draw average precision and F1 of each label, the most frequent one first."""
    shown = sorted(zip(classes, rows, strict=True), key=lambda of: -of[1]["count"])[:MOST_LABELS]
    places = np.arange(len(shown))
    with plain_names():
        figure = new_figure(6.5, 1.1 + 0.3 * len(shown))
        axes = figure.subplots()
        for side, colour, key, name in (
            (-0.2, 0, "average_precision", "average precision"),
            (0.2, 1, "f1", f"F1 at {threshold:.3g}"),
        ):
            axes.barh(places + side, [row[key] for _, row in shown], 0.38, color=COLOURS[colour], label=name)
        axes.set_yticks(places, [f"{short(name)} ({row['count']:,})" for name, row in shown], fontsize=8)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="on the test images" + f", the {MOST_LABELS} most frequent" * (len(rows) > MOST_LABELS))
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
        figure.savefig(path)
    return path


def mistakes(path: Path, images: Sequence[Image.Image], captions: Sequence[tuple[str, str, float]], columns: int = 6) -> Path:
    """Draw images in rows, each above its caption: the true class, then the predicted class with its probability."""
    columns, pitch = max(min(len(images), columns), 3), 1.36  # an image is 0.88 wide and high
    height = -(-len(images) // columns) * pitch + 0.3
    with plain_names():
        figure = new_figure(1.25 * columns, 1.25 * height)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))  # one for all images: an axes for each takes five times as long
        title = "true class, and below it the predicted class" if images else "no mistakes on the test images"
        axes.text(0.06, height - 0.1, title, fontsize=9, va="top")
        for place, (image, (true, predicted, probability)) in enumerate(zip(images, captions, strict=True)):
            x, y = place % columns + 0.06, height - 0.36 - place // columns * pitch
            axes.imshow(
                image, extent=(x, x + 0.88, y - 0.88, y), aspect="auto", interpolation="nearest", cmap="gray", vmin=0, vmax=255
            )
            axes.text(x, y - 0.91, short(true, 16), fontsize=8, va="top")
            axes.text(x, y - 1.06, f"{short(predicted, 11)} {probability:.2f}", fontsize=8, va="top", color=COLOURS[1])
        axes.set(xlim=(0, columns), ylim=(0, height))
        axes.axis("off")
        figure.savefig(path)
    return path


def kernels(path: Path, weight: Tensor, name: str, most: int = 64) -> Path:
    """Draw the first `most` kernels of a convolution's weight float (N, C, H, W), C 1 or 3, side by side on a common scale."""
    import torch

    shown = weight[:most].float()
    columns, (_, channels, height, width) = min(len(shown), 8), shown.shape
    rows = -(-len(shown) // columns)
    low, high = shown.min().item(), shown.max().item()
    scaled = (shown - low) / max(high - low, 1e-12)
    sheet = torch.ones(rows * (height + 1) - 1, columns * (width + 1) - 1, channels + 1)  # the last channel: opacity
    sheet[..., -1] = 0
    for place, kernel in enumerate(scaled):
        y, x = place // columns * (height + 1), place % columns * (width + 1)
        sheet[y : y + height, x : x + width, :channels] = kernel.permute(1, 2, 0)
        sheet[y : y + height, x : x + width, -1] = 1
    if channels == 1:
        sheet = torch.cat((sheet[..., :1].expand(-1, -1, 3), sheet[..., 1:]), dim=-1)
    with plain_names():
        figure = new_figure(0.62 * columns + 0.4, 0.62 * rows * height / width + 0.6)
        axes = figure.subplots()
        axes.imshow(sheet.numpy(), interpolation="nearest")
        axes.axis("off")
        dark, bright = ("black", "white") if channels == 1 else ("darkest", "brightest")
        part = f"{len(shown)} of {len(weight)}" if len(shown) < len(weight) else str(len(weight))
        title = f"{name}: {part} kernels {height}×{width}\n{dark} {low:.2f}, {bright} {high:.2f}"
        axes.set_title(title, fontsize=8, loc="left")
        figure.savefig(path)
    return path


def short(name: str, most: int = 16) -> str:
    """Shorten a name for a plot: `most` characters, none of them a control character."""
    name = printable(name)  # no font has the rest
    return name if len(name) <= most else name[: most - 1] + "…"


@contextlib.contextmanager
def plain_names() -> Iterator[None]:
    """Escape names for Matplotlib: $ does not start a formula, and a Chinese font is used if one is installed."""
    known = set(matplotlib.font_manager.get_font_names())
    families = ["DejaVu Sans", *(name for name in CHINESE if name in known)]
    with matplotlib.rc_context({"text.parse_math": False, "font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the plot has an empty box there
        yield
