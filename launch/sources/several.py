"""Several labels of an image, as tables have them: in a list, with a separator between them, or as a column of 0 and 1 for each.

In a listing they are one text: `cat|dog`, with a `?` before one that nobody knows, as in `cat|?dog`; empty for none.
"""

import ast
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import Refused
from .labels import WAYS, settled, shown, tidy

SEPARATOR, UNKNOWN = "|", "?"
BETWEEN = {"|": r"\|", ";": ";", ",": ",", "blanks": r"\s+"}  # labels in a cell
TAGS = ("tags",)  # columns whose cells have labels with blanks between them
FLAG = "--multi-label"
PYTHON_LIST = re.compile(r"""\[\s*(("[^"]*"|'[^']*'|[-\w.]+)(\s*,\s*|\s*(?=\])))*\]""")
PAIRS = 5  # of labels that are together most often
FEW = 20  # of so many rows fewer than one with several labels are rather slips, or names with a separator


class Rules(NamedTuple):
    """What is told of labels: --multi-label yes or no, --uncertain ignore, 0 or 1; empty if not."""

    multi_label: str = ""
    uncertain: str = ""


AS_FOUND = Rules()


def rules(multi_label: str, uncertain: str) -> Rules:
    """Both as told. Raises Refused (2)."""
    for flag, value, known in ((FLAG, multi_label, ("yes", "no")), ("--uncertain", uncertain, ("ignore", "0", "1"))):
        if value and value not in known:
            raise Refused(f"{flag} takes {', '.join(known[:-1])} or {known[-1]}, not {value!r}", 2)
    return Rules(multi_label, uncertain)


def joined(names: Sequence[str], unknown: Sequence[str] = ()) -> str:
    """The text of an image's labels."""
    return SEPARATOR.join([*dict.fromkeys(names), *(UNKNOWN + name for name in dict.fromkeys(unknown))])


def parts(text: str) -> tuple[list[str], list[str]]:
    """The labels that an image has, and those of which nobody knows."""
    names = text.split(SEPARATOR) if text else []
    return [name for name in names if name[0] != UNKNOWN], [name[1:] for name in names if name[0] == UNKNOWN]


def of_cells(
    where: str, column: str, cells: Sequence[str], row: Callable[[int], str], told: Rules
) -> tuple[list[str], list[str], bool]:
    """The label of each of the `cells`, or the text of its labels; lines of what was guessed; and whether there are several.

    `row` names a cell's row in messages. Raises Refused (4) for a cell without a label where each has one, as `in_cells` and as
    `settled` in labels.py.
    """
    labels, line = in_cells(where, column, cells, row, told)
    if line:
        texts_of_rows, notes = texts(where, labels, row)
        return texts_of_rows, [line, *notes], True
    plain = [label for (label,) in labels]
    if blank := [number for number, cell in enumerate(plain) if not tidy(cell)]:
        raise Refused(f"{where}: {row(blank[0])} has nothing in the column {column!r}; fill it or remove the row", 4)
    classes, notes = settled(Path(where), plain, row, told.multi_label == "no")
    return [classes[label] for label in plain], notes, False


