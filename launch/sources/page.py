"""The page of `oneloop data --html`: what is known about the images, and a few of each class. Layout: launch/templates/."""

import base64
import io
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich.filesize import decimal

from ..data.decode import decode
from ..templates.render import render as fill_in
from .dataset_report import UNEVEN, DatasetReport
from .listing import ListedImage, open_image

SHOWN = 10  # images of a class
CLASSES = 100  # with images; those with the most of them
SIDE = 96  # pixels of a shown image
PAIRS = 100  # groups of the same image that are shown


class Shown(NamedTuple):
    """An image on the page."""

    jpeg: str  # base64
    address: str  # of its file, to be opened large; empty for a row of a table


def render(report: DatasetReport, summary: dict) -> bytes:
    """The page of `report` and its `summary`. Self-contained: opens from disk, loads nothing from elsewhere."""
    content = {
        "summary": summary,
        "title": Path(summary["source"]).name,
        "figures": _figures(summary),
        "uneven": UNEVEN,
        "most": max(row["images"] for row in summary["classes"].values()) or 1,
        "montages": _montages(report, summary),
        "pairs": {key: _pairs(report, summary["duplicates"][key]) for key in ("across_classes", "across_splits")},
        "seen": summary.get("seen"),
        "thumbnails": _thumbnails(report, summary["seen"]) if "seen" in summary else {},
        "bytes": {name: decimal(size) for name, size in summary["cost"].items()},
    }
    return fill_in("data.html", content)


def _figures(summary: dict) -> dict[str, str]:
    figures = {"images": f"{summary['images']:,}", "classes": f"{len(summary['classes']):,}"}
    figures |= {name: f"{count:,}" for name, count in summary["splits"].items()}
    if summary["sizes"]:
        figures["median size"] = "×".join(map(str, summary["sizes"]["median"]))
    return figures | {f"bad {summary['unit']}s": f"{len(summary['bad']):,}", "duplicates": f"{summary['duplicates']['files']:,}"}


def _montages(report: DatasetReport, summary: dict) -> dict[str, list[Shown]]:
    """class -> a few of its images."""
    images = defaultdict(list)
    for image in report.good:
        for label in report.listing.labels_of(image):
            images[label].append(image)
    largest = sorted(images, key=lambda label: -len(images[label]))[:CLASSES]
    with ThreadPoolExecutor() as pool:
        few = pool.map(lambda label: _few(report, images[label]), largest)
        drawn = dict(zip(largest, few, strict=True))
    return {label: drawn[label] for label in summary["classes"] if label in drawn}


def _few(report: DatasetReport, images: list[ListedImage]) -> list[Shown]:
    """Up to SHOWN of one class, evenly over its paths."""
    return [shown for image in images[:: -(-len(images) // SHOWN)] if (shown := _shown(report, image))]


def _pairs(report: DatasetReport, groups: list[list[dict[str, str]]]) -> list[list[tuple[dict[str, str], Shown | None]]]:
    """Groups of images with the same content, as duplicates() has them, each image as it looks; PAIRS groups at most."""
    by_path = {image.path: image for image in report.good} if groups else {}
    return [[(about, _shown(report, by_path[about["path"]])) for about in group] for group in groups[:PAIRS]]


def _shown(report: DatasetReport, image: ListedImage) -> Shown | None:
    """The image as it looks; None if it has changed or gone since it was checked."""
    address = "" if report.listing.row else Path(os.path.join(report.listing.root, image.path)).absolute().as_uri()
    jpeg = _square(report, image)
    return Shown(jpeg, address) if jpeg else None


def _thumbnails(report: DatasetReport, seen: dict) -> dict[str, str]:
    """path -> the image as base64 JPEG, of those that a net has something to say about."""
    paths = {finding["path"] for finding in (*seen["doubts"], *seen["outliers"])}
    paths |= {path for pair in seen["near_duplicates"] for path in pair["paths"]}
    with ThreadPoolExecutor() as pool:
        images = [image for image in report.good if image.path in paths]
        return {image.path: jpeg for image, jpeg in zip(images, pool.map(partial(_square, report), images), strict=True)}


def _square(report: DatasetReport, image: ListedImage) -> str:
    """The image cut to a square from its middle, as base64 JPEG; empty if it has changed or gone since it was checked."""
    try:
        with open_image(report.listing, image) as content:
            shown = decode(content, 3, report.bands, report.white)
    except OSError:
        return ""
    side = min(shown.size)
    left, upper = (shown.width - side) // 2, (shown.height - side) // 2
    square = shown.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, upper, left + side, upper + side))
    file = io.BytesIO()
    square.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()
