"""train() and evaluate() in one process: each promise, and a control that fails when it is broken."""

import gc
import itertools
import json
import shutil
import signal
import time
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from conftest import Tiny, metrics, optimizer_for, result
from tiny import tiny_images

from launch import checkpoint, evaluate, loop, train
from launch.checkpoint import weights, weights_sha256
from launch.data import Feed, order, slice_seed
from launch.errors import Refused
from launch.record.track import Track

EPOCHS, BATCH = 3, 8  # 61 images: 8 steps an epoch, the last with 5 images
STEPS = EPOCHS * 8


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Half a second a run: tests/test_report.py has them."""
    monkeypatch.setattr(loop, "_show", lambda *_: None)


def fit(run, images, kind="sgd", model=None, **options):
    model = model or Tiny()
    try:
        train(run, model, images, optimizer_for(model, kind), **({"epochs": EPOCHS, "batch": BATCH} | options))
    finally:
        run.end()
    return model


def step_of(run, model, images):
    return loop.Step(run, model, Feed(images.train, images, torch.device("cpu")), optimizer_for(model), F.cross_entropy)


def stop_at(patch, step: int) -> None:
    """Have the next run believe, at this step, counted from 1, that it got a SIGTERM."""
    asked = iter(range(1, 10_000))
    patch.setattr(loop.Stop, "requested", lambda self: next(asked) == step)


def interrupted(start, images, monkeypatch, at: int, kind="sgd", epochs=EPOCHS, **flags):
    """A run that is told to stop during step `at`, counted from 1, and the same started again."""
    with monkeypatch.context() as patch:
        stop_at(patch, at)
        with pytest.raises(Refused) as refused:
            fit(start(**flags), images, kind, epochs=epochs)
    assert refused.value.code == 143
    return fit(start(**flags), images, kind, epochs=epochs)


@pytest.fixture
def straight(start, images, tmp_path):
    """straight(kind, **flags) -> (digest, lines) of an uninterrupted run."""

    def straight(kind="sgd", epochs=EPOCHS, **flags):
        fit(start(out=f"straight-{kind}", **flags), images, kind, epochs=epochs)
        folder = tmp_path / f"straight-{kind}"
        return result(folder)["weights_sha256"], metrics(folder)

    return straight


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_resume_at_every_step_is_exact(kind, start, straight, images, tmp_path, monkeypatch):
    flags = {"epochs": 2, "shards": 2, "log_every": 3}
    digest, lines = straight(kind, **flags)
    for at in range(1, 2 * 8 + 1) if kind == "sgd" else (1, 7, 8, 9, 16):
        interrupted(start, images, monkeypatch, at, kind, out=f"at-{at}", **flags)
        assert result(tmp_path / f"at-{at}")["weights_sha256"] == digest
        assert metrics(tmp_path / f"at-{at}") == lines


class TwoConvolutions(torch.nn.Module):
    """The second one's weight has several channels in and out, so channels last is another order in memory than the usual."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1)
        self.fc = torch.nn.Linear(4 * 64, 3)

    def forward(self, x):
        return self.fc(self.conv2(torch.relu(self.conv1(x))).flatten(1))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adagrad"])
def test_resume_keeps_the_optimizers_memory_format(kind, start, images, tmp_path, monkeypatch):
    """torch's fused optimizers walk parameter and momentum in memory order, whatever their strides."""
    def stopped(at: int, out: str) -> None:
        with monkeypatch.context() as patch:
            stop_at(patch, at)
            with pytest.raises(Refused):
                fit(start(out=out), images, kind, model=TwoConvolutions())

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
    for fault in ("stop", "kill"):
        with monkeypatch.context() as patch:
            if fault == "stop":
                stop_at(patch, 9)
            else:
                patch.setattr(checkpoint, "save", lambda *_: pytest.fail("killed"))
            with pytest.raises((Refused, pytest.fail.Exception)):
                fit(start(), images)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [8, 8]
    fit(start(), images)
    assert (result(tmp_path / "run")["weights_sha256"], metrics(tmp_path / "run")) == (digest, lines)


def test_resume_during_evaluation_is_exact(start, straight, images, tmp_path, monkeypatch):
    digest, lines = straight()
    monkeypatch.setattr(loop, "EVALUATION_BATCH", 10)
    _, lines_in_tens = digest, lines
    calls = []
    with monkeypatch.context() as patch:
        # Steps ask once each; the ninth question comes from the first batch of the first evaluation.
        patch.setattr(loop.Stop, "requested", lambda self: calls.append(1) or len(calls) == 9)
        with pytest.raises(Refused):
            fit(start(), images)
    assert not [line for line in metrics(tmp_path / "run") if line["event"] == "eval"]
    fit(start(), images)
    assert result(tmp_path / "run")["weights_sha256"] == digest
    ours = metrics(tmp_path / "run")
    assert [(line["event"], line["step"], line.get("accuracy")) for line in ours] == [
        (line["event"], line["step"], line.get("accuracy")) for line in lines_in_tens
    ]


