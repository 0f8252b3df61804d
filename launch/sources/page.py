"""The page of `oneloop data --html`: what is known about the images, and a few of each class. Layout: launch/templates/."""

import base64
import io
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from rich.filesize import decimal

from ..data.decode import decode
from ..templates.render import render as fill_in
from .listing import ListedImage, open_image
from .survey import UNEVEN, Survey

SHOWN = 10  # images of a class
CLASSES = 100  # with images; those with the most of them
SIDE = 96  # pixels of a shown image


def render(found: Survey, said: dict) -> bytes:
    """The page of `said`, the summary of `found`. Self-contained: opens from disk, loads nothing from elsewhere."""
    content = {
        "said": said,
        "title": Path(said["source"]).name,
        "figures": _figures(said),
        "uneven": UNEVEN,
        "most": max(row["images"] for row in said["classes"].values()) or 1,
        "montages": _montages(found, said),
        "bytes": {name: decimal(size) for name, size in said["cost"].items()},
    }
    return fill_in("data.html", content)


def _figures(said: dict) -> dict[str, str]:
    figures = {"images": f"{said['images']:,}", "classes": f"{len(said['classes']):,}"}
    figures |= {name: f"{count:,}" for name, count in said["splits"].items()}
    if said["sizes"]:
        figures["median size"] = "×".join(map(str, said["sizes"]["median"]))
    return figures | {f"bad {said['unit']}s": f"{len(said['bad']):,}", "duplicates": f"{said['duplicates']['files']:,}"}


def _montages(found: Survey, said: dict) -> dict[str, list[str]]:
    """class -> a few of its images, as base64 JPEG."""
    images = defaultdict(list)
    for each in found.good:
        images[each.label].append(each)
    largest = sorted(images, key=lambda label: -len(images[label]))[:CLASSES]
    with ThreadPoolExecutor() as pool:
        few = pool.map(lambda label: _few(found, images[label]), largest)
        drawn = dict(zip(largest, few, strict=True))
    return {label: drawn[label] for label in said["classes"] if label in drawn}


def _few(found: Survey, images: list[ListedImage]) -> list[str]:
    """Up to SHOWN of one class, evenly over its paths, each cut to a square from its middle."""
    few = []
    for each in images[:: -(-len(images) // SHOWN)]:
        try:
            with open_image(found.listing, each) as content:
                shown = decode(content, 3)
        except OSError:  # changed or gone since it was examined
            continue
        side = min(shown.size)
        left, upper = (shown.width - side) // 2, (shown.height - side) // 2
        square = shown.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, upper, left + side, upper + side))
        file = io.BytesIO()
        square.save(file, "JPEG", quality=85)
        few.append(base64.b64encode(file.getvalue()).decode())
    return few
