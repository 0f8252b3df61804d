"""The lines of metrics.jsonl: what they say, and that logging, saving and evaluating change no number."""

import itertools
import json
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import Tiny, metrics, optimizer_for, result
from training import BATCH, EPOCHS, STEPS, Linear, at_step, fit

from launch import train
from launch.errors import Refused
from launch.report.run_log import RunLog


def test_record_of_a_run(start, images, tmp_path):
    fit(start(log_every=3), images)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["event"] == "train"]
    assert set(train_lines[0]) == {
        "event", "step", "epoch", "images", "loss", "lr", "gradient_norm", "images_per_second", "seconds",
    }  # fmt: skip
    assert [line["step"] for line in train_lines] == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    assert [line["images"] for line in train_lines] == [24, 48, 61, 69, 93, 117, 122, 138, 162, 183]
    evals = [line for line in lines if line["event"] == "eval"]
    assert set(evals[0]) == {"event", "split", "step", "epoch", "images", "loss", "accuracy", "count"}
    assert [(line["split"], line["epoch"]) for line in evals] == [("test", 1), ("test", 2), ("test", 3), ("train", 3)]
    recorded = result(tmp_path / "run")
    keys = (
        "recipe net parameters trainable epochs steps test train best images_per_second seconds world_size precision "
        "weights_sha256 weights"
    )
    assert list(recorded) == keys.split()
    assert (recorded["steps"], recorded["weights"]) == (STEPS, "last")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert {"config", "command", "git", "versions", "device", "world_size", "precision", "data"} <= set(config)


def test_train_loss_is_the_mean_over_the_images_since_the_last_line(start, images, tmp_path):
    """With a learning rate of 0 and no batch norm, every epoch's loss is the loss of the whole training set."""
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    train(start(micro_batches=2), model, images, optimizer, epochs=1, batch=8)
    lines = metrics(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(lines[-1]["loss"], rel=1e-6)


def test_schedule_is_a_function_of_the_step(start, images, tmp_path):
    """Learning rates of the optimizer at each step, and those that are logged."""
    model, used = Tiny(), []
    optimizer = optimizer_for(model)
    optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    train(start(log_every=1), model, images, optimizer, epochs=2, batch=BATCH, schedule=lambda epoch: 1 - epoch / 2)
    logged = [line["lr"] for line in metrics(tmp_path / "run") if line["event"] == "train"]
    assert used == logged == [0.1 * (1 - step / 8 / 2) for step in range(16)]


def test_cadences_do_not_change_the_numbers(start, images, tmp_path):
    fit(start(out="straight"), images)
    digest, lines = result(tmp_path / "straight")["weights_sha256"], metrics(tmp_path / "straight")
    for number, flags in enumerate([{"save_every": 1}, {"save_every": 7}, {"eval_every": 3}, {"log_every": 1}]):
        fit(start(out=f"cadence-{number}", **flags), images)
        assert result(tmp_path / f"cadence-{number}")["weights_sha256"] == digest, flags
    last = [line for line in metrics(tmp_path / "cadence-2") if line["event"] == "eval"]
    assert last == [line for line in lines if line["event"] == "eval" and line["epoch"] == EPOCHS]


def test_time_of_an_earlier_launch_counts(start, images, tmp_path):
    """A step of each epoch takes a second, both of them in the launch that is stopped."""
    model, calls = Linear(), itertools.count(1)

    def slow(logits, labels):
        time.sleep(next(calls) in (2, 10))
        return F.cross_entropy(logits, labels)

    with pytest.raises(Refused):
        train(run := start(stop_when=at_step(12)), model, images, optimizer_for(model), slow, epochs=2, batch=BATCH)
    run.end()
    fit(start(plots=True), images, model=Linear(), epochs=2)
    ended = result(tmp_path / "run")
    assert 2 < ended["seconds"] < 60
    assert ended["images_per_second"] < 61
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    first, second = [line for line in lines if line["event"] == "train"]
    assert 1 < first["seconds"] < second["seconds"] <= ended["seconds"]
    assert first["images_per_second"] < 61
    assert second["images_per_second"] < 61


def test_record_that_cannot_be_written_ends_the_run_at_the_next_checkpoint(start, images, tmp_path, monkeypatch):
    write, calls = RunLog.write, []

    def full(self, *events):
        calls.append(1)
        if len(calls) == 4:
            with monkeypatch.context() as patch:
                full_disk = OSError(28, "No space left on device")
                patch.setattr("launch.report.run_log.json.dumps", lambda _: (_ for _ in ()).throw(full_disk))
                return write(self, *events)
        return write(self, *events)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", full)
        with pytest.raises(Refused, match="No space left on device") as refused:
            fit(start(save_every=2, log_every=1), images)
    assert refused.value.code == 1
    fit(start(out="straight", log_every=1), images)
    fit(start(save_every=2, log_every=1), images)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")