@pytest.mark.parametrize("moment", ["_result", "_show"])
def test_killed_between_the_last_checkpoint_and_the_result(moment, start, straight, images, tmp_path, monkeypatch):
    """Also while it draws: a run that is called finished has its pictures."""
    digest, lines = straight()
    with monkeypatch.context() as patch:
        patch.setattr(loop, moment, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(start(), images)
    assert not (tmp_path / "run/result.json").exists()
    fit(start(), images)
    assert result(tmp_path / "run")["weights_sha256"] == digest
    assert metrics(tmp_path / "run") == lines


@pytest.mark.parametrize("lost", ["momentum", "buffers", "step", "seed"])
def test_control_resume_differs_when_state_is_lost(lost, start, straight, images, tmp_path, monkeypatch):
    digest, _ = straight()
    restore = loop._restore

    def forgetful(run, net, optimizer, images):
        buffers = [b.clone() for b in net.buffers()]
        state, meter, complaints = restore(run, net, optimizer, images)
        if lost == "seed":
            run.seed += 1
        if lost == "momentum":
            optimizer.state.clear()
        if lost == "buffers":
            for own, first in zip(net.buffers(), buffers, strict=True):
                own.copy_(first)
        if lost == "step" and state.step:
            state.step -= 1
        return state, meter, complaints

    asked = iter(range(1, 1000))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "requested", lambda self: next(asked) == 20)
        with pytest.raises(Refused):
            fit(start(), images)
    monkeypatch.setattr(loop, "_restore", forgetful)
    fit(start(), images)
    assert result(tmp_path / "run")["weights_sha256"] != digest


def test_cadences_do_not_change_the_numbers(start, straight, images, tmp_path):
    digest, lines = straight()
    for number, flags in enumerate([{"save_every": 1}, {"save_every": 7}, {"eval_every": 3}, {"log_every": 1}]):
        fit(start(out=f"cadence-{number}", **flags), images)
        assert result(tmp_path / f"cadence-{number}")["weights_sha256"] == digest, flags
    last = [line for line in metrics(tmp_path / "cadence-2") if line["event"] == "eval"]
    assert last == [line for line in lines if line["event"] == "eval" and line["epoch"] == EPOCHS]


def test_last_step_is_saved_and_no_line_is_written_twice(start, images, tmp_path):
    fit(start(save_every=5, log_every=4), images)
    found, _ = checkpoint.latest(tmp_path / "run/checkpoints")
    assert found["state"]["step"] == STEPS
    assert [line["step"] for line in metrics(tmp_path / "run") if line["event"] == "train"] == [4, 8, 12, 16, 20, 24]


def test_time_of_an_earlier_launch_counts(start, images, tmp_path, monkeypatch):
    """A step of each epoch takes a second, both of them in the launch that is stopped."""
    model, calls = Linear(), itertools.count(1)

    def slow(logits, labels):
        time.sleep(next(calls) in (2, 10))
        return F.cross_entropy(logits, labels)

    stop_at(monkeypatch, 12)
    with pytest.raises(Refused):
        train(run := start(), model, images, optimizer_for(model), slow, epochs=2, batch=BATCH)
    run.end()
    monkeypatch.undo()
    fit(start(pictures=True), images, model=Linear(), epochs=2)
    ended = result(tmp_path / "run")
    assert 2 < ended["seconds"] < 60
    assert ended["images_per_second"] < 61
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    first, second = [line for line in lines if line["event"] == "train"]
    assert 1 < first["seconds"] < second["seconds"] <= ended["seconds"]
    assert first["images_per_second"] < 61
    assert second["images_per_second"] < 61


def test_dropout_depends_on_seed_step_and_slice(start, images):
    def masks(run, step: int) -> list[torch.Tensor]:
        """What is dropped of the same two images in each of two slices."""
        torch.manual_seed(1)  # of the weights
        model, seen = Tiny(), []
        made = step_of(run, model.train(), images)
        model.drop.register_forward_hook(lambda module, inputs, output: seen.append((output == 0) & (inputs[0] != 0)))
        made(torch.tensor([0, 1, 0, 1]), step, False)
        return seen

    first, second = masks(start(shards=2, seed=1), 3)
    assert first.any()
    assert not first.equal(second)
    assert masks(start(out="again", shards=2, seed=1), 3)[0].equal(first)
    for out, seed, step in (("seed", 2, 3), ("step", 1, 4)):
        assert not masks(start(out=out, shards=2, seed=seed), step)[0].equal(first)


