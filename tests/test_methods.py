"""Each method of training gives the same bits through a kill and on any number of micro-batches and processes."""

import json
from pathlib import Path
from types import SimpleNamespace

import jobs
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import Tiny, metrics, result
from methods import METHODS, optimizer_of
from safetensors.torch import load_file
from test_processes import same
from training import Answers, Linear, at_step, in_evaluation

from launch import data, evaluate, train
from launch.data.mix import cutmix, mixup
from launch.data.order import with_neighbour
from launch.errors import Refused
from launch.training import checkpoint
from launch.training.state import State

ALONE = [name for name in METHODS if name not in ("all", "by rank")]
RECIPE = Path(__file__).parent / "methods.py"


def fit(run, images, method, model=None, **options):
    torch.manual_seed(1)
    model = model or Tiny()
    try:
        return train(run, model, images, optimizer_of(model, method), **({"epochs": 3, "batch": 8} | METHODS[method] | options))
    finally:
        run.end()


def of(folder):
    """Digests of a run's weights, and its record."""
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    return result(folder)["weights_sha256"], files, metrics(folder)


@pytest.mark.parametrize("method", [*ALONE, "all"])
def test_a_method_is_resumed_exactly(method, start, images, tmp_path):
    """In the middle of warm-up, of an average, of patience; and during an evaluation."""
    fit(start(out="straight", micro_batches=2), images, method)
    stops = [at_step(5), at_step(13), in_evaluation(16)]
    for stop in stops:
        with pytest.raises(Refused, match="stopped"):
            fit(start(micro_batches=2, stop_when=stop), images, method)
    fit(start(micro_batches=2), images, method)
    assert of(tmp_path / "run") == of(tmp_path / "straight")


@pytest.mark.parametrize("method", ["all", "muon"])
def test_a_method_is_resumed_exactly_in_bf16(method, start, images, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(True)
    fit(start(out="straight"), images, method)
    with pytest.raises(Refused):
        fit(start(stop_when=at_step(13)), images, method)
    fit(start(), images, method)
    assert of(tmp_path / "run") == of(tmp_path / "straight")
    assert result(tmp_path / "run")["precision"] == "bf16"
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(("lost", "method"), [("average/", "ema"), ("/average", "muon"), ("best", "patience")])
def test_control_a_method_whose_state_is_lost_is_not(lost, method, start, images, tmp_path, monkeypatch):
    fit(start(out="straight"), images, method, epochs=9)
    with pytest.raises(Refused):
        fit(start(stop_when=at_step(29)), images, method, epochs=9)
    latest = checkpoint.latest

    def forgetful(folder):
        found, complaints = latest(folder)
        for name in [name for name in found["optimizer"] if lost in name]:
            found["optimizer"][name].zero_()
        if lost == "best":
            found["state"]["best"] = State().best
        return found, complaints

    monkeypatch.setattr(checkpoint, "latest", forgetful)
    fit(start(), images, method, epochs=9)
    assert of(tmp_path / "run") != of(tmp_path / "straight")


@pytest.mark.parametrize("method", ["mixup", "cutmix", "either", "all"])
def test_micro_batches_do_not_change_what_is_mixed(method, start, images):
    """Without batch norm, 8 images in 1, 2, 4 or 7 micro-batches: also the last batch, of 5."""
    weights = []
    for micro_batches in (1, 2, 4, 7):
        model = Linear()
        with torch.no_grad():
            model.fc.weight.copy_(torch.linspace(-1, 1, 192).view(3, 64))
            model.fc.bias.zero_()
        fit(start(out=f"in-{micro_batches}", micro_batches=micro_batches), images, method, model)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-4, atol=1e-5)


def test_control_partners_within_a_micro_batch_would(start, images, monkeypatch):
    def within(ids, start, end):
        return with_neighbour(ids[start:end], 0, end - start)

    monkeypatch.setattr("launch.training.batches.with_neighbour", within)
    with pytest.raises(AssertionError):
        test_micro_batches_do_not_change_what_is_mixed("mixup", start, images)


