"""`oneloop evaluate`: the numbers of a trained net, on the data it was trained with or on other data."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import Refused, printable
from ..rebuild import add_run, at, rebuild
from ..record.runs import read_metrics


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "oneloop evaluate",
        usage="oneloop evaluate RUN [--data …] [--split test | train] [--weights last | best] [--json]",
        description="Measure loss and accuracy of a trained net: every image once, dropout off, in the run's precision.\n"
        "Without --data on the run's own images, where the numbers are those that the training logged.",
        epilog="example: oneloop evaluate runs/cifar2/Net-0a1b2c3d --data other-birds/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run(parser)
    parser.add_argument("--data", help="hub, synthetic or a folder as for training, with the run's classes; default: the run's")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="default: test")
    parser.add_argument("--json", action="store_true", help="all digits")
    chosen = parser.parse_args(args)

    import torch

    from ..loop import evaluate

    record, stage = at(chosen.run)
    precision = record.options["precision"]
    if precision == "fp16" and not torch.accelerator.is_available():
        print("the run's precision is fp16, which needs a GPU: measured in float32", file=sys.stderr)
        precision = "no"
    data = chosen.data or record.options["data"]
    if chosen.data and data not in ("hub", "synthetic"):
        data = str(Path(data).expanduser().resolve())
    trained = rebuild(record, stage, weights=chosen.weights, recipe=chosen.recipe, data=data, precision=precision)
    own, now = record.config["data"]["fingerprint"], trained.images.fingerprint
    same = own == now or (stage and not chosen.data)  # a stage may have images of its own, whose fingerprint is not recorded
    if not (same or chosen.data):
        raise Refused(
            f"{record.folder} was trained on other data: {record.config['data']['source']} sha256 {own[:16]}, now {now[:16]}; "
            f"--data {data} measures on what is there now",
            4,
        )
    measured = evaluate(trained.run, trained.net, trained.images, chosen.split)
    logged = _logged(record.folder / stage, chosen.split, chosen.weights) if same else None
    source = {"run": str(chosen.run), "weights": chosen.weights, "data": trained.images.source, "split": chosen.split}
    if chosen.json:
        print(json.dumps(source | measured | {"logged": logged}, indent=1))
        return
    count, correct = measured["count"], round(measured["accuracy"] * measured["count"])
    print(
        f"{chosen.split} images of {printable(trained.images.source)}: accuracy {measured['accuracy']:.4f} ({correct}/{count}), "
        f"loss {measured['loss']:.4f}"
    )
    if logged:
        how = ", in train mode as the book did" if trained.measured_in == "train" else ""
        print(f"logged by the training{how}: accuracy {logged['accuracy']:.4f}, loss {logged['loss']:.4f}")


def _logged(folder: Path, split: str, weights: str) -> dict | None:
    """Accuracy and loss that the training logged for these weights, None if it did not measure them on this split."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "eval"]
    found = [line for line in lines if line["split"] == split]
    if weights == "best" and found:  # the first of the best on the test images was kept
        tests = [line for line in lines if line["split"] == "test"]
        step = max(tests, key=lambda line: line["accuracy"])["step"]
        found = [line for line in found if line["step"] == step]
    return {name: found[-1][name] for name in ("accuracy", "loss")} if found else None
