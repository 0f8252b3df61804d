"""Measures of a training, for comparisons; read without torch. A new measure is one line in MEASURES."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .runs import measure_of, model_selection_split, used


@dataclass(frozen=True)
class Known:
    """Record of a training, the result being {} until it is finished; `facts` are those about its net."""

    result: dict
    events: Sequence[dict]
    facts: dict

    @property
    def measure(self) -> str:
        """What its weights are chosen by: accuracy, or mean average precision. Both are called accuracy in MEASURES."""
        evaluations = [event for event in self.events if event["event"] == "eval"]
        return measure_of(self.result.get("test") or (evaluations or [{}])[0])

    @property
    def evaluated(self) -> bool:
        return "test" in self.result or any(event["event"] == "eval" for event in self.events)

    def last(self, split: str, name: str) -> float | None:
        """The accuracy or loss on the test or train images at the end, or so far."""
        evaluations = [event for event in self.events if event["event"] == "eval" and event["split"] == split]
        return self.result.get(split, evaluations[-1] if evaluations else {}).get(name)


class Measure(NamedTuple):
    of: Callable[[Known], float | None]
    heading: str = ""  # of its column; "": it has none
    text: str = ""  # its format in that column
    spread: bool = False  # whether the column shows its deviation
    always: bool = True  # whether the column is there, too, if no training has the measure


def measures_of(result: dict, events: Sequence[dict], facts: dict) -> dict[str, float]:
    """Those of MEASURES that are known, by name."""
    known = Known(result, events, facts)
    found = {name: measure.of(known) for name, measure in MEASURES.items()}
    return {name: value for name, value in found.items() if value is not None}


def _at_the_end(known: Known, name: str) -> float | None:
    """Measure on the test images, of the weights that are used by default (`runs.used`); so far, if the run is not finished."""
    name = known.measure if name == "accuracy" else name
    if used(known.result) == "best":
        return known.result["best"]["test"].get(name)
    if model_selection_split(known.events) == "validation":  # the last weights, in place of lost best ones
        return known.last("test", name) if known.result else None
    averaged = known.last("ema", name)
    return known.last("test", name) if averaged is None else averaged


def _best(known: Known) -> float | None:
    """Test accuracy of the best weights; known at the end only, if the validation images chose them."""
    best = known.result.get("best", {})
    if model_selection_split(known.events) == "validation":
        return best.get("test", {}).get(known.measure)
    return best.get(known.measure, max(choosing(known.events, "test").values(), default=None))


def _validation_accuracy(known: Known) -> float | None:
    """Validation accuracy of the best weights, which it chose."""
    so_far = choosing(known.events, "validation").values()
    return known.result.get("best", {}).get(known.measure, max(so_far)) if so_far else None


def _gap(known: Known) -> float | None:
    accuracy, trained = known.last("test", known.measure), known.last("train", known.measure)
    return None if accuracy is None or trained is None else trained - accuracy


def _speed(known: Known) -> float | None:
    """All images divided by all seconds, which is not the mean of the speeds."""
    spans = list(_spans(known.events))
    seconds = sum(images / event["images_per_second"] for event, images in spans)
    return known.result.get("images_per_second") or (sum(images for _, images in spans) / seconds if seconds else None)


def _seconds(known: Known) -> float | None:
    seconds = [event["seconds"] for event, _ in _spans(known.events)]
    return known.result.get("seconds") or (seconds[-1] if seconds else None)


MEASURES = {
    "validation_accuracy": Measure(_validation_accuracy, "validation accuracy", "{:.4f}", spread=True, always=False),
    "last": Measure(lambda known: _at_the_end(known, "accuracy"), "accuracy", "{:.4f}", spread=True),
    "best": Measure(_best, "best", "{:.4f}", spread=True),  # without validation images, the test images chose its epoch
    "loss": Measure(lambda known: _at_the_end(known, "loss"), "loss", "{:.4f}", spread=True),
    "gap": Measure(_gap, "gap", "{:+.4f}", spread=True),  # training accuracy minus test accuracy, both of the last weights
    "images_per_second": Measure(_speed, "images/s", "{:,.0f}"),
    "seconds": Measure(_seconds, "seconds", "{:,.1f}"),
    "parameters": Measure(lambda known: known.result.get("parameters", known.facts.get("parameters")), "parameters", "{:,.0f}"),
    # Both of the last weights; drawn in bars.png.
    "train": Measure(lambda known: known.last("train", known.measure)),
    "tested": Measure(lambda known: known.last("test", known.measure)),
    "train_count": Measure(lambda known: known.last("train", "count")),  # images that "train" is of
}
COLUMNS = {name: measure for name, measure in MEASURES.items() if measure.heading}


# ----------------------------------------------------------------------------------------------- curves: epoch -> value


def accuracy_by_epoch(events: Sequence[dict], split: str = "test") -> dict[int, float]:
    """Accuracy, or what else chooses, on the images of `split`."""
    return {event["epoch"]: event[measure_of(event)] for event in events if event["event"] == "eval" and event["split"] == split}


def choosing(events: Sequence[dict], split: str) -> dict[int, float]:
    """Accuracy on the images of `split`, if these choose the best epoch: of the average of the weights, if one is kept."""
    plain = accuracy_by_epoch(events, split) if split == model_selection_split(events) else {}
    return (plain and accuracy_by_epoch(events, "ema")) or plain


def train_loss(events: Sequence[dict]) -> dict[int, float]:
    """The mean over the images of each epoch, however many train lines it has."""
    epochs: dict[int, list[tuple[float, int]]] = {}
    for event, images in _spans(events):
        epochs.setdefault(event["epoch"], []).append((event["loss"], images))
    return {
        epoch: sum(loss * images for loss, images in parts) / sum(images for _, images in parts)
        for epoch, parts in epochs.items()
    }


def _spans(events: Sequence[dict]) -> Iterator[tuple[dict, int]]:
    """Each train line, with the number of images that it covers."""
    before = 0
    for event in events:
        if event["event"] == "train" and event["images"] > before:
            yield event, event["images"] - before
            before = event["images"]
