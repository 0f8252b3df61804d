"""`oneloop evaluate`: the numbers that training logged, from the weights, data and precision of the run."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from accelerate.state import AcceleratorState
from conftest import ROOT, metrics, result
from PIL import Image
from trained import train_here

pytestmark = pytest.mark.usefixtures("own_path")


def tampered(folder: Path, name: str = "model.safetensors", knows: bool = True) -> None:
    """Change one tensor in a weights file; its metadata stay, without the digest unless `knows`."""
    with safetensors.safe_open(folder / name, framework="pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["conv1.weight"] = tensors["conv1.weight"] * 1.5
    if not knows:
        said = json.loads(about["oneloop"])
        del said["weights_sha256"], said["probe"]
        about["oneloop"] = json.dumps(said)
    safetensors.torch.save_file(tensors, folder / name, about)


@pytest.mark.parametrize("split", ["test", "train"])
def test_evaluate_gives_the_numbers_of_the_training(trained_runs, oneloop, split):
    code, out, _ = oneloop("evaluate", trained_runs / "birds", "--split", split, "--json")
    said, trained = json.loads(out), result(trained_runs / "birds")
    assert code == 0
    assert {name: said[name] for name in ("loss", "accuracy", "count")} == trained[split]
    assert said["logged"] == {name: trained[split][name] for name in ("loss", "accuracy")}


def test_evaluate_the_best_weights(trained_runs, oneloop):
    code, out, _ = oneloop("evaluate", trained_runs / "birds", "--weights", "best", "--json")
    said, best = json.loads(out), result(trained_runs / "birds")["best"]
    (line,) = [line for line in metrics(trained_runs / "birds") if line.get("split") == "test" and line["epoch"] == best["epoch"]]
    assert code == 0
    assert (said["accuracy"], said["loss"]) == (line["accuracy"], line["loss"]) == (best["accuracy"], said["logged"]["loss"])


def test_evaluate_refuses_weights_other_than_the_recorded_ones(birds, oneloop):
    """They are refused. Control: the weights in the file are those that are evaluated, so these give another loss."""
    tampered(birds)
    code, out, error = oneloop("evaluate", birds)
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert "is damaged: its tensors" in error
    tampered(birds, knows=False)
    assert "does not match the weights_sha256 in" in oneloop("evaluate", birds)[2]
    (birds / "result.json").write_text(json.dumps(result(birds) | {"weights_sha256": ""}))
    said = json.loads(oneloop("evaluate", birds, "--json")[1])
    assert said["loss"] != said["logged"]["loss"]


def test_evaluate_on_other_data(trained_runs, oneloop, tmp_path):
    """Accuracy agrees with `predict` on the same files; without --data, data that have changed are refused."""
    code, out, _ = oneloop("evaluate", trained_runs / "birds", "--data", trained_runs / "images", "--json")
    said = json.loads(out)
    assert (code, said["count"], said["logged"]) == (0, 12, None)
    _, out, _ = oneloop("predict", trained_runs / "birds", trained_runs / "images/test", "--top", 1, "--json")
    right = [Path(each["image"]).parent.name == each["predictions"][0]["class"] for each in json.loads(out)]
    assert said["accuracy"] == sum(right) / 12
    folder = shutil.copytree(trained_runs / "birds", tmp_path / "birds")
    config = json.loads((folder / "config.json").read_text())
    config["data"]["fingerprint"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    code, _, error = oneloop("evaluate", folder)
    assert code == 4
    assert "was trained on other data: synthetic sha256 0000000000000000, now" in error


def test_evaluate_a_folder_that_is_not_split_or_lacks_a_class(trained_runs, oneloop, tmp_path):
    """The recipe expects a split with all classes; here all images are measured, as `predict` has it."""
    whole, one = trained_runs / "images/test", tmp_path / "one"
    shutil.copytree(whole / "bird", one / "bird")
    for folder, missing in ((whole, False), (one, True)):
        code, out, error = oneloop("evaluate", trained_runs / "birds", "--data", folder, "--json")
        files = sorted(folder.rglob("*.png"))
        said = json.loads(oneloop("predict", trained_runs / "birds", *files, "--top", 1, "--json")[1])
        right = sum(Path(each["image"]).parent.name == each["predictions"][0]["class"] for each in said)
        measured = json.loads(out)
        assert (code, measured["count"], measured["accuracy"]) == (0, len(files), right / len(files))
        assert error == (f"{folder}: no test images of airplane: measured without\n" if missing else "")
    with Image.open(files[0]) as image:
        image.resize((40, 40)).save(files[0])
    code, out, error = oneloop("evaluate", trained_runs / "birds", "--data", one)
    assert (code, out, error.count("\n")) == (4, "", 2)
    assert "is 40×40 (width×height), this recipe takes 32×32" in error


def test_evaluate_refuses_other_classes_and_names_both(trained_runs, oneloop, tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            shutil.copy(trained_runs / "images/test/bird/01.png", tmp_path / split / name)
    code, _, error = oneloop("evaluate", trained_runs / "birds", "--data", tmp_path)
    assert code == 4
    assert all(name in error for name in ("airplane", "bird", "cat", "dog"))
    assert error.count("\n") == 1


def test_evaluate_in_the_precision_of_the_run(oneloop, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        train_here(ROOT / "recipes/cifar2.py", "--limit", 100, "--epochs", 1, "--out", tmp_path / "run")
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
        AcceleratorState._reset_state(reset_partial_state=True)
        assert json.loads(oneloop("evaluate", tmp_path / "run", "--json")[1])["loss"] == result(tmp_path / "run")["test"]["loss"]
        AcceleratorState._reset_state(reset_partial_state=True)
        config = (tmp_path / "run/config.json").read_text()  # control
        (tmp_path / "run/config.json").write_text(config.replace('"precision": "bf16"', '"precision": "no"'))
        assert json.loads(oneloop("evaluate", tmp_path / "run", "--json")[1])["loss"] != result(tmp_path / "run")["test"]["loss"]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_logged_numbers_of_the_best_are_those_of_its_epoch(birds, oneloop):
    """The first of several equally good epochs is the best."""
    lines = [json.loads(line) for line in (birds / "metrics.jsonl").read_text().splitlines()]
    tests = [line for line in lines if line.get("split") == "test"]
    for line, accuracy in zip(tests, (0.25, 0.75, 0.75), strict=True):
        line["accuracy"] = accuracy
    (birds / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for weights, line in {"best": tests[1], "last": tests[2]}.items():
        said = json.loads(oneloop("evaluate", birds, "--weights", weights, "--json")[1])
        assert said["logged"] == {"accuracy": 0.75, "loss": line["loss"]}
    assert tests[1]["loss"] != tests[2]["loss"]


def test_that_training_measured_fewer_images_is_said(birds, oneloop):
    """As it does of training images on disk; where all were measured, no number stands there: the control."""
    _, out, _ = oneloop("evaluate", birds, "--split", "train")
    assert "logged in training: accuracy" in out
    lines = [json.loads(line) for line in (birds / "metrics.jsonl").read_text().splitlines()]
    lines[-1] |= {"count": 1200}
    assert lines[-1]["split"] == "train"
    (birds / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, out, _ = oneloop("evaluate", birds, "--split", "train")
    assert "logged in training (on 1,200 of these images): accuracy" in out
    said = json.loads(oneloop("evaluate", birds, "--split", "train", "--json")[1])
    assert said["logged"] == {name: lines[-1][name] for name in ("accuracy", "loss", "count")}