def test_one_methods_draws_are_not_anothers(images):
    """Erasing, mixing and TrivialAugment leave the crops as they were."""
    rng, seen = data.EpochRng(seed=1, samples=61, device=torch.device("cpu")).of(torch.arange(61)), []
    noted = Answers(lambda kind, n, *by_turns: seen.append(kind) or rng.integers(kind, n, *by_turns))
    kinds, pixels = {}, torch.zeros(61, 16, 16, 3, dtype=torch.uint8)
    floats = torch.zeros(61, 3, 8, 8)
    augments = {name: getattr(data, name) for name in ("crop_and_flip", "translate", "alternating_flip", "mirror")}
    augments |= {name: getattr(data, name) for name in ("random_erasing", "trivial_augment")} | {"rand": data.rand_augment(3)}
    for name, augment in augments.items():
        augment(pixels, noted)
        kinds[name] = {*seen}
        seen.clear()
    data.random_resized_crop(torch.full((61, 2), 20), noted)
    kinds["crop"] = {*seen}
    for name, mix in {"mixup": mixup(), "cutmix": cutmix()}.items():
        seen.clear()
        mix(floats, floats, noted)
        kinds[name] = {*seen}
    assert sum(map(len, kinds.values())) == len(set.union(*kinds.values()))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    place = tmp_path_factory.mktemp("methods")
    return launched(place, None)


def begin(place, processes, *before_and_after):
    cut = before_and_after.index("--") + 1 if "--" in before_and_after else 0
    flags = ("--micro-batches", 2, "--threads", 1, "--data", "synthetic", "--out", "run", *before_and_after[cut:])
    return jobs.begin(*before_and_after[:cut], RECIPE, *flags, cwd=place, processes=processes)


def launched(place, processes, *flags):
    """The folder of a run that went to its end."""
    job = begin(place, processes, *flags)
    assert job.wait() == 0, job.output
    return place / "run"


@pytest.mark.slow
def test_two_processes_and_a_kill_give_the_bits_of_one_with_all_methods(uninterrupted, tmp_path):
    killed = begin(tmp_path, 2, "--rank", 1, "--at", "step=14", "--do", "SIGKILL", "--")
    assert killed.wait() != 0
    assert not (tmp_path / "run/result.json").exists()
    same(launched(tmp_path, 2), uninterrupted)
    for name in ("model", "best", "ema"):
        file = f"{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (uninterrupted / file).read_bytes()