def test_measuring_as_the_book_did_changes_the_results_and_nothing_else(start, images, tmp_path):
    """In train mode, with dropout and the batch's own statistics; the running ones stay as they are."""
    for mode in ("train", "eval"):
        fit(start(out=mode), images, measured_in=mode)
    trained, evaluated = (result(tmp_path / mode) for mode in ("train", "eval"))
    assert trained["weights_sha256"] == evaluated["weights_sha256"]
    assert trained["test"]["loss"] != evaluated["test"]["loss"]
    model = Tiny()
    checkpoint.load_weights(model, checkpoint.safetensors.torch.load_file(tmp_path / "train/model.safetensors"))
    feed, losses = Feed(images.test, images, torch.device("cpu")), []
    for number, ids in enumerate(torch.arange(23).split(BATCH)):
        torch.manual_seed(slice_seed(1, STEPS, number))
        pixels, labels = feed.batch(ids)
        losses.append(F.cross_entropy(model.train()(pixels), labels, reduction="sum").item())
    assert trained["test"]["loss"] == pytest.approx(sum(losses) / 23, rel=1e-5)


def test_augmentation_is_drawn_anew_each_epoch(start, images):
    """With the epoch that the step belongs to, counted from 0, and the run's seed."""
    seen = []

    def augment(pixels, ids, seed, epoch):
        seen.append((seed, epoch))
        return pixels

    fit(start(seed=5), images, augment=augment)
    assert seen == [(5, epoch) for epoch in range(EPOCHS) for _ in range(8)]


def test_best_is_the_first_epoch_of_the_highest_accuracy(start, images, tmp_path):
    """A net that learns nothing any more: its weights are as good as before."""
    model = Linear()
    train(start(), model, images, optimizer_for(model), epochs=3, batch=BATCH, schedule=lambda epoch: float(epoch < 1))
    assert result(tmp_path / "run")["best"]["epoch"] == 1
    saved = checkpoint.safetensors.torch.load_file(tmp_path / "run/best.safetensors")
    assert weights_sha256(saved) == result(tmp_path / "run")["best"]["weights_sha256"]


def test_batch_norm_is_tracked_as_before(start, images):
    model = fit(start(shards=2), images)
    assert model.norm.track_running_stats
    before = model.norm.running_mean.clone()
    model.train()(torch.ones(4, 1, 8, 8))
    assert not model.norm.running_mean.equal(before)


def test_every_sample_once_an_epoch_whatever_the_shards(start, images, tmp_path, monkeypatch):
    seen = {}
    for shards in (1, 2, 3, 4):
        batches = []
        original = Feed.batch

        def batch(self, ids, augment=None, *, batches=batches, original=original):
            if self.rows.shape[0] == 61 and torch.is_grad_enabled():
                batches.append(ids.tolist())
            return original(self, ids, augment)

        with monkeypatch.context() as patch:
            patch.setattr(Feed, "batch", batch)
            fit(start(out=f"s{shards}", shards=shards), images)
        flat = list(itertools.chain.from_iterable(batches))
        assert len(flat) == EPOCHS * 61
        for epoch in range(EPOCHS):
            assert sorted(flat[epoch * 61 : (epoch + 1) * 61]) == list(range(61))
        seen[shards] = flat
    assert seen[1] == seen[2] == seen[3] == seen[4]


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 8])
def test_gradient_is_that_of_the_mean_over_the_true_batch(shards, start, images):
    """Also for the last batch of 5: float64 autograd is the reference; a slice's plain mean, summed, must not agree."""
    model = Linear()
    step = step_of(start(shards=shards), model, images)
    ids = order(61, 1, 0)[56:]
    step._gradients(ids, 0)
    pixels, labels = step.feed.batch(ids)
    exact = Linear().double()
    exact.load_state_dict(model.state_dict())
    F.cross_entropy(exact(pixels.double()), labels).backward()
    torch.testing.assert_close(model.fc.weight.grad.double(), exact.fc.weight.grad, rtol=1e-5, atol=1e-7)
    cuts = loop.bounds(5, shards)
    wrong = torch.zeros_like(exact.fc.weight)
    for low, high in itertools.pairwise(cuts):
        if low < high:
            exact.zero_grad()
            F.cross_entropy(exact(pixels[low:high].double()), labels[low:high]).backward()
            wrong += exact.fc.weight.grad / shards
    assert torch.allclose(wrong, model.fc.weight.grad.double(), rtol=1e-5, atol=1e-7) == (shards == 1)


