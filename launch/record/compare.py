"""Several runs side by side, read without torch: what differs between them, what they measured, grouped over seeds.

What is compared is a training: a run folder or, of a recipe that trains several times, each of its stages. Trainings of one
configuration that differ in the seed alone make one group. Unfinished ones count as far as they got, in groups of their own: no
mean mixes them with finished ones.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Refused, printable
from .runs import Record, read, read_metrics, read_result, stages

MEASURES = {  # name -> (heading, format)
    "last": ("accuracy", "{:.4f}"),  # of the test images, at the end
    "best": ("best", "{:.4f}"),  # the same after the best epoch: chosen by the test images themselves
    "loss": ("loss", "{:.4f}"),  # of the test images, at the end
    "gap": ("gap", "{:+.4f}"),  # accuracy of the training images minus that of the test images, at the end
    "images_per_second": ("images/s", "{:,.0f}"),
    "seconds": ("seconds", "{:,.1f}"),
    "parameters": ("parameters", "{:,.0f}"),
}
SPREAD = ("last", "best", "loss", "gap")  # those whose deviation a table shows


@dataclass(frozen=True)
class Training:
    """One training. `options` is its configuration by dotted name, without the seed.

    `measures` are those of MEASURES that are known, and `train`: the accuracy of the training images at the end.
    `epochs` are those done, `of` those wanted, None where that is not recorded. `curves` maps test accuracy and train loss to a
    value for each epoch that has one; `place` says what the speed depends on.
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


@dataclass(frozen=True)
class Group:
    """The trainings of one configuration, all finished or none."""

    options: dict[str, Any]
    trainings: list[Training]

    @property
    def finished(self) -> bool:
        return self.trainings[0].state == "finished"

    @property
    def seeds(self) -> list[int]:
        return sorted({training.seed for training in self.trainings})

    def measure(self, name: str) -> tuple[float, float | None] | None:
        """Mean and sample deviation (None of a single training); None where no training has it."""
        values = [training.measures[name] for training in self.trainings if name in training.measures]
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    def curve(self, name: str) -> tuple[list[int], list[list[float]]]:
        """The epochs that every training has a value for, and those values, a list for each training."""
        found = [training.curves[name] for training in self.trainings]
        epochs = sorted(set.intersection(*map(set, found)))
        return epochs, [[curve[epoch] for epoch in epochs] for curve in found]

    def progress(self) -> str:
        """5, or as "3/5 interrupted" where that was not the end."""
        done = sorted({training.epochs for training in self.trainings})
        text = f"{done[0]}–{done[-1]}" if len(done) > 1 else str(done[0])
        if self.finished:
            return text
        of, states = self.trainings[0].of, sorted({training.state for training in self.trainings})
        return f"{text}{'' if of is None else f'/{text_of(of)}'} {', '.join(states)}"


