"""Training on images of any size: the same bits whatever prepares them, exact resume, one rule for size everywhere."""

import csv
import json
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import metrics, result, run_recipe
from photos import photo, write_bad, write_photos
from torch import nn
from training import at_step

from launch import evaluate, sources, train
from launch.data.augment import EpochRng, random_erasing, random_resized_crop
from launch.data.augment_ops import rand_augment, trivial_augment
from launch.data.disk_feed import DiskFeed, DiskReader
from launch.data.mix import cutmix, either, mixup, soft_labels
from launch.data.order import order
from launch.data.resize import ResizeRule, centred, read, resized, viewed
from launch.data.store import LIMIT
from launch.errors import Refused
from launch.sources.options import DataOptions
from launch.training import evaluate as evaluating
from launch.weights.tensors import whole_of
from nets import named
from nets.transfer import locked

RULE = ResizeRule(size=12, cache_size=14)
CPU = torch.device("cpu")


class TinyRgb(nn.Module):
    """(N, 3, 12, 12) -> (N, 3), with batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Linear(100, 3)

    def forward(self, x):
        out = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.fc(self.drop(out.flatten(1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """41 + 13 + 11 photographs of three classes, split, a class in train three times as large as another."""
    place = tmp_path_factory.mktemp("photos")
    for split, counts in {"train": (24, 9, 8), "val": (5, 4, 4), "test": (3, 4, 4)}.items():
        write_photos(
            place, dict(zip((f"{split}/{name}" for name in ("ant", "bee", "cow")), counts, strict=True)), start=len(split) * 100
        )
    photo(77, 40, 90).save(place / "train/ant/tall.png")
    return place


def load(folder, **options):
    of_run = {name: options.pop(name) for name in ("limit", "validation", "classes", "main") if name in options}
    return sources.custom(str(folder), RULE, DataOptions(**options), **of_run)


def fit(run, images, **options):
    torch.manual_seed(run.seed)
    model = TinyRgb()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    options = {"epochs": 2, "batch": 8, "augment": [random_resized_crop, trivial_augment], "ema": 0.9} | options
    options = {"mix": either(mixup(), cutmix())} | options
    try:
        train(run, model, images, optimizer, **options)
    finally:
        run.end()
    return model


def record(folder):
    return metrics(folder), result(folder)["weights_sha256"]


def augmented(rng, augment, pixels, ids):
    return augment(pixels, rng.of(ids))


def batches(images, threads, micro_batches):
    """The training batches of two epochs, asked for in `micro-batches`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        feed = DiskFeed(images.train, images.mean, images.std, CPU)
        rng, seen = EpochRng(1, len(images.train), CPU), []
        for epoch in range(2):
            rng.begin(epoch)
            parts = torch.arange(len(images.train)).split(micro_batches)
            augments = [partial(augmented, rng, augment) for augment in (random_resized_crop, trivial_augment, random_erasing)]
            seen += [pixels for pixels, _ in feed.stream(parts, augments)]
        return torch.cat(seen)
    finally:
        torch.set_num_threads(before)


def test_a_batch_does_not_depend_on_threads_micro_batches_or_the_store(folder, monkeypatch):
    decoded = batches(load(folder), threads=1, micro_batches=8)
    images = load(folder)
    assert {each.sha256 for each in images.train.images} <= images.train.store.places.keys()
    assert torch.equal(batches(images, threads=3, micro_batches=5), decoded)
    monkeypatch.setenv(LIMIT, "0")
    monkeypatch.setenv("ONELOOP_CACHE", str(folder.parent / "empty"))
    images = load(folder)
    assert images.train.store.places == {}
    assert torch.equal(batches(images, threads=2, micro_batches=8), decoded)
    assert images.train.store.places == {}
    first, second = decoded.chunk(2)
    assert not torch.equal(first, second)  # control: another epoch