def test_shards_are_the_same_function(start, images, tmp_path):
    """Without batch norm and dropout the number of slices changes rounding only."""
    weight = {}
    for shards in (1, 4):
        torch.manual_seed(1)
        model = fit(start(out=f"s{shards}", shards=shards), images, model=Linear())
        weight[shards] = model.fc.weight.detach()
    torch.testing.assert_close(weight[1], weight[4], rtol=1e-4, atol=1e-5)
    assert not torch.equal(weight[1], torch.nn.Linear(64, 3).weight)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_images_than_slices(count, start, images):
    from dataclasses import replace

    few = replace(images, train=type(images.train)(images.train.pixels[:count], images.train.labels[:count]))
    model = fit(start(shards=4), few, model=Linear())
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("count", [1, 4, 5, 9, 23])
def test_evaluation_counts_every_sample_once_in_eval_mode(count, start, images, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(loop, "EVALUATION_BATCH", 5)
    few = replace(images, test=type(images.test)(images.test.pixels[:count], images.test.labels[:count]))
    model = Tiny().train()
    got = evaluate(start(), model, few)
    assert model.training
    model.eval()
    pixels, labels = Feed(few.test, few, torch.device("cpu")).batch(torch.arange(count))
    logits = model(pixels)
    assert got["count"] == count
    assert got["accuracy"] == (logits.argmax(1) == labels).sum().item() / count
    assert got["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert got == evaluate(start(out="again"), model, few)


def test_saved_weights_are_those_that_were_measured(start, images, tmp_path):
    fit(start(), images)
    saved = checkpoint.safetensors.torch.load_file(tmp_path / "run/model.safetensors")
    recorded = result(tmp_path / "run")
    assert weights_sha256(saved) == recorded["weights_sha256"]
    model = Tiny()
    model.load_state_dict(saved)
    assert evaluate(start(out="other"), model, images) == recorded["test"]
    assert evaluate(start(out="third"), model, images, "train") == recorded["train"]
    best = Tiny()
    best.load_state_dict(checkpoint.safetensors.torch.load_file(tmp_path / "run/best.safetensors"))
    assert evaluate(start(out="fourth"), best, images)["accuracy"] == recorded["best"]["accuracy"]


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
        "weights_sha256"
    )
    assert list(recorded) == keys.split()
    assert recorded["steps"] == STEPS
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert {"config", "command", "git", "versions", "device", "world_size", "precision", "data"} <= set(config)


def test_train_loss_is_the_mean_over_the_images_since_the_last_line(start, images, tmp_path):
    """With a learning rate of 0 and no batch norm, every epoch's loss is the loss of the whole training set."""
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    train(start(shards=2), model, images, optimizer, epochs=1, batch=8)
    lines = metrics(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(lines[-1]["loss"], rel=1e-6)


def test_schedule_is_a_function_of_the_step(start, images, tmp_path):
    model = Tiny()
    train(
        start(log_every=1), model, images, optimizer_for(model), epochs=2, batch=BATCH, schedule=lambda epoch: 1 - epoch / 2
    )
    rates = [line["lr"] for line in metrics(tmp_path / "run") if line["event"] == "train"]
    assert rates == [0.1 * (1 - step / 8 / 2) for step in range(16)]


@pytest.mark.parametrize("fused", [True, False])
def test_broken_loss_stops_before_the_update(fused, start, images, tmp_path):
    calls, before = [], {}
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)

    def loss(logits, labels):
        calls.append(1)
        if len(calls) == 12:
            before.update({name: tensor.detach().clone() for name, tensor in weights(model).items()})
        return F.cross_entropy(logits, labels) * (float("nan") if len(calls) == 12 else 1)

    with pytest.raises(Refused, match="not finite at step 12") as refused:
        train(start(), model, images, optimizer, loss, epochs=2, batch=8)
    assert refused.value.code == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    found, _ = checkpoint.latest(tmp_path / "run/checkpoints")
    assert found["state"]["step"] == 8
    assert not (tmp_path / "run/result.json").exists()


def test_fused_optimizer_skips_a_broken_update_on_the_device(start, images):
    """As on a GPU, where the host looks at every 16th step only: the weights stay those before the first broken step."""
    model = Linear()
    step = step_of(start(), model, images)
    step.poll = 4
    step(torch.arange(8), 1, False)
    before = model.fc.weight.detach().clone()
    step.loss = lambda logits, labels: F.cross_entropy(logits, labels) * float("inf")
    step(torch.arange(8), 2, False)
    step.loss = F.cross_entropy
    step(torch.arange(8), 3, False)  # broken stays broken
    with pytest.raises(Refused, match="not finite at step 3;"):
        step(torch.arange(8), 4, False)
    assert torch.equal(model.fc.weight, before)


def test_no_host_sync_in_a_step(start, images, monkeypatch):
    """Between polls and lines nothing is read from the device."""
    model = Linear()
    step = step_of(start(shards=2), model, images)
    step.poll = 1000
    meter = loop.Meter(torch.device("cpu"))
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name} reads from the device"))
    batch_loss, _ = step(torch.arange(8), 1, False)
    meter.add(batch_loss, 8)


