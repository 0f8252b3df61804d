"""Data sets as a recipe asks for them: classes in its order, a limit, a scale, names; synthetic images; the fingerprint."""

import numpy as np
import pytest
import torch
from conftest import run_recipe
from data_files import COUNTS, GOLDEN, cifar2, digits, good_npz, image, label, write_golden_folder
from PIL import Image

from launch import Run, sources
from launch.data.resize import ResizeRule
from launch.errors import Refused
from launch.sources import synthetic


def test_kept_classes_are_labelled_in_the_order_asked_for(folder):
    images = sources.cifar10(str(folder), keep=("ship", "airplane", "cat"))
    assert images.classes == ("ship", "airplane", "cat")
    for split, count in zip((images.train, images.test), COUNTS.values(), strict=True):
        expected = sorted((image(n).tobytes(), [8, 0, 3].index(label(n))) for n in range(count) if label(n) in (8, 0, 3))
        got = sorted((p.permute(1, 2, 0).numpy().tobytes(), int(t)) for p, t in zip(*split, strict=True))
        assert got == expected
    assert images.fingerprint == cifar2(folder).fingerprint  # of everything in the folder
    assert images.source == str(folder)


def test_all_classes_in_another_order_are_relabelled(folder):
    turned = sources.CIFAR10_CLASSES[::-1]
    straight, images = sources.cifar10(str(folder)), sources.cifar10(str(folder), keep=turned)
    assert images.classes == turned
    assert torch.equal(images.train.labels, 9 - straight.train.labels)


def test_limit_keeps_a_mixed_sample(folder):
    assert len(cifar2(folder, limit=4).train) == 4
    assert len(cifar2(folder, limit=4).test) == 4  # the test images stay: 2 of each class
    assert set(cifar2(folder, limit=6).train.labels.tolist()) == {0, 1}


def test_limit_is_a_fixed_sample_of_the_kept_classes_in_their_order(folder):
    every, some, again = (cifar2(folder, limit=limit) for limit in (0, 5, 5))
    assert len(every.train) == 8
    assert torch.equal(some.train.pixels, again.train.pixels)
    assert some.fingerprint == every.fingerprint
    places = [next(i for i in range(8) if torch.equal(every.train.pixels[i], pixels)) for pixels in some.train.pixels]
    assert places == sorted(set(places)) != list(range(5))
    assert torch.equal(some.train.labels, every.train.labels[places])
    assert len(cifar2(folder, limit=8).train) == len(cifar2(folder, limit=100).train) == 8
    assert cifar2(folder, limit=1).train.labels.shape == (1,)


def test_wrong_size_and_missing_class_say_what_is_there(folder, tmp_path):
    with pytest.raises(Refused, match="no class 'zebra'; its classes are airplane, automobile"):
        sources.cifar10(str(folder), keep=("zebra",))
    for file in folder.rglob("*.png"):
        Image.open(file).resize((28, 28)).save(file)
    with pytest.raises(Refused, match=r"train/airplane/000.png is 28×28 \(width×height\), this recipe takes 32×32; resize"):
        cifar2(folder)


def test_an_empty_class_of_the_test_split_is_named(folder):
    for file in folder.glob("test/bird/*"):
        file.unlink()
    with pytest.raises(Refused, match="no test images of bird; every class needs at least one"):
        cifar2(folder)


def test_numbered_classes_get_the_names_of_garments(tmp_path):
    """idx and npz files have numbers only; digits keep theirs."""
    np.savez(tmp_path / "a.npz", **good_npz())
    garments, numbers = (load(str(tmp_path / "a.npz")) for load in (sources.fashion_mnist, sources.mnist))
    assert garments.classes == sources.FASHION_CLASSES
    assert numbers.classes == tuple("0123456789")
    assert torch.equal(garments.train.labels, numbers.train.labels)


def test_grey_sets_have_their_names_and_scale():
    fashion = sources.fashion_mnist("synthetic")
    assert fashion.classes[0] == "T-shirt/top"
    assert fashion.train.pixels.shape == (2000, 1, 28, 28)
    digits_plain = sources.mnist("synthetic", normalised=False)
    assert (digits_plain.mean, digits_plain.std) == ((0.0,), (1.0,))
    assert digits_plain.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("load", "mean", "std"),
    [
        (sources.cifar10, (0.4915, 0.4823, 0.4468), (0.2470, 0.2435, 0.2616)),
        (sources.mnist, (0.1307,), (0.3081,)),
        (sources.fashion_mnist, (0.2860,), (0.3530,)),
    ],
)
def test_synthetic_sets_have_their_scale_and_show_their_classes(load, mean, std):
    """CIFAR-10's mean and std are those of chapter 7, the grey sets' are over all their training images.

    The class whose mean training image is nearest to a test image is right more than twice as often as by chance.
    """
    images = load("synthetic")
    assert (images.mean, images.std) == (mean, std)
    assert len(images.classes) == 10
    assert images.train.labels.bincount().tolist() == [200] * 10
    assert images.test.labels.bincount().tolist() == [50] * 10
    train, test = (split.pixels.float().flatten(1) for split in (images.train, images.test))
    assert train.std(dim=0).min() > 5  # no pixel is the same in all images
    train, test = (pixels - pixels.mean(1, keepdim=True) for pixels in (train, test))
    if len(mean) == 3:  # dark on bright or bright on dark: only the place tells
        train, test = train.abs(), test.abs()
    means = torch.stack([train[images.train.labels == number].mean(0) for number in range(10)])
    assert (torch.cdist(test, means).argmin(1) == images.test.labels).float().mean() > 0.2