def test_a_batch_by_itself_is_right_while_others_are_prepared(folder):
    images = load(folder)
    feed = DiskFeed(images.test, images.mean, images.std, CPU)
    stream = feed.stream(torch.arange(11).split(3))
    next(stream)
    ids = torch.tensor([9, 2, 4])
    found, labels = feed.batch(ids)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
    expected = (images.test.some(ids).pixels / 255 - mean) / std
    torch.testing.assert_close(found, expected)
    assert labels.tolist() == images.test.labels[ids].tolist()
    others = torch.arange(3, 11)
    torch.testing.assert_close(torch.cat([pixels for pixels, _ in stream]), (images.test.some(others).pixels / 255 - mean) / std)


def test_what_nobody_asks_for_is_not_prepared(folder):
    """After a stop, or an error."""
    images, changed = load(folder), []

    def slow(pixels, ids):
        time.sleep(0.005)
        changed.append(ids)
        return pixels

    feed = images.train.feed(images, CPU)
    stream = feed.stream(torch.arange(40).split(10), [lambda sizes, ids: torch.tensor([[0, 0, 1, 1, 0]] * len(ids)), slow])
    next(stream)
    stream.close()
    feed.pool.shutdown()
    assert 10 <= len(changed) < 40


def test_a_view_is_that_part_of_the_image_mirrored_or_not(folder):
    whole = DiskReader(load(folder).train).reduced(0)
    views, seen = [(1, 2, 12, 12, 0), (1, 2, 12, 12, 1), (0, 0, 5, 7, 0)], np.empty((3, 12, 12, 3), np.uint8)
    viewed([whole] * 3, views, seen)
    assert (seen[0] == whole[1:13, 2:14]).all()
    assert (seen[1] == seen[0][:, ::-1]).all()
    assert (seen[2] == resized(whole[:5, :7], 12, 12)).all()


def test_crops_lie_inside_and_have_the_sizes_of_the_paper():
    sizes = torch.tensor([[100, 150]]).expand(4000, 2)
    views = random_resized_crop(sizes, EpochRng(1, 4000, CPU).of(torch.arange(4000)))
    top, left, height, width, mirrored = views.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 100).all()
    assert (left + width <= 150).all()
    area, ratio = height * width / 15_000, width / height
    assert area.min() > 0.07
    assert area.mean().item() == pytest.approx(0.51, abs=0.05)  # cut where the image ends
    assert 0.7 < ratio.min() < 0.8
    assert 1.2 < ratio[area < 0.3].max() < 1.5
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("at", [1, 4, 6, 7, 11])
def test_resume_is_exact(start, folder, at, tmp_path):
    images = load(folder)
    fit(start(out="whole"), images)
    with pytest.raises(Refused, match="stopped"):
        fit(start(stop_when=at_step(at)), images)
    fit(start(), images)
    assert record(tmp_path / "run") == record(tmp_path / "whole")


def test_micro_batches_see_the_images_of_the_batch_once_an_epoch(start, folder, monkeypatch):
    seen, stream = [], DiskFeed.stream

    def noted(self, parts, augments=()):
        parts = list(parts)
        seen.extend(torch.cat(parts).tolist() if augments else ())
        return stream(self, parts, augments)

    monkeypatch.setattr(DiskFeed, "stream", noted)
    fit(start(micro_batches=3), load(folder), mix=None)
    assert sorted(seen) == sorted([*range(42)] * 2)


