"""The open loop and train() give the same weights, bit for bit, and the same accuracies; a failed run saves nothing."""

import ast
import os
import signal
import sys

import pytest
import torch
from conftest import ROOT, Tiny, optimizer_for, result, run_recipe
from safetensors.torch import load_file
from tiny import tiny_images

from launch import Run, cli, train
from launch.data.order import order as shuffled
from launch.errors import Refused
from launch.recipe import load
from launch.weights.tensors import weights_sha256
from nets.cifar2 import Net

# More than 500 images, so that evaluation takes several batches, and a shorter last batch.
FLAGS = ("--data", "synthetic", "--limit", 540, "--epochs", 2, "--threads", 1, "--out", "run")


def test_by_hand_is_train(tmp_path):
    (tmp_path / "hand").mkdir()
    (tmp_path / "loop").mkdir()
    done = run_recipe("by_hand", *FLAGS, cwd=tmp_path / "hand")
    assert done.returncode == 0, done.stderr
    assert run_recipe("cifar2", *FLAGS, cwd=tmp_path / "loop").returncode == 0
    by_hand = next(line for line in done.stdout.splitlines() if line.startswith("weights_sha256")).split()[1]
    loop = result(tmp_path / "loop/run")
    assert by_hand == loop["weights_sha256"] == result(tmp_path / "hand/run")["weights_sha256"]
    assert weights_sha256(load_file(tmp_path / "hand/run/model.safetensors")) == by_hand
    assert result(tmp_path / "hand/run")["accuracy"] == {"train": loop["train"]["accuracy"], "val": loop["test"]["accuracy"]}
    losses = [line for line in (tmp_path / "loop/run/metrics.jsonl").read_text().splitlines() if '"train", "step"' in line]
    assert f"Epoch 1, Training loss {ast.literal_eval(losses[0])['loss']:.4f}" in done.stdout
    again = run_recipe("by_hand", *FLAGS, cwd=tmp_path / "hand")
    assert again.returncode == 0
    assert by_hand in again.stdout


@pytest.fixture
def by_hand():
    return load(ROOT / "recipes/by_hand.py")


def test_prints_every_tenth_epoch(by_hand, start, capsys):
    by_hand.main(start(limit=8), epochs=21)
    said = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert said == ["Epoch 1", "Epoch 10", "Epoch 20"]


@pytest.mark.parametrize(("flags", "options", "why"), [
    ({"micro_batches": 2}, {}, "whole batches on one process"),
    ({"compile": True}, {}, "not compiled"),
    ({}, {"epochs": 0}, "at least 1, they are 0 and 64"),
    ({}, {"batch": 0}, "at least 1, they are 1 and 0"),
])  # fmt: skip
def test_what_it_does_not_do_is_refused(flags, options, why, by_hand, start, tmp_path):
    with pytest.raises(Refused, match=why) as refused:
        by_hand.main(start(limit=8, **flags), **{"epochs": 1} | options)
    assert refused.value.code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("limit", [8, 200])  # one step, after which only the weights are not finite, and several
def test_weights_that_are_not_finite_are_not_saved(limit, by_hand, start, tmp_path):
    with pytest.raises(Refused, match="not finite after epoch 1: nothing was saved") as refused:
        by_hand.main(start(limit=limit), epochs=2, lr=float("inf"))
    assert refused.value.code == 3
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "run/result.json").exists()


def test_one_weight_that_is_not_finite_is_enough(by_hand, start, monkeypatch):
    """Even if the loss is finite: tanh maps infinity to 1."""

    def burst():
        net = Net()
        net.conv1.bias.data[0] = torch.inf
        return net

    monkeypatch.setattr(by_hand, "Net", burst)
    with pytest.raises(Refused, match="not finite after epoch 1"):
        by_hand.main(start(limit=8), epochs=1)


# ------------------------------------------------------------------------------------------------------------------- Ctrl-C


def interrupted(main, tmp_path, monkeypatch, capsys, *flags) -> str:
    """Output of `cli(main)` on SIGINT, with exit code 130."""
    place = ["--out", str(tmp_path / "run"), "--wandb", "disabled", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--data", "synthetic", *place, *flags])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(SystemExit) as ended:
            cli(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    return capsys.readouterr().err


def test_interrupted_by_hand_claims_nothing_saved(by_hand, tmp_path, monkeypatch, capsys):
    def order(n, seed, epoch):
        if epoch == 1:
            signal.raise_signal(signal.SIGINT)
        return shuffled(n, seed, epoch)

    monkeypatch.setattr(by_hand, "order", order)
    said = interrupted(by_hand.main, tmp_path, monkeypatch, capsys, "--limit", "8")
    assert "interrupted; nothing was saved: the same command starts over" in said
    assert "sound" not in said
    assert not list(tmp_path.rglob("*.safetensors"))


def twice(run: Run):
    """A recipe interrupted between two trainings."""
    torch.manual_seed(0)
    model = Tiny()
    train(run, model, tiny_images(8), optimizer_for(model), epochs=1, batch=8, stage="first")
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_after_a_stage_goes_on_from_it(tmp_path, monkeypatch, capsys):
    said = interrupted(twice, tmp_path, monkeypatch, capsys)
    assert "interrupted; the last checkpoint is sound: run the same command to resume" in said
    assert (tmp_path / "run/first/checkpoints").exists()
