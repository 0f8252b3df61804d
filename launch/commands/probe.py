"""`oneloop probe`: which net for these images, in minutes: features of each net once, then classifiers that take seconds."""

import contextlib
import io
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..console import aligned, complain
from ..errors import Refused, printable
from .arguments import command_parser


class Row(NamedTuple):
    """What is known of a net: accuracies with the ends of their 95 % intervals, images a second on this machine, sizes."""

    net: str
    source: str  # of its weights, "" for the published ones
    images: int
    neighbours: float
    neighbours_interval: tuple[float, float]
    regression: float
    regression_interval: tuple[float, float]
    strength: float
    parameters: int
    width: int  # of the features
    images_per_second: float
    seconds: float  # that all of it took now

    @property
    def name(self) -> str:
        """For people: weights of one's own are named with the net."""
        return f"{self.net} ({Path(self.source).name})" if self.source else self.net


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "probe",
        usage="DATA --net A B C … [--plot FILE] [--json] [the flags of recipes/custom.py]",
        description="Show which net suits your images: what each trained net sees in them, computed once and kept, is judged\n"
        "by nearest neighbours and by logistic regression. The test images are not looked at.",
        example="photos/ --net resnet18 resnet50 timm/convnext_tiny --plot probe.png",
        notes="NET is a name as for recipes/custom.py, with the published weights, or NAME=SOURCE with those of a file, URL or\n"
        "run. neighbours: each image gets the class of most of its 10 nearest others. regression: 5 folds, each judged by the\n"
        "other four; the strength is the one that does best there. The last line trains the best net.",
    )
    parser.add_argument("data", metavar="DATA", help="a folder, a table or OWNER/NAME, as for recipes/custom.py")
    parser.add_argument("--net", nargs="+", required=True, metavar="NET", help="nets to compare; NAME or NAME=SOURCE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw accuracy against speed: .png, .pdf or .svg")
    parser.add_argument("--json", action="store_true", help="print everything as one object")
    chosen, flags = parser.parse_known_args(args)
    if chosen.plot and chosen.plot.suffix not in (".png", ".pdf", ".svg"):
        raise Refused(f"--plot {chosen.plot}: it ends in .png, .pdf or .svg", 2)
    if twice := {net for net in chosen.net if chosen.net.count(net) > 1}:
        raise Refused(f"--net names {', '.join(sorted(twice))} twice", 2)
    rows, failed = [], {}
    for spec in chosen.net:
        try:
            rows.append(_probed(chosen.data, spec, flags))
        except Refused as error:
            if len(chosen.net) == 1:
                raise
            failed[spec] = str(error)
            complain(f"{spec} is left out: {error}")
    if not rows:
        raise Refused(f"none of the nets can be probed: {'; '.join(failed.values())}")
    rows.sort(key=lambda row: -row.regression)
    command = shlex.join(_command(chosen.data, rows[0], flags))
    if chosen.plot:
        from ..report.probe_plot import probed

        probed(chosen.plot, rows)
    if chosen.json:
        print(json.dumps({"nets": [row._asdict() for row in rows], "failed": failed, "command": command}, indent=1))
        return
    for line in _lines(rows):
        print(printable(line))
    print(printable(command))


def _probed(data: str, spec: str, flags: Sequence[str]) -> Row:
    """A net's row. Raises Refused."""
    from ..features.classify import by_neighbours, folds_by_content, interval, nearest, out_of_fold
    from ..features.seen import seen_by

    began, (name, _, source) = time.perf_counter(), spec.partition("=")
    with contextlib.redirect_stdout(io.StringIO()):
        seen = seen_by(data, name, source, flags, ("train", "validation"), "probe")
    classes, labels, count = len(seen.images.classes), seen.labels, len(seen.labels)
    _, ids = nearest(seen.features, seen.contents)
    near = int((by_neighbours(ids, labels, classes) == labels).sum())
    logits, strength = out_of_fold(seen.features, labels, folds_by_content(labels, seen.contents), classes)
    right = int((logits.argmax(1) == labels).sum())
    return Row(
        net=name,
        source=source,
        images=count,
        neighbours=near / count,
        neighbours_interval=interval(near, count),
        regression=right / count,
        regression_interval=interval(right, count),
        strength=strength,
        parameters=seen.parameters,
        width=seen.features.shape[1],
        images_per_second=seen.images_per_second,
        seconds=time.perf_counter() - began,
    )


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    """The table, best net first."""
    head = ("net", "regression", "neighbours", "parameters", "features", "images/s", "seconds")
    cells: list[Sequence[str]] = [head]
    for row in rows:
        measured = (row.regression, row.regression_interval), (row.neighbours, row.neighbours_interval)
        accuracies = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, (low, high) in measured]
        speed = f"{row.images_per_second:,.0f}", f"{row.seconds:,.0f}"
        cells.append((row.name, *accuracies, f"{row.parameters / 1e6:.1f} M", f"{row.width:,}", *speed))
    yield from aligned(cells)
    best, others = rows[0], rows[1:]
    near = [row.name for row in others if row.regression_interval[1] >= best.regression]
    yield f"accuracy and its 95 % interval on {best.images:,} training and validation images, each judged by others only"
    if near:
        yield f"with so many images, {best.name} cannot be told from {', '.join(near)}"


def _command(data: str, row: Row, flags: Sequence[str]) -> list[str]:
    """What trains the net of this row."""
    from ..features.seen import RECIPE, flags_for

    return ["oneloop", "train", RECIPE, *flags_for(data, row.net, row.source, "finetune"), *flags]
