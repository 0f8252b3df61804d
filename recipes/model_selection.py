"""Which net to choose? Cross-validation of several candidates: nets × seeds × folds, a few epochs each.

Source  transfer notes, section 2.4: train a few candidates 5 to 10 times for 2 or 3 epochs; compare mean, spread, time, over- and
        underfitting; begin with ResNet18. Its nets share modules, so its second training continues the first; here every trial
        has new weights. It varies the training set by augmentation; with folds, each net is validated on every image once
Data    Fashion-MNIST's 60,000 training images in stratified folds: a trial trains on k - 1 folds and validates on the other. The
        test images are not used
Expect  a ranking on screen, in selection.png and in result.json
Run     accelerate launch recipes/model_selection.py
        accelerate launch --config_file launch/cpus.yaml recipes/model_selection.py --nets LeNet5 MyNet2 --k 5 --seeds 2

Several processes share the trials, each trial on one process. After an interruption the same command resumes.
"""

import statistics
from dataclasses import replace
from functools import partial
from typing import Literal

from launch import Run, cli, sources, train
from launch.console import say
from launch.data import Images, Split, folds, micro_batch_seed
from launch.errors import Refused
from launch.report.plots import curves
from launch.report.runs import read_json, read_metrics
from nets.mnist import InceptionNet, LectureNet, LeNet5, MnistNet, ResidualNet
from nets.small import MyNet1, MyNet2
from nets.zoo import zoo

import torch
from rich.console import Console
from rich.table import Table

NETS = {net.__name__: net for net in (LeNet5, LectureNet, MnistNet, InceptionNet, ResidualNet, MyNet1, MyNet2)} | {
    "ResNet18": partial(zoo, "resnet18", in_channels=1, stem="small")
}

MOST_TRIALS = 10**5


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
    """Train all candidates on all folds, then rank them.

    Args:
        nets: The candidates.
        k: Number of folds.
        seeds: Trials per net and fold, each with another random seed.
    """
    if k < 2 or seeds < 1 or epochs < 1 or not nets:
        raise Refused("--k must be at least 2, --seeds at least 1, --epochs at least 1, and --nets must name at least one net", 2)
    if len(nets) * k * seeds > MOST_TRIALS:
        raise Refused(f"{len(nets) * k * seeds:,} trials are too many: at most {MOST_TRIALS:,} with --nets, --k and --seeds", 2)
    if run.validation:
        raise Refused("model_selection.py validates on its folds: leave out --validation", 2)
    images = sources.fashion_mnist(run.data, limit=run.limit)
    if k > len(images.train):
        raise Refused(f"--k is {k}, but there are only {len(images.train)} images", 2)
    run.open(images, {"nets": nets})
    parts = folds(images.train.labels, k, run.seed)
    trials = [(net, seed, fold) for net in nets for seed in range(seeds) for fold in range(k)]
    for net, seed, fold in trials[run.rank :: run.world]:
        alone = run.single_process()
        alone.seed = micro_batch_seed(run.seed, seed, fold)  # weight init, data order, dropout
        torch.manual_seed(alone.seed)
        model = NETS[net]()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, fused=True)
        stage = f"{net}/seed{seed}-fold{fold}"
        result = train(alone, model, fold_of(images, parts, fold), optimizer, epochs=epochs, batch=batch, stage=stage)
        say(f"{stage}: validation accuracy {result['test']['accuracy']:.4f}, {result['seconds']:.0f} s")
    run.wait_for_everyone(days=7)  # collective: trials may take very different times
    if run.rank == 0:
        report(run, nets, [f"seed{seed}-fold{fold}" for seed in range(seeds) for fold in range(k)], epochs)


def fold_of(images: Images, parts: list[torch.Tensor], fold: int) -> Images:
    """`images` with `fold` as test split and the other folds as training split, whose mean and std normalise both."""
    ids = torch.cat([part for index, part in enumerate(parts) if index != fold]).sort().values
    training, validation = (Split(images.train.pixels[chosen], images.train.labels[chosen]) for chosen in (ids, parts[fold]))
    pixels = training.pixels.double() / 255
    return replace(images, train=training, test=validation, mean=(pixels.mean().item(),), std=(pixels.std().item(),))


def report(run: Run, nets: tuple[str, ...], trials: list[str], epochs: int) -> None:
    """Rank the nets from their recorded trials: table, plot, verdicts. `gap` is training minus validation accuracy."""
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
        say(f"{row['net']}: {row['verdict']}")
    best = rows[0]
    summary = f"{best['net']}: validation accuracy {best['mean']:.4f} ± {best['deviation']:.4f} over {best['trials']} trials"
    run.single_process().finish(summary, epochs=epochs, ranking=rows)
    say(str(run.folder / "selection.png"))


def verdict(runs: list[list[float]], gap: float) -> str:
    """The transfer notes' rules. `runs`: validation accuracies by epoch of trials; `gap`: training minus validation."""
    last = statistics.mean(run[-1] for run in runs)
    rising = len(runs[0]) > 1 and last - statistics.mean(run[-2] for run in runs) > 0.005
    if gap > 0.03:
        return "overfits: use fewer or narrower layers, or more regularisation"
    if last < 0.8:
        return "still learning: train for more epochs" if rising else "underfits: go deeper or wider"
    return "good, and still improving: try deeper nets" if rising else "good, and no longer improving"


if __name__ == "__main__":
    cli(main)