def test_running_statistics_follow_slice_0_once_a_step(start, images):
    model = Tiny()
    step = step_of(start(shards=4), model, images)
    alone = Tiny()
    alone.load_state_dict(model.state_dict())
    model.train()
    step(torch.arange(8), 1, False)
    alone.train()(step.feed.batch(torch.arange(2))[0])
    assert model.norm.num_batches_tracked == 1
    torch.testing.assert_close(model.norm.running_mean, alone.norm.running_mean)


def test_finished_run_is_not_trained_again(start, images, tmp_path):
    fit(start(), images)
    from launch import Run

    run = Run(data="synthetic", out=tmp_path / "run", wandb="disabled")
    assert run.start("test", {}) == result(tmp_path / "run")


def test_other_configuration_is_refused_with_the_differences(start, images, tmp_path):
    from launch import Run

    fit(start(options={"lr": 0.1, "net": "Net"}), images)
    with pytest.raises(Refused, match=r"lr was 0\.1, now 0\.2; seed was 1, now 2") as refused:
        Run(data="synthetic", out=tmp_path / "run", seed=2).start("test", {"lr": 0.2, "net": "Net"})
    assert refused.value.code == 4
    other = Run(data="synthetic", out=tmp_path / "run", fresh=True)
    assert other.start("test", {"lr": 0.2, "net": "Net"}) is None
    assert other.folder == tmp_path / "run-2"


def test_other_data_is_refused(start, images, tmp_path, monkeypatch):
    stop_at(monkeypatch, 3)
    with pytest.raises(Refused):
        fit(start(), images)
    with pytest.raises(Refused, match="trained on other data") as refused:
        fit(start(), replace(images, fingerprint="62"))
    assert refused.value.code == 4


@pytest.mark.parametrize("other", [{}, {"seed": 2}, {"shards": 2}, {"options": {"lr": 0.2}}, {"data": "62"}, {"slices": 2}])
def test_checkpoint_of_another_configuration_is_refused(other, start, images, tmp_path, monkeypatch):
    """As when a folder is deleted and used again while its first job still saves, or when checkpoints are copied about."""
    fit(start(), images)
    refused_for, other = bool(other), dict(other)
    images = replace(images, fingerprint=other.pop("data", images.fingerprint))
    slices = other.pop("slices", 0)
    monkeypatch.setattr(loop.Stop, "requested", lambda self: True)
    begun = start(out="other", **other)
    begun.shards = slices or begun.shards  # as many as processes, where no flag says how many
    with pytest.raises(Refused, match="stopped"):
        fit(begun, images)
    shutil.rmtree(tmp_path / "other/checkpoints")
    shutil.copytree(tmp_path / "run/checkpoints", tmp_path / "other/checkpoints")
    monkeypatch.undo()
    if refused_for:
        with pytest.raises(Refused, match="comes from another configuration") as refused:
            fit(start(out="other", **other), images)
        assert refused.value.code == 4
    else:  # control: its own
        fit(start(out="other"), images)
        assert result(tmp_path / "other")["weights_sha256"] == result(tmp_path / "run")["weights_sha256"]


