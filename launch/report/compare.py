"""Comparison of runs, read without torch: what differs between them and what they reached, grouped over seeds and folds.

The unit is a training: a run folder or, if its recipe trains several times, each of its stages. Trainings that differ only in the
seed, or in the fold that they are tested on, form a group. Unfinished ones form groups of their own, so that no mean mixes them
with finished ones.

What is measured is in measures.py, the plots are in compare_plots.py.
"""

import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import Refused, printable
from ..old_names import later
from .measures import COLUMNS, Known, Measure, accuracy_by_epoch, choosing, measures_of, train_loss
from .runs import WORDS, Record, read, read_metrics, read_result, stages

CONTENT = "data sha256"  # an option beside the others: other content under the same name
# What else the sha256 of the data depends on, besides their content: see the recipes' options, and sources/custom_images.py.
DECIDE_CONTENT = (
    "recipe",
    "data",
    "size",
    "cache_size",
    "split",
    "test",
    "validation",
    "columns",
    "split_column",
    "group",
    "label_from",
    "classes_at",
    "multi_label",
    "uncertain",
    "skip_bad",
)


@dataclass(frozen=True)
class Training:
    """One training. `options` is its configuration by dotted name, without the seed.

    `epochs` are those done, `of` the epochs requested (None if not recorded), `measures` those of MEASURES that are known.
    `curves` maps "validation accuracy", "test accuracy" and "train loss" to values by epoch. What is called accuracy there is
    `what`. `place` is what the speed depends on. `images` is what the images of a split, "validation" or "test", are a function
    of, as far as the configuration tells.
    """

    folder: Path
    options: dict[str, Any]
    seed: int
    state: str
    epochs: int
    of: int | None
    measures: dict[str, float]
    curves: dict[str, dict[int, float]]
    place: str
    images: dict[str, str]
    what: str = "accuracy"  # that is measured, in words; empty before the first evaluation
    fold: str = ""  # --fold

    @property
    def draw(self) -> tuple[int, str]:
        """What trainings of a group differ in: those of two groups that have it in common are paired."""
        return self.seed, self.fold


@dataclass(frozen=True)
class Group:
    """The trainings of one configuration, either all finished or all unfinished."""

    options: dict[str, Any]
    trainings: list[Training]

    @property
    def finished(self) -> bool:
        return self.trainings[0].state == "finished"

    @property
    def seeds(self) -> list[int]:
        return sorted({training.seed for training in self.trainings})

    def measure(self, name: str) -> tuple[float, float | None] | None:
        """Mean and sample standard deviation (None for a single training); None if no training has it."""
        values = [training.measures[name] for training in self.trainings if name in training.measures]
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    def curve(self, name: str) -> tuple[list[int], list[list[float]]]:
        """The epochs for which every training has a value, and a list of those values for each training."""
        found = [training.curves[name] for training in self.trainings]
        epochs = sorted(set.intersection(*map(set, found)))
        return epochs, [[curve[epoch] for epoch in epochs] for curve in found]

    def progress(self) -> str:
        """The epochs done: "5", or "3/5 interrupted" if unfinished."""
        done = sorted({training.epochs for training in self.trainings})
        text = f"{done[0]}–{done[-1]}" if len(done) > 1 else str(done[0])
        if self.finished:
            return text
        of, states = self.trainings[0].of, sorted({training.state for training in self.trainings})
        return f"{text}{'' if of is None else f'/{text_of(of)}'} {', '.join(states)}"


