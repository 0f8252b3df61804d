"""What images there are: listed, checked, split. `oneloop data` shows it."""

import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import decode
from ..data.formats import MODE_16
from ..data.resize import OF_DATA, ResizeRule
from ..data.store import Store
from ..errors import Refused
from . import doubt, hub, layout, parquet, several, shards, split, table
from .check import check
from .folder import entries, is_image
from .index import FileInfo
from .labels import alike, shown
from .listing import ListedImage, Listing, Reading, is_hub_name, located, no_collections
from .relabel import relabelled

if TYPE_CHECKING:
    from rich.progress import Progress

SIZE = 224  # pixels a side, at which most nets for photographs train
DARK = 2**14  # 16-bit images without a higher value are rather of 8, 10, 12 or 14 bits
FEW = 3  # images that a line names
UNEVEN = 3  # from this ratio of the largest to the smallest class on, imbalance is worth a line


@dataclass(frozen=True)
class DatasetReport:
    """`files`: what is known of each path; `splits`: of each that is not bad; `opened`: files opened this time.

    Those are in the `store`, if there is one, as far as it took them.
    """

    listing: Listing
    files: dict[str, FileInfo]
    splits: dict[str, str]
    opened: int
    store: Store | None = None
    bands: tuple[int, ...] = ()  # as they were looked at

    @property
    def white(self) -> int:
        """The pixel value that is white in 10, 12 or 14 bits of grey, by the highest of all; 0: 65,535, or none can be told."""
        highest = max((info.highest for info in self.files.values() if _with_range(info)), default=0)
        return next((2**bits - 1 for bits in (10, 12, 14) if 2 ** (bits - 2) <= highest < 2**bits), 0)

    @cached_property
    def good(self) -> list[ListedImage]:
        return [image for image in self.listing.images if not self.files[image.path].problem]

    @cached_property
    def bad(self) -> list[ListedImage]:
        return [image for image in self.listing.images if self.files[image.path].problem]


def dataset_report(
    path: Path,
    reading: Reading,
    split_file: Path | None,
    validation: float,
    test: float,
    bar: "Progress",
    rule: ResizeRule | None = None,
    fold: tuple[int, int] | None = None,
) -> DatasetReport:
    """List, check and split what is at `path`, a folder, a table or owner/name of the hub, as `reading` tells.

    Splits are those of `split_file`, else those that the folder or table has, else made by content with the fractions
    `validation` and `test`. With a `rule`, images are stored by it while they are checked. With a `fold`, its number and that of
    all folds, its images are the test images, all others train, and those that would be test images are left out. Raises Refused.
    """
    path = located(path)
    with no_collections():
        listing = _listing(path, reading, bar)
    if not listing.multi_label and (reading.rules.multi_label == "yes" or reading.rules.uncertain):
        flag = "--multi-label yes" if reading.rules.multi_label else "--uncertain"
        raise Refused(
            f"{listing.source}: each image has one label here, that of its folder or row; {flag} is for tables of several", 2
        )
    if reading.relabel:
        listing = relabelled(listing, Path(reading.relabel))
    if not {*listing.classes} <= {*reading.known}:
        doubt.refuse_one(listing)
    store = Store(rule, listing.source) if rule else None
    files, opened = check(listing, bar, store, reading.bands)
    with no_collections():
        listing, splits = _splits(listing, files, split_file, validation, test, fold)
    report = DatasetReport(listing, files, splits, opened, store, reading.bands)
    if rule and rule.white == OF_DATA and report.white:  # their levels were not stored before it was known
        report = replace(report, store=Store(rule._replace(white=report.white), listing.source))
    return report


def _splits(
    listing: Listing,
    files: dict[str, FileInfo],
    split_file: Path | None,
    validation: float,
    test: float,
    fold: tuple[int, int] | None,
) -> tuple[Listing, dict[str, str]]:
    """`listing`, of a `fold` what it takes, and the split of each image that is not bad. Raises Refused."""
    good = [image for image in listing.images if not files[image.path].problem]
    made = False  # by content
    if split_file:
        splits = split.read(split_file, listing, [image.path for image in good])
    elif not (splits := {image.path: image.split for image in listing.images if image.split}):
        contents, units = _contents(good, files, listing)
        placed = split.split_by_content(contents, validation, test)
        splits, made = {path: placed[unit] for path, unit in units.items()}, True
        del contents, placed, units
    if fold:
        # Where others have made the split and there is no test, validation images are the test images, as in a training.
        kept = "test" if made or "test" in splits.values() else "validation"
        listing, splits = _folded(listing, files, splits, kept, *fold)
        good = [image for image in listing.images if not files[image.path].problem]
    return listing, splits if len(splits) == len(good) else {image.path: splits[image.path] for image in good}


