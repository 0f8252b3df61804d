"""The plot of `oneloop probe`: accuracy with its interval against speed, a point for each net."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .plots import COLOURS, new_figure, plain_names


class Probed(Protocol):
    """What is drawn of a net."""

    @property
    def name(self) -> str: ...
    @property
    def regression(self) -> float: ...
    @property
    def regression_interval(self) -> tuple[float, float]: ...
    @property
    def images_per_second(self) -> float: ...


def probed(path: Path, rows: Sequence[Probed]) -> None:
    """Draw `rows` into the file `path`. Raises OSError."""
    figure = new_figure(6.4, 4)
    axes = figure.subplots()
    for number, row in enumerate(rows):
        low, high = row.regression_interval
        errors = [[row.regression - low], [high - row.regression]]
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(row.images_per_second, row.regression, errors, fmt="o", color=colour, capsize=3, elinewidth=1)
        place = row.images_per_second, row.regression
        axes.annotate(row.name, place, (6, 4), textcoords="offset points", fontsize=8, color=colour)
    axes.set(xlabel="images a second, on this machine", ylabel="accuracy of logistic regression")
    axes.set_xlim(0, 1.3 * max(row.images_per_second for row in rows))
    axes.spines[["top", "right"]].set_visible(False)
    with plain_names():
        figure.savefig(path)
