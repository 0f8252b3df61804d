"""What images there are: listed, examined, split. `oneloop data` shows it."""

import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import decode
from ..data.resize import ResizeRule
from ..data.store import Store
from ..errors import Refused, first_line
from . import doubt, hub_images, parquet, path_table, split
from .check import examine
from .index import FileInfo
from .labels import alike, shown
from .listing import ListedImage, Listing, class_folders, entries, is_image

if TYPE_CHECKING:
    from rich.progress import Progress

SIZE = 224  # pixels a side, at which most nets for photographs train
DARK = 2**14  # 16-bit images without a higher value are rather of 8, 10, 12 or 14 bits
FEW = 3  # images that a line names
UNEVEN = 3  # from this ratio of the largest to the smallest class on, imbalance is worth a line


@dataclass(frozen=True)
class Survey:
    """`facts` of each path of the listing; `splits` of each path that is not bad; `opened` files were examined this time.

    Those that were are in the `store`, if there is one, as far as it took them.
    """

    listing: Listing
    facts: dict[str, FileInfo]
    splits: dict[str, str]
    opened: int
    store: Store | None = None

    @property
    def good(self) -> list[ListedImage]:
        return [image for image in self.listing.images if not self.facts[image.path].problem]

    @property
    def bad(self) -> list[ListedImage]:
        return [image for image in self.listing.images if self.facts[image.path].problem]


def located(path: Path) -> Path:
    """`path` as an absolute one: the same folder has the same index from wherever it is named; owner/name of the hub as it is.

    Raises Refused (2).
    """
    try:
        if hub_images.matches(path):
            return path
        found = path.expanduser().resolve()
        found.exists()
        return found
    except (OSError, RuntimeError, ValueError) as error:  # an unknown ~user, a circle of links, a name that is too long
        raise Refused(f"{shown(str(path))}: {getattr(error, 'strerror', None) or first_line(error)}", 2) from error


def survey(
    path: Path,
    columns: Mapping[str, str],
    split_file: Path | None,
    validation: float,
    test: float,
    bar: "Progress",
    known: Collection[str] = (),
    rule: ResizeRule | None = None,
) -> Survey:
    """List, examine and split what is at `path`, a folder, a table or owner/name of the hub; `columns` as in path_table.read.

    Splits are those of `split_file`, else those that the folder or table has, else made by content with the fractions
    `validation` and `test`. `known` are classes that need not be doubted, those of a trained net. With a `rule`, images
    are stored by it while they are examined. Raises Refused.
    """
    path = located(path)
    listing = _listing(path, columns, bar)
    doubt.refuse(listing, known)
    store = Store(rule, listing.source) if rule else None
    facts, opened = examine(listing, bar, store)
    good = [each for each in listing.images if not facts[each.path].problem]
    if split_file:
        given = split.read(split_file, listing, [each.path for each in good])
    elif not (given := {each.path: each.split for each in listing.images if each.split}):
        contents = defaultdict(list)
        for each in good:
            contents[each.label].append(facts[each.path].sha256)
        placed = split.split_by_content(contents, validation, test)
        given = {each.path: placed[facts[each.path].sha256] for each in good}
    return Survey(listing, facts, {each.path: given[each.path] for each in good}, opened, store)


def _listing(path: Path, columns: Mapping[str, str], bar: "Progress") -> Listing:
    if path.is_dir():
        found = entries(path)
        tables = [Path(entry.path) for entry, _ in found if entry.kind == "file" and entry.path.endswith(".parquet")]
        if tables and not any(is_image(entry) for entry, _ in found):
            return parquet.read(path, tables, columns, bar)
        if not any(is_image(entry) and len(parts) > 1 for entry, parts in found) and (named := doubt.table_in(path)):
            raise Refused(f"{path}: no class folders; {named}", 4)
        return class_folders(path, found)
    if path.exists() and not path.is_file():
        raise Refused(f"{path} is not a file or folder")
    if path.suffix.lower() in path_table.SUFFIXES and path.exists():
        if path.suffix.lower() == ".parquet" and parquet.holds_images(path, columns.get("image", "")):
            return parquet.read(path, [path], columns, bar)
        return path_table.read(path, columns)
    if hub_images.matches(path):
        return hub_images.read(path, columns, bar)
    wrong = "not a folder, a CSV or a parquet file" if path.exists() else "no such folder or table"
    ways_out = "name a folder with a folder for each class, a table, or owner/name of the hub"
    raise Refused(f"{path}: {wrong}; {ways_out}")


