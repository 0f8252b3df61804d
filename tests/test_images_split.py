"""Images without a split are split by content: the same image lands on the same side wherever it lies."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from photos import jpeg, write_photos

SPLITS = ("train", "validation", "test")


@pytest.fixture
def split(oneloop, tmp_path):
    """split(path, flags…) -> {path: split}, as `oneloop data --write-split` writes it."""

    def split(path: Path, *flags) -> dict[str, str]:
        code, _, error = oneloop("data", path, *flags, "--write-split", tmp_path / "split.csv")
        assert (code, error) == (0, "")
        with open(tmp_path / "split.csv", newline="") as file:
            return {row["path"]: row["split"] for row in csv.DictReader(file)}

    return split


def test_each_class_is_split_in_the_same_proportions(oneloop, tmp_path):
    place = write_photos(tmp_path, {"few": 300, "many": 900})
    for flags, fractions in (
        ((), (0.8, 0.1, 0.1)),
        (("--validation", 0.3, "--test", 0.2), (0.5, 0.3, 0.2)),
        (("--test", 0), (0.9, 0.1, 0)),
    ):
        found = json.loads(oneloop("data", place, "--json", *flags)[1])
        for count, row in zip((300, 900), found["classes"].values(), strict=True):
            for name, fraction in zip(SPLITS, fractions, strict=True):
                deviation = (fraction * (1 - fraction) / count) ** 0.5
                assert abs(row[name] / count - fraction) <= 3 * deviation


def test_moving_and_renaming_moves_no_image_to_another_split(split, tmp_path):
    first = split(write_photos(tmp_path / "set", {"a": 60, "b": 60}))
    assert {*first.values()} == {*SPLITS}
    moved = tmp_path / "another disk"
    shutil.move(tmp_path / "set", moved)
    assert split(moved) == first
    for file in [*moved.rglob("*.jpg")]:
        file.rename(file.with_name(f"renamed-{file.name}"))
    assert split(moved) == {path.replace("/", "/renamed-"): side for path, side in first.items()}


def test_adding_files_and_classes_moves_no_other_image(split, tmp_path):
    first = split(write_photos(tmp_path / "set", {"b": 80, "c": 80}))
    more = split(write_photos(tmp_path / "set", {"a": 40, "b": 70, "c": 10}, start=1000))
    assert len(more) == 280
    assert {path: more[path] for path in first} == first


def test_control_other_content_is_split_otherwise(split, tmp_path):
    first = split(write_photos(tmp_path / "one", {"a": 99, "b": 1}))
    assert [*split(write_photos(tmp_path / "three", {"a": 99, "b": 1}, start=900)).values()] != [*first.values()]


def test_exact_duplicates_land_on_one_side(split, tmp_path):
    place = write_photos(tmp_path / "set", {"a": 40, "b": 40})
    for file in [*(place / "a").iterdir()]:
        shutil.copy(file, place / "a" / f"copy-{file.name}")
        shutil.copy(file, place / "b" / f"other-label-{file.name}")
    found = split(place)
    for number in range(40):
        assert found[f"a/{number:04}.jpg"] == found[f"a/copy-{number:04}.jpg"] == found[f"b/other-label-{number:04}.jpg"]


@pytest.mark.parametrize("start", range(0, 100, 20))
def test_small_classes(oneloop, tmp_path, start):
    """One image trains; of two, one trains and one validates; from three on, each split has one."""
    place = write_photos(tmp_path, {f"class {count}": count for count in range(1, 6)}, start)
    for flags, least in (
        ((), [(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)]),
        (("--validation", 0), [(1, 0, 0)] + [(1, 0, 1)] * 4),
    ):
        found = json.loads(oneloop("data", place, "--json", *flags)[1])["classes"]
        for count, wanted in enumerate(least, 1):
            has = [found[f"class {count}"][name] for name in SPLITS]
            assert sum(has) == count
            assert all(number >= least for number, least in zip(has, wanted, strict=True)), (count, has)
            if not wanted[1] and flags:
                assert has[1] == 0


def test_50_to_1_is_said_and_the_small_class_is_in_each_split(oneloop, tmp_path):
    place = write_photos(tmp_path, {"common": 250, "rare": 5})
    _, out, _ = oneloop("data", place)
    assert "imbalance: the largest class has 50 times the images of the smallest" in out
    found = json.loads(oneloop("data", place, "--json")[1])
    assert found["imbalance"] == 50
    assert all(found["classes"]["rare"][name] for name in SPLITS)
    (tmp_path / "common").rename(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "rare", tmp_path / "as rare")
    shutil.rmtree(tmp_path / "elsewhere")
    assert "imbalance" not in oneloop("data", place)[1]


@pytest.mark.parametrize(
    "flags", [("--test", 1), ("--validation", -0.1), ("--validation", 0.5, "--test", 0.5), ("--test", "nan")]
)
def test_fractions_that_leave_nothing_are_one_line(oneloop, tmp_path, flags):
    code, out, error = oneloop("data", write_photos(tmp_path, {"a": 2, "b": 1}), *flags)
    assert (code, out, error.count("\n")) == (2, "", 1)


# ------------------------------------------------------------------------------------------------------------- split.csv


def test_a_split_file_is_taken_as_it_is(split, tmp_path):
    place = write_photos(tmp_path / "set", {"a": 20, "猫, ünd": 20})
    first = split(place)
    sides = {path: SPLITS[number % 3] for number, path in enumerate(first)}
    assert sides != first
    lines = "".join(f'"{path}",{side}\n' for path, side in sides.items())
    (tmp_path / "mine.csv").write_text(f"path,split\n{lines}".replace("validation", "Val"))
    assert split(place, "--split", tmp_path / "mine.csv") == sides
    shutil.copy(tmp_path / "split.csv", tmp_path / "again.csv")
    assert split(place, "--split", tmp_path / "again.csv") == sides  # what is written can be read


def test_a_split_file_goes_before_the_folders(split, tmp_path):
    place = write_photos(tmp_path / "set", {"train/a": 1, "train/b": 1, "val/a": 2})
    (tmp_path / "mine.csv").write_text(
        "path,split\ntrain/a/0000.jpg,test\ntrain/b/0001.jpg,train\nval/a/0002.jpg,train\nval/a/0003.jpg,validation\n"
    )
    assert [*split(place, "--split", tmp_path / "mine.csv").values()] == ["test", "train", "train", "validation"]


def test_a_split_file_holds_for_a_set_with_bad_files(oneloop, tmp_path):
    place = write_photos(tmp_path / "set", {"a": 3, "b": 1})
    for _ in range(2):  # written with the bad file and without it
        assert oneloop("data", place, "--write-split", tmp_path / "mine.csv")[0] in (0, 4)
        (place / "a/0002.jpg").write_bytes(b"no image")
        code, out, _ = oneloop("data", place, "--split", tmp_path / "mine.csv", "--json")
        assert (code, json.loads(out)["images"]) == (4, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\na/0000.jpg,train\n", "a/0001.jpg and 1 more are not in"),
        ("path,split\na/0000.jpg,train\na/0001.jpg,test\n", "b/0002.jpg is not in"),
        ("path,split\na/0000.jpg,train\na/0001.jpg,test\nb/0002.jpg,test\nb.jpg,test\n", "b.jpg is in"),
        ("path,split\na/0000.jpg,later\n", "row 1 has the split 'later'; it takes train, validation or test"),
        ("path,split\na/0000.jpg,train\na/0000.jpg,test\n", "a/0000.jpg is in train and, in row 2, in test"),
        ("path,side\na/0000.jpg,train\n", "it needs the columns path and split; it has path, side"),
    ],
)
def test_a_wrong_split_file_is_one_line(oneloop, tmp_path, text, message):
    place = write_photos(tmp_path / "set", {"a": 2, "b": 1})
    (tmp_path / "mine.csv").write_text(text)
    code, out, error = oneloop("data", place, "--split", tmp_path / "mine.csv")
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert message in error


def test_a_split_of_files_that_are_no_longer_there_is_one_line(oneloop, tmp_path):
    place = write_photos(tmp_path / "set", {"a": 2, "b": 1})
    (place / "a/extra.jpg").write_bytes(jpeg(50))
    oneloop("data", place, "--write-split", tmp_path / "mine.csv")
    (place / "a/extra.jpg").unlink()
    code, _, error = oneloop("data", place, "--split", tmp_path / "mine.csv")
    assert (code, error) == (
        4,
        f"a/extra.jpg is in {tmp_path / 'mine.csv'}, not in {place}; a split file names each image once\n",
    )
