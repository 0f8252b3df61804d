"""Pictures of runs, as PNG files. Colours are Okabe and Ito's, which survive colour blindness."""

from __future__ import annotations  # names of torch are for readers: comparing runs does not import it

import contextlib
import re
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.figure
import matplotlib.font_manager
import matplotlib.ticker
import numpy as np
from PIL import Image

from ..errors import printable

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Split
    from .compare import Comparison, Group

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "SimHei")

# No pyplot: its global state would outlive the picture, and its backends may want a screen.


def _figure(width: float, height: float) -> matplotlib.figure.Figure:
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained", dpi=150)


def curves(path: Path, series: Mapping[str, Sequence[Sequence[float]]], what: str) -> Path:
    """Draw one line with a band for each name: `series[name]` are runs, each a value per epoch; the band is their range."""
    figure = _figure(6, 3.8)
    axes = figure.subplots()
    for colour, (name, runs) in zip(COLOURS * 3, series.items(), strict=False):
        values = np.array(runs)
        epochs = range(1, values.shape[1] + 1)
        axes.plot(epochs, values.mean(0), color=colour, label=name, marker="o" if len(epochs) < 15 else None, markersize=4)
        if len(runs) > 1:
            axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="epoch", ylabel=what)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    return path


def maps(path: Path, columns: Sequence[tuple[str, Tensor]], columns_per_row: int = 4) -> Path:
    """Draw images side by side: (H, W) in grey from their lowest to their highest value, (3, H, W) from 0 to 1 in colour."""
    rows = -(-len(columns) // columns_per_row)
    figure = _figure(2.1 * min(len(columns), columns_per_row), 2.4 * rows)
    for place, axes in enumerate(figure.subplots(rows, min(len(columns), columns_per_row), squeeze=False).flat):
        axes.axis("off")
        if place < len(columns):
            title, image = columns[place]
            axes.imshow((image.permute(1, 2, 0) if image.ndim == 3 else image).numpy(), cmap="gray", interpolation="nearest")
            axes.set_title(title, fontsize=9)
    figure.savefig(path)
    return path


def export(folder: Path, split: Split, classes: Sequence[str], count: int) -> list[Path]:
    """Write the first `count` images of a split as <number>-<class>.png, exact to the pixel, and .jpg, in 95 % quality."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (pixels, label) in enumerate(zip(split.pixels[:count], split.labels[:count].tolist(), strict=True)):
        image = picture(pixels)
        name = re.sub(r"\W+", "-", classes[label])
        for ending, options in (("png", {}), ("jpg", {"quality": 95})):
            written.append(folder / f"{number}-{name}.{ending}")
            image.save(written[-1], **options)
    return written


def montage(path: Path, pixels: Tensor, columns: int = 10) -> Path:
    """Draw the images `pixels` uint8 (N, C, H, W) pixel for pixel in one picture, in rows of `columns` with a gap between."""
    from torchvision.utils import make_grid  # a second to import

    picture(make_grid(pixels, nrow=columns, padding=2, pad_value=255)).save(path)
    return path


def picture(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W), grey or RGB, as a PIL image."""
    return Image.fromarray(pixels.squeeze(0).numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())


# ------------------------------------------------------------------------------------------------------------- one run


def history(path: Path, events: Sequence[dict]) -> Path:
    """Draw the curves that `metrics.jsonl` holds over epochs: the losses, and beside them the accuracy with its best epoch."""
    test = [event for event in events if event["event"] == "eval" and event["split"] == "test"]
    samples = test[-1]["images"] / test[-1]["epoch"]  # of an epoch
    lines = {"train": [event for event in events if event["event"] == "train"], "test": test}
    with _style():
        figure = _figure(8, 3.2)
        losses, accuracies = figure.subplots(1, 2)
        for colour, (name, those) in zip(COLOURS, lines.items(), strict=False):
            few = {"marker": "o", "markersize": 3.5} if len(those) < 15 else {}
            epochs = [event["images"] / samples for event in those]
            losses.plot(epochs, [event["loss"] for event in those], color=colour, label=name, linewidth=1.4, **few)
            if name == "test":
                accuracies.plot(epochs, [event["accuracy"] for event in those], color=colour, linewidth=1.4, **few)
        best = max(test, key=lambda event: event["accuracy"])
        accuracies.plot(best["epoch"], best["accuracy"], "o", color=COLOURS[-1], markersize=6, fillstyle="none")
        title = f"test: {test[-1]['accuracy']:.4f} at the end, best {best['accuracy']:.4f} after epoch {best['epoch']}"
        accuracies.set_title(title, fontsize=9)
        losses.set(xlabel="epoch", ylabel="loss")
        losses.legend(frameon=False)
        accuracies.set(xlabel="epoch", ylabel="accuracy")
        for axes in (losses, accuracies):
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.savefig(path)
    return path


def confusion(path: Path, counts: Tensor, classes: Sequence[str]) -> Path:
    """Draw counts int64 (K, K), a row for each true class: shaded by the root of its share, so that rare mistakes are seen."""
    k = len(classes)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    cell = 0.75 if k < 4 else 0.5 if k <= 20 else 7 / k  # inches
    with _style():
        figure = _figure(k * cell + 2.4, k * cell + 1.4)
        axes = figure.subplots()
        axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="true")
        axes.tick_params(length=0)
        named = range(k) if k <= 40 else range(0, k, 10)
        small = 9 if k <= 20 else 6
        axes.set_yticks(named, [_short(classes[index]) for index in named], fontsize=small)
        axes.set_xticks(named, [_short(classes[index]) for index in named], fontsize=small, rotation=0 if k < 4 else 90)
        for row in range(k) if k <= 20 else ():
            for column in range(k):
                if count := int(counts[row, column]):
                    colour = "white" if shares[row, column] > 0.4 else "black"
                    axes.text(column, row, f"{count:,}", color=colour, ha="center", va="center", fontsize=9 if k < 4 else 7)
            axes.text(k - 0.35, row, f"{float(shares[row, row]):.1%}", va="center", fontsize=small)
        right, total = int(counts.diag().sum()), int(counts.sum())
        axes.set_title(f"{right:,} of {total:,} test images right: {right / max(total, 1):.4f}", fontsize=9)
        figure.savefig(path)
    return path


