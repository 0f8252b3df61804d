"""Which net? Candidates × folds × seeds, a few epochs each, always from fresh weights.

Source  document 001, section 2.4: a few candidates, each trained 5 to 10 times for 2 or 3 epochs; mean, spread, time, over- and
        underfitting; ResNet18 first. Its nets share modules between instances, so that "5 times" goes on training: here every
        trial is new. It makes the trials' training sets by augmentation; with folds every image judges each net once
Data    Fashion-MNIST's training images, cut into stratified folds: each trial trains on k - 1 and validates on one. The test
        images are left alone
Expect  selection.png, and the table in result.json and on screen
Run     accelerate launch recipes/model_selection.py
        accelerate launch --config_file launch/cpus.yaml recipes/model_selection.py --nets LeNet5 MyNet2 --k 5 --seeds 2

Several processes divide the trials among themselves. An interrupted selection goes on where it stopped.
"""

import statistics
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from launch import Run, cli, sources, train
from launch.data import Images, Split, folds, slice_seed
from launch.errors import Refused
from launch.record.pictures import curves
from launch.record.runs import read_json, read_metrics
from nets.mnist import InceptionNet, LectureNet, LeNet5, MnistNet, ResidualNet
from nets.small import MyNet1, MyNet2
from nets.zoo import zoo

NETS = {net.__name__: net for net in (LeNet5, LectureNet, MnistNet, InceptionNet, ResidualNet, MyNet1, MyNet2)} | {
    "ResNet18": partial(zoo, "resnet18", in_channels=1, stem="small")
}


def main(
    run: Run,
    nets: tuple[Literal[tuple(NETS)], ...] = ("LeNet5", "ResidualNet", "MyNet2"),
    k: int = 5,
    seeds: int = 1,
    epochs: int = 2,
    batch: int = 100,
    lr: float = 0.05,
    momentum: float = 0.9,
):
    if k < 2 or seeds < 1 or not nets:
        raise Refused("--k must be at least 2, --seeds at least 1, and --nets name a net", 2)
    images = sources.fashion_mnist(run.data, limit=run.limit)
    if k > len(images.train):
        raise Refused(f"--k is {k}, and there are {len(images.train)} images", 2)
    run.open(images, {"nets": nets})
    parts = folds(images.train.labels, k, run.seed)
    trials = [(net, seed, fold) for net in nets for seed in range(seeds) for fold in range(k)]
    for net, seed, fold in trials[run.rank :: run.world]:
        alone = run.single_process()
        alone.seed = slice_seed(run.seed, seed, fold)  # of weights, order and dropout
        torch.manual_seed(alone.seed)
        model = NETS[net]()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, fused=True)
        stage = f"{net}/seed{seed}-fold{fold}"
        result = train(alone, model, fold_of(images, parts, fold), optimizer, epochs=epochs, batch=batch, stage=stage)
        print(f"{stage}: validation accuracy {result['test']['accuracy']:.4f}, {result['seconds']:.0f} s", flush=True)
    run.wait_for_everyone(days=7)  # collective: all trials are done, however uneven they are
    if run.rank == 0:
        report(run, nets, [f"seed{seed}-fold{fold}" for seed in range(seeds) for fold in range(k)], epochs)


def fold_of(images: Images, parts: list[torch.Tensor], fold: int) -> Images:
    """`images` with the fold as its test split and the others as its training split, normalised by the latter alone."""
    ids = torch.cat([part for index, part in enumerate(parts) if index != fold]).sort().values
    training, validation = (Split(images.train.pixels[chosen], images.train.labels[chosen]) for chosen in (ids, parts[fold]))
    pixels = training.pixels.double() / 255
    return replace(images, train=training, test=validation, mean=(pixels.mean().item(),), std=(pixels.std().item(),))


def report(run: Run, nets: tuple[str, ...], trials: list[str], epochs: int) -> None:
    """Table, picture and the document's rules of thumb, from the recorded trials; gap is training minus validation accuracy."""
    rows, series = [], {}
    for net in nets:
        results = [read_json(run.folder / net / trial / "result.json") for trial in trials]
        validation = [result["test"]["accuracy"] for result in results]
        gap = statistics.mean(result["train"]["accuracy"] - result["test"]["accuracy"] for result in results)
        series[net] = [
            [line["accuracy"] for line in read_metrics(run.folder / net / trial / "metrics.jsonl") if line.get("split") == "test"]
            for trial in trials
        ]
        rows.append({
            "net": net,
            "parameters": results[0]["parameters"],
            "trials": len(results),
            "mean": statistics.mean(validation),
            "deviation": statistics.stdev(validation) if len(validation) > 1 else 0.0,
            "lowest": min(validation),
            "highest": max(validation),
            "gap": gap,
            "seconds": statistics.mean(result["seconds"] for result in results),
            "verdict": verdict(series[net], gap),
        })  # fmt: skip
    rows.sort(key=lambda row: -row["mean"])
    curves(run.folder / "selection.png", {row["net"]: series[row["net"]] for row in rows}, "validation accuracy")
    table = Table("net", "parameters", "trials", "mean ± deviation", "range", "gap", "seconds")
    for row in rows:
        spread, span = f"{row['mean']:.3f} ± {row['deviation']:.3f}", f"{row['lowest']:.3f}–{row['highest']:.3f}"
        counts = f"{row['parameters']:,}", str(row["trials"])
        table.add_row(row["net"], *counts, spread, span, f"{row['gap']:+.3f}", f"{row['seconds']:.0f}")
    Console().print(table)
    for row in rows:
        print(f"{row['net']}: {row['verdict']}")
    best = rows[0]
    summary = f"{best['net']}: validation accuracy {best['mean']:.4f} ± {best['deviation']:.4f} over {best['trials']} trials"
    print(f"{summary}\n{run.folder / 'selection.png'}")
    run.single_process().finish({"recipe": run.recipe, "summary": summary, "epochs": epochs, "ranking": rows})


def verdict(runs: list[list[float]], gap: float) -> str:
    """Document 001's rules of thumb on mean validation accuracies by epoch, and on training minus validation accuracy."""
    last = statistics.mean(run[-1] for run in runs)
    rising = len(runs[0]) > 1 and last - statistics.mean(run[-2] for run in runs) > 0.005
    if gap > 0.03:
        return "overfits: fewer or narrower layers, or more regularisation"
    if last < 0.8:
        return "still learning: more epochs" if rising else "underfits: deeper or wider"
    return "good, and still rising: go deeper from here" if rising else "good, and level"


if __name__ == "__main__":
    cli(main)
