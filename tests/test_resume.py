"""Stopped or killed at any moment, the same command ends with the same weights and the same record."""

import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import training
from conftest import Tiny, metrics, result
from training import EPOCHS, STEPS, TwoConvolutions, at_step, fit, in_evaluation, interrupted

from launch import Run
from launch.data.feed import MemoryFeed
from launch.errors import Refused
from launch.training import checkpoint
from launch.training.job import SAVE_SECONDS
from launch.weights.tensors import weights, weights_sha256


@pytest.fixture
def straight(start, images, tmp_path):
    """straight(kind, **flags) -> (digest, lines) of an uninterrupted run."""

    def straight(kind="sgd", epochs=EPOCHS, **flags):
        fit(start(out=f"straight-{kind}", **flags), images, kind, epochs=epochs)
        folder = tmp_path / f"straight-{kind}"
        return result(folder)["weights_sha256"], metrics(folder)

    return straight


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_resume_at_every_step_is_exact(kind, start, straight, images, tmp_path):
    flags = {"epochs": 2, "micro_batches": 2, "log_every": 3}
    digest, lines = straight(kind, **flags)
    for at in range(1, 2 * 8 + 1) if kind == "sgd" else (7, 8, 9):
        interrupted(start, images, at, kind, out=f"at-{at}", **flags)
        assert result(tmp_path / f"at-{at}")["weights_sha256"] == digest
        assert metrics(tmp_path / f"at-{at}") == lines


@pytest.mark.parametrize("kind", ["sgd", "adam", "adagrad"])
def test_resume_keeps_the_optimizers_memory_format(kind, start, images, tmp_path, monkeypatch):
    """torch's fused optimizers walk parameter and momentum in memory order, whatever their strides."""

    def stopped(at: int, out: str) -> None:
        with pytest.raises(Refused):
            fit(start(out=out, stop_when=at_step(at)), images, kind, model=TwoConvolutions())

    fit(start(out="straight"), images, kind, model=TwoConvolutions())
    stopped(5, "resumed")
    fit(start(out="resumed"), images, kind, model=TwoConvolutions())
    stopped(5, "control")
    monkeypatch.setattr(checkpoint, "_laid_out", lambda value, _: value)
    fit(start(out="control"), images, kind, model=TwoConvolutions())
    digests = [result(tmp_path / out)["weights_sha256"] for out in ("straight", "resumed", "control")]
    assert digests[0] == digests[1] != digests[2]


def test_lines_of_an_epoch_that_was_stopped_at_its_end_are_there_once(start, straight, images, tmp_path, monkeypatch):
    """Stopped in the evaluation of epoch 1; killed after the next launch wrote its lines and before it saved."""
    digest, lines = straight()
    with pytest.raises(Refused):
        fit(start(stop_when=in_evaluation(8)), images)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            fit(start(), images)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [8, 8]
    fit(start(), images)
    assert (result(tmp_path / "run")["weights_sha256"], metrics(tmp_path / "run")) == (digest, lines)


def test_resume_during_evaluation_is_exact(start, straight, images, tmp_path, monkeypatch):
    digest, lines = straight()
    monkeypatch.setattr(MemoryFeed, "evaluation_batch", 10)  # of 23 test images
    with pytest.raises(Refused):
        fit(start(stop_when=in_evaluation(8, batch=1)), images)
    assert not [line for line in metrics(tmp_path / "run") if line["event"] == "eval"]
    fit(start(), images)
    assert result(tmp_path / "run")["weights_sha256"] == digest
    ours = metrics(tmp_path / "run")
    assert [(line["event"], line["step"], line.get("accuracy")) for line in ours] == [
        (line["event"], line["step"], line.get("accuracy")) for line in lines
    ]