@dataclass(frozen=True)
class Comparison:
    """Groups, ordered by `ranked_by`; the options that are the `same` for all, and the names of those that `differ`."""

    groups: list[Group]
    same: dict[str, Any]
    differ: list[str]

    def label(self, group: Group) -> str:
        """The group's name in a plot and in a sentence: what differs among the finished groups, if it is one of several."""
        plain = ("recipe", "net", "stage")  # their values speak for themselves
        finished = [each for each in self.groups if each.finished]
        others = finished if group.finished and len(finished) > 1 else self.groups
        named = [key for key in self.differ if len({text_of(each.options.get(key)) for each in others}) > 1]
        parts = [(key, _told_apart(key, group, others)) for key in named if key in group.options]
        text = ", ".join(value if key in plain else f"{key} {value}" for key, value in parts)
        text = text or text_of(self.same.get("net") or self.same["recipe"])
        return text if group.finished else f"{text} ({group.progress()})"

    def table(self, narrow: bool = False) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of text: means ± deviation (if `narrow`, only of the accuracy); – is unknown."""
        head = [
            *self.differ,
            "runs",
            "done",
            *(measure.heading.replace("accuracy", self.what) for measure in self.columns.values()),
        ]
        rows = []
        for group in self.groups:
            options = [text_of(group.options.get(key)) for key in self.differ]
            rows.append([*options, _count(group), group.progress(), *_cells(group, self.columns, narrow)])
        return head, rows

    @property
    def what(self) -> str:
        """Accuracy, or what else is measured in its place."""
        return next((training.what for group in self.groups for training in group.trainings if training.what), "accuracy")

    @property
    def columns(self) -> dict[str, Measure]:
        """The measures that have a column."""
        return {name: m for name, m in COLUMNS.items() if m.always or any(group.measure(name) for group in self.groups)}

    def records(self) -> list[dict]:
        """The rows as plain values: each measure is {"mean", "deviation"} or None."""
        return [
            {
                "options": {key: group.options.get(key) for key in self.differ},
                "finished": group.finished,
                "epochs": [training.epochs for training in group.trainings],
                "seeds": [training.seed for training in group.trainings],
                "folders": [str(training.folder) for training in group.trainings],
                **{name: _named(group.measure(name)) for name in self.columns},
            }
            for group in self.groups
        ]

    def places(self) -> list[str]:
        """Machines that the trainings ran on. If there is more than one, speeds and times are not comparable."""
        return sorted({training.place for group in self.groups for training in group.trainings})

    def train_counts(self) -> list[float]:
        """Numbers of images that training accuracies are of: of your own, all in earlier versions, some of them now."""
        counts = (training.measures.get("train_count") for group in self.groups for training in group.trainings)
        return sorted({count for count in counts if isinstance(count, int | float)})


def compare(folders: Iterable[Path]) -> tuple[Comparison, list[str]]:
    """Compare the runs in `folders`; returns a message for each that cannot be read, too. Raises Refused (4) if none can."""
    trainings, complaints = [], []
    for folder in folders:
        try:
            trainings += list(trainings_of(read(folder)))  # never only some of a run
        except Refused as error:
            complaints.append(str(error))
    if not trainings:
        raise Refused("; ".join(complaints) or "no run to compare", 4)
    if len(whats := {training.what for training in trainings} - {""}) > 1:
        raise Refused(f"runs are ranked by {' and '.join(sorted(whats))}, which do not compare: name one kind of them", 2)
    sources = {tuple(text_of(training.options.get(name)) for name in (CONTENT, *DECIDE_CONTENT)) for training in trainings}
    if len(sources) == len({source[1:] for source in sources}):  # the content adds nothing to the name
        for training in trainings:
            training.options.pop(CONTENT, None)
    grouped: dict[tuple, list[Training]] = {}
    known = {(training.options["recipe"], name) for training in trainings for name in training.options}
    for training in trainings:
        for name, value in later(training.options).items():
            if (training.options["recipe"], name) in known:
                training.options.setdefault(name, value)
        key = sorted((name, text_of(value)) for name, value in training.options.items() if value is not None)
        grouped.setdefault((training.state == "finished", *key), []).append(training)
    groups = [Group(each[0].options, each) for each in grouped.values()]
    ranking = ranked_by(groups)
    groups.sort(key=lambda group: -(group.measure(ranking) or (-1.0,))[0])
    keys = dict.fromkeys(key for group in groups for key in group.options)
    differ = [key for key in keys if len({text_of(group.options.get(key)) for group in groups}) > 1]
    return Comparison(groups, {key: groups[0].options.get(key) for key in keys if key not in differ}, differ), complaints


def ranked_by(groups: Iterable[Group]) -> Literal["validation_accuracy", "last"]:
    """The measure whose highest value comes first: test accuracy, unless validation images chose in all of the trainings."""
    known = [group for group in groups if group.measure("last") or group.measure("validation_accuracy")]
    return "validation_accuracy" if known and all(group.measure("validation_accuracy") for group in known) else "last"


def trainings_of(record: Record) -> Iterator[Training]:
    """The trainings of one run: its stages if it has any, else the run itself. None if it is made of runs of their own."""
    inside = stages(record.folder)
    if not inside and not (record.folder / "metrics.jsonl").exists() and any(record.folder.glob("*/**/config.json")):
        return
    # Recipe and net come first, however the recipe orders its options.
    known = {"recipe": record.options["recipe"], "net": record.config.get("model")}
    further = {"micro_batches": record.config["micro_batches"], CONTENT: record.config["data"]["fingerprint"][:8]}
    options = _flat({name: value for name, value in known.items() if value} | record.options | further)
    seed, fold = options.pop("seed"), options.pop("fold", "")
    if fold:
        options["folds"] = fold.partition("/")[2]
        del options[CONTENT]  # each fold has its own
    where = record.config
    place = f"{where['world_size']} × {where['device']}, {where['threads']} threads, precision {where['precision']}"
    for folder in inside or [record.folder]:
        result = read_result(folder)
        events = read_metrics(folder / "metrics.jsonl")
        accuracies = {
            f"{split} accuracy": choosing(events, split) or accuracy_by_epoch(events, split) for split in ("validation", "test")
        }
        inner = {"stage": folder.relative_to(record.folder).as_posix()} if inside else {}
        yield Training(
            folder=folder,
            options=options | inner,
            seed=seed,
            state="finished" if result is not None else record.state,
            epochs=max((event["epoch"] - (event["event"] == "train") for event in events), default=0),
            of=None if inside else record.options.get("epochs"),
            measures=measures_of(result or {}, events, {} if inside else record.config),
            curves=accuracies | {"train loss": train_loss(events)},
            place=printable(place),
            images={split: _images(record, split) for split in ("validation", "test")},
            what=WORDS[measured.measure] if (measured := Known(result or {}, events, {})).evaluated else "",
            fold=fold,
        )


def _images(record: Record, split: str) -> str:
    kept = {"validation": ("validation", "limit"), "test": ()}[split]
    data, options = record.config["data"], record.options
    return json.dumps([data["fingerprint"], data.get(split), *(options.get(name) for name in kept)])


def _flat(options: dict, prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = prefix + printable(key)
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def text_of(value: Any) -> str:
    """An option as text for a table: a list as words, None as –."""
    return "–" if value is None else printable(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def _told_apart(key: str, group: Group, others: Iterable[Group]) -> str:
    """The group's value of an option as text, without the folders that all values have in common."""
    values = [text_of(each.options[key]).split("/") for each in others if key in each.options]
    above = len([*itertools.takewhile(lambda names: len({*names}) == 1, zip(*(value[:-1] for value in values), strict=False))])
    return "/".join(text_of(group.options[key]).split("/")[above:])


def _count(group: Group) -> str:
    """The number of runs: "3", or "4 (3 seeds)" if a seed was run twice, since a repetition adds no spread."""
    runs, seeds, folds = len(group.trainings), len(group.seeds), len({training.fold for training in group.trainings} - {""})
    several = f"{seeds} seed{'s' * (seeds > 1)}{f', {folds} folds' if folds else ''}"
    return str(runs) if runs == seeds and not folds else f"{runs} ({several})"


def _cells(group: Group, columns: Mapping[str, Measure], narrow: bool) -> Iterator[str]:
    for name, (_, _, text, spread, _) in columns.items():
        mean, deviation = group.measure(name) or (None, None)
        cell = "–" if mean is None else text.format(mean) if abs(mean) < 1e9 else f"{mean:.2e}"
        shown = deviation is not None and spread and (name == "last" or not narrow)
        yield f"{cell} ± {text.replace('+', '').format(deviation)}" if shown else cell


def _named(found: tuple[float, float | None] | None) -> dict | None:
    return None if found is None else {"mean": found[0], "deviation": found[1]}
