"""model_selection.py: every trial is independent, every image validates each net once, and the best net comes first."""

import inspect
import json
import math

import pytest
from conftest import ROOT, result
from recipe_calls import check, first_weights, same, sgd
from recipe_calls import given as given
from recipe_calls import one_run as one_run

from launch import sources
from launch.data.order import micro_batch_seed
from launch.errors import Refused
from launch.recipe import load
from nets.mnist import LeNet5, MnistNet


def test_trials(given):
    """Nets × seeds × folds, each from weights, order and dropout of its own, on k - 1 folds; normalised by these alone."""
    calls = given("model_selection", nets=("MnistNet", "LeNet5"), k=3, seeds=2, limit=60)
    plan = [(net, seed, fold) for net in ("MnistNet", "LeNet5") for seed in range(2) for fold in range(3)]
    assert [call.stage for call in calls] == [f"{net}/seed{seed}-fold{fold}" for net, seed, fold in plan]
    whole = sources.fashion_mnist("synthetic", limit=60).train
    validated = []
    for call, (net, seed, fold) in zip(calls, plan, strict=True):
        pixels = call.images.train.pixels.double() / 255
        scale = {"mean": (pytest.approx(pixels.mean().item()),), "std": (pytest.approx(pixels.std().item()),)}
        settings = {"epochs": 2, "batch": 100, "optimizer": sgd(0.05, 0.9), "stage": call.stage}
        check(call, net=net, images=40, classes=sources.FASHION_CLASSES, **settings, **scale)
        assert call.run.seed == micro_batch_seed(1, seed, fold)
        assert (call.run.world, call.run.micro_batches) == (1, 1)
        assert same(call.before, first_weights(call.run.seed, {"MnistNet": MnistNet, "LeNet5": LeNet5}[net]))
        rows = [row.flatten().tolist() for row in call.images.test.pixels]
        assert not {*map(tuple, rows)} & {tuple(row.flatten().tolist()) for row in call.images.train.pixels}
        validated += [rows] if (net, seed) == ("LeNet5", 1) else []
    assert len({call.run.seed for call in calls}) == 6
    once = sorted(tuple(row) for rows in validated for row in rows)
    assert once == sorted(tuple(row.flatten().tolist()) for row in whole.pixels)  # each image judges each net once


def test_resnet18_is_a_candidate():
    """The transfer notes' first advice; grey, and with the stem for small images."""
    resnet = load(ROOT / "recipes/model_selection.py").NETS["ResNet18"]()
    assert sum(parameter.numel() for parameter in resnet.parameters()) == 11_172_810
    assert resnet.conv1.stride == (1, 1)


def test_defaults_of_the_selection():
    main = load(ROOT / "recipes/model_selection.py").main
    defaults = {name: parameter.default for name, parameter in inspect.signature(main).parameters.items() if name != "run"}
    nets = ("LeNet5", "ResidualNet", "MyNet2")
    assert defaults == {"nets": nets, "k": 5, "seeds": 1, "epochs": 2, "batch": 100, "lr": 0.05, "momentum": 0.9}


def trial(folder, accuracies, train_accuracy, seconds, parameters=7) -> None:
    """The record of a trial with these validation accuracies by epoch."""
    folder.mkdir(parents=True)
    head = {"event": "eval", "images": 0, "loss": 1.0}
    steps = [{"epoch": epoch, "step": epoch, "accuracy": accuracy} for epoch, accuracy in enumerate(accuracies, 1)]
    lines = [head | {"split": "test"} | step for step in steps]
    lines += [head | {"split": "train", "accuracy": train_accuracy, "epoch": len(lines), "step": len(lines)}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = {"test": {"accuracy": accuracies[-1]}, "train": {"accuracy": train_accuracy}}
    (folder / "result.json").write_text(json.dumps(measured | {"parameters": parameters, "seconds": seconds}))


def test_selection_ranks_the_best_first(start, capsys, monkeypatch, tmp_path):
    """Means, deviations, ranges and gaps of recorded trials; the verdicts, the image, and which net is best."""
    monkeypatch.setenv("COLUMNS", "150")  # of the table on the screen
    run = start()
    module = load(ROOT / "recipes/model_selection.py")
    drawn, real = [], module.curves
    monkeypatch.setattr(module, "curves", lambda *args: drawn.append(args) or real(*args))
    records = {  # of each trial: validation accuracies by epoch, training accuracy, seconds
        "middle": [((0.70, 0.82), 0.83, 2), ((0.72, 0.84), 0.87, 4)],
        "worst": [((0.20, 0.20), 0.20, 1), ((0.86, 0.86), 0.86, 1)],
        "best": [((0.90, 0.90), 0.99, 9), ((0.96, 0.96), 0.99, 9)],
    }
    for net, trials in records.items():
        for number, record in enumerate(trials):
            trial(run.folder / net / f"seed{number}-fold0", *record, parameters=len(net))
    module.report(run, tuple(records), ["seed0-fold0", "seed1-fold0"], epochs=2)
    whole = result(run.folder)
    best, middle, worst = whole["ranking"]
    assert [best["net"], middle["net"], worst["net"]] == ["best", "middle", "worst"]
    assert whole["summary"] == "best: validation accuracy 0.9300 ± 0.0424 over 2 trials"
    assert whole["epochs"] == 2
    expected = {"parameters": 6, "trials": 2, "mean": 0.83, "deviation": 0.02 / math.sqrt(2), "lowest": 0.82, "highest": 0.84}
    assert {name: middle[name] for name in expected} == pytest.approx(expected)
    assert [row["gap"] for row in whole["ranking"]] == pytest.approx([0.06, 0.02, 0.0], abs=1e-9)  # training minus validation
    assert [row["seconds"] for row in whole["ranking"]] == pytest.approx([9, 3, 1])
    assert [row["verdict"].partition(":")[0] for row in whole["ranking"]] == [
        "overfits", "good, and still improving", "underfits",
    ]  # fmt: skip
    ((path, series, what),) = drawn
    assert (path, what) == (run.folder / "selection.png", "validation accuracy")
    assert list(series.items())[1] == ("middle", [[0.70, 0.82], [0.72, 0.84]])
    assert list(series) == ["best", "middle", "worst"]
    said = capsys.readouterr().out
    assert "0.830 ± 0.014" in said
    assert "0.820–0.840" in said
    assert "+0.020" in said
    assert "middle: good, and still improving" in said


def test_one_trial_has_no_deviation(start):
    run = start()
    trial(run.folder / "only/seed0-fold0", (0.9,), 0.9, 1)
    load(ROOT / "recipes/model_selection.py").report(run, ("only",), ["seed0-fold0"], epochs=1)
    (row,) = result(run.folder)["ranking"]
    assert (row["deviation"], row["verdict"]) == (0.0, "good, and no longer improving")


@pytest.mark.parametrize(("options", "why"), [
    ({"k": 1}, "--k must be at least 2"), ({"seeds": 0}, "--seeds at least 1"),
    ({"nets": ()}, "--nets must name at least one net"), ({"k": 9}, "--k is 9, but there are only 8 images"),
])  # fmt: skip
def test_selection_refuses(options, why, start):
    with pytest.raises(Refused, match=why) as refused:
        load(ROOT / "recipes/model_selection.py").main(start(limit=8), **options)
    assert refused.value.code == 2
