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

--folds K does the same for your own images: accelerate launch recipes/model_selection.py --data photos/ --net resnet18 resnet50
--folds 5, with nets and flags of recipes/custom.py (--folds 5 --help shows them). An image's fold is a function of its content;
copies, and groups (--group), are in one fold. Of each net predictions.parquet has a row for each image, by a net that has not
seen it. Test images, if the data have some, are not used; neither are the --test part of images that are not split.
"""

import shlex
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from launch import Run, cli, sources, train
from launch.console import aligned, say
from launch.data import Images, Split, folds, micro_batch_seed
from launch.errors import Refused
from launch.inner_run import run_inside
from launch.option_groups import flags_of
from launch.recipe import RECIPES, load
from launch.report.paired import mcnemar
from launch.report.plots import curves
from launch.report.predictions import out_of_fold
from launch.report.runs import read_json, read_metrics, tested
from launch.run import OwnRun
from launch.sources.options import DataOptions
from nets.mnist import InceptionNet, LectureNet, LeNet5, MnistNet, ResidualNet
from nets.small import MyNet1, MyNet2
from nets.zoo import zoo

import torch
import tyro
from rich.console import Console
from rich.table import Table

NETS = {net.__name__: net for net in (LeNet5, LectureNet, MnistNet, InceptionNet, ResidualNet, MyNet1, MyNet2)} | {
    "ResNet18": partial(zoo, "resnet18", in_channels=1, stem="small")
}

MOST_TRIALS = 10**5
ALPHA = 0.05  # of McNemar's test, below which two nets differ by more than chance


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


# ----------------------------------------------------------------------------------------------------------- your own images


def own_images(
    run: OwnRun,
    data: DataOptions = DataOptions(),
    nets: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("--net",))] = ("resnet18",),
    folds: int = 5,
    mode: Literal["scratch", "finetune", "frozen", "gradual"] = "frozen",
    size: int = 0,
    class_weights: Literal["none", "balanced"] = "none",
    epochs: int = 30,
    batch: int = 32,
    lr: float = 3e-3,
    layer_decay: float = 1.0,
    head_epochs: int = 0,
    views: int = 0,
):
    """Train each net on all folds but one, for each fold, and judge it on that one; every training is a run of custom.py.

    Args:
        nets: Candidates, as custom.py takes them, with the published weights; or NAME=SOURCE, with those of a file, URL or run.
        folds: Number of folds.
    """
    if run.validation or data.fold:
        raise Refused("model_selection.py judges nets on its folds: leave out --validation and --fold", 2)
    if folds < 2 or not nets or len({*nets}) < len(nets):
        raise Refused("--folds must be at least 2, and --nets name at least one net, each once", 2)
    custom = load(RECIPES / "custom.py")
    options = {"mode": mode, "size": size, "class_weights": class_weights, "epochs": epochs, "batch": batch, "lr": lr}
    options |= {"layer_decay": layer_decay, "head_epochs": head_epochs, "views": views}
    for spec in nets:  # what would fail later fails now
        net, _, source = spec.partition("=")
        rule = data.rule(size or custom.size_for(net, mode))
        images = sources.custom(
            run.data, rule, replace(data, fold=f"1/{folds}"), run.limit, main=run.rank == 0 and spec == nets[0]
        )
        if images.multi_label:
            raise Refused(
                f"{images.source} has several labels an image, which --folds does not rank nets by; --fold of custom.py", 2
            )
        custom.net_for(run, net, images, mode != "scratch" and not source, source)
    run.open(replace(images, files={}), {"nets": nets})
    trials = [(spec, fold) for spec in nets for fold in range(1, folds + 1)]
    for spec, fold in trials[run.rank :: run.world]:
        net, _, source = spec.partition("=")
        inside = {"data": replace(data, fold=f"{fold}/{folds}"), "net": net, "source": source}
        result = run_inside(run, custom, inside | options, place(run, nets, spec) / f"fold{fold}")
        say(f"{name_of(spec)}, fold {fold} of {folds}: accuracy {tested(result)['accuracy']:.4f}")
    run.wait_for_everyone(days=7)  # collective: trials may take very different times
    if run.rank == 0:
        report_folds(run, nets, folds, {"data": data} | options)


def name_of(spec: str) -> str:
    """A candidate for people: a net, and where its weights are from."""
    net, _, source = spec.partition("=")
    return f"{net} ({Path(source).name})" if source else net


def place(run: Run, nets: tuple[str, ...], spec: str) -> Path:
    """The folder of a candidate's trainings."""
    return run.folder / f"{1 + nets.index(spec)}-{spec.partition('=')[0].replace('/', '-')}"


def report_folds(run: Run, nets: tuple[str, ...], folds: int, options: dict) -> None:
    """Put together what each net predicts of images that it has not seen, rank the nets, and say how to train the best one."""
    rows, answers = [], {}
    for spec in nets:
        inside = [place(run, nets, spec) / f"fold{fold}" for fold in range(1, folds + 1)]
        results = [read_json(folder / "result.json") for folder in inside]
        accuracies = [tested(result)["accuracy"] for result in results]
        last = [folder / "unlocked" if (folder / "unlocked").exists() else folder for folder in inside]  # of two stages
        answers[spec] = out_of_fold(last, place(run, nets, spec)).right
        rows.append({
            "net": name_of(spec),
            "spec": spec,
            "folds": accuracies,
            "mean": statistics.mean(accuracies),
            "deviation": statistics.stdev(accuracies),
            "right": int(answers[spec].sum()),
            "images": len(answers[spec]),
        })  # fmt: skip
    rows.sort(key=lambda row: -row["mean"])
    best = rows[0]
    for row in rows[1:]:
        one, other = answers[best["spec"]], answers[row["spec"]]
        row["p"] = mcnemar(int((one & ~other).sum()), int((other & ~one).sum()))
    cells = [("net", "mean ± deviation", "range", "right", "p against the best")]
    for row in rows:
        spread, span = f"{row['mean']:.3f} ± {row['deviation']:.3f}", f"{min(row['folds']):.3f}–{max(row['folds']):.3f}"
        counts = f"{row['right']:,}/{row['images']:,}", f"{row['p']:.2g}" if "p" in row else ""
        cells.append((row["net"], spread, span, *counts))
    say("\n".join(aligned(cells)))
    if alike := [row["net"] for row in rows[1:] if row["p"] >= ALPHA]:
        say(f"on these images, {best['net']} cannot be told from {', '.join(alike)}")
    net, _, source = best["spec"].partition("=")
    flags = flags_of(load(RECIPES / "custom.py").main, {"net": net, "source": source} | options)
    command = shlex.join(["oneloop", "train", "custom", "--data", run.data, *flags])
    summary = (
        f"{best['net']}: accuracy {best['mean']:.4f} ± {best['deviation']:.4f} over {folds} folds of {best['images']:,} images"
    )
    run.single_process().finish(summary, ranking=rows, command=command)
    say(f"to train it: {command}")


if __name__ == "__main__":
    cli(own_images if any(word.partition("=")[0] == "--folds" for word in sys.argv[1:]) else main)
