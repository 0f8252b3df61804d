"""The average of the weights equals a plain loop's, and a finished training's numbers are those of what was trained."""

import json

import pytest
import torch
from conftest import Tiny, result
from safetensors.torch import load_file
from training import at_step, fit

from launch import train
from launch.errors import Refused
from launch.training.ema import Average

EPOCHS, STEPS = 3, 8


def test_an_average_is_that_of_a_plain_loop():
    """The average of parameters, with TensorFlow's ramp; what is no float, as batch norm's counter, is the net's own."""
    torch.manual_seed(0)
    net = Tiny()
    average, decay = Average(net, 0.9), 0.9
    expected = net.fc.weight.detach().double().clone()
    for step in range(150):
        with torch.no_grad():
            net.fc.weight.add_(0.1 * torch.randn_like(net.fc.weight))
            net.norm.num_batches_tracked += 1
        average.update(step)
        part = min(decay, (1 + step) / (10 + step))  # that is kept
        expected = part * expected + (1 - part) * net.fc.weight.detach().double()
        if step in (0, 1, 20):
            torch.testing.assert_close(average.tensors["fc.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(average.tensors["fc.weight"].double(), expected, rtol=1e-5, atol=1e-5)
    assert average.tensors["norm.num_batches_tracked"] == 150
    plain = net.fc.weight.detach().clone()
    with average.applied():
        assert torch.equal(net.fc.weight, average.tensors["fc.weight"])
        assert not torch.equal(net.fc.weight, plain)
    assert torch.equal(net.fc.weight, plain)


def test_the_files_of_a_run_with_an_average_hold_what_they_say(start, images, tmp_path):
    """model.safetensors the last weights, ema.safetensors their average: another file, and the one that was measured."""
    torch.manual_seed(0)
    model = fit(start(), images, ema=0.9)
    last, averaged = (load_file(tmp_path / f"run/{name}.safetensors") for name in ("model", "ema"))
    assert torch.equal(last["fc.weight"], model.state_dict()["fc.weight"])
    assert not torch.equal(last["fc.weight"], averaged["fc.weight"])
    assert torch.equal(last["norm.num_batches_tracked"], averaged["norm.num_batches_tracked"])
    measured = Tiny().eval()
    measured.load_state_dict(averaged)
    with torch.no_grad():
        right = measured((images.test.pixels / 255 - 0.25) / 0.2).argmax(1) == images.test.labels
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    said = [line["accuracy"] for line in lines if line.get("split") == "ema"]
    assert said[-1] == pytest.approx(right.float().mean().item())


class Still(torch.nn.Module):
    """Never gets better: its weights have no influence on what it says."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 3)

    def forward(self, x):
        return 0 * self.fc(x.flatten(1)) + torch.tensor([0.0, 1.0, 0.0])


def test_a_training_that_ended_early_counts_what_it_trained(start, images, tmp_path, capsys):
    fit(start(), images, model=Still(), epochs=9, patience=2)
    said, found = capsys.readouterr().out, result(tmp_path / "run")
    assert "ended early: no better accuracy since epoch 1\n" in said
    assert (found["epochs"], found["steps"], found["best"]["epoch"]) == (3, 3 * STEPS, 1)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["event"] == "train"]
    assert trained[-1]["images"] == 3 * 61
    seconds = sum(61 / line["images_per_second"] for line in trained)
    assert found["images_per_second"] == pytest.approx(3 * 61 / seconds, rel=0.05)


def test_a_training_to_its_end_does_not_say_that_it_ended_early(start, images, tmp_path, capsys):
    """Nor that it waited for images, of which it has none. And the numbers of its result are those of its net."""
    model = Tiny()
    model.fc.bias.requires_grad_(False)
    torch.manual_seed(0)
    model = fit(start(), images, model=model, patience=EPOCHS)
    said, found = capsys.readouterr().out, result(tmp_path / "run")
    assert "ended early" not in said
    assert "waiting for images" not in said
    assert (found["epochs"], found["steps"], found["parameters"], found["trainable"]) == (EPOCHS, EPOCHS * STEPS, 243, 240)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    tests = {line["epoch"]: line["accuracy"] for line in lines if line.get("split") == "test"}
    best = max(tests.values())
    assert (found["best"]["accuracy"], found["best"]["epoch"]) == (best, min(epoch for epoch in tests if tests[epoch] == best))
    assert found["test"]["accuracy"] == tests[EPOCHS]


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"epochs": -1}, {"batch": 0}])
def test_a_training_of_nothing_is_refused_and_leaves_nothing(start, images, tmp_path, wrong):
    with pytest.raises(Refused, match="--epochs and --batch must be at least 1") as refused:
        fit(start(), images, **wrong)
    assert refused.value.code == 2
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize(("batch", "micro_batches", "said"), [(15, 1, 15), (16, 1, 0), (30, 2, 15), (32, 2, 0), (61, 8, 7)])
def test_micro_batches_that_are_small_for_batch_norm_are_said(start, images, capsys, batch, micro_batches, said):
    fit(start(micro_batches=micro_batches), images, epochs=1, batch=batch)
    assert (f"batch norm sees only {said} images at a time" in capsys.readouterr().out) == bool(said)


def test_a_fresh_run_starts_from_no_shorter_one(start, images, tmp_path, capsys):
    """Even where one is beside it that it could start from."""
    for out, epochs, fresh in (("one", 1, False), ("two", 2, False), ("three", 3, True)):
        run = start(out=f"runs/{out}", options={"epochs": epochs}, fresh=fresh)
        torch.manual_seed(run.seed)
        fit(run, images, epochs=epochs)
        said = capsys.readouterr().out
        assert ("starts where" in said) == (out == "two")


def trained_for(start, images, epochs, lr=0.1, momentum=0.9, stop_when=None):
    run = start(out=f"runs/{epochs}", options={"epochs": epochs}, stop_when=stop_when)
    torch.manual_seed(run.seed)
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    try:
        train(run, model, images, optimizer, epochs=epochs, batch=8)
    finally:
        run.end()


@pytest.mark.parametrize("changed", [{"lr": 0.05}, {"momentum": 0.5}])
def test_a_longer_run_whose_optimizer_is_another_starts_from_its_beginning(start, images, capsys, changed):
    """A recipe may derive its rate from the number of epochs; the run says why it starts over."""
    trained_for(start, images, 1)
    trained_for(start, images, 2)
    assert "starts where" in capsys.readouterr().out  # control
    trained_for(start, images, 3, **changed)
    said = capsys.readouterr().out
    assert "starts where" not in said
    assert "another option of the optimizer, depends on the number of epochs" in said
    assert "epoch 1/3" in said


def test_a_longer_run_does_not_start_from_one_that_is_not_finished(start, images, capsys):
    with pytest.raises(Refused, match="stopped"):
        trained_for(start, images, 2, stop_when=at_step(12))
    capsys.readouterr()
    trained_for(start, images, 3)
    said = capsys.readouterr().out
    assert "starts where" not in said
    assert "epoch 1/3" in said
