"""Evaluation counts every image once and changes nothing."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import Tiny, optimizer_for, result
from training import BATCH, STEPS, Linear, fit

from launch import evaluate, train
from launch.data.feed import MemoryFeed
from launch.data.order import micro_batch_seed
from launch.errors import Refused
from launch.weights.tensors import load_weights, weights_sha256


@pytest.mark.parametrize("count", [1, 4, 5, 9, 23])
def test_evaluation_counts_every_sample_once_in_eval_mode(count, start, images, monkeypatch):

    monkeypatch.setattr(MemoryFeed, "evaluation_batch", 5)
    few = replace(images, test=type(images.test)(images.test.pixels[:count], images.test.labels[:count]))
    model = Tiny().train()
    got = evaluate(start(), model, few)
    assert model.training
    model.eval()
    pixels, labels = MemoryFeed(few.test, few, torch.device("cpu")).batch(torch.arange(count))
    logits = model(pixels)
    assert got["count"] == count
    assert got["accuracy"] == (logits.argmax(1) == labels).sum().item() / count
    assert got["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert got == evaluate(start(out="again"), model, few)


def test_measuring_as_the_book_did_changes_the_results_and_nothing_else(start, images, tmp_path):
    """In train mode, with dropout and the batch's own statistics; the running ones stay as they are."""
    for mode in ("train", "eval"):
        fit(start(out=mode), images, measured_in=mode)
    trained, evaluated = (result(tmp_path / mode) for mode in ("train", "eval"))
    assert trained["weights_sha256"] == evaluated["weights_sha256"]
    assert trained["test"]["loss"] != evaluated["test"]["loss"]
    model = Tiny()
    load_weights(model, safetensors.torch.load_file(tmp_path / "train/model.safetensors"))
    feed, losses = MemoryFeed(images.test, images, torch.device("cpu")), []
    for number, ids in enumerate(torch.arange(23).split(BATCH)):
        torch.manual_seed(micro_batch_seed(1, STEPS, number))
        pixels, labels = feed.batch(ids)
        losses.append(F.cross_entropy(model.train()(pixels), labels, reduction="sum").item())
    assert trained["test"]["loss"] == pytest.approx(sum(losses) / 23, rel=1e-5)


def test_saved_weights_are_those_that_were_measured(start, images, tmp_path):
    fit(start(), images)
    saved = safetensors.torch.load_file(tmp_path / "run/model.safetensors")
    recorded = result(tmp_path / "run")
    assert weights_sha256(saved) == recorded["weights_sha256"]
    model = Tiny()
    model.load_state_dict(saved)
    assert evaluate(start(out="other"), model, images) == recorded["test"]
    assert evaluate(start(out="third"), model, images, "train") == recorded["train"]
    best = Tiny()
    best.load_state_dict(safetensors.torch.load_file(tmp_path / "run/best.safetensors"))
    assert evaluate(start(out="fourth"), best, images)["accuracy"] == recorded["best"]["accuracy"]


def test_best_is_the_first_epoch_of_the_highest_accuracy(start, images, tmp_path):
    """A net that learns nothing any more: its weights are as good as before."""
    model = Linear()
    train(start(), model, images, optimizer_for(model), epochs=3, batch=BATCH, schedule=lambda epoch: float(epoch < 1))
    assert result(tmp_path / "run")["best"]["epoch"] == 1
    saved = safetensors.torch.load_file(tmp_path / "run/best.safetensors")
    assert weights_sha256(saved) == result(tmp_path / "run")["best"]["weights_sha256"]


def test_evaluation_leaves_the_mode_as_it_was_also_if_it_fails(start, images):
    model = Tiny().train()
    evaluate(run := start(), model, images)
    assert model.training
    model.fc.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(run, model, images)
    assert model.training


def test_broken_evaluation_is_no_result(start, images, tmp_path):
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38, fused=True)
    with pytest.raises(Refused, match="not finite") as refused:
        train(start(), model, images, optimizer, epochs=1, batch=61)
    assert refused.value.code == 3
    assert not (tmp_path / "run/result.json").exists()