def in_cells(
    where: str, column: str, cells: Sequence[str], row: Callable[[int], str], told: Rules
) -> tuple[list[list[str]], str]:
    """The labels of each of the `cells`, and a line that says how several were told apart; empty if each cell has one.

    `row` names a cell's row in messages. Raises Refused (4) where two readings are possible, naming the flag that chooses.
    """
    lists = [_list(cell) for cell in cells]
    unlisted = [[cell] if own is None else own for cell, own in zip(cells, lists, strict=True)]
    if told.multi_label == "no":
        if several := [number for number, names in enumerate(unlisted) if len(names) != 1]:
            raise Refused(f"{where}: {row(several[0])} is a list of several labels or none, and {FLAG} no takes one", 4)
        return unlisted, ""
    if any(own is not None for own in lists):
        if told.multi_label or any(own is not None and len({*own}) > 1 for own in lists):
            return [[name for name in names if tidy(name)] for names in unlisted], f"{column} has lists of labels"
        if any(own == [] for own in lists):
            empty = row(lists.index([]))
            raise Refused(f"{where}: {empty} has an empty list of labels, no row has several: {FLAG} yes takes it as none", 4)
        return unlisted, ""
    for name, pattern in BETWEEN.items():
        split = [[part for part in map(tidy, re.split(pattern, cell.strip())) if part] for cell in cells]
        several = [number for number, names in enumerate(split) if len(names) > 1]
        if not several:
            continue
        line = f"{column} has labels with {name} between them"
        if told.multi_label and (name in "|;" or _reused(split, several)):
            return split, line
        if told.multi_label or (name == "blanks" and column not in TAGS):
            continue
        if _reused(split, several) and len({len(names) for names in split}) > 1 and FEW * len(several) >= len(cells):
            return split, line
        if name in "|;" or _reused(split, several):
            label = shown(tidy(cells[several[0]]))
            raise Refused(f"{where}: {row(several[0])} has the label {label!r}: several labels, it seems; {WAYS}", 4)
    if told.multi_label:
        return [[cell] if tidy(cell) else [] for cell in cells], f"{column} has one label or none in each cell"
    return unlisted, ""


def _list(cell: str) -> list[str] | None:
    """The items of a list of texts or numbers, as JSON or Python writes it; None if it is something else."""
    text = cell.strip()
    if text[:1] != "[" or text[-1:] != "]":
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        if not PYTHON_LIST.fullmatch(text):  # as ['a' 'b'], NumPy's, which Python would read as one
            return None
        try:
            content = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return None
    return [str(item) for item in content] if all(isinstance(item, str | int | float) for item in content) else None


def _reused(split: Sequence[Sequence[str]], several: Sequence[int]) -> bool:
    """Whether each label that stands with others is in cells with other content, too: then it has a meaning of its own."""
    contents = defaultdict[str, set[tuple[str, ...]]](set)
    for names in split:
        for name in names:
            contents[name].add(tuple(sorted(names)))
    return all(len(contents[name]) > 1 for number in several for name in split[number])


def texts(where: str | Path, labels: Sequence[Sequence[str]], row: Callable[[int], str]) -> tuple[list[str], list[str]]:
    """The text of each image's labels, their spellings unified, and lines of what was guessed. Raises Refused (4)."""
    flat = [(number, name) for number, names in enumerate(labels) for name in names if tidy(name)]
    for number, name in flat:
        check_name(where, tidy(name), row(number))
    classes, notes = settled(Path(where), [name for _, name in flat], lambda number: row(flat[number][0]), several=True)
    return [joined([classes[name] for name in names if tidy(name)]) for names in labels], notes


def check_name(where: str | Path, name: str, row: str) -> None:
    """Raise Refused (4) for a label that would be read as another one."""
    if SEPARATOR in name or name.startswith(UNKNOWN):
        raise Refused(f"{where}: {row} has the label {shown(name)!r}; with several labels, none has a | or begins with a ?", 4)


def rarest(labels: Sequence[str]) -> dict[str, str]:
    """text of an image's labels -> the rarest of these, empty for none: what a split keeps in proportion."""
    texts = Counter(labels)
    counts = Counter[str]()
    for text, number in texts.items():
        counts.update(dict.fromkeys(parts(text)[0], number))
    return {text: min(parts(text)[0], key=lambda name: (counts[name], name), default="") for text in texts}


def summary(labels: Sequence[str]) -> dict:
    """How many labels images have: on average, none, unknown ones; and the pairs that are together most often, with how often."""
    texts = Counter(labels)
    known = {text: parts(text) for text in texts}
    pairs = Counter[tuple[str, str]]()
    for text, (names, _) in known.items():
        pairs.update(dict.fromkeys(itertools.combinations(sorted(names), 2), texts[text]))
    return {
        "mean": round(sum(len(known[text][0]) * number for text, number in texts.items()) / max(len(labels), 1), 3),
        "without": sum(number for text, number in texts.items() if not known[text][0]),
        "unknown": sum(len(known[text][1]) * number for text, number in texts.items()),
        "together": [[*pair, number] for pair, number in pairs.most_common(PAIRS)],
    }