def test_foreign_folder_is_refused_and_left_alone(start, images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("mine")
    with pytest.raises(Refused, match="not a run folder"):
        start()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_signals_are_given_back(start, images):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(start(), images)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_compiled_net_is_saved_under_its_own_names(start, images, tmp_path, monkeypatch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, **how: compiled(net, backend="eager", **how))
    fit(start(compile=True), images)
    saved = checkpoint.safetensors.torch.load_file(tmp_path / "run/model.safetensors")
    assert saved.keys() == weights(Tiny()).keys()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_stage_has_the_precision_and_the_graphs_of_the_first(precision, start, images, monkeypatch):
    """A net that is compiled and trained twice; each shape of a slice has a graph for itself, whichever comes first."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    AcceleratorState._reset_state(True)  # an earlier test's precision
    compiled, seen, graphs = torch.compile, [], []

    def backend(graph, inputs):
        graphs.append({type(given) for given in inputs})
        return graph

    monkeypatch.setattr(torch, "compile", lambda net, **how: compiled(net, backend=backend, **how))
    model = TwoConvolutions()
    run = start(compile=True)
    for stage in ("one", "two"):
        train(run, model, images, optimizer_for(model), epochs=1, batch=BATCH, stage=stage)
        seen.append(len(graphs))
    assert seen[0] * 2 == seen[1]
    assert not any(torch.SymInt in graph for graph in graphs)  # no symbol for a size
    model.fc.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    torch.compiler.reset()
    train(run, model, images, optimizer_for(model), epochs=1, batch=BATCH, stage="three")
    assert {dtype for dtype in seen[2:]} == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert "forward" not in vars(model)  # as it was: usable without the accelerator
    AcceleratorState._reset_state(True)


def test_trained_net_is_let_go(start, images):
    run, model = start(), Tiny()
    train(run, model, images, optimizer_for(model), epochs=1, batch=BATCH, stage="one")
    there = weakref.ref(model)
    del model
    gc.collect()
    assert there() is None


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
    with pytest.raises(Refused, match="max_unpooling2d_forward_out has no kernel that repeats itself") as refused:
        fit(start(out="other", deterministic=True), images, model=Unpooling())
    assert refused.value.code == 2
    fit(start(out="without"), images, model=Unpooling())
    assert "deterministic" not in json.loads((tmp_path / "without/config.json").read_text())["config"]


def test_full_memory_is_one_line(start, images):
    class Large(Linear):
        def forward(self, x):
            return super().forward(x + torch.empty(1 << 50, dtype=torch.uint8)[0])

    with pytest.raises(Refused, match="cpu memory is full at step 1; a smaller --batch or --size") as refused:
        fit(start(), images, model=Large())
    assert refused.value.code == 1


def test_float32_is_float32_on_every_device(start, images, tmp_path):
    fit(start(), images)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert json.loads((tmp_path / "run/config.json").read_text())["tf32"] is False


def test_few_images_for_batch_norm_are_said(start, images, capsys):
    fit(start(shards=2), images)
    assert "batch norm sees 4 images at a time: --batch is 8, in 2 slices" in capsys.readouterr().out
    fit(start(out="more"), images, batch=32)
    fit(start(out="without"), images, model=TwoConvolutions())
    assert "batch norm sees" not in capsys.readouterr().out


def test_lost_checkpoints_are_said(start, images, monkeypatch, tmp_path, capsys):
    stop_at(monkeypatch, 12)
    with pytest.raises(Refused):
        fit(start(), images)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run/checkpoints")
    fit(start(pictures=False), images)
    assert "has no checkpoint: starts again from step 0" in capsys.readouterr().out


@pytest.mark.parametrize("shards", [1, 2])
def test_stages_go_on_alike_trained_now_or_before(shards, start, images, tmp_path, monkeypatch):
    """Two stages in one go, and killed between them: the same net, batch norm's statistics included, rates and random numbers."""

    def both(run):
        try:
            torch.manual_seed(run.seed)
            model = Tiny()
            optimizer = optimizer_for(model)
            for stage in ("one", "two"):
                options = {"epochs": 2, "batch": BATCH, "schedule": lambda epoch: 1 - epoch / 2}
                train(run, model, images, optimizer, stage=stage, **options)
                if stage == "one":
                    torch.nn.init.normal_(model.fc.bias)  # a draw between stages
        finally:
            run.end()
        return model

    model = both(start(out="straight", shards=shards))
    assert model.norm.num_batches_tracked == 4 * 8
    ask = loop.Stop.requested
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "requested", lambda self: calls.append(1) or len(calls) == 16 + 2 + 3)  # in stage two
        with pytest.raises(Refused):
            both(start(shards=shards))
    assert loop.Stop.requested is ask
    both(start(shards=shards))
    for stage in ("one", "two"):
        assert result(tmp_path / "run" / stage)["weights_sha256"] == result(tmp_path / "straight" / stage)["weights_sha256"]