def test_synthetic_is_the_same_each_time_and_balanced(monkeypatch):
    monkeypatch.setattr(synthetic, "read", synthetic.read.__wrapped__)  # which draws each time
    first, second = cifar2("synthetic"), cifar2("synthetic")
    assert first.fingerprint == second.fingerprint
    assert first.train.pixels.shape == (2000, 3, 32, 32)
    assert first.train.labels.bincount().tolist() == [1000, 1000]
    assert first.source == "synthetic"
    assert not torch.equal(first.train.pixels[: len(first.test)], first.test.pixels)


def test_synthetic_test_images_are_none_of_the_training_images():
    """They have random numbers of their own; the same labels would else be the same drawings."""
    images = synthetic.read(("bird", "airplane"), (3, 16, 16), {"train": 20, "test": 20})
    assert torch.equal(images.train.labels, images.test.labels)
    assert not (images.train.pixels[:, None] == images.test.pixels).flatten(2).all(2).any()


def test_synthetic_classes_alternate():
    """So that a training without shuffling sees all classes."""
    assert sources.mnist("synthetic").train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_the_fingerprint_of_a_folder_never_changes(tmp_path):
    """Golden: a run resumes only with data of the fingerprint that it recorded."""
    assert sources.cifar10(str(write_golden_folder(tmp_path / "set"))).fingerprint == GOLDEN


@pytest.mark.parametrize("part", ["classes", "train pixels", "test pixels", "train labels", "test labels", "shape"])
def test_the_fingerprint_is_of_all_there_is(part, tmp_path):
    def fingerprint(x, y, x_test, y_test):
        np.savez(tmp_path / "a.npz", **good_npz(x_train=x, y_train=y, x_test=x_test, y_test=y_test))
        return sources.mnist(str(tmp_path / "a.npz")).fingerprint

    (x, y), (x_test, y_test) = digits(40), digits(20)
    first = fingerprint(x, y, x_test, y_test)
    assert first == fingerprint(x, y, x_test, y_test)  # control
    if part == "classes":
        folders = [write_golden_folder(tmp_path / name) for name in ("one", "two")]
        for split in COUNTS:
            (folders[1] / split / "truck").rename(folders[1] / split / "van")
        one, two = (sources.cifar10(str(place), keep=("bird", "cat")).fingerprint for place in folders)
        assert one != two
        return
    if part == "shape":  # one image more to train and one less to test
        assert first != fingerprint(np.r_[x, x_test[:1]], np.r_[y, y_test[:1]], x_test[1:], y_test[1:])
        return
    changed = {"train pixels": x, "test pixels": x_test, "train labels": y, "test labels": y_test}[part]
    changed[-1] = changed[0] if "labels" not in part else (changed[-1] + 1) % 10
    assert first != fingerprint(x, y, x_test, y_test)


def test_data_that_is_not_a_folder_says_what_it_takes(tmp_path):
    (tmp_path / "train.parquet").write_text("x")
    np.savez(tmp_path / "digits.npz", x=np.zeros(1))
    for path, message in (
        (tmp_path / "train.parquet", "not a folder; --data takes hub, synthetic or a folder"),
        (tmp_path / "none", "no such folder"),
        (tmp_path / ("long" * 100), "name too long"),
        (tmp_path / "digits.npz", "npz files are read for MNIST and Fashion-MNIST only"),
    ):
        with pytest.raises(Refused, match=message) as refused:
            cifar2(path)
        assert "\n" not in str(refused.value)
    for data, message in (("", "--data is empty"), (" ", "--data is empty"), ("~nobody-of-this-name/x", "home directory")):
        with pytest.raises(Refused, match=message) as refused:
            Run(data=data).configure("test", {}, "no")
        assert refused.value.code == 2
    assert Run(data="hub").configure("test", {}, "no") is None  # control


def test_refusal_reaches_the_user_as_one_line_and_leaves_no_folder(tmp_path):
    done = run_recipe("cifar2", "--data", tmp_path / "missing", cwd=tmp_path)
    assert done.returncode == 1
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_limit_holds_for_drawings_as_images_of_ones_own():
    """Control: without one, there are all."""
    rule = ResizeRule(size=16, cache_size=18)
    some, whole = (sources.custom("synthetic", rule, limit=limit, main=False) for limit in (60, 0))
    assert (len(some.train), len(some.test), len(whole.train)) == (60, 100, 400)