def mistakes(path: Path, pictures: Sequence[Image.Image], captions: Sequence[tuple[str, str, float]], columns: int = 6) -> Path:
    """Draw images in rows, each over its caption: the true class, the predicted one, and the probability of the latter."""
    columns, pitch = max(min(len(pictures), columns), 3), 1.36  # an image is 0.88 wide and high
    height = -(-len(pictures) // columns) * pitch + 0.3
    with _style():
        figure = _figure(1.25 * columns, 1.25 * height)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))  # one for all of them: an axes each takes five times as long
        title = "true class, and below it what the net says" if pictures else "no mistake on the test images"
        axes.text(0.06, height - 0.1, title, fontsize=9, va="top")
        for place, (picture, (true, predicted, probability)) in enumerate(zip(pictures, captions, strict=True)):
            x, y = place % columns + 0.06, height - 0.36 - place // columns * pitch
            grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.mode == "L" else {}
            axes.imshow(picture, extent=(x, x + 0.88, y - 0.88, y), aspect="auto", interpolation="nearest", **grey)
            axes.text(x, y - 0.91, _short(true, 16), fontsize=8, va="top")
            axes.text(x, y - 1.06, f"{_short(predicted, 11)} {probability:.2f}", fontsize=8, va="top", color=COLOURS[1])
        axes.set(xlim=(0, columns), ylim=(0, height))
        axes.axis("off")
        figure.savefig(path)
    return path


def kernels(path: Path, weight: Tensor, name: str, most: int = 64) -> Path:
    """Draw the first kernels of a convolution's weight float (N, C, H, W), C 1 or 3, side by side and all on one scale."""
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
    with _style():
        figure = _figure(0.62 * columns + 0.4, 0.62 * rows * height / width + 0.6)
        axes = figure.subplots()
        axes.imshow(sheet.numpy(), interpolation="nearest")
        axes.axis("off")
        dark, bright = ("black", "white") if channels == 1 else ("darkest", "brightest")
        part = f"{len(shown)} of {len(weight)}" if len(shown) < len(weight) else str(len(weight))
        title = f"{name}: {part} kernels {height}×{width}\n{dark} {low:.2f}, {bright} {high:.2f}"
        axes.set_title(title, fontsize=8, loc="left")
        figure.savefig(path)
    return path