@pytest.mark.parametrize("harm", ["damage", "loss", None])
def test_finished_stage_whose_weights_are_lost_is_refused(harm, start, images, tmp_path):
    def first(run):
        try:
            torch.manual_seed(run.seed)
            model = Tiny()
            train(run, model, images, optimizer_for(model), epochs=2, batch=BATCH, stage="one")
        finally:
            run.end()
        return model

    trained = first(start()).fc.weight
    newest = sorted((tmp_path / "run/one/checkpoints").iterdir())[-1]
    if harm == "damage":
        (newest / "model.safetensors").write_bytes(b"")
    if harm == "loss":
        shutil.rmtree(newest.parent)
    if harm:
        with pytest.raises(Refused, match="run/one is finished, and its last checkpoint cannot be had") as refused:
            first(start())
        assert refused.value.code == 4
    else:  # control
        assert first(start()).fc.weight.equal(trained)


def test_signal_while_a_stage_draws_stops_before_the_next(start, images, tmp_path, monkeypatch):
    run, model = start(), Tiny()
    monkeypatch.setattr(loop, "_show", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Refused, match="stopped by SIGTERM") as refused:
        train(run, model, images, optimizer_for(model), epochs=1, batch=BATCH, stage="one")
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) == signal.SIG_IGN  # what comes now cannot disturb the end
    assert refused.value.code == 143
    assert (tmp_path / "run/one/result.json").exists()


def test_scalars_that_an_optimizer_keeps_are_resumed(start, images, tmp_path, monkeypatch):
    class Fading(torch.optim.SGD):
        def step(self):
            for group in self.param_groups:
                group["steps"] = group.get("steps", 0) + 1
                group["lr"] = 0.1 / group["steps"]
            super().step()

    monkeypatch.setitem(globals(), "optimizer_for", lambda model, _: Fading(model.parameters(), lr=0.1))
    fit(start(out="straight"), images)
    interrupted(start, images, monkeypatch, at=13)
    assert result(tmp_path / "run")["weights_sha256"] == result(tmp_path / "straight")["weights_sha256"]


def test_foreign_parameter_is_refused(start, images):
    temperature, model = torch.nn.Parameter(torch.ones(())), Tiny()
    with pytest.raises(Refused, match="a parameter that is not the net's") as refused:
        train(start(), model, images, torch.optim.SGD([*model.parameters(), temperature]), epochs=1, batch=BATCH)
    assert refused.value.code == 2


@pytest.mark.parametrize("shards", [1, 2])
def test_layer_locked_between_stages_stays(shards, start, images):
    """By requires_grad alone, with its last gradient still there and the optimizer still holding it."""
    run, model = start(shards=shards), Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(run, model, images, optimizer, epochs=1, batch=BATCH, stage="one")
    model.conv.requires_grad_(False)
    before = model.conv.weight.clone()
    train(run, model, images, optimizer, epochs=1, batch=BATCH, stage="two")
    assert model.conv.weight.equal(before)


def test_parameters_that_no_optimizer_has_gather_no_gradients(start, images, tmp_path):
    norms = []
    for out, shards in (("one", 1), ("two", 2)):
        model = Linear()
        optimizer = torch.optim.SGD([model.fc.bias], lr=0.1)
        train(start(out=out, shards=shards, log_every=1), model, images, optimizer, epochs=2, batch=BATCH)
        norms.append([line["gradient_norm"] for line in metrics(tmp_path / out) if line["event"] == "train"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize(("count", "fits"), [(17, False), (18, True)])
def test_one_image_by_itself_is_refused_where_batch_norm_cannot_have_it(count, fits, start):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3), torch.nn.BatchNorm1d(3))
    images = tiny_images(count)
    if fits:
        train(start(), net, images, optimizer_for(net), epochs=1, batch=16)
    else:
        with pytest.raises(Refused, match="a batch of 1 images in 1 slices leaves one image by itself") as refused:
            train(start(), net, images, optimizer_for(net), epochs=1, batch=16)
        assert refused.value.code == 2


@pytest.mark.parametrize(("stride", "fits"), [(8, False), (2, True)])
def test_one_image_is_refused_where_batch_norm_has_one_value_of_it(stride, fits, start):
    """As after global pooling: a map of 1×1 has no deviation, one of 4×4 has. What the try does to the statistics is undone."""
    convolution = torch.nn.Conv2d(1, 2, stride, stride=stride)
    net = torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.LazyLinear(3))
    net(torch.zeros(2, 1, 8, 8))
    before = {name: tensor.clone() for name, tensor in weights(net).items()}
    if fits:
        train(start(), net, tiny_images(17), optimizer_for(net), epochs=1, batch=16)
    else:
        with pytest.raises(Refused, match="batch norm cannot normalise") as refused:
            train(start(), net, tiny_images(17), optimizer_for(net), epochs=1, batch=16)
        assert refused.value.code == 2
        assert all(tensor.equal(before[name]) for name, tensor in weights(net).items())