@pytest.mark.parametrize("moment", ["launch.run.Run.record", "launch.report.show.show"])
def test_killed_between_the_last_checkpoint_and_the_result(moment, start, straight, images, tmp_path, monkeypatch):
    """Also while it draws: a run that is called finished has its images."""
    digest, lines = straight()
    with monkeypatch.context() as patch:
        begun = start()
        patch.setattr(moment, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(begun, images)
    assert not (tmp_path / "run/result.json").exists()
    fit(start(), images)
    assert result(tmp_path / "run")["weights_sha256"] == digest
    assert metrics(tmp_path / "run") == lines


@pytest.mark.parametrize("lost", ["momentum", "buffers", "step", "seed"])
def test_control_resume_differs_when_state_is_lost(lost, start, straight, images, tmp_path, monkeypatch):
    digest, _ = straight()
    with pytest.raises(Refused):
        fit(start(stop_when=at_step(20)), images)
    latest, first = checkpoint.latest, weights(Tiny())

    def forgetful(folder):
        found, complaints = latest(folder)
        if lost == "momentum":
            for name in [name for name in found["optimizer"] if name.endswith("momentum_buffer")]:
                found["optimizer"][name].zero_()
        if lost == "buffers":
            found["model"] |= {name: first[name] for name in found["model"] if "running" in name}
        if lost == "step":
            found["state"]["step"] -= 1
        return found, complaints

    resumed = start()
    if lost == "seed":
        origin = resumed.origin("61")
        resumed.seed += 1
        monkeypatch.setattr(Run, "origin", lambda *_, **__: origin)
    monkeypatch.setattr(checkpoint, "latest", forgetful)
    fit(resumed, images)
    assert result(tmp_path / "run")["weights_sha256"] != digest


def test_scalars_that_an_optimizer_keeps_are_resumed(start, images, tmp_path, monkeypatch):
    class Fading(torch.optim.SGD):
        def step(self):
            for group in self.param_groups:
                group["steps"] = group.get("steps", 0) + 1
                group["lr"] = 0.1 / group["steps"]
            super().step()

    monkeypatch.setattr(training, "optimizer_for", lambda model, _: Fading(model.parameters(), lr=0.1))
    fit(start(out="straight"), images)
    interrupted(start, images, at=13)
    assert result(tmp_path / "run")["weights_sha256"] == result(tmp_path / "straight")["weights_sha256"]


def test_micro_batches_left_open_are_those_of_the_run(start, images, tmp_path):
    digests = []
    for again in (2, 0):
        with pytest.raises(Refused):
            fit(start(out=f"open-{again}", micro_batches=2, stop_when=at_step(5)), images)
        fit(start(out=f"open-{again}", micro_batches=again), images)
        digests.append(result(tmp_path / f"open-{again}")["weights_sha256"])
    assert digests[0] == digests[1]
    with pytest.raises(Refused, match="micro_batches was 2, now 4"):
        start(out="open-0", micro_batches=4)


def test_last_step_is_saved_and_no_line_is_written_twice(start, images, tmp_path):
    fit(start(save_every=5, log_every=4), images)
    found, _ = checkpoint.latest(tmp_path / "run/checkpoints")
    assert found["state"]["step"] == STEPS
    assert [line["step"] for line in metrics(tmp_path / "run") if line["event"] == "train"] == [4, 8, 12, 16, 20, 24]


def test_lost_checkpoints_are_said(start, images, tmp_path, capsys):
    with pytest.raises(Refused):
        fit(start(stop_when=at_step(12)), images)
    shutil.rmtree(tmp_path / "run/checkpoints")
    fit(start(plots=False), images)
    assert "has no checkpoint: starts again from step 0" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{}, {"seed": 2}, {"micro_batches": 2}, {"options": {"lr": 0.2}}, {"data": "62"}, {"begun": 2}])
def test_checkpoint_of_another_configuration_is_refused(other, start, images, tmp_path):
    """A folder may be deleted and used again while its first job still saves, and checkpoints may be copied about."""
    fit(start(), images)
    refused_for, other = bool(other), dict(other)
    images = replace(images, fingerprint=other.pop("data", images.fingerprint))
    micro_batches = other.pop("begun", 0)
    begun = start(out="other", stop_when=at_step(1), **other)
    begun.micro_batches = micro_batches or begun.micro_batches  # as many as processes, where no flag says how many
    with pytest.raises(Refused, match="stopped"):
        fit(begun, images)
    shutil.rmtree(tmp_path / "other/checkpoints")
    shutil.copytree(tmp_path / "run/checkpoints", tmp_path / "other/checkpoints")
    if refused_for:
        with pytest.raises(Refused, match="was saved with another configuration") as refused:
            fit(start(out="other", **other), images)
        assert refused.value.code == 4
    else:  # control: its own
        fit(start(out="other"), images)
        assert result(tmp_path / "other")["weights_sha256"] == result(tmp_path / "run")["weights_sha256"]


def test_finished_run_is_not_trained_again(start, images, tmp_path):
    fit(start(), images)
    run = Run(data="synthetic", out=tmp_path / "run", wandb="disabled")
    assert run.start("test", {}) == result(tmp_path / "run")


def test_signals_are_given_back(start, images):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(start(), images)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows 2.5 s more at each step, so 20 s in an epoch; and the seconds between checkpoints that users have."""
    shown = [0.0]
    monkeypatch.setattr("launch.training.job.time", SimpleNamespace(perf_counter=lambda: shown[0]))
    monkeypatch.setattr("launch.training.job.SAVE_SECONDS", SAVE_SECONDS)

    def ticking(step, batch):
        shown[0] += 2.5 * (batch is None)
        return False

    return ticking


@pytest.fixture
def saves(monkeypatch):
    """The steps that were saved."""
    seen, save = [], checkpoint.save

    def noted(folder, model, optimizer, state):
        seen.append(state["step"])
        save(folder, model, optimizer, state)

    monkeypatch.setattr(checkpoint, "save", noted)
    return seen


def test_short_epochs_are_saved_every_half_minute_and_the_last_one_always(start, images, clock, saves):
    fit(start(stop_when=clock), images, epochs=5)
    assert saves == [16, 32, 40]
    fit(start(out="often", stop_when=clock, save_every=4), images, epochs=2)  # what the flag says, whatever the clock
    assert saves[3:] == [4, 8, 12, 16]


def test_killed_between_two_checkpoints(start, straight, images, tmp_path, clock, saves):
    """The best weights so far are those that the checkpoint knows, though an epoch after it was better."""

    def killed(step, batch):
        assert step < 26
        return clock(step, batch)

    expected = straight(epochs=5)
    accuracy = [line["accuracy"] for line in expected[1] if line["event"] == "eval" and line["split"] == "test"]
    assert accuracy[2] > max(accuracy[:2])  # the epoch that is lost
    del saves[:]
    with pytest.raises(AssertionError):
        fit(start(stop_when=killed), images, epochs=5)
    assert saves == [16]
    found, _ = checkpoint.latest(tmp_path / "run/checkpoints")
    best = safetensors.torch.load_file(tmp_path / "run/best.safetensors")
    assert weights_sha256(best) == found["state"]["best"]["weights_sha256"]
    fit(start(), images, epochs=5)
    assert (result(tmp_path / "run")["weights_sha256"], metrics(tmp_path / "run")) == expected
    assert result(tmp_path / "run")["best"] == result(tmp_path / "straight-sgd")["best"]
