"""`oneloop probe`: the classifiers are scikit-learn's, each image is judged by others, the last line trains."""

import json
import shlex

import numpy as np
import pytest
import torch
from photos import photo, write_photos

from launch.errors import Refused
from launch.features.classify import (
    STRENGTHS,
    by_neighbours,
    folds_by_content,
    interval,
    logistic_regression,
    nearest,
    out_of_fold,
)
from nets.named import build

FLAGS = ("--size", 16, "--cache-size", 18)


def points():
    """60 points of three classes, the same on every machine: features float32 (60, 4), labels."""
    raw = np.random.Philox(key=np.array([7, 0], dtype=np.uint64)).random_raw(60 * 4)
    features, labels = (raw / 2**64).reshape(60, 4).astype(np.float32), np.arange(60) % 3
    features[np.arange(60), labels] += 0.35
    return torch.from_numpy(features), torch.from_numpy(labels)


def names(count):
    return [f"{number:02}" for number in range(count)]


def test_logistic_regression_is_that_of_scikit_learn():
    """LogisticRegression(C, tol=1e-10) of scikit-learn 1.9.1: predict_proba of the first three points."""
    features, labels = points()
    known = {
        1e-2: [[0.347441, 0.319872, 0.332687], [0.324898, 0.351695, 0.323407], [0.318845, 0.338174, 0.342981]],
        1.0: [[0.742933, 0.059895, 0.197171], [0.105184, 0.811627, 0.08319], [0.066008, 0.341357, 0.592635]],
    }
    for strength, expected in known.items():
        weights = logistic_regression(features.double(), labels, 3, strength)
        found = (features[:3].double() @ weights[:-1] + weights[-1]).softmax(1)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=2e-5, rtol=0)


def test_out_of_fold_is_that_of_scikit_learn():
    """log_loss of make_pipeline(StandardScaler(), LogisticRegression(C)) on the fold that was left out, the best of STRENGTHS."""
    features, labels = points()
    logits, strength = out_of_fold(features, labels, torch.arange(60) // 3 % 5, 3)
    assert strength == 1.0
    assert torch.nn.functional.cross_entropy(logits, labels).item() == pytest.approx(0.728475, abs=2e-5)
    assert (logits.argmax(1) == labels).sum() == 39


def test_neighbours_are_those_of_scikit_learn():
    """cross_val_predict(KNeighborsClassifier(10, metric="cosine"), features less their mean, labels, cv=LeaveOneOut())."""
    features, labels = points()
    _, ids = nearest(features, names(60))
    found = "".join(map(str, by_neighbours(ids, labels, 3).tolist()))
    assert found == "012212010000112112112012212020112212211012012102010210012010"


def test_an_image_is_not_judged_by_its_copies():
    features, labels = points()
    twice, both = torch.cat((features, features[:5])), torch.cat((labels, labels[:5]))
    contents = [*names(60), *names(5)]
    _, ids = nearest(twice, contents)
    assert not any(contents[index] == contents[near] for index, row in enumerate(ids.tolist()) for near in row)
    folds = folds_by_content(both, contents)
    assert folds[:5].tolist() == folds[60:].tolist()
    assert sorted(folds[:60].bincount().tolist()) == [12] * 5
    for label in range(3):
        assert set(folds[:60][labels == label].bincount().tolist()) == {4}
    moved = folds_by_content(both.flip(0), contents[::-1])
    assert torch.equal(moved.flip(0), folds)  # of the content, not of the place
    few, _ = nearest(features[:3], names(3))
    assert few.shape == (3, 2)  # no more than there are


def test_intervals_are_wilsons():
    """statsmodels' proportion_confint(…, method="wilson")."""
    assert interval(45, 50) == pytest.approx((0.7864, 0.9565), abs=1e-3)
    assert interval(50, 50)[1] == pytest.approx(1)
    assert interval(0, 9) == pytest.approx((0, 0.2991), abs=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs, those of a class all darker than those of the other."""
    place = write_photos(tmp_path_factory.mktemp("data") / "photos", {"bright": 14, "dark": 14})
    for number, path in enumerate(sorted((place / "dark").iterdir())):
        photo(100 + number).point(lambda value: value // 3).save(path, "JPEG", quality=90)
    return place


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place = tmp_path_factory.mktemp("sources")
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(build("CifarResNet", 5, 16).state_dict(), place / f"{seed}.pt")
    return [str(place / f"{seed}.pt") for seed in range(2)]


def test_a_table_a_plot_and_the_command_that_trains(folder, sources, oneloop, tmp_path):
    nets = [f"CifarResNet={source}" for source in sources]
    code, out, error = oneloop("probe", folder, "--net", *nets, "resnet19", "--plot", tmp_path / "probe.png", *FLAGS)
    assert code == 0, error
    head, *rows, about, command = [line for line in out.splitlines() if "cannot be told" not in line]
    assert head.split()[:3] == ["net", "regression", "neighbours"]
    assert {row.split(")")[0] for row in rows} == {"CifarResNet (0.pt", "CifarResNet (1.pt"}
    accuracies = [float(row.split(")")[1].split()[0]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.8
    assert "training and validation images" in about
    assert "resnet19 is left out: --net: unknown net 'resnet19'" in error
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")
    words = shlex.split(command)
    assert words[:5] == ["oneloop", "train", "custom", "--data", str(folder)]
    assert rows[0].split("(")[1].split(")")[0] in command
    assert words[-4:] == [*map(str, FLAGS)]
    code, out, _ = oneloop("probe", folder, "--net", nets[0], "--json", *FLAGS)
    found = json.loads(out)["nets"][0]
    assert code == 0
    assert found["regression_interval"][0] < found["regression"] <= found["regression_interval"][1]
    assert 20 < found["images"] < 28  # without the test images, one of ten


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("--net", "resnet19"), "unknown net", 2),
        (("--net", "Net", "Net"), "--net names Net twice", 2),
        (("--net", "Net", "--plot", "probe.txt"), "it ends in .png, .pdf or .svg", 2),
    ],
)
def test_what_cannot_be_probed_is_one_line(folder, oneloop, words, said, code):
    found, out, error = oneloop("probe", folder, *words)
    assert (found, out) == (code, "")
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_control_strengths_differ():
    features, labels = points()
    weak, strong = (logistic_regression(features.double(), labels, 3, strength) for strength in (STRENGTHS[0], STRENGTHS[-1]))
    assert weak[:-1].norm() < 0.01 * strong[:-1].norm()


def test_without_a_network_the_way_out_is_one_of_probe(oneloop, tmp_path, monkeypatch):
    def offline(*_args, **_more):
        raise Refused("--net resnet18: no network; --mode scratch trains without weights, --source from others")

    monkeypatch.setattr("launch.features.seen.build", offline)

    code, _, error = oneloop("probe", write_photos(tmp_path / "set", {"a": 3, "b": 3}), "--net", "resnet18")
    assert (code, error) == (
        1,
        "--net resnet18: no network; resnet18=SOURCE takes other weights: a file, a URL or a run folder\n",
    )
