"""One update: micro-batches are the same function as the batch, each sample counts once, nothing but (seed, step) matters."""

import itertools
import json
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import ROOT, Tiny, metrics
from training import BATCH, EPOCHS, Linear, TwoConvolutions, batch_of, fit, step_of

from launch import train
from launch.data.feed import MemoryFeed
from launch.data.order import micro_batch_bounds, order, random_integers
from launch.errors import Refused
from launch.training.state import Meter
from launch.weights.tensors import weights


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept_until_it_is_given_back():
    """In a process of its own: in a thread, or among other blocks, glibc keeps another way."""
    script = (
        "import os\nfrom launch.memory import *\n"
        "mib = lambda: print(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGESIZE') >> 20)\n"
        "def fill(): [bytearray(64 << 20) for _ in range(4)]\n"
        "mib(); fill(); mib(); keep_freed_memory(); fill(); mib(); give_back_freed_memory(); mib()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    before, control, kept, back = map(int, done.stdout.split())
    assert control < before + 64
    assert kept > before + 192
    assert back < before + 64


def test_dropout_depends_on_seed_step_and_micro_batch(start, images):
    def masks(run, step: int) -> list[torch.Tensor]:
        """Units that are dropped for the same two images in each of two micro-batches."""
        torch.manual_seed(1)  # of the weights
        model, seen = Tiny(), []
        made = step_of(run, model.train(), images)
        model.drop.register_forward_hook(lambda module, inputs, output: seen.append((output == 0) & (inputs[0] != 0)))
        made(batch_of(made, torch.tensor([0, 1, 0, 1]), step), False)
        return seen

    first, second = masks(start(micro_batches=2, seed=1), 3)
    assert first.any()
    assert not first.equal(second)
    assert masks(start(out="again", micro_batches=2, seed=1), 3)[0].equal(first)
    for out, seed, step in (("seed", 2, 3), ("step", 1, 4)):
        assert not masks(start(out=out, micro_batches=2, seed=seed), step)[0].equal(first)


def test_augmentation_is_drawn_anew_each_epoch(start, images):
    """With the epoch that the step belongs to, counted from 0, and the run's seed."""
    seen = []

    def augment(pixels, rng):
        seen.append(rng.integers(0, 1000).tolist())
        return pixels

    fit(start(seed=5), images, augment=augment)
    ids = [batch for epoch in range(EPOCHS) for batch in order(61, 5, epoch).split(8)]
    assert seen == [random_integers(5, number // 8, batch, 0, 1000).tolist() for number, batch in enumerate(ids)]


def test_every_sample_once_an_epoch_however_it_is_cut(start, images, tmp_path, monkeypatch):
    seen = {}
    for micro_batches in (1, 2, 3, 4):
        batches = []
        original = MemoryFeed.batch

        def batch(self, ids, augments=(), *, batches=batches, original=original):
            if self.rows.shape[0] == 61 and torch.is_grad_enabled():
                batches.append(ids.tolist())
            return original(self, ids, augments)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryFeed, "batch", batch)
            fit(start(out=f"s{micro_batches}", micro_batches=micro_batches), images)
        flat = list(itertools.chain.from_iterable(batches))
        assert len(flat) == EPOCHS * 61
        for epoch in range(EPOCHS):
            assert sorted(flat[epoch * 61 : (epoch + 1) * 61]) == list(range(61))
        seen[micro_batches] = flat
    assert seen[1] == seen[2] == seen[3] == seen[4]


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4, 8])
def test_gradient_is_that_of_the_mean_over_the_true_batch(micro_batches, start, images):
    """Also for the last batch of 5: float64 autograd is the reference; a micro-batch's plain mean, summed, must not agree."""
    model = Linear()
    step = step_of(start(micro_batches=micro_batches), model, images)
    ids = order(61, 1, 0)[56:]
    step._gradients(batch_of(step, ids, 0))
    pixels, labels = step.feed.feed.batch(ids)
    exact = Linear().double()
    exact.load_state_dict(model.state_dict())
    F.cross_entropy(exact(pixels.double()), labels).backward()
    torch.testing.assert_close(model.fc.weight.grad.double(), exact.fc.weight.grad, rtol=1e-5, atol=1e-7)
    cuts = micro_batch_bounds(5, micro_batches)
    wrong = torch.zeros_like(exact.fc.weight)
    for low, high in itertools.pairwise(cuts):
        if low < high:
            exact.zero_grad()
            F.cross_entropy(exact(pixels[low:high].double()), labels[low:high]).backward()
            wrong += exact.fc.weight.grad / micro_batches
    assert torch.allclose(wrong, model.fc.weight.grad.double(), rtol=1e-5, atol=1e-7) == (micro_batches == 1)


