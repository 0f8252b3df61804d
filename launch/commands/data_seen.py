"""What `oneloop data --net` adds: labels in doubt, near-duplicates and outliers, as a trained net sees them."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import option_groups
from ..errors import Refused, printable
from ..sources.options import DataOptions

if TYPE_CHECKING:
    from ..sources.dataset_report import DatasetReport

LINES = 10  # of a list in the terminal
HEAD = ("path", "label", "was", "probability")  # of the table of labels to correct


def seen(path: Path, net: str, report: "DatasetReport", options: DataOptions, validation: float, size: int) -> dict:
    """What the net, NAME or NAME=SOURCE, shows about the images of `report`, as JSON has it. Raises Refused."""
    from ..features.findings import findings
    from ..features.seen import seen_by

    name, _, source = net.partition("=")
    flags = ["--validation", str(validation), *words(replace(options, skip_bad=True)), *(["--size", str(size)] if size else [])]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it says what is said here
        features = seen_by(str(path), name, source, flags, ("train", "validation", "test"), "data")
    found = findings(name, features, report.splits)
    across = [twins for twins in found.twins if len({*twins.splits}) > 1]
    return {
        "net": net,
        "images": found.images,
        "accuracy": found.accuracy,
        "doubts": [doubt._asdict() for doubt in found.doubts],
        "near_duplicates": [twins._asdict() for twins in found.twins],
        "across_splits": len(across),
        "across_classes": sum(len({*twins.labels}) > 1 for twins in found.twins),
        "outliers": [outlier._asdict() for outlier in found.outliers],
    }


def one_side(report: "DatasetReport", content: dict) -> dict[str, str]:
    """The split of each path: near-duplicates on one side, and with them the groups that they are in."""
    from ..features.findings import together

    groups: dict[str, list[str]] = {}
    for path in report.splits:
        if group := report.listing.groups.get(path):
            groups.setdefault(group, []).append(path)
    alike = [pair["paths"] for pair in content["near_duplicates"]]
    return together(report.splits, [*alike, *((paths[0], path) for paths in groups.values() for path in paths[1:])])


def words(options: DataOptions) -> list[str]:
    """The flags that give these options."""
    return option_groups.words({"data": options}, {"data": DataOptions()})


def labels_to_correct(content: dict) -> list[tuple[str, ...]]:
    """Rows of HEAD: labels in doubt, with what they rather are as the label."""
    return [(doubt["path"], doubt["suggestion"], doubt["label"], f"{doubt['probability']:.3f}") for doubt in content["doubts"]]


def text(content: dict) -> Iterator[str]:
    """What the terminal shows."""
    yield ""
    yield f"as {content['net']} sees {content['images']:,} images (logistic regression: accuracy {content['accuracy']:.3f}):"
    doubts = content["doubts"]
    yield f"{_some(doubts, 'label')} in doubt" + (":" if doubts else "")
    for doubt in doubts[:LINES]:
        likely = f"rather {doubt['suggestion']} ({doubt['probability']:.2f} against {doubt['of_label']:.2f})"
        yield printable(f"  {doubt['path']} ({doubt['label']}): {likely}")
    yield from _more(doubts)
    pairs = content["near_duplicates"]
    across = f", {content['across_splits']:,} across splits, {content['across_classes']:,} across classes" if pairs else ""
    yield f"{_some(pairs, 'near-duplicate')}{across}" + (":" if pairs else "")
    worst = sorted(pairs, key=lambda pair: (len({*pair["splits"]}) == 1, len({*pair["labels"]}) == 1))
    for pair in worst[:LINES]:
        one, other = (
            f"{path} ({label}, {split})" for path, label, split in zip(pair["paths"], pair["labels"], pair["splits"], strict=True)
        )
        yield printable(f"  {one} ≈ {other}")
    yield from _more(pairs)
    outliers = content["outliers"]
    yield f"{_some(outliers, 'outlier')}" + (":" if outliers else "")
    yield from (printable(f"  {outlier['path']} ({outlier['label']})") for outlier in outliers[:LINES])
    yield from _more(outliers)


def _some(found: Sequence[dict], what: str) -> str:
    return f"{len(found):,} {what}{'s' * (len(found) != 1)}" if found else f"no {what}s"


def _more(found: Sequence[dict]) -> Iterator[str]:
    if len(found) > LINES:
        yield f"  and {len(found) - LINES:,} more: --json, --html or --write-labels"


def check(net: str, write_labels: Path | None) -> None:
    """Raise Refused (2) for flags that need --net."""
    if write_labels and not net:
        raise Refused(f"--write-labels {write_labels} needs --net: a trained net doubts labels", 2)
