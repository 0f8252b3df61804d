"""What people call a class: written in two ways it is one class, and what stands for no label is refused, by its row."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path

from ..errors import Refused

NOTHING = ("nan", "nat", "<na>", "#n/a")  # as pandas and Excel write an empty cell
PERHAPS_NOTHING = ("none", "null", "na", "n/a", "-", "?", "unknown")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?", re.IGNORECASE)
WHOLE = re.compile(r"(-?[1-9]\d*|0)(\.0*)?")
WAYS = "--multi-label yes takes it as several labels of an image, --multi-label no as the name of a class"
SHOWN, CUT = 3, 40  # labels in a message, and characters of each


def tidy(text: str) -> str:
    """`text` without blanks at its ends, in the usual one of Unicode's forms (NFC): macOS writes é as e and an accent."""
    return unicodedata.normalize("NFC", text).strip().strip("\ufeff\u200b").strip()


def shown(text: str) -> str:
    """A name for a message."""
    return text if len(text) <= CUT else f"{text[: CUT - 1]}…"


def settled(
    source: Path, labels: Sequence[str], row: Callable[[int], str], several: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Each of `labels`, of which none is blank -> the class, and lines that say what was guessed. `row` names one in messages.
    `several`: it has been settled whether an image has several of them; else what looks like that is refused.

    Raises Refused (4), naming the row, for a label that stands for none, that names several, or that is no text; and for numbers
    that are the same in two ways of which none is a whole number.
    """
    first: dict[str, int] = {}
    for number, label in enumerate(labels):
        first.setdefault(label, number)
    classes = {label: tidy(label) for label in first}
    names = {*classes.values()}
    for label, name in classes.items():
        says = f"{source}: {row(first[label])} has the label {shown(label)!r}"
        if name.casefold() in NOTHING:
            raise Refused(f"{says}, which stands for no label; fill it or remove the row", 4)
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise Refused(f"{says}, which is not UTF-8; save the table as UTF-8", 4)
        if several:
            continue
        if re.search(r".[|;].", name) or re.fullmatch(r"[\[({].*[\])}]", name):
            raise Refused(f"{says}: several labels, it seems; {WAYS}", 4)
        parts = [tidy(part) for part in re.split("[,+&/]", name)]
        if len(parts) > 1 and names.issuperset(parts):
            raise Refused(f"{says}, others {parts[0]!r} and {parts[1]!r}: several labels, it seems; {WAYS}", 4)
    notes = _unified({label.strip(): name for label, name in classes.items()})
    if blanks := [label for label in first if label != label.strip()]:
        notes.append(f"blanks at the ends of labels are left out, as in {row(first[blanks[0]])}: {shown(blanks[0])!r}")
    if (
        made := [shown(name) for name in dict.fromkeys(classes.values()) if " " in name and names >= {*name.split()}]
        if not several
        else []
    ):
        notes.append(
            f"{_some(made)} is taken as a class of its own, not as several labels of an image: --multi-label yes reads it so"
        )
    numbers = defaultdict[Decimal, set[str]](set)
    for name in classes.values():
        if NUMBER.fullmatch(name):
            numbers[Decimal(name)].add(name)
    merged: dict[str, str] = {}
    for names in numbers.values():
        whole = {match[1] for name in names if (match := WHOLE.fullmatch(name))}
        if len(names) > 1 and (len(whole) != 1 or not all(map(WHOLE.fullmatch, names))):
            where = " and ".join(f"{shown(name)!r} ({row(first[_of(classes, name)])})" for name in sorted(names)[:2])
            raise Refused(f"{source}: the labels {where} are the same number; write it in one way", 4)
        merged |= dict.fromkeys(names, *whole) if len(names) > 1 else {}
    if merged:
        pairs = [" = ".join(map(shown, sorted(names))) for names in numbers.values() if len(names) > 1]
        notes.append(f"numbers that are the same are one class: {_some(pairs)}")
    classes = {label: merged.get(name, name) for label, name in classes.items()}
    perhaps = (*PERHAPS_NOTHING, "no finding") if several else PERHAPS_NOTHING
    if odd := [name for name in dict.fromkeys(classes.values()) if name.casefold() in perhaps]:
        way = "leave it out of the cells" if several else "remove its rows"
        notes.append(f"{_some(odd)} is taken as a class: {way} if it stands for no label")
    return classes, notes


def of_folders(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Each of the folders' names -> the class, and lines that say which folders are one class."""
    classes = {name: tidy(name) or name for name in names}
    return classes, _unified(classes, "folders")


def alike(classes: Iterable[str]) -> list[str]:
    """Lines about classes that are perhaps one: they differ in capitals, or in blanks, hyphens and such."""
    groups = defaultdict[str, list[str]](list)
    for name in classes:
        if NUMBER.fullmatch(name):  # -1 and 1
            continue
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups["".join(letter for letter in plain if letter not in " -_\t\n" and unicodedata.category(letter) != "Cf")].append(
            name
        )
    twice = [names for names in groups.values() if len(names) > 1]
    capitals = [" and ".join(map(shown, names)) for names in twice if len({name.casefold() for name in names}) == 1]
    others = [" and ".join(map(shown, names)) for names in twice if len({name.casefold() for name in names}) > 1]
    lines = [("capitals", capitals), ("capitals, blanks, hyphens or forms of letters", others)]
    return [f"classes that differ in {what} only: {_some(pairs)}" for what, pairs in lines if pairs]


def _unified(classes: dict[str, str], what: str = "labels") -> list[str]:
    """A line about names that are the same class in two of Unicode's forms or with blanks."""
    groups = defaultdict[str, list[str]](list)
    for label, name in classes.items():
        groups[name].append(label)
    twice = [" = ".join(ascii(shown(name)) for name in names) for names in groups.values() if len(names) > 1]
    return [f"{what} that look the same are one class: {_some(twice)}"] if twice else []


def _of(classes: dict[str, str], name: str) -> str:
    return next(label for label, other in classes.items() if other == name)


def _some(parts: Sequence[str]) -> str:
    return ", ".join(parts[:SHOWN]) + (f" and {len(parts) - SHOWN:,} more" if len(parts) > SHOWN else "")