@dataclass(frozen=True)
class Comparison:
    """Groups, those of the highest accuracy first; of their options those that are the `same`, and the names that `differ`."""

    groups: list[Group]
    same: dict[str, Any]
    differ: list[str]

    def label(self, group: Group) -> str:
        """The group's name in a picture."""
        plain = ("recipe", "net", "stage")  # names that need no key
        parts = [(key, text_of(group.options[key])) for key in self.differ if key in group.options]
        text = ", ".join(value if key in plain else f"{key} {value}" for key, value in parts)
        text = text or text_of(self.same.get("net") or self.same["recipe"])
        return text if group.finished else f"{text} ({group.progress()})"

    def table(self, spread: Sequence[str] = SPREAD) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of text: means, for `spread` with ± deviation, – for what is not known."""
        head = [*self.differ, "runs", "done", *(heading for heading, _ in MEASURES.values())]
        return head, [
            [*(text_of(group.options.get(key)) for key in self.differ), _count(group), group.progress(), *_cells(group, spread)]
            for group in self.groups
        ]

    def records(self) -> list[dict]:
        """The rows as plain values, each measure as {"mean", "deviation"} or None."""
        return [
            {
                "options": {key: group.options.get(key) for key in self.differ},
                "finished": group.finished,
                "epochs": [training.epochs for training in group.trainings],
                "seeds": [training.seed for training in group.trainings],
                "folders": [str(training.folder) for training in group.trainings],
                **{name: _named(group.measure(name)) for name in MEASURES},
            }
            for group in self.groups
        ]

    def places(self) -> list[str]:
        """Where the trainings ran; of more than one, speeds and times cannot be compared."""
        return sorted({training.place for group in self.groups for training in group.trainings})


def compare(folders: Iterable[Path]) -> tuple[Comparison, list[str]]:
    """The comparison of the runs in `folders`, and a line for each that cannot be read. Raises Refused (4) if none can."""
    trainings, complaints = [], []
    for folder in folders:
        try:
            trainings += list(trainings_of(read(folder)))  # all of a run or none
        except Refused as error:
            complaints.append(str(error))
    if not trainings:
        raise Refused("; ".join(complaints) or "no run to compare", 4)
    sources = {(training.options["recipe"], training.options["data"], training.options["pixels"]) for training in trainings}
    if len(sources) == len({(recipe, data) for recipe, data, _ in sources}):  # the pixels say nothing more
        for training in trainings:
            del training.options["pixels"]
    grouped: dict[tuple, list[Training]] = {}
    for training in trainings:
        key = sorted((name, text_of(value)) for name, value in training.options.items() if value is not None)
        grouped.setdefault((training.state == "finished", *key), []).append(training)
    groups = [Group(each[0].options, each) for each in grouped.values()]
    groups.sort(key=lambda group: -(group.measure("last") or (-1.0,))[0])
    keys = dict.fromkeys(key for group in groups for key in group.options)
    differ = [key for key in keys if len({text_of(group.options.get(key)) for group in groups}) > 1]
    return Comparison(groups, {key: groups[0].options.get(key) for key in keys if key not in differ}, differ), complaints


def trainings_of(record: Record) -> Iterator[Training]:
    """The trainings of one run: its stages if it has any, else itself."""
    inside = stages(record.folder)
    known = {"recipe": record.options["recipe"], "net": record.config.get("model")}  # first, whatever the recipe's options are
    further = {"shards": record.config["shards"], "pixels": record.config["data"]["fingerprint"][:8]}
    options = flat({name: value for name, value in known.items() if value} | record.options | further)
    seed = options.pop("seed")
    where = record.config
    place = f"{where['world_size']} × {where['device']}, {where['threads']} threads, precision {where['precision']}"
    for folder in inside or [record.folder]:
        result = read_result(folder)
        events = read_metrics(folder / "metrics.jsonl")
        inner = {"stage": folder.relative_to(record.folder).as_posix()} if inside else {}
        yield Training(
            folder=folder,
            options=options | inner,
            seed=seed,
            state="finished" if result is not None else record.state,
            epochs=max((event["epoch"] - (event["event"] == "train") for event in events), default=0),
            of=None if inside else record.options.get("epochs"),
            measures=_measures(result or {}, events, {} if inside else record.config),
            curves={"test accuracy": _test_accuracy(events), "train loss": train_loss(events)},
            place=printable(place),
        )


def flat(options: dict, prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name."""
    found = {}
    for key, value in options.items():
        name = prefix + printable(key)
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def text_of(value: Any) -> str:
    """An option in a table: a list as words, – for None."""
    return "–" if value is None else printable(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def _measures(result: dict, events: Sequence[dict], facts: dict) -> dict[str, float]:
    """Training's `measures`: of the result, or so far."""
    accuracies, spans = _test_accuracy(events), list(_spans(events))
    last = {event["split"]: event for event in events if event["event"] == "eval"} | result
    test, train, best = (last.get(name, {}) for name in ("test", "train", "best"))
    accuracy, trained = test.get("accuracy"), train.get("accuracy")
    seconds = [event["seconds"] for event, _ in spans]
    found = {
        "last": accuracy,
        "best": best.get("accuracy", max(accuracies.values(), default=None)),
        "loss": test.get("loss"),
        "train": trained,
        "gap": None if accuracy is None or trained is None else trained - accuracy,
        "images_per_second": result.get("images_per_second") or _speed(spans),
        "seconds": result.get("seconds") or (seconds[-1] if seconds else None),
        "parameters": result.get("parameters", facts.get("parameters")),
    }
    return {name: value for name, value in found.items() if value is not None}


def _spans(events: Sequence[dict]) -> Iterator[tuple[dict, int]]:
    """Each train line, with the number of images that it is about."""
    before = 0
    for event in events:
        if event["event"] == "train" and event["images"] > before:
            yield event, event["images"] - before
            before = event["images"]


def _speed(spans: Sequence[tuple[dict, int]]) -> float | None:
    seconds = sum(images / event["images_per_second"] for event, images in spans)
    return sum(images for _, images in spans) / seconds if seconds else None


def _test_accuracy(events: Sequence[dict]) -> dict[int, float]:
    return {event["epoch"]: event["accuracy"] for event in events if event["event"] == "eval" and event["split"] == "test"}


def train_loss(events: Sequence[dict]) -> dict[int, float]:
    """The mean over the images of each epoch, however many train lines it has."""
    epochs: dict[int, list[tuple[float, int]]] = {}
    for event, images in _spans(events):
        epochs.setdefault(event["epoch"], []).append((event["loss"], images))
    return {
        epoch: sum(loss * images for loss, images in parts) / sum(images for _, images in parts)
        for epoch, parts in epochs.items()
    }


def _count(group: Group) -> str:
    """3, or as "4 (3 seeds)" where one was run again: its repetition adds no spread."""
    runs, seeds = len(group.trainings), len(group.seeds)
    return str(runs) if runs == seeds else f"{runs} ({seeds} seed{'s' * (seeds > 1)})"


def _cells(group: Group, spread: Sequence[str]) -> Iterator[str]:
    for name, (_, text) in MEASURES.items():
        mean, deviation = group.measure(name) or (None, None)
        cell = "–" if mean is None else text.format(mean) if abs(mean) < 1e9 else f"{mean:.2e}"
        yield cell if deviation is None or name not in spread else f"{cell} ± {text.replace('+', '').format(deviation)}"


def _named(found: tuple[float, float | None] | None) -> dict | None:
    return None if found is None else {"mean": found[0], "deviation": found[1]}
