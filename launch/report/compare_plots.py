"""Plots of a comparison, such as curves.png and differences.png. A new one is a function here and a line in CHARTS."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.figure
import matplotlib.ticker
import numpy as np

from .compare import Comparison, Group, ranked_by
from .paired import Pair
from .plots import COLOURS, new_figure, plain_names

MOST_GROUPS = 21  # as many as colours and line styles can tell apart


def _overlay(path: Path, groups: Mapping[str, Group]) -> Path | None:
    """The accuracy that ranks the groups, and train loss, by epoch: a line for each group's mean, a band for its runs' range."""
    accuracy = "test accuracy" if ranked_by(groups.values()) == "last" else "validation accuracy"
    figure = new_figure(10, 3.4)
    for axes, what in zip(figure.subplots(1, 2), (accuracy, "train loss"), strict=True):
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
        axes.set(xlabel="epoch", ylabel=what.replace("accuracy", _what(groups)))
        axes.locator_params("x", integer=True)
    return _finish(figure, path)


def _bars(path: Path, groups: Mapping[str, Group]) -> Path | None:
    """Training and test accuracy of the last weights, with the deviation over seeds, as in the chart of DLwPT ch. 8."""
    known = {name: group for name, group in groups.items() if group.measure("gap") is not None}
    if not known:
        return None
    shown = {"train": "train", "test": "tested"}
    values = {  # where the gap is known, so are its two sides
        name: [found for group in known.values() if (found := group.measure(measure))] for name, measure in shown.items()
    }
    lowest = min(mean for bars in values.values() for mean, _ in bars)
    span = next((span for span in (0.02, 0.05, 0.1, 0.3, 0.5) if 1.25 * (1 - lowest) <= span), 1.0)
    figure = new_figure(max(4.5, 1.6 + 0.95 * len(known)), 3.4)
    axes = figure.subplots()
    for colour, side, (name, bars) in zip(COLOURS, (-0.2, 0.2), values.items(), strict=False):
        places, heights = [place + side for place in range(len(known))], [mean for mean, _ in bars]
        axes.bar(places, heights, 0.38, color=colour, label=name)
        spread = [np.nan if deviation is None else deviation for _, deviation in bars]
        axes.errorbar(places, heights, spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
        for place, height in zip(places, heights, strict=True):
            axes.text(place, 1 - span * 0.98, f"{height:.3f}", color="white", fontsize=7, ha="center", va="bottom")
    others = any(group.measure("tested") != group.measure("last") for group in known.values())
    axes.set(ylabel=_what(groups) + " of the last weights" * others, ylim=(1 - span, 1))
    names, longest = [name.replace(", ", "\n") for name in known], max(map(len, known))
    turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if longest > 12 else {}
    if longest > 30:  # they would lie across each other
        names, turned = ["\n".join(textwrap.wrap(name, 36)) for name in known], {"rotation": 90}
        figure.set_figheight(5.4)
    axes.set_xticks(range(len(known)), names, **turned)
    axes.tick_params(axis="x", length=0)
    return _finish(figure, path, "outside upper right", 2)


def _cost(path: Path, groups: Mapping[str, Group]) -> Path | None:
    """Test accuracy against seconds of training and against parameters: a point for each group."""
    figure = new_figure(10, 3.4)
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
        axes.set(xlabel=what, ylabel=f"test {_what(groups)}")
        if seen and max(seen) > 10 * min(seen):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter("")
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))  # 20k, 1M
    return _finish(figure, path)


def _what(groups: Mapping[str, Group]) -> str:
    return next((each.what for group in groups.values() for each in group.trainings if each.what), "accuracy")


def _finish(
    figure: matplotlib.figure.Figure,
    path: Path,
    place: Literal["outside right upper", "outside upper right"] = "outside right upper",
    columns: int = 1,
) -> Path | None:
    """Add a legend beside the axes and write the figure; None, and no file, if nothing is drawn."""
    drawn = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if not drawn:
        return None
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    names = [_wrapped(label) for label in drawn]
    lines = [line for name in names for line in name.split("\n")]
    if place == "outside right upper":  # a bigger legend gets a bigger figure
        figure.set_figheight(max(figure.get_figheight(), 0.3 + 0.19 * len(lines)))
        figure.set_figwidth(figure.get_figwidth() + 0.07 * max(0, max(map(len, lines)) - 16))
    figure.legend(drawn.values(), names, loc=place, ncols=columns, frameon=False, fontsize=9)
    figure.savefig(path)
    return path


def _wrapped(label: str) -> str:
    """A label on as many lines as it needs: what is cut off may be what tells two of them apart."""
    return "\n".join(textwrap.wrap(label, 60))


CHARTS = {"curves.png": _overlay, "bars.png": _bars, "cost.png": _cost}


def _differences(path: Path, paired: Sequence[Pair], what: str) -> Path | None:
    """The differences over equal seeds with their 95 % intervals: filled where they are more than chance."""
    known = sorted((pair for pair in paired if pair.interval is not None), key=lambda pair: pair.difference or 0.0)
    if not known:
        return None
    figure = new_figure(6.5, 0.9 + 0.3 * len(known))
    axes = figure.subplots()
    baseline = len({pair.other for pair in known}) == 1
    for place, pair in enumerate(known):
        points, spread = 100 * (pair.difference or 0.0), 100 * (pair.interval or 0.0)
        filled = "full" if pair.more_than_chance else "none"
        axes.errorbar(points, place, xerr=spread, fmt="o", color=COLOURS[0], elinewidth=1.2, capsize=3, fillstyle=filled)
    axes.axvline(0, color="black", linewidth=0.8)
    names = [_wrapped(pair.one if baseline else f"{pair.one} – {pair.other}") for pair in known]
    figure.set_figheight(0.6 + 0.3 * len(known) + 0.15 * sum(name.count("\n") + 1 for name in names))
    axes.set_yticks(range(len(known)), names)
    axes.tick_params(axis="y", length=0)
    over = f" than {known[0].other}" if baseline else ""
    axes.set(xlabel=_wrapped(f"points of {what} better{over}"), ylim=(-0.6, len(known) - 0.4))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


def draw(folder: Path, comparison: Comparison, paired: Sequence[Pair]) -> list[Path]:
    """Draw CHARTS of the groups with the highest accuracy, and the pairs, into `folder`; returns those that show something."""
    groups = {comparison.label(group): group for group in comparison.groups[:MOST_GROUPS]}
    with plain_names():
        drawn = {name: chart(folder / name, groups) for name, chart in CHARTS.items()}
        drawn["differences.png"] = _differences(folder / "differences.png", paired[:MOST_GROUPS], comparison.what)
    for name, path in drawn.items():
        if path is None:
            (folder / name).unlink(missing_ok=True)  # left by an earlier comparison
    return [path for path in drawn.values() if path]