def test_record_that_cannot_be_written_ends_the_run_at_the_next_checkpoint(start, images, tmp_path, monkeypatch):
    write, calls = Track.write, []

    def full(self, *events):
        calls.append(1)
        if len(calls) == 4:
            with monkeypatch.context() as patch:
                full_disk = OSError(28, "No space left on device")
                patch.setattr("launch.record.track.json.dumps", lambda _: (_ for _ in ()).throw(full_disk))
                return write(self, *events)
        return write(self, *events)

    with monkeypatch.context() as patch:
        patch.setattr(Track, "write", full)
        with pytest.raises(Refused, match="No space left on device") as refused:
            fit(start(save_every=2, log_every=1), images)
    assert refused.value.code == 1
    fit(start(out="straight", log_every=1), images)
    fit(start(save_every=2, log_every=1), images)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")


def test_broken_evaluation_is_no_result(start, images, tmp_path):
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38, fused=True)
    with pytest.raises(Refused, match="not finite") as refused:
        train(start(), model, images, optimizer, epochs=1, batch=61)
    assert refused.value.code == 3
    assert not (tmp_path / "run/result.json").exists()


def test_broken_loss_between_polls_is_neither_saved_nor_finished(start, images, tmp_path, monkeypatch):
    """As on a GPU: the loss breaks in step 3, the host would look at step 16 of 8."""
    original = loop.Step.__init__

    def seldom(self, *args, **options):
        original(self, *args, **options)
        self.poll = 16

    monkeypatch.setattr(loop.Step, "__init__", seldom)
    calls = []

    def loss(logits, labels):
        calls.append(1)
        return F.cross_entropy(logits, labels) * (float("nan") if len(calls) == 3 else 1)

    model = Linear()
    with pytest.raises(Refused, match="not finite at step 3;"):
        train(start(save_every=5), model, images, optimizer_for(model), loss, epochs=1, batch=8)
    assert not (tmp_path / "run/checkpoints").exists()
    assert not (tmp_path / "run/result.json").exists()


def test_slices_left_open_are_those_of_the_run(start, images, tmp_path, monkeypatch):
    digests = []
    for again in (2, 0):
        asked = iter(range(1, 1000))
        with monkeypatch.context() as patch:
            patch.setattr(loop.Stop, "requested", lambda self, asked=asked: next(asked) == 5)
            with pytest.raises(Refused):
                fit(start(out=f"open-{again}", shards=2), images)
        fit(start(out=f"open-{again}", shards=again), images)
        digests.append(result(tmp_path / f"open-{again}")["weights_sha256"])
    assert digests[0] == digests[1]
    with pytest.raises(Refused, match="shards was 2, now 4"):
        start(out="open-0", shards=4)


def test_broken_gradient_under_a_finite_loss_is_not_applied(start, images, tmp_path):
    model, before = Linear(), {}
    calls = itertools.count(1)

    def broken(gradient):
        if next(calls) != 5:
            return gradient
        before.update({name: tensor.detach().clone() for name, tensor in weights(model).items()})
        return gradient * float("inf")

    model.fc.weight.register_hook(broken)
    with pytest.raises(Refused, match=r"the gradient of fc\.weight is not finite at step 5; .* those after step 4") as refused:
        fit(start(save_every=1), images, model=model)
    assert refused.value.code == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    found, _ = checkpoint.latest(tmp_path / "run/checkpoints")
    assert found["state"]["step"] == 4
    assert not (tmp_path / "run/best.safetensors").exists()


def test_broken_weights_are_not_saved(start, images, tmp_path):
    """Loss and gradients are finite, the update of step 7 overflows: only the next loss would tell."""
    model = Linear()
    options = {"epochs": 1, "batch": 8, "schedule": lambda epoch: 1e42 if epoch == 6 / 8 else 1}
    with pytest.raises(Refused, match=r"fc\.\w+ is not finite after step 7, and was not saved") as refused:
        train(start(save_every=7), model, images, optimizer_for(model), **options)
    assert refused.value.code == 3
    assert not list(tmp_path.rglob("step-*"))


def test_parameter_without_gradient_is_refused_by_name(start, images):
    model = Linear()
    model.idle = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(Refused, match="idle of Linear got no gradient at step 1") as refused:
        fit(start(), images, model=model)
    assert refused.value.code == 2
    model.idle.requires_grad_(False)
    fit(start(out="locked"), images, model=model, epochs=1)