def test_two_processes_and_a_kill_give_the_bits_of_one(folder, tmp_path):
    flags = ("--data", folder, "--net", "Net", "--mode", "scratch", "--size", 32, "--epochs", 2, "--batch", 16)
    flags = (*flags, "--threads", 1, "--log-every", 1)
    one = run_recipe("custom", *flags, "--micro-batches", 2, "--out", "one", cwd=tmp_path)
    two = run_recipe("custom", *flags, "--out", "two", cwd=tmp_path, processes=2)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert record(tmp_path / "one") == record(tmp_path / "two")
    (tmp_path / "two/result.json").unlink()
    shutil.rmtree(sorted((tmp_path / "two/checkpoints").iterdir())[-1])
    again = run_recipe("custom", *flags, "--micro-batches", 2, "--out", "two", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert record(tmp_path / "one") == record(tmp_path / "two")


def test_train_lines_say_what_was_waited_for(start, folder, tmp_path, monkeypatch, capsys):
    fit(start(), load(folder))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    waits = [line["data_wait"] for line in lines if line["event"] == "train"]
    assert len(waits) == 2
    assert all(0 <= wait <= 1 for wait in waits)
    monkeypatch.setattr("launch.training.finish.WORTH_SAYING", 0.0)
    fit(start(out="slow"), load(folder))
    assert "of the training's time was waiting for images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("slow", "part", "said"),
    [
        (trivial_augment, 0.5, "50% of the training's time was waiting for images, most of it for TrivialAugment: a lighter"),
        (rand_augment(), 0.5, "waiting for images, most of it for RandAugment: a lighter augmentation (recipes/custom.py: "),
        (None, 0.5, "50% of the training's time was waiting for images: more "),
        (trivial_augment, 0.06, ""),  # nothing that a user could gain from
    ],
)
def test_what_is_waited_for_is_named_if_it_is_worth_a_word(start, folder, monkeypatch, capsys, slow, part, said):
    whole = DiskFeed.stream

    def noted(self, parts, augments=()):
        for images in whole(self, parts, augments):
            self.reading, self.changing = (0.0, 1.0) if slow else (1.0, 0.5)
            yield images

    monkeypatch.setattr(DiskFeed, "stream", noted)
    monkeypatch.setattr(
        "launch.training.job.Job.waited",
        property(lambda job: part * job.meter.train_seconds, lambda job, value: None),
        raising=False,
    )
    fit(start(), load(folder), augment=[random_resized_crop, slow or trivial_augment], mix=None, epochs=1)
    out = capsys.readouterr().out
    assert said in out if said else "waiting for images" not in out


def test_the_threads_time_is_told_apart(folder):
    """Reading is decoding and cropping; changing is what comes after."""
    images = load(folder)
    feed, rng = DiskFeed(images.train, images.mean, images.std, CPU), EpochRng(1, len(images.train), CPU)

    def slow(pixels, ids):
        time.sleep(0.01)
        return pixels

    ids = torch.arange(8)
    feed.batch(ids, [partial(augmented, rng, random_resized_crop)])
    before = feed.reading
    assert before > 0
    assert feed.changing < 0.01
    feed.batch(ids, [partial(augmented, rng, random_resized_crop), slow])
    assert feed.changing >= 0.08
    assert feed.reading > before


def test_uneven_classes_are_measured_by_balanced_accuracy_too(start, folder, tmp_path):
    images = load(folder)
    model = fit(start(), images)
    found = result(tmp_path / "run")
    assert "balanced_accuracy" not in found["test"]  # 3, 4 and 4 images
    pixels, labels = images.train.some(torch.arange(42))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
    with torch.no_grad():
        right = model.eval()((pixels / 255 - mean) / std).argmax(1) == labels
    recalls = [right[labels == label].float().mean().item() for label in range(3)]
    assert found["train"]["balanced_accuracy"] == pytest.approx(sum(recalls) / 3)
    assert found["train"]["accuracy"] == pytest.approx(right.float().mean().item())
    run = start(out="other")
    assert evaluate(run, model, images, "train")["balanced_accuracy"] == found["train"]["balanced_accuracy"]


@pytest.mark.parametrize(("enough", "count"), [(5, 11), (20, 20), (200, 42)])
def test_as_many_training_images_are_measured_as_there_are_test_images(start, folder, monkeypatch, capsys, enough, count):
    """11 test images; the same training images for every seed, which the line and the record say; all, if they are few."""
    monkeypatch.setattr(evaluating, "ENOUGH", enough)
    images = load(folder)
    pixels, labels = images.train.some(order(42, 0, 0)[:count])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
    for seed in (1, 2):
        run = start(out=f"run{seed}", seed=seed)
        model = fit(run, images)
        with torch.no_grad():
            right = model.eval()((pixels / 255 - mean) / std).argmax(1) == labels
        found = result(run.folder)
        assert (found["train"]["count"], found["test"]["count"]) == (count, 11)
        assert found["train"]["accuracy"] == pytest.approx(right.float().mean().item())
        assert f" train{'' if count == 42 else f' ({count} images)'} accuracy " in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    done = run_recipe(
        "custom",
        "--data",
        folder,
        "--net",
        "Net",
        "--mode",
        "scratch",
        "--size",
        32,
        "--epochs",
        2,
        "--batch",
        16,
        "--out",
        "run",
        cwd=place,
        plots=True,
    )
    assert done.returncode == 0, done.stderr
    return place / "run"