def summary(found: Survey) -> dict:
    """All that there is to say, as JSON has it. Sizes are in pixels (width, height), bytes are integers."""
    listing, good, bad, facts = found.listing, found.good, found.bad, found.facts
    classes = {}
    for label in listing.classes:
        classes[label] = {"images": 0, "bad": 0, **dict.fromkeys(split.NAMES, 0)}
    for each in good:
        classes[each.label]["images"] += 1
        classes[each.label][found.splits[each.path]] += 1
    for each in bad:
        classes[each.label]["bad"] += 1
    counts = [each["images"] for each in classes.values()]
    known = [facts[each.path] for each in good]
    return {
        "source": str(listing.source),
        "revision": listing.revision,
        "unit": "row" if listing.row else "file",
        "images": len(good),
        "classes": classes,
        "splits": {name: sum(each[name] for each in classes.values()) for name in split.NAMES},
        "imbalance": round(max(counts) / min(counts), 2) if min(counts) else None,
        "sizes": _sizes(known),
        "modes": dict(Counter(each.mode for each in known).most_common()),
        "first_frame_only": [each.path for each in good if facts[each.path].frames],
        "duplicates": duplicates(found),
        "bad": [{"path": each.path, "class": each.label, "reason": facts[each.path].problem} for each in bad],
        "notes": notes(found),
        "ignored": dict(listing.ignored.most_common()),
        "cost": _cost(known),
        "examined": {"opened": found.opened, "unchanged": len(facts) - found.opened},
    }


def notes(found: Survey, white: int = 0) -> list[str]:
    """Lines about what was guessed, and about what is probably not meant. `white` as in rule.py."""
    facts = [found.facts[each.path] for each in found.good]
    lines = [*found.listing.notes, *alike(found.listing.classes)]
    if flat := [each.path for each in found.good if found.facts[each.path].flat]:
        lines.append(f"{_of(len(flat))} of one colour: {', '.join(map(shown, flat[:FEW]))}" + " …" * (len(flat) > FEW))
    if grey := [each.highest for each in facts if each.bits == 16 and each.mode[0] == "I"]:
        lines.append(f"16-bit grey: values up to {max(grey):,} of {decode.WHITE:,}" + _advice(max(grey), white))
    if dark := [each for each in facts if each.bits == 16 and each.mode[0] != "I" and each.highest < DARK]:
        lines.append(f"{_of(len(dark))} of 16-bit colours and dark: no value is above a quarter of {decode.WHITE:,}; scale them")
    if found.listing.row and any(found.facts[each.path].sha256 for each in found.bad):
        again = f"oneloop data {shlex.quote(str(found.listing.source))} --clear"
        lines.append(f"if the bad rows are whole in the table, its copy in the cache is damaged: {again} deletes it")
    for kind, what in (
        ("alpha", "TIFF with a band marked as transparency: shown over white; if it is another, as infrared, remove it"),
        ("left out", "TIFF with more bands than colours: the others are left out"),
    ):
        if count := sum(each.bands == kind for each in facts):
            lines.append(f"{_of(count)} {what}")
    return lines


def _of(count: int) -> str:
    return f"{count:,} {'images are' if count > 1 else 'image is'}"


def _advice(highest: int, white: int) -> str:
    """What to say after the highest value of 16-bit grey."""
    if white:
        return f", {white:,} is white"
    if highest >= DARK:
        return ""
    bits = highest.bit_length()
    return f" ({bits} bits): nearly black in training; --white {2**bits - 1} of recipes/custom.py makes the brightest white"


def _sizes(known: list[FileInfo]) -> dict[str, list[int]] | None:
    """The smallest, the median and the largest image by area, and the extremes of each side; None without images."""
    if not known:
        return None
    by_area = sorted((each.width * each.height, each.width, each.height) for each in known)
    return {
        "smallest": [*by_area[0][1:]],
        "median": [int(statistics.median(each.width for each in known)), int(statistics.median(each.height for each in known))],
        "largest": [*by_area[-1][1:]],
    }


def duplicates(found: Survey) -> dict:
    """Images with the same content: in how many files too many, and those whose classes or splits differ, by name."""
    same = defaultdict(list)
    for each in found.good:
        same[found.facts[each.path].sha256].append(each)
    groups = [group for group in same.values() if len(group) > 1]
    return {
        "files": sum(len(group) - 1 for group in groups),
        "across_classes": [
            [{"path": each.path, "class": each.label} for each in group] for group in groups if len({e.label for e in group}) > 1
        ],
        "across_splits": [
            [{"path": each.path, "split": found.splits[each.path]} for each in group]
            for group in groups
            if len({found.splits[each.path] for each in group}) > 1
        ],
    }


def _cost(known: list[FileInfo]) -> dict[str, int]:
    """Bytes on disk as files, and decoded, 8 bits RGB, at SIZE × SIZE and at their own sizes."""
    return {
        "files": sum(each.size for each in known),
        f"decoded_{SIZE}": len(known) * 3 * SIZE * SIZE,
        "decoded_own_size": sum(3 * each.width * each.height for each in known),
    }