def _contents(
    images: list[ListedImage], files: dict[str, FileInfo], listing: Listing, least: int = 0
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What stays on one side: of each class, and of each path. See `split.units`.

    Of several labels, the rarest that an image has is its class; those with fewer than `least` images are one.
    """
    units = split.units({image.path: files[image.path].sha256 for image in images}, listing.groups)
    strata = several.rarest([image.label for image in images]) if listing.multi_label else {}
    contents = defaultdict(list)
    for image in images:
        contents[strata.get(image.label, image.label)].append(units[image.path])
    if listing.multi_label and (few := [label for label, of in contents.items() if len({*of}) < least]):
        contents["rare labels"] = [unit for label in few for unit in contents.pop(label)]
    return contents, units


def _folded(
    listing: Listing, files: dict[str, FileInfo], splits: dict[str, str], kept: str, number: int, count: int
) -> tuple[Listing, dict[str, str]]:
    """`listing` without the images of the split `kept`, and the splits of the others: fold `number` of `count` is the test's."""
    images = [image for image in listing.images if splits.get(image.path) != kept]
    contents, units = _contents([image for image in images if not files[image.path].problem], files, listing, count)
    placed = split.folds_by_content(contents, count)
    splits = {path: "test" if placed[unit] == number else "train" for path, unit in units.items()}
    left = len(listing.images) - len(images)
    note = (f"fold {number} of {count}: {left:,} test images are left out",) if left else ()
    return replace(listing, images=images, notes=(*listing.notes, *note)), splits


def _listing(path: Path, reading: Reading, bar: "Progress") -> Listing:
    columns = reading.columns
    if path.is_dir():
        content = entries(path)
        tables = [Path(entry.path) for entry in content if entry.name.endswith(".parquet") and entry.kind == "file"]
        if tables and not any(is_image(entry) for entry in content):
            return parquet.read(path, tables, columns, bar, reading.rules)
        shards_here = [Path(entry.path) for entry in content if entry.name.endswith(".tar") and entry.kind == "file"]
        if shards_here and not any(is_image(entry) for entry in content) and shards.is_webdataset(shards_here[0]):
            return shards.read_tar(path, shards_here, columns, bar, reading.rules)
        return layout.read(path, content, reading)
    if path.exists() and not path.is_file():
        raise Refused(f"{path} is not a file or folder")
    if path.suffix.lower() in table.SUFFIXES and path.exists():
        if path.suffix.lower() == ".parquet" and parquet.holds_images(path, columns.get("image", "")):
            return parquet.read(path, [path], columns, bar, reading.rules)
        return table.read(path, columns, reading.rules)
    if is_hub_name(path):
        return hub.read(path, columns, bar, reading.rules)
    if path.suffix == ".npz" and path.exists():
        return shards.read_npz(path)
    if path.suffix == ".tar" and path.exists() and shards.is_webdataset(path):
        return shards.read_tar(path, [path], columns, bar, reading.rules)
    if path.exists() and (command := doubt.unpack(path)):
        raise Refused(f"{path}: an archive; {command}", 2)
    wrong = "not a folder, a table or an archive" if path.exists() else "no such folder or table"
    ways_out = "name a folder with a folder for each class, a table, or owner/name of the hub"
    raise Refused(f"{path}: {wrong}; {ways_out}")


def summary(report: DatasetReport, white: int = OF_DATA) -> dict:
    """All that there is to say, as JSON has it. Sizes are in pixels (width, height), bytes are integers; `white`: as a rule's."""
    listing, good, bad, files = report.listing, report.good, report.bad, report.files
    classes = {}
    for label in listing.classes:
        classes[label] = {"images": 0, "bad": 0, **dict.fromkeys(split.NAMES, 0)}
    for image in good:
        for label in listing.labels_of(image):
            classes[label]["images"] += 1
            classes[label][report.splits[image.path]] += 1
    for image in bad:
        for label in listing.labels_of(image):
            classes[label]["bad"] += 1
    counts = [row["images"] for row in classes.values()]
    known = [files[image.path] for image in good]
    return {
        "source": str(listing.source),
        "revision": listing.revision,
        "unit": "row" if listing.row else "file",
        "images": len(good),
        "classes": classes,
        "splits": {name: sum(side == name for side in report.splits.values()) for name in split.NAMES},
        **({"multi_label": several.summary([image.label for image in good])} if listing.multi_label else {}),
        "imbalance": round(max(counts) / min(counts), 2) if min(counts) else None,
        "sizes": _sizes(known),
        "white": report.white if white == OF_DATA else white,
        "modes": dict(Counter(info.mode for info in known).most_common()),
        "first_frame_only": [image.path for image in good if files[image.path].frames],
        "duplicates": duplicates(report),
        "bad": [{"path": image.path, "class": image.label, "reason": files[image.path].problem} for image in bad],
        "notes": notes(report, white),
        "ignored": dict(listing.ignored.most_common()),
        "cost": _cost(known),
        "examined": {"opened": report.opened, "unchanged": len(files) - report.opened},
    }


def reasons(bad: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lines about `bad` files, pairs of path and reason: one for each; one for all that the same flag or library would read."""
    together = defaultdict(list)
    for path, reason in bad:
        if "--bands" in reason or "pip install" in reason:
            together[reason].append(path)
        else:
            yield f"{path}: {reason}"
    for reason, paths in together.items():
        several = f"{len(paths):,} files ({', '.join(map(shown, paths[:FEW]))}{' …' * (len(paths) > FEW)})"
        yield f"{several if len(paths) > 1 else paths[0]}: {reason}"


def notes(report: DatasetReport, white: int = OF_DATA) -> list[str]:
    """Lines about what was guessed, and about what is probably not meant. `white` as in resize.py."""
    files = [report.files[image.path] for image in report.good]
    lines = [*report.listing.notes, *alike(report.listing.classes)]
    if groups := split.straddling(report.splits, report.listing.groups):
        are = "groups are" if len(groups) > 1 else "group is"
        lines.append(f"{len(groups):,} {are} in several splits, as {shown(groups[0])}: the split that is there is used as it is")
    elif names := {*report.listing.groups.values()} - {""}:
        lines.append(f"each of {len(names):,} groups is on one side")
    if flat := [image.path for image in report.good if report.files[image.path].flat]:
        lines.append(f"{_of(len(flat))} of one colour: {', '.join(map(shown, flat[:FEW]))}" + " …" * (len(flat) > FEW))
    if grey := [info.highest for info in files if _with_range(info)]:
        what = "bands" if report.bands else "grey"
        lines.append(f"16-bit {what}: values up to {max(grey):,} of {decode.WHITE:,}" + _advice(max(grey), white, report.white))
    if dark := [info for info in files if info.bits == 16 and not _with_range(info) and info.highest < DARK]:
        lines.append(f"{_of(len(dark))} of 16-bit colours and dark: no value is above a quarter of {decode.WHITE:,}; scale them")
    if report.listing.row and any(report.files[image.path].sha256 for image in report.bad):
        again = f"oneloop data {shlex.quote(str(report.listing.source))} --clear"
        lines.append(f"if the bad rows are whole in the table, its copy in the cache is damaged: {again} deletes it")
    for kind, what in (
        ("alpha", "TIFF with a band marked as transparency: shown over white; if it is another, as infrared, remove it"),
        ("left out", "TIFF with more bands than colours: the others are left out"),
    ):
        if count := sum(info.bands == kind for info in files):
            lines.append(f"{_of(count)} {what}")
    dicom = Counter(info.bands for info in files if info.bands.startswith("DICOM "))
    if dicom:
        lines.append("; ".join(f"{_of(count)} {how}" for how, count in dicom.most_common()))
    return lines


def _with_range(info: FileInfo) -> bool:
    """Whether its 16 bits are shown from 0 to a value that is white."""
    return info.bits == 16 and (info.mode[0] == "I" or info.mode == MODE_16)


def _of(count: int) -> str:
    return f"{count:,} {'images are' if count > 1 else 'image is'}"


def _advice(highest: int, white: int, guess: int) -> str:
    """What to say after the highest value of 16-bit grey."""
    if white == OF_DATA and guess:
        return f", so {guess:,} is taken as white ({guess.bit_length()} bits); --white N says another"
    if white > 0:
        return f", {white:,} is white"
    if highest >= DARK:
        return ""
    bits = highest.bit_length()
    return f" ({bits} bits): nearly black in training; --white {2**bits - 1} of recipes/custom.py makes the brightest white"


def _sizes(known: list[FileInfo]) -> dict[str, list[int]] | None:
    """The smallest, the median and the largest image by area, and the extremes of each side; None without images."""
    if not known:
        return None
    counts = Counter((info.width, info.height) for info in known)
    by_area = sorted((width * height, width, height) for width, height in counts)
    sides = ([info.width for info in known], [info.height for info in known])
    return {
        "smallest": [*by_area[0][1:]],
        "median": [int(statistics.median(side)) for side in sides],
        "largest": [*by_area[-1][1:]],
    }


def duplicates(report: DatasetReport) -> dict:
    """Images with the same content: in how many files too many, and those whose classes or splits differ, by name."""
    once, twice, files = set[str](), set[str](), report.files
    for image in report.good:
        sha256 = files[image.path].sha256
        (twice if sha256 in once else once).add(sha256)
    same = defaultdict(list)
    for image in report.good if twice else ():
        if (sha256 := files[image.path].sha256) in twice:
            same[sha256].append(image)
    groups = [*same.values()]
    return {
        "files": sum(len(group) - 1 for group in groups),
        "across_classes": [
            [{"path": image.path, "class": image.label} for image in group]
            for group in groups
            if len({image.label for image in group}) > 1
        ],
        "across_splits": [
            [{"path": image.path, "split": report.splits[image.path]} for image in group]
            for group in groups
            if len({report.splits[image.path] for image in group}) > 1
        ],
    }


def _cost(known: list[FileInfo]) -> dict[str, int]:
    """Bytes on disk as files, and decoded, 8 bits RGB, at SIZE × SIZE and at their own sizes."""
    return {
        "files": sum(info.size for info in known),
        f"decoded_{SIZE}": len(known) * 3 * SIZE * SIZE,
        "decoded_own_size": sum(3 * info.width * info.height for info in known),
    }