def test_micro_batches_are_the_same_function(start, images, tmp_path):
    """Without batch norm and dropout the number of micro-batches changes rounding only."""
    weight = {}
    for micro_batches in (1, 4):
        torch.manual_seed(1)
        model = fit(start(out=f"s{micro_batches}", micro_batches=micro_batches), images, model=Linear())
        weight[micro_batches] = model.fc.weight.detach()
    torch.testing.assert_close(weight[1], weight[4], rtol=1e-4, atol=1e-5)
    assert not torch.equal(weight[1], torch.nn.Linear(64, 3).weight)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_images_than_micro_batches(count, start, images):

    few = replace(images, train=type(images.train)(images.train.pixels[:count], images.train.labels[:count]))
    model = fit(start(micro_batches=4), few, model=Linear())
    assert all(p.isfinite().all() for p in model.parameters())


def test_no_host_sync_in_a_step(start, images, monkeypatch):
    """Between polls and lines nothing is read from the device."""
    model = Linear()
    step = step_of(start(micro_batches=2), model, images)
    step.finite.poll = 1000
    meter = Meter(torch.device("cpu"))
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name} reads from the device"))
    batch_loss, _ = step(batch_of(step, torch.arange(8), 1), False)
    meter.add(batch_loss, 8)


def test_running_statistics_follow_micro_batch_0_once_a_step(start, images):
    model = Tiny()
    step = step_of(start(micro_batches=4), model, images)
    alone = Tiny()
    alone.load_state_dict(model.state_dict())
    model.train()
    step(batch_of(step, torch.arange(8), 1), False)
    alone.train()(step.feed.feed.batch(torch.arange(2))[0])
    assert model.norm.num_batches_tracked == 1
    torch.testing.assert_close(model.norm.running_mean, alone.norm.running_mean)


def test_batch_norm_is_tracked_as_before(start, images):
    model = fit(start(micro_batches=2), images)
    assert model.norm.track_running_stats
    before = model.norm.running_mean.clone()
    model.train()(torch.ones(4, 1, 8, 8))
    assert not model.norm.running_mean.equal(before)


def test_parameters_that_no_optimizer_has_gather_no_gradients(start, images, tmp_path):
    norms = []
    for out, micro_batches in (("one", 1), ("two", 2)):
        torch.manual_seed(0)
        model = Linear()
        optimizer = torch.optim.SGD([model.fc.bias], lr=0.1)
        train(start(out=out, micro_batches=micro_batches, log_every=1), model, images, optimizer, epochs=2, batch=BATCH)
        norms.append([line["gradient_norm"] for line in metrics(tmp_path / out) if line["event"] == "train"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_few_images_for_batch_norm_are_said(start, images, capsys):
    fit(start(micro_batches=2), images)
    assert "batch norm sees only 4 images at a time (--batch 8 in 2 micro-batches)" in capsys.readouterr().out
    fit(start(out="more"), images, batch=32)
    fit(start(out="without"), images, model=TwoConvolutions())
    assert "batch norm sees" not in capsys.readouterr().out


def test_compiled_net_is_saved_under_its_own_names(start, images, tmp_path, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, **how: compiled(net, backend="eager", **how))
    fit(start(compile=True), images)
    saved = safetensors.torch.load_file(tmp_path / "run/model.safetensors")
    assert saved.keys() == weights(Tiny()).keys()


def test_deterministic_is_recorded_and_names_what_cannot_be(start, images, tmp_path):
    class Unpooling(torch.nn.Module):  # has no deterministic kernel, on a CPU either
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(64, 3)

        def forward(self, x):
            pooled, where = F.max_pool2d(x, 2, return_indices=True)
            return self.fc(F.max_unpool2d(pooled, where, 2).flatten(1))

    fit(start(deterministic=True), images)
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["deterministic"] is True
    with pytest.raises(Refused, match="max_unpooling2d_forward_out has no deterministic kernel") as refused:
        fit(start(out="other", deterministic=True), images, model=Unpooling())
    assert refused.value.code == 2
    fit(start(out="without"), images, model=Unpooling())
    assert "deterministic" not in json.loads((tmp_path / "without/config.json").read_text())["config"]


def test_float32_is_float32_on_every_device(start, images, tmp_path):
    fit(start(), images)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert json.loads((tmp_path / "run/config.json").read_text())["tf32"] is False
