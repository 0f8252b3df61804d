"""What torchvision's ImageFolder and `datasets`' imagefolder make of the replicas in tests/layouts.py: docs/layouts.md's table.

Run: python benchmarks/layouts.py. Each is given the folder as it was unpacked: ImageFolder its train/ if it has one.
"""

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import layouts  # noqa: E402
from layout_folders import FOLDERS  # noqa: E402
from layout_labels import LABELS  # noqa: E402
from layout_tables import TABLES  # noqa: E402

NO_LABEL = "no label"
Read = dict[str, tuple[str, str]]  # path below the replica -> class, and split or nothing


def image_folder(place: Path) -> Read:
    """What torchvision reads."""
    from torchvision.datasets import ImageFolder

    top = place / "train" if (place / "train").is_dir() else place
    images = ImageFolder(str(top))
    return {os.path.relpath(path, place): (images.classes[label], "") for path, label in images.samples}


def datasets_folder(place: Path) -> Read:
    """What `datasets` reads."""
    import datasets

    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for split, table in datasets.load_dataset("imagefolder", data_dir=str(place), cache_dir=cache).items():
            names = getattr(table.features.get("label"), "names", None)
            for row in table.cast_column("image", datasets.Image(decode=False)):
                label = row.get("label", row.get("labels"))
                name = names[label] if names and label is not None else "|".join(label) if isinstance(label, list) else NO_LABEL
                found[os.path.relpath(row["image"]["path"], place)] = (name, split)
    return found


def verdict(layout: layouts.Layout, read: Callable[[Path], Read], place: Path) -> str:
    """What came of it, in a few words."""
    if layout.data:
        return "–"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            found = read(place)
    except Exception as error:  # whatever a reader raises
        return f"{type(error).__name__}"
    truth = {path: label for path, label in layout.truth.items() if label}
    classes = sorted({name for name, _ in found.values()} - {NO_LABEL})
    if not classes:
        return "no labels"
    if any(found[path][0] != truth[path][0] for path in found.keys() & truth.keys()) or found.keys() - truth.keys():
        return f"wrong: {len(classes)} class{'es' * (len(classes) != 1)}, {', '.join(classes[:3])}" + " …" * (len(classes) > 3)
    if missing := len(truth.keys() - found.keys()):
        return f"right, but for {missing} of {len(truth)} images" if missing < len(truth) else "no image"
    if any(split for _, split in found.values()) and all(split for _, split in truth.values()) and found != truth:
        return "right classes, another split"
    return "right"


def main() -> None:
    import datasets
    import torchvision

    logging.disable(logging.ERROR)
    datasets.disable_progress_bars()
    versions = torchvision.__version__.partition("+")[0], datasets.__version__
    print(
        "| Data set | What is shipped | How it is read | ImageFolder, torchvision {} | imagefolder, datasets {} |".format(
            *versions
        )
    )
    print("|---|---|---|---|---|")
    for layout in [*FOLDERS, *TABLES, *LABELS]:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "data")
            layouts.write(layout, place)
            others = [verdict(layout, read, place) for read in (image_folder, datasets_folder)]
        print(f"| {layout.name} | {layout.ships} | {layout.rule} | {' | '.join(others)} |")


if __name__ == "__main__":
    main()
