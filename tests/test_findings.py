"""`oneloop data --net` finds exchanged labels and images that are there twice; --relabel and --write-split mend both."""

import csv
import json
import shutil

import pytest
import torch
from photos import photo, write_photos
from PIL import Image

from launch.features.findings import confident, outliers, together
from nets.named import build

SIZE = ("--size", 16)


def test_confident_learning_by_hand():
    """Two classes with thresholds 0.7 and 0.5: means of what the images with that label have of it."""
    of_first = torch.tensor([0.9, 0.9, 0.3, 0.45, 0.6, 0.5])  # probabilities of class 0
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    probabilities = torch.stack((of_first, 1 - of_first), 1).double()
    found = confident(probabilities, labels)
    assert [(index, other) for index, other, _, _ in found] == [(2, 1)]  # 0.7 ≥ 0.483; the fifth has 0.6 < 0.7 of class 0
    assert found[0][2:] == pytest.approx((0.7, 0.3))
    assert confident(probabilities[:2], labels[:2]) == []  # no image of the other class


def test_control_a_class_that_is_hard_is_not_in_doubt_for_that():
    """The most likely class alone would doubt all three."""
    of_first = torch.tensor([0.99, 0.98, 0.99, 0.52, 0.55, 0.53])
    probabilities = torch.stack((of_first, 1 - of_first), 1)
    assert confident(probabilities, torch.tensor([0, 0, 0, 1, 1, 1])) == []


def test_outliers_are_far_from_their_neighbours():
    cosines = torch.full((50, 10), 0.6) + torch.linspace(-0.05, 0.05, 50)[:, None]
    cosines[7] = 0.1
    assert [index for index, _ in outliers(cosines)] == [7]


def test_near_duplicates_come_to_one_side():
    splits = {"a": "train", "b": "test", "c": "train", "d": "validation", "e": "test", "f": "test"}
    moved = together(splits, [("a", "b"), ("b", "c"), ("d", "e")])
    assert moved == {"a": "train", "b": "train", "c": "train", "d": "validation", "e": "validation", "f": "test"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("source") / "weights.pt"
    torch.save(build("CifarResNet", 5, 16).state_dict(), path)
    return f"CifarResNet={path}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Bright and dark photographs, two of each with the other's label; two that were saved again, smaller and mirrored."""
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    place = write_photos(tmp_path / "photos", {"bright": 30, "dark": 30})
    for number, path in enumerate(sorted((place / "dark").iterdir())):
        photo(100 + number).point(lambda value: value // 4).save(path, "JPEG", quality=90)
    for number in (3, 4):
        shutil.move(place / f"bright/{number:04}.jpg", place / f"dark/was-bright-{number}.jpg")
    for number in (33, 34):
        shutil.move(place / f"dark/{number:04}.jpg", place / f"bright/was-dark-{number}.jpg")
    Image.open(place / "bright/0010.jpg").resize((21, 14)).save(place / "bright/again.jpg", quality=80)
    Image.open(place / "bright/0012.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(place / "bright/mirrored.png")
    return place


WRONG = {"dark/was-bright-3.jpg", "dark/was-bright-4.jpg", "bright/was-dark-33.jpg", "bright/was-dark-34.jpg"}
TWICE = {frozenset(("bright/0010.jpg", "bright/again.jpg")), frozenset(("bright/0012.jpg", "bright/mirrored.png"))}


def test_exchanged_labels_and_images_saved_twice_are_found_and_mended(folder, source, oneloop, tmp_path):
    page, labels, split = (tmp_path / name for name in ("page.html", "labels.csv", "split.csv"))
    files = "--html", page, "--write-labels", labels, "--write-split", split
    code, out, error = oneloop("data", folder, "--net", source, *SIZE, *files)
    assert code == 0, error
    assert "4 labels in doubt:" in out
    assert "2 near-duplicates" in out
    with open(labels) as file:
        rows = [*csv.DictReader(file)]
    assert {row["path"] for row in rows} == WRONG
    assert all(row["label"] == row["path"].split("-")[1] and row["was"] == row["path"].split("/")[0] for row in rows)
    with open(split) as file:
        sides = {row["path"]: row["split"] for row in csv.DictReader(file)}
    assert all(len({sides[path] for path in pair}) == 1 for pair in TWICE)
    shown = page.read_text()
    assert shown.count('type="checkbox" data-path=') == 4
    assert 'data-path="dark/was-bright-3.jpg" data-label="bright"' in shown
    assert "labels.csv" in shown
    code, out, error = oneloop("data", folder, "--relabel", labels, "--net", source, *SIZE, "--json")
    assert code == 0, error
    mended = json.loads(out)
    assert mended["seen"]["doubts"] == []
    assert {name: row["images"] for name, row in mended["classes"].items()} == {"bright": 32, "dark": 30}
    assert mended["notes"][0] == f"4 labels as {labels} has them"
    assert {frozenset(pair["paths"]) for pair in mended["seen"]["near_duplicates"]} == TWICE


def test_what_is_asked_wrongly_is_one_line(folder, source, oneloop, tmp_path):
    table = tmp_path / "labels.csv"
    for content, said in (
        ("path,label\nbright/0001.jpg,grey\n", "row 1 has the label 'grey'; the classes are bright, dark"),
        ("path,label\nbright/0001.jpg,dark\nnowhere.jpg,dark\n", "row 2 names nowhere.jpg, which is not in"),
        ("path,label\nbright/0001.jpg,dark\nbright/0001.jpg,bright\n", "bright/0001.jpg is dark and, in row 2, bright"),
        ("path,kind\nbright/0001.jpg,dark\n", "it needs the columns path and label"),
    ):
        table.write_text(content)
        code, out, error = oneloop("data", folder, "--relabel", table)
        assert (code, out) == (4, "")
        assert said in error
    code, _, error = oneloop("data", folder, "--write-labels", table)
    assert code == 2
    assert "needs --net" in error
    code, _, error = oneloop("data", folder, "--net", "resnet19")
    assert code == 2
    assert "unknown net 'resnet19'" in error
