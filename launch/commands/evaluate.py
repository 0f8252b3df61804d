"""`oneloop evaluate`: loss and accuracy of a trained net, on the run's data or on other data."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import progress
from ..errors import Refused, printable
from ..memory import keep_freed_memory
from ..report.runs import Record, measure_of, model_selection_split, read_metrics, read_result
from ..sources.options import DataOptions
from ..trained import WORDS, Trained, described, find_run, rebuild
from .arguments import (
    add_confidence,
    add_data_options,
    add_trained_net,
    check_confidence,
    command_parser,
    data_options,
    refuse_unsure,
)

if TYPE_CHECKING:
    from ..data.images import Images

OPTIONS = (
    "columns",
    "split_column",
    "label_from",
    "classes_at",
    "multi_label",
    "uncertain",
    "skip_bad",
    "white",
    "bands",
)  # of sources.options.DataOptions; the others are the training's


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "evaluate",
        usage="RUN [--data …] [--split test | validation | train] [--weights chosen | last | best | ema] [--json]",
        description="Measure the loss and accuracy of a trained net: every image once, dropout off, in the run's precision.\n"
        "Without --data it uses the run's own images and reproduces the numbers that training logged (on a part of the\n"
        "training images of a folder or table). Of other images that are not split, all are measured; classes may be missing.",
        example="runs/cifar2/Net-0a1b2c3d --data other-birds/",
    )
    add_trained_net(parser)
    add_confidence(parser)
    parser.add_argument("--data", help="hub, synthetic or a folder, as for training, with the run's classes; default: the run's")
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test", help="default: test")
    parser.add_argument("--json", action="store_true", help="print JSON, unrounded")
    add_data_options(parser, *OPTIONS)
    chosen = parser.parse_args(args)
    check_confidence(chosen.unsure)
    keep_freed_memory()

    import torch

    from oneloop.views import over_views

    from ..data.images import with_validation
    from ..data.task import SEVERAL, by_label
    from ..report import calibration
    from ..report.scores import scores
    from ..sources.others import needs
    from ..training.evaluate import evaluate_with_logits

    record, stage = find_run(chosen.run)
    precision = record.options["precision"]
    if precision == "fp16" and not torch.accelerator.is_available():
        print("the run's precision is fp16, which needs a GPU: evaluating in float32", file=sys.stderr)
        precision = "no"
    data = chosen.data or record.options["data"]
    if chosen.data and data not in ("hub", "synthetic"):
        data = str(Path(data).expanduser().resolve())
    about = described(record, stage, chosen.weights)
    refuse_unsure(chosen.run, chosen.unsure, about["threshold"])
    named = chosen.data and data not in ("hub", "synthetic")
    others = bool(named and (about["cache_size"] or needs(Path(data), about["classes"])))  # a recipe would split or refuse them
    options = {"weights": chosen.weights, "recipe": chosen.recipe, "precision": precision}
    trained = rebuild(record, stage, data="synthetic" if others else data, **options)
    if others:
        recorded = {name: record.options[name] for name in vars(DataOptions()) if name in record.options}
        asked = data_options(chosen, *OPTIONS, default=DataOptions(**recorded | {"columns": tuple(recorded.get("columns", ()))}))
        trained = trained._replace(images=_images(chosen.data, asked, trained, record))
    elif needless := [name for name in OPTIONS if hasattr(chosen, name)]:
        raise Refused(f"--{needless[0].replace('_', '-')} is for images of your own: --data PATH names them", 2)
    own, now = record.config["data"]["fingerprint"], trained.images.fingerprint
    same = own == now or (stage and not chosen.data)  # a stage's own images have no recorded fingerprint
    if not (same or chosen.data):
        raise Refused(
            f"{record.folder} was trained on other data: {record.config['data']['source']} sha256 {own[:16]}, now {now[:16]}; "
            f"--data {data} evaluates on the current data",
            4,
        )
    images = trained.images if chosen.split == "test" or others else with_validation(trained.images, trained.run.validation)
    if others and (getattr(images, chosen.split) is None or (chosen.split == "train" and images.train is images.test)):
        raise Refused(f"{images.source} has no {chosen.split} images; without --split, those that it has are measured", 2)
    if getattr(images, chosen.split) is None:
        raise Refused(f"{record.folder} has no validation images: it was trained without --validation", 2)
    labels, temperature = getattr(images, chosen.split).labels, trained.about["temperature"]
    net = over_views(trained.net, chosen.tta)
    with progress(len(labels)) as done:
        net.register_forward_hook(lambda _net, inputs, _logits: done(len(inputs[0])))
        threshold = {} if trained.about["threshold"] is None else {"threshold": trained.about["threshold"]}
        measured, logits = evaluate_with_logits(trained.run, net, images, chosen.split, **threshold)
    place, count = record.folder / stage, measured["count"]
    logged = _logged(place, chosen.split, trained.weights, count) if same and not chosen.tta else None
    source = {"run": str(chosen.run), "weights": trained.weights, "data": trained.images.source, "split": chosen.split}
    if trained.task is SEVERAL:
        by = [{"label": name} | of for name, of in zip(images.classes, by_label(logits, labels, **threshold), strict=True)]
        _print_labels(source | measured | {"labels": by, "logged": logged}, trained, chosen.json)
        return
    further = scores(logits, labels)
    sure = {
        "temperature": temperature,
        "calibrated_error": scores(logits / temperature, labels)["calibration_error"],
        **({"unsure": calibration.coverage(logits / temperature, labels, [chosen.unsure])[0]} if chosen.unsure else {}),
    }
    if chosen.json:
        print(json.dumps(source | further | sure | measured | {"logged": logged}, indent=1))
        return
    correct = round(measured["accuracy"] * count)
    print(
        f"{chosen.split} images of {printable(trained.images.source)}: accuracy {measured['accuracy']:.4f} ({correct}/{count}), "
        f"loss {measured['loss']:.4f}, with the {WORDS[trained.weights]}"
    )
    print(", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in further.items() if isinstance(value, float)))
    if temperature != 1:
        print(f"calibration error {sure['calibrated_error']:.4f} at temperature {temperature:.2f}, as predicted")
    if chosen.unsure:
        print(_sure(**sure["unsure"]))
    if logged:
        how = " (in train mode, as in the book)" if trained.measured_in == "train" else ""
        print(f"logged in training{how}{_of_some(logged)}: accuracy {logged['accuracy']:.4f}, loss {logged['loss']:.4f}")


def _print_labels(found: dict, trained: Trained, as_json: bool) -> None:
    """Print what was measured of several labels."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{found['split']} images of {printable(found['data'])}: mAP {found['mean_average_precision']:.4f}, "
        f"F1 {found['f1']:.4f} at threshold {found['threshold']:.3g}, loss {found['loss']:.4f}, {found['count']} images, "
        f"with the {WORDS[trained.weights]}"
    )
    for of in found["labels"]:
        measures = f"average precision {of['average_precision']:.4f}, F1 {of['f1']:.4f}" if of["count"] else "not measured"
        print(f"  {printable(of['label'])}: {of['count']} images, {measures}")
    if logged := found["logged"]:
        print(f"logged in training{_of_some(logged)}: mAP {logged['mean_average_precision']:.4f}, loss {logged['loss']:.4f}")