@pytest.mark.usefixtures("own_path")
def test_predict_evaluate_and_onnx_see_what_the_training_saw(trained, folder, oneloop, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    code, out, error = oneloop("predict", trained, folder / "test", "--json")
    assert code == 0, error
    predicted = {
        each["image"]: {prediction["class"]: prediction["probability"] for prediction in each["predictions"]}
        for each in json.loads(out)
    }
    assert len(predicted) == 11
    code, out, error = oneloop("evaluate", trained, "--json")
    assert code == 0, error
    evaluated = json.loads(out)
    logged = result(trained)["best"]["test"]
    assert evaluated["accuracy"] == logged["accuracy"]
    assert evaluated["loss"] == pytest.approx(logged["loss"], rel=1e-5)
    code, out, error = oneloop("export", trained, "--format", "onnx", "--out", tmp_path / "net.onnx")
    assert code == 0, error
    session, rule, right = onnxruntime.InferenceSession(tmp_path / "net.onnx"), ResizeRule(32, 64), 0
    about = json.loads(session.get_modelmeta().custom_metadata_map["oneloop"])
    assert (about["shape"], about["cache_size"], about["classes"]) == ([3, 32, 32], 64, ["ant", "bee", "cow"])
    for path in sorted((folder / "test").rglob("*.jpg")):
        pixels = np.asarray(centred(read(path, rule), rule), dtype=np.float32).transpose(2, 0, 1)[None] / 255
        (logits,) = session.run(["logits"], {"images": pixels})
        probabilities = np.exp(logits[0] - logits[0].max()) / np.exp(logits[0] - logits[0].max()).sum()
        expected = dict(zip(about["classes"], probabilities.tolist(), strict=True))
        assert predicted[str(path)] == pytest.approx(expected, abs=1e-4)
        right += about["classes"][int(probabilities.argmax())] == path.parent.name
    assert right == round(logged["accuracy"] * 11)


@pytest.mark.usefixtures("own_path")
@pytest.mark.parametrize("there", [("ant", "bee", "cow"), ("ant", "cow"), ("bee",)])
def test_all_of_other_images_are_measured_if_they_are_not_split(trained, oneloop, tmp_path, there):
    """Classes may be missing from a folder or a table, which is said; `predict` on the same files agrees."""
    write_photos(tmp_path / "other", dict.fromkeys(there, 7), start=900)
    files = sorted((tmp_path / "other").rglob("*.jpg"))
    rows = [f"{file},{file.parent.name}" for file in files]
    (tmp_path / "other.csv").write_text("\n".join(["path,label", *rows]))
    said = json.loads(oneloop("predict", trained, tmp_path / "other", "--top", 1, "--json")[1])
    right = sum(each["predictions"][0]["class"] == Path(each["image"]).parent.name for each in said)
    for place in (tmp_path / "other", tmp_path / "other.csv"):
        code, out, error = oneloop("evaluate", trained, "--data", place, "--json")
        measured = json.loads(out)
        assert (code, measured["count"], measured["accuracy"], measured["logged"]) == (
            0,
            7 * len(there),
            right / len(files),
            None,
        )
        absent = [name for name in ("ant", "bee", "cow") if name not in there]
        missing = f"{place}: no test images of {', '.join(absent)}: measured without\n"
        assert error == (missing if absent else "")
        assert [each["count"] for each in measured["classes"]] == [7 * (name in there) for name in ("ant", "bee", "cow")]
    code, out, error = oneloop("evaluate", trained, "--data", tmp_path / "other", "--split", "train")
    assert (code, out) == (2, "")
    assert "other has no train images; without --split, those that it has are measured" in error


@pytest.mark.usefixtures("own_path")
def test_other_images_keep_their_split_and_may_have_no_unknown_class(trained, oneloop, tmp_path):
    for split, count in {"train": 5, "val": 4, "test": 3}.items():
        write_photos(tmp_path / "other", {f"{split}/ant": count, f"{split}/bee": count}, start=count * 100)
    for split, count in {"train": 5, "validation": 4, "test": 3}.items():
        code, out, _ = oneloop("evaluate", trained, "--data", tmp_path / "other", "--split", split, "--json")
        assert (code, json.loads(out)["count"]) == (0, 2 * count)
    write_photos(tmp_path / "other", {"test/dog": 2, "train/dog": 2}, start=900)
    code, out, error = oneloop("evaluate", trained, "--data", tmp_path / "other")
    assert (code, out, error) == (4, "", f"{tmp_path / 'other'} has the class dog; the net knows ant, bee, cow\n")


@pytest.mark.usefixtures("own_path")
def test_the_own_images_are_known_where_they_were_moved(trained, folder, oneloop, tmp_path):
    """They are split, and measured, as for the training."""
    moved = shutil.copytree(folder, tmp_path / "moved")
    said = {split: json.loads(oneloop("evaluate", trained, "--data", moved, "--split", split, "--json")[1])
            for split in ("test", "validation")}  # fmt: skip
    best = result(trained)["best"]
    assert said["test"]["count"] == best["test"]["count"] == 11
    assert said["test"]["logged"] == {name: best["test"][name] for name in ("accuracy", "loss")}
    assert (said["validation"]["count"], said["validation"]["accuracy"]) == (13, best["accuracy"])


@pytest.mark.usefixtures("own_path")
def test_predict_needs_no_training_images(trained, oneloop, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["config"]["data"] = str(tmp_path / "gone")
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    photo(5, 50, 80).save(tmp_path / "new.jpg")
    code, out, error = oneloop("predict", tmp_path / "run", tmp_path / "new.jpg")
    assert code == 0, error
    assert "new.jpg" in out


def test_bad_files_are_named_before_training_and_left_out_if_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "photos")
    write_bad(tmp_path / "photos/train/bee")
    flags = ("--data", "photos", "--net", "Net", "--mode", "scratch", "--size", 32, "--epochs", 1, "--batch", 16, "--out", "run")
    refused = run_recipe("custom", *flags, cwd=tmp_path)
    assert refused.returncode == 4
    lines = refused.stderr.strip().splitlines()
    assert "train without them: --skip-bad" in lines[-1]
    assert "bee 8" in lines[-1] or "bee 9" in lines[-1]
    assert any("page.jpg: a web page" in line for line in lines)
    assert not (tmp_path / "run/config.json").exists()
    done = run_recipe("custom", *flags, "--skip-bad", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "run/bad.csv", newline="") as file:
        bad = {row["path"]: row["problem"] for row in csv.DictReader(file)}
    assert bad["train/bee/empty.jpg"] == "empty file: 0 bytes"
    with open(tmp_path / "run/split.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 66
    assert {row["split"] for row in rows} == {"train", "validation", "test"}


def test_unsplit_images_are_split_and_a_split_can_be_given(tmp_path):
    write_photos(tmp_path / "photos", {"a": 30, "b": 30})
    images = load(tmp_path / "photos", validation=0.2, test=0.1)
    assert images.held == 0.2
    assert len(images.train) + len(images.validation) + len(images.test) == 60
    assert 5 <= len(images.validation) <= 20
    (tmp_path / "split.csv").write_bytes(images.files["split.csv"])
    given = load(tmp_path / "photos", split=str(tmp_path / "split.csv"))
    assert given.fingerprint == images.fingerprint
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    assert load(tmp_path / "moved", validation=0.2, test=0.1).fingerprint == images.fingerprint


def test_images_in_several_classes_are_said(tmp_path, capsys):
    write_photos(tmp_path / "photos", {"a": 20, "b": 20})
    load(tmp_path / "photos")
    assert capsys.readouterr().err == ""
    shutil.copy(tmp_path / "photos/a/0003.jpg", tmp_path / "photos/b/same.jpg")
    load(tmp_path / "photos")
    assert "1 image is in several classes" in capsys.readouterr().err


def test_without_a_test_split_validation_is_the_test(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "photos", ignore=shutil.ignore_patterns("test"))
    images = load(tmp_path / "photos")
    assert (len(images.train), len(images.test), images.validation) == (42, 13, None)


def test_a_class_weighs_as_if_all_had_as_many_images(start, folder, recipe):
    images = load(folder)
    logits, labels = torch.randn(42, 3), images.train.labels
    run = start()
    plain, balanced = (recipe.loss_for(run, images, kind, 0.0) for kind in ("none", "balanced"))
    assert plain is F.cross_entropy
    losses = F.cross_entropy(logits, labels, reduction="none")
    by_class = [losses[labels == label].mean() for label in range(3)]
    torch.testing.assert_close(balanced(logits, labels), sum(by_class) / 3)
    torch.testing.assert_close(balanced(logits, F.one_hot(labels, 3).float()), balanced(logits, labels))
    halves = [balanced(logits[part], labels[part]) for part in torch.arange(42).split(21)]
    torch.testing.assert_close(sum(halves) / 2, balanced(logits, labels))  # torch's own weights would not add up
    weights = 14 / labels.bincount()
    torchs = [F.cross_entropy(logits[part], labels[part], weight=weights) for part in torch.arange(42).split(21)]
    assert not torch.allclose(sum(torchs) / 2, balanced(logits, labels))  # control


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_image_weighs_by_the_classes_in_it(start, folder, recipe, smoothing):
    """A net that knows nothing is as fair to a rare class as to a common one: the loss of one answer for all is least at 1/3."""
    images = load(folder)
    labels, constant = images.train.labels, torch.zeros(3, requires_grad=True)
    balanced = recipe.loss_for(start(), images, "balanced", smoothing)
    for shares in (labels, *(soft_labels(labels, labels.roll(1), torch.full((42,), share), 3) for share in (1.0, 0.7, 0.5))):
        (slope,) = torch.autograd.grad(balanced(constant.expand(42, 3), shares), constant)
        assert slope.abs().max() < 1e-6
    own, other = (F.one_hot(labels.roll(by), 3).float() for by in (0, 1))
    logits = torch.randn(42, 3)
    apart = 0.7 * balanced(logits, own) + 0.3 * balanced(logits, other)  # each class's share has its own weight, smoothed or not
    torch.testing.assert_close(balanced(logits, 0.7 * own + 0.3 * other), apart)
    torch.testing.assert_close(balanced(logits, own), balanced(logits, labels))


@pytest.fixture(scope="module")
def recipe():
    from conftest import ROOT

    from launch.recipe import load as load_recipe

    return load_recipe(ROOT / "recipes/custom.py")


@pytest.mark.parametrize(
    ("name", "last", "block"),
    [
        ("resnet18", "fc", "layer4.1"),
        ("mobilenet_v3_small", "classifier.3", "features.12"),
        ("squeezenet1_1", "classifier.1", "features.12"),
        ("CifarResNet", "linear", "layer3.2"),
        ("MyNet1", "fc", "block3.1"),
    ],
)
def test_head_and_last_block_of_any_architecture(name, last, block):
    net = named.build(name, 3, 64 if name not in ("CifarResNet", "MyNet1") else 32)
    assert named.head(net, 3) == last
    assert named.last_block(net, last) == block


def test_the_head_is_the_last_layer_that_fits():
    assert named.head(named.build("resnet18", 64, 64), 64) == "fc"  # conv1 has 64 outputs, too


def test_a_wrong_net_is_one_line(recipe):
    for name, size, said in (
        ("resnetx", 64, "similar: resnet101"),
        ("Net", 64, "cannot take images of 64×64"),
        ("vgg11", 16, "at least 32×32"),
    ):
        with pytest.raises(ValueError, match=said):
            named.build(name, 3, size)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"net": "Net", "size": 32}, "no published weights"),
        ({"mode": "scratch", "source": "x"}, "takes no weights"),
        ({"mode": "scratch", "pretrained": True}, "takes no weights"),
        ({"mode": "frozen", "head_epochs": 2}, "--head-epochs is for --mode finetune"),
        ({"mode": "scratch", "size": -1}, "--size"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(start, recipe, flags, said):
    with pytest.raises(Refused, match=said) as refused:
        recipe.main(start(), **flags)
    assert refused.value.code == 2


def test_modes_train_what_they_say(start, recipe, tmp_path, monkeypatch):
    calls = []

    def recorded(run, model, images, optimizer, loss, **options):
        groups = [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
        calls.append((locked(whole_of(model)), groups, options))
        return {"test": {"accuracy": 0.5}}

    monkeypatch.setattr(recipe, "train", recorded)
    first = recipe.build("CifarResNet", 10, 32)
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    for mode in ("finetune", "frozen", "gradual"):
        run = start(out=mode)
        recipe.main(run, net="CifarResNet", mode=mode, source=str(tmp_path / "weights.pt"), size=32, epochs=4, lr=0.1)
        run.end()
    finetune, frozen, half, rest = calls
    assert finetune[0] == []
    assert sorted(lr for lr, _ in finetune[1]) == pytest.approx([0.01, 0.01, 0.1, 0.1])
    assert "layer3" in frozen[0]
    assert "linear" not in frozen[0]
    assert [count for _, count in frozen[1]] == [1, 1]
    assert (half[2]["epochs"], half[2]["stage"], rest[2]["epochs"], rest[2]["stage"]) == (2, "frozen", 2, "unlocked")
    assert "layer3.2" not in rest[0]
    assert "layer3.1" in rest[0]
    assert rest[1][-1][0] == pytest.approx(0.01)


def test_an_image_that_changes_during_training_is_named(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "photos")
    monkeypatch.setenv(LIMIT, "0")
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    images = load(tmp_path / "photos")
    (tmp_path / "photos/test/bee" / sorted((tmp_path / "photos/test/bee").iterdir())[0].name).unlink()
    feed = DiskFeed(images.test, images.mean, images.std, CPU)
    with pytest.raises(Refused, match=r"test/bee/\d+\.jpg cannot be decoded any more") as refused:
        feed.batch(torch.arange(11))
    assert refused.value.code == 4


def test_the_first_line_names_the_classes_and_folders_of_a_split_are_refused(folder, tmp_path, capsys):
    load(folder)
    said = f"{folder}: 3 classes: ant, bee, cow; images: 42 train, 13 validation, 11 test\n"
    assert capsys.readouterr().out == said
    load(folder, classes=("ant", "bee", "cow"), main=True)  # as `oneloop predict` rebuilds a run
    load(folder, main=False)
    assert capsys.readouterr().out == ""
    load(write_photos(tmp_path / "set", {"train/ant": 4, "train/bee": 4, "test": 3}))
    assert f"{tmp_path}/set: images without a class in test/: 3, left out\n" in capsys.readouterr().err
    load(write_photos(tmp_path / "extra", {f"{top}/{name}": 2 for top in ("train", "test", "test2") for name in ("ant", "bee")}))
    assert f"{tmp_path}/extra: images outside test/ train/: 4, left out\n" in capsys.readouterr().err
    write_photos(tmp_path / "rest", {"train/ant": 4, "train/bee": 4, "rest": 4})
    with pytest.raises(Refused, match=r"train would be a class .* --data .*/rest/train \(classes ant, bee\)") as refused:
        load(tmp_path / "rest")
    assert refused.value.code == 4
    with pytest.raises(Refused, match="one class, ant"):
        load(write_photos(tmp_path / "one", {"ant": 9}))