@pytest.mark.slow
def test_three_processes_are_one_up_to_rounding_with_all_methods(tmp_path):
    losses = []
    for processes in (None, 3):
        (place := tmp_path / f"on-{processes}").mkdir()
        folder = launched(place, processes, "--micro-batches", 3, "--epochs", 1)
        losses.append([line["loss"] for line in metrics(folder) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_control_a_method_that_draws_by_rank_differs(tmp_path):
    folders = []
    for processes in (None, 2):
        (place := tmp_path / f"on-{processes}").mkdir()
        folders.append(launched(place, processes, "--method", "by rank", "--epochs", 1))
    one, two = (result(folder)["weights_sha256"] for folder in folders)
    assert one != two


def test_max_seconds_save_and_end_and_the_same_command_goes_on(start, images, tmp_path, monkeypatch):
    fit(start(out="straight"), images, "all")
    clock = iter(range(10**6))
    monkeypatch.setattr("launch.stop.psutil.Process", lambda: SimpleNamespace(create_time=lambda: 0))
    monkeypatch.setattr("launch.stop.time", SimpleNamespace(time=lambda: next(clock)))  # a second each time it is asked
    with pytest.raises(Refused, match="stopped after --max-seconds 20 at step") as refused:
        fit(start(max_seconds=20), images, "all")
    assert refused.value.code == 75
    assert not (tmp_path / "run/result.json").exists()
    fit(start(), images, "all")
    assert of(tmp_path / "run") == of(tmp_path / "straight")


def test_a_profile_says_where_the_time_went(start, images, tmp_path, capsys):
    fit(start(out="straight"), images, "mixup")
    capsys.readouterr()
    fit(start(profile=True), images, "mixup")
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("a step takes"))
    parts = {line.split("%  ")[1]: float(line.split()[2].rstrip("%")) for line in lines[first + 1 : first + 7]}
    assert [*parts] == ["batch and augmentation", "forward", "loss", "backward", "optimizer", "everything else"]
    assert sum(parts.values()) == pytest.approx(100, abs=1)
    names = {event.get("name") for event in json.loads((tmp_path / "run/profile.json").read_text())["traceEvents"]}
    assert names >= {"data", "forward", "loss", "backward", "optimizer", "aten::conv2d"}
    assert of(tmp_path / "run") == of(tmp_path / "straight")  # it changes nothing


def test_too_short_a_run_says_that_it_has_no_profile(start, images, tmp_path, capsys):
    fit(start(profile=True), images, "mixup", epochs=1)
    assert "no profile: it takes 15 steps in one launch, and there were 8" in capsys.readouterr().out
    assert not (tmp_path / "run/profile.json").exists()


def test_an_average_is_the_mean_that_it_says(start, images, tmp_path):
    """Measured, chosen and saved: recomputed here from the weights after each step."""
    seen = []

    class Noting(Tiny):
        def forward(self, x):
            if self.training:
                seen.append({name: tensor.clone() for name, tensor in self.state_dict().items()})
            return super().forward(x)

    torch.manual_seed(1)
    model = Noting()
    fit(start(), images, "ema", model=model)
    expected, after = {name: t.double() for name, t in seen[0].items()}, [*seen[1:], model.state_dict()]
    for step, weights in enumerate(after):
        decay = min(0.9, (1 + step) / (10 + step))
        for name in ("conv.weight", "fc.bias", "norm.weight"):
            expected[name] = decay * expected[name] + (1 - decay) * weights[name]
    saved = load_file(tmp_path / "run/ema.safetensors")
    for name in ("conv.weight", "fc.bias", "norm.weight"):
        torch.testing.assert_close(saved[name].double(), expected[name], rtol=1e-4, atol=1e-6)
    lines = [line for line in metrics(tmp_path / "run") if line.get("split") == "ema"]
    found = result(tmp_path / "run")
    assert found["best"]["accuracy"] == max(line["accuracy"] for line in lines)
    assert found["ema"] == {name: lines[-1][name] for name in ("loss", "accuracy", "count")}
    model.load_state_dict(saved)
    run = start(out="again")
    assert evaluate(run, model, images) == found["ema"]


def test_patience_ends_a_training_and_says_so(start, images, tmp_path, capsys):
    fit(start(), images, "patience", epochs=50)
    found, lines = result(tmp_path / "run"), metrics(tmp_path / "run")
    accuracies = [line["accuracy"] for line in lines if line.get("split") == "test"]
    assert found["epochs"] == len(accuracies) < 50
    assert accuracies[-1] <= max(accuracies[:-1]) == found["best"]["accuracy"]
    assert found["best"]["epoch"] == found["epochs"] - 1
    assert "train" in found
    assert f"ended early: no better accuracy since epoch {found['best']['epoch']}" in capsys.readouterr().out
    fit(start(out="patient"), images, "patience", epochs=50, patience=4)  # control
    assert result(tmp_path / "patient")["epochs"] > found["epochs"]


def test_gradients_are_clipped_to_the_norm(start, images, tmp_path):
    fit(start(out="free", log_every=1), images, "linear", epochs=1)
    fit(start(out="clipped", log_every=1), images, "clip", epochs=1)
    free, clipped = (
        [line["gradient_norm"] for line in metrics(tmp_path / name) if "gradient_norm" in line] for name in ("free", "clipped")
    )
    assert max(free) > 0.5
    assert max(clipped) == pytest.approx(0.5, rel=1e-4)