def _sure(threshold: float, coverage: float, accuracy: float | None) -> str:
    """A line about the images whose class reaches the threshold."""
    among = f", accuracy {accuracy:.4f} on these" if accuracy is not None else ""
    return f"sure, from a probability of {threshold:g} on: {coverage:.1%} of the images{among}"


def _images(data: str, options: DataOptions, trained: Trained, record: Record) -> "Images":
    """The images at `data`, which may be those of the run, moved. Raises Refused (1, 4)."""
    from ..sources import others

    if trained.about["threshold"] is not None and not options.multi_label:
        options = replace(options, multi_label="yes")  # each image of others may have one label, by chance
    of_run = {name: record.options[name] for name in ("validation", "limit") if name in record.options}
    rule = trained.rule and trained.rule._replace(white=options.white or trained.rule.white, bands=options.bands)
    fingerprint = record.config["data"]["fingerprint"]
    return others.images(data, trained.images, trained.shape, rule, fingerprint, options, task=trained.task, **of_run)


def _of_some(logged: dict) -> str:
    return f" (on {logged['count']:,} of these images)" if "count" in logged else ""


def _logged(folder: Path, split: str, weights: str, count: int) -> dict | None:
    """Accuracy and loss that training logged for these weights; None if it did not evaluate them on this split.

    Also "count", the images of the split that it measured, if these are not all `count` of them.
    """
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "eval"]
    averaged = [line for line in lines if line["split"] == "ema"]  # on the images that choose; if there are any, they chose
    choosing = averaged or [line for line in lines if line["split"] == model_selection_split(lines)]
    found = [line for line in lines if line["split"] == split]
    if weights == "ema" or (weights == "best" and averaged):
        found = averaged if split == model_selection_split(lines) else []
    if weights == "best" and choosing:  # of several best ones, the first was saved
        step = max(choosing, key=lambda line: line[measure_of(line)])["step"]
        found = [line for line in found if line["step"] == step]
        if split == "test" and not found:  # measured at the end only, which has no line
            found = [measured] if (measured := (read_result(folder) or {}).get("best", {}).get("test")) else []
    if not found:
        return None
    some = ("count",) if found[-1].get("count", count) != count else ()
    return {name: found[-1][name] for name in (measure_of(found[-1]), "loss", *some)}
