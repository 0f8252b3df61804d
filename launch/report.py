"""Pictures of runs, as PNG files. Colours are Okabe and Ito's, which survive colour blindness."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import torch
from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# No pyplot: its global state would outlive the picture, and its backends may want a screen.


def _figure(width: float, height: float) -> matplotlib.figure.Figure:
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained", dpi=150)


def curves(path: Path, series: Mapping[str, Sequence[Sequence[float]]], what: str) -> Path:
    """Draw one line with a band for each name: `series[name]` are runs, each a value per epoch; the band is their range."""
    figure = _figure(6, 3.8)
    axes = figure.subplots()
    for colour, (name, runs) in zip(COLOURS * 3, series.items(), strict=False):
        values = torch.tensor(runs, dtype=torch.float64)
        epochs = range(1, values.shape[1] + 1)
        axes.plot(epochs, values.mean(0), color=colour, label=name, marker="o" if len(epochs) < 15 else None, markersize=4)
        if len(runs) > 1:
            axes.fill_between(epochs, values.min(0).values, values.max(0).values, color=colour, alpha=0.2, linewidth=0)
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
            axes.imshow(image.permute(1, 2, 0) if image.ndim == 3 else image, cmap="gray", interpolation="nearest")
            axes.set_title(title, fontsize=9)
    figure.savefig(path)
    return path
