"""Tests that need a GPU; `make gpu` runs them. An epoch of tests/training.py has 7 full batches and one of 5 images."""

import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from conftest import Tiny, metrics, result
from torch import nn
from training import fit

from launch.data.augment import crop_and_flip
from launch.data.dataset import Split
from launch.data.order import random_integers
from launch.errors import Refused
from launch.training.finite import POLL_STEPS
from launch.training.step import Step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic; read when CUDA is first used
EPOCHS = 6


@pytest.fixture(params=["no", "bf16"])
def precision(request, monkeypatch):
    yield from _in_precision(request.param, monkeypatch)


@pytest.fixture
def fp16(monkeypatch):
    yield from _in_precision("fp16", monkeypatch)


def _in_precision(name, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", name)
    AcceleratorState._reset_state(True)
    yield name
    AcceleratorState._reset_state(True)


@pytest.fixture
def replays(monkeypatch):
    """The captured steps that were launched, one entry each."""
    seen, replay = [], torch.cuda.CUDAGraph.replay

    def counted(self):
        seen.append(self)
        replay(self)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return seen


def record(folder):
    return metrics(folder), result(folder)["weights_sha256"]


def both_ways(start, images, model=Tiny, kind="sgd", **options):
    """The record of a run whose steps are captured, and of the same one launched kernel by kernel."""
    records = []
    for captured in (True, False):
        run = start(out=f"captured-{captured}", deterministic=True)
        run.captured = captured
        torch.manual_seed(1)
        fit(run, images, kind, model(), **{"epochs": EPOCHS, "augment": crop_and_flip} | options)
        records.append(record(run.folder))
    return records


def test_the_loop_runs_on_the_gpu(start, images):
    model = fit(start(), images)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}


def test_draws_are_those_of_the_cpu():
    ids = torch.arange(1000)
    assert random_integers(1, 2, ids.cuda(), 0, 9).tolist() == random_integers(1, 2, ids, 0, 9).tolist()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_captured_steps_have_the_bits_of_eager_ones(start, images, kind, precision, replays):
    """Batch norm, dropout, augmentation, falling rates, a short last batch."""
    captured, eager = both_ways(start, images, kind=kind, schedule=lambda epoch: 1 - epoch / EPOCHS)
    assert captured == eager
    assert len(replays) == EPOCHS * 7 - 3 + EPOCHS - 3  # three of each size come first


class DrawsOnTheHost(Tiny):
    def forward(self, x):
        return super().forward(x) * (0.5 + torch.rand(()).item())


class ReadsOnTheHost(Tiny):
    def forward(self, x):
        return super().forward(x) * (2 if x.mean() > 0 else 1)


class Synchronises(Tiny):
    def forward(self, x):
        torch.cuda.synchronize()
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "why"),
    [(DrawsOnTheHost, "draws random numbers on the host"), (ReadsOnTheHost, "reads numbers on the host"), (Synchronises, "")],
)
def test_control_a_net_that_cannot_be_captured_trains_eagerly_and_says_so(start, images, model, why, replays, capfd):
    captured, eager = both_ways(start, images, model)
    assert captured == eager
    assert replays == []
    said = [line for line in capfd.readouterr().err.splitlines() if "kernel by kernel" in line]
    assert len(said) == 1
    assert why in said[0]


def stopped_and_resumed(start, images, at, kind="sgd", **flags):
    """A stop as after a SIGTERM during step `at`: it is heard at the next poll, or in the evaluation before it."""
    with pytest.raises(Refused, match="stopped by SIGTERM"):
        fit(start(stop_when=lambda step, batch: step >= at, **flags), images, kind, epochs=EPOCHS)
    fit(start(**flags), images, kind, epochs=EPOCHS)


@pytest.mark.parametrize("at", [0, 3, 11, 16, 33, 48])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_resume_is_exact_with_deterministic_kernels(start, images, at, kind, tmp_path):
    fit(start(out="whole", deterministic=True), images, kind, epochs=EPOCHS)
    stopped_and_resumed(start, images, at, kind, deterministic=True)
    assert record(tmp_path / "run") == record(tmp_path / "whole")


def test_two_runs_are_the_same_run_with_deterministic_kernels(start, images, precision):
    runs = [start(out=out, deterministic=True) for out in ("one", "two")]
    for run in runs:
        torch.manual_seed(1)
        fit(run, images, augment=crop_and_flip)
    assert record(runs[0].folder) == record(runs[1].folder)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_the_host_waits_for_the_gpu_at_polls_only(start, images, monkeypatch):
    """Eager and captured steps; a control: at a poll it does wait."""
    call, polls = Step.__call__, []

    def watched(self, batch, stop):
        size, step = len(batch.ids), batch.step
        if self.captured and size not in self.captured.graphs and self.captured.calls[size] > 1:
            return call(self, batch, stop)  # looks for synchronisation itself, or captures
        torch.cuda.set_sync_debug_mode("error")
        try:
            if step % POLL_STEPS:
                return call(self, batch, stop)
            with pytest.raises(RuntimeError, match="synchronizing"):
                self.finite.check(step)
            polls.append(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return call(self, batch, stop)

    monkeypatch.setattr(Step, "__call__", watched)
    for captured in (True, False):
        run = start(out=str(captured))
        run.captured = captured
        fit(run, images, epochs=EPOCHS, augment=crop_and_flip)
    assert len(polls) >= 4


class BrokenByOneImage(nn.Module):
    """A net whose output is not a number for a white image."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        white = (x.flatten(1).mean(1) > (1 - 0.25) / 0.2 - 0.1)[:, None]
        return self.fc(x.flatten(1)) + torch.where(white, torch.nan, 0.0)


def test_a_broken_loss_is_found_at_the_next_poll_and_never_applied(start, images, monkeypatch):
    white = images.train.pixels.clone()
    white[17] = 255
    broken, model = replace(images, train=Split(white, images.train.labels)), BrokenByOneImage()
    with pytest.raises(Refused, match=r"not finite at step \d+, from training image 17 .*the weights are those after") as refused:
        fit(start(), broken, model=model, epochs=EPOCHS)
    assert refused.value.code == 3
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_fp16_skips_overflows_and_resumes(start, images, fp16, tmp_path):
    fit(start(out="whole", deterministic=True), images, epochs=EPOCHS)
    stopped_and_resumed(start, images, 12, deterministic=True)
    assert record(tmp_path / "run") == record(tmp_path / "whole")
    assert result(tmp_path / "run")["precision"] == "fp16"


@pytest.mark.filterwarnings("ignore")  # inductor warns that it would rather have TF32
def test_compiled_steps_resume(start, images, replays, tmp_path):
    fit(start(out="whole", compile=True, deterministic=True), images, epochs=EPOCHS)
    assert replays
    stopped_and_resumed(start, images, 12, compile=True, deterministic=True)
    assert record(tmp_path / "run") == record(tmp_path / "whole")


def test_gpu_and_cpu_agree_up_to_rounding(start, images):
    """One step of a net without dropout, in float32: TF32 is off."""

    def gradient(device):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).to(device)
        pixels = images.train.pixels.to(device).float() / 255
        F.cross_entropy(model(pixels), images.train.labels.to(device)).backward()
        return [parameter.grad.cpu() for parameter in model.parameters()]

    start()  # sets the precision of convolutions
    for ours, reference in zip(gradient("cuda"), gradient("cpu"), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)