def _short(name: str, most: int = 16) -> str:
    name = printable(name)  # no font has the rest
    return name if len(name) <= most else name[: most - 1] + "…"


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Names are drawn as they are written: no mathematics between two $, and with a Chinese font where there is one."""
    known = set(matplotlib.font_manager.get_font_names())
    families = ["DejaVu Sans", *(name for name in CHINESE if name in known)]
    with matplotlib.rc_context({"text.parse_math": False, "font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # an empty box, in the picture
        yield


# --------------------------------------------------------------------------------------------------------- several runs

MOST_GROUPS = 21  # that colours and line styles can tell apart


def comparison(folder: Path, compared: Comparison) -> list[Path]:
    """Draw curves.png, bars.png and cost.png of the groups of highest accuracy into `folder`; one without values is removed."""
    groups = {compared.label(group): group for group in compared.groups[:MOST_GROUPS]}
    with _style():
        ways = {"curves.png": _overlay, "bars.png": _bars, "cost.png": _cost}
        drawn = {name: draw(folder / name, groups) for name, draw in ways.items()}
    for name, path in drawn.items():
        if path is None:
            (folder / name).unlink(missing_ok=True)  # another comparison's
    return [path for path in drawn.values() if path]


def _overlay(path: Path, groups: Mapping[str, Group]) -> Path | None:
    """Test accuracy and train loss over epochs: a line for each group's mean, a band for the range of its runs."""
    figure = _figure(10, 3.4)
    for axes, what in zip(figure.subplots(1, 2), ("test accuracy", "train loss"), strict=True):
        for number, (name, group) in enumerate(groups.items()):
            epochs, runs = group.curve(what)
            if epochs:
                colour, few = COLOURS[number % len(COLOURS)], {"marker": "o", "markersize": 3.5} if len(epochs) < 15 else {}
                style = ("-", "--", ":")[number // len(COLOURS)]
                mean = [statistics.fmean(values) for values in zip(*runs, strict=True)]
                axes.plot(epochs, mean, style, color=colour, label=name, linewidth=1.4, **few)
                if len(runs) > 1:
                    low, high = ([pick(values) for values in zip(*runs, strict=True)] for pick in (min, max))
                    axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="epoch", ylabel=what)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _finish(figure, path)


def _bars(path: Path, groups: Mapping[str, Group]) -> Path | None:
    """Document 000's chart of the designs: accuracy of training and test images, side by side, with the deviation over seeds."""
    known = {name: group for name, group in groups.items() if group.measure("gap") is not None}
    if not known:
        return None
    shown = {"train": "train", "test": "last"}
    values = {name: [group.measure(measure) for group in known.values()] for name, measure in shown.items()}
    lowest = min(mean for bars in values.values() for mean, _ in bars)
    span = next((span for span in (0.02, 0.05, 0.1, 0.3, 0.5) if 1.25 * (1 - lowest) <= span), 1.0)
    figure = _figure(max(4.5, 1.6 + 0.95 * len(known)), 3.4)
    axes = figure.subplots()
    for colour, side, (name, bars) in zip(COLOURS, (-0.2, 0.2), values.items(), strict=False):
        places, heights = [place + side for place in range(len(known))], [mean for mean, _ in bars]
        axes.bar(places, heights, 0.38, color=colour, label=name)
        spread = [np.nan if deviation is None else deviation for _, deviation in bars]
        axes.errorbar(places, heights, spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
        for place, height in zip(places, heights, strict=True):
            axes.text(place, 1 - span * 0.98, f"{height:.3f}", color="white", fontsize=7, ha="center", va="bottom")
    axes.set(ylabel="accuracy", ylim=(1 - span, 1))
    names = [name.replace(", ", "\n") for name in known]
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, known)) > 12 else {}
    axes.set_xticks(range(len(known)), names, **turned)
    axes.tick_params(axis="x", length=0)
    return _finish(figure, path, "outside upper right", 2)


def _cost(path: Path, groups: Mapping[str, Group]) -> Path | None:
    """Test accuracy against the seconds of training and against the number of parameters: a point for each group."""
    figure = _figure(10, 3.4)
    for axes, (name, what) in zip(figure.subplots(1, 2), (("seconds", "seconds of training"), ("parameters",) * 2), strict=True):
        seen = []
        for number, (label, group) in enumerate(groups.items()):
            cost, accuracy = group.measure(name), group.measure("last")
            if cost and accuracy:
                seen.append(cost[0])
                axes.errorbar(
                    cost[0], accuracy[0], xerr=cost[1], yerr=accuracy[1], label=label, fmt="osD^vPX"[number % 7], markersize=6,
                    color=COLOURS[number % len(COLOURS)], elinewidth=0.8, fillstyle=("full", "none", "left")[number // 7],
                )  # fmt: skip
        axes.set(xlabel=what, ylabel="test accuracy")
        if seen and max(seen) > 10 * min(seen):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter("")
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))  # 20k, 1M
    return _finish(figure, path)


def _finish(figure: matplotlib.figure.Figure, path: Path, place: str = "outside right upper", columns: int = 1) -> Path | None:
    """Give the figure one legend beside its axes, and write it; None if nothing is drawn."""
    drawn = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not drawn:
        return None
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    names = [_short(label, 60) for label in drawn]
    if place == "outside right upper":  # what does not fit beside the axes has more paper
        figure.set_figheight(max(figure.get_figheight(), 0.3 + 0.19 * len(names)))
        figure.set_figwidth(figure.get_figwidth() + 0.07 * max(0, max(map(len, names)) - 16))
    figure.legend(drawn.values(), names, loc=place, ncols=columns, frameon=False, fontsize=9)
    figure.savefig(path)
    return path