# --------------------------------------------------------------------------------- a column for each label, of 0, 1 and -1

ZEROS, ONES, UNSURE = ("0", "0.0", "", "False", "false"), ("1", "1.0", "True", "true"), ("-1", "-1.0")


def is_one_hot(cells: Sequence[str]) -> bool:
    """Whether a column may say which images have a label."""
    there = {*cells}
    return there <= {*ZEROS, *ONES, *UNSURE} and there != {""}


def one_in_each_row(names: Sequence[str], values: Sequence[Sequence[str]]) -> list[str]:
    """The `names` of columns that alone have one 1 in each row, up to three others being left out; empty if all of them do,
    none do, or something is uncertain.
    """
    ones = [[cell in ONES for cell in column] for column in values]
    counts = [sum(row) for row in zip(*ones, strict=True)]
    if {*counts} == {1} or any(cell in UNSURE for column in values for cell in column):
        return []
    for number in range(1, min(4, len(names) - 1)):
        for others in itertools.combinations(range(len(names)), number):
            if all(count - sum(ones[other][row] for other in others) == 1 for row, count in enumerate(counts)):
                return [name for place, name in enumerate(names) if place not in others]
    return []


def in_columns(
    where: str, names: Sequence[str], values: Sequence[Sequence[str]], told: Rules
) -> tuple[list[str] | None, list[str]]:
    """The text of each row's labels, of columns of 0, 1 and -1, and lines of what was guessed; None if each row has one label.

    Raises Refused: 2 if nobody says what -1 is, 4 where two readings are possible, naming the flag that chooses.
    """
    rows = [*zip(*values, strict=True)]
    ones = [sum(value in ONES for value in row) for row in rows]
    unsure = sum(value in UNSURE for row in rows for value in row)
    odd = [number for number, count in enumerate(ones) if count != 1]
    if told.multi_label != "yes" and not unsure and not odd:
        return None, []
    what = f"it has a column of 0 and 1 for each class ({', '.join(map(shown, names[:4]))} …)"
    if told.multi_label == "no" or (told.multi_label == "" and not unsure and FEW * sum(count > 1 for count in ones) < len(rows)):
        number = odd[0] if odd else next(number for number, row in enumerate(rows) if {*row} & {*UNSURE})
        count = ones[number] if odd else "a -1 and 1"
        way = "correct it" if told.multi_label else f"correct it, or {FLAG} yes trains on several labels of an image or none"
        raise Refused(f"{where}: {what}, and row {number + 1} has {count or 'no'} ones: {way}", 4)
    if unsure and not told.uncertain:
        ways = "--uncertain ignore leaves them out of the loss and the measures, 0 or 1 takes them as such"
        raise Refused(f"{where}: {unsure:,} labels are -1, uncertain: {ways}", 2)
    for name in names:
        check_name(where, name, "a column")
    present = {*ONES, *(UNSURE if told.uncertain == "1" else ())}
    unknown = {*UNSURE} if told.uncertain == "ignore" else {*()}
    found = []
    for row in rows:
        cells = [*zip(names, row, strict=True)]
        found.append(joined([name for name, cell in cells if cell in present], [name for name, cell in cells if cell in unknown]))
    some = ", ".join(map(shown, names[:10])) + " …" * (len(names) > 10)
    notes = [f"several labels: the columns that have a 1: {some}"]
    if never := [name for name in names if not any(name in parts(text)[0] for text in {*found})]:
        notes.append(f"columns that have no 1: {', '.join(map(shown, never[:10]))}: left out")
    if unsure:
        taken = {"ignore": "left out of the loss and the measures", "0": "taken as 0", "1": "taken as 1"}[told.uncertain]
        notes.append(f"labels that are -1, uncertain: {unsure:,}, {taken}")
    if blank := sum(value == "" for row in rows for value in row):
        notes.append(f"labels that are blank, not mentioned: {blank:,}, taken as 0")
    return found, notes
