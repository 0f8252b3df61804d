"""Data sets as their publishers ship them are read rightly, or refused with the command that is right."""

import csv
import io
import json
import shlex
import tarfile

import layouts
import numpy as np
import pytest
from conftest import ROOT
from layout_folders import FOLDERS
from layout_labels import LABELS
from layout_tables import TABLES
from photos import jpeg, write_photos

ALL = [*FOLDERS, *TABLES, *LABELS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)
def test_a_replica_is_read_as_its_publisher_means_it(oneloop, tmp_path, layout):
    data = layouts.write(layout, tmp_path / "data")
    if layout.name.startswith("UTF-16"):
        rows = [f"images/{n:03}.jpg\t{layouts.CD[n % 2]}" for n in range(6)]
        data.write_text("\n".join(["path\tlabel", *rows]), encoding="utf-16")
    if layout.refused:
        code, out, error = oneloop("data", data)
        assert (code, out, error.count("\n")) == (layout.code, "", 1), error
        assert layout.refused in error
        if not layout.flags:
            return
        assert " ".join(map(shlex.quote, layout.flags)).split("=")[0] in error  # what is advised is what is right
    code, out, error = oneloop("data", data, *layout.flags, "--write-split", tmp_path / "split.csv")
    assert code == 0, error
    with open(tmp_path / "split.csv", newline="") as file:
        rows = {row["path"]: (row["label"], row["split"]) for row in csv.DictReader(file)}
    truth = {path: label for path, label in layout.truth.items() if label}
    assert {path: label for path, (label, _) in rows.items()} == {path: label for path, (label, _) in truth.items()}
    if all(split for _, split in truth.values()):
        assert rows == truth
    if layout.left_out:
        assert sum(int(word) for word in counts_of(out)) >= layout.left_out, out
    assert layout.says in out, out


def counts_of(out: str) -> list[str]:
    """The numbers of images that were ignored."""
    line = next((line for line in out.splitlines() if line.startswith("ignored: ")), "")
    return [part.split()[0] for part in line.removeprefix("ignored: ").split(", ") if "images" in part]


def test_there_are_many_layouts():
    assert len({layout.name for layout in ALL}) == len(ALL) >= 70


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.jpg": 1, "a/2.jpg": 2, "b/1.jpg": 3}, "c/9.jpg: no such file"),  # of which most are there
    ],
)
def test_an_image_of_a_publishers_list_that_is_not_there_is_named(oneloop, tmp_path, files, message):
    for path, number in files.items():
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).write_bytes(layouts.image(number))
    (tmp_path / "train.txt").write_text("a/1.jpg\nb/1.jpg\nc/9.jpg\n")
    (tmp_path / "test.txt").write_text("a/2.jpg\n")
    code, out, _ = oneloop("data", tmp_path)
    assert code == 4
    assert message in out


def images(place, names):
    for number, name in enumerate(names):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(layouts.image(number))


def test_a_table_whose_files_are_there_in_part_is_not_searched_for_the_rest(oneloop, tmp_path):
    """Another file of that name, elsewhere, would be another image."""
    images(tmp_path, ["1.jpg", "2.jpg", "b/3.jpg"])
    (tmp_path / "t.csv").write_text("path,label\n1.jpg,x\n2.jpg,y\n3.jpg,y\n")
    code, out, _ = oneloop("data", tmp_path / "t.csv")
    assert code == 4
    assert "  3.jpg: no such file" in out


@pytest.mark.parametrize(
    ("head", "row", "message"),
    [
        ("image_id,dx,diagnosis", "0,x,y", "which column is the label? Name it with --columns label=NAME"),
        ("a,b,c", "images/0.jpg,x,y", "which column is the label? Name it with --columns label=NAME"),
        ("path,left,right", "images/0.jpg,0,0", "row 1 has no ones: correct it, or --multi-label yes"),
        ("path,label,fold", "images/0.jpg,x,3", "which fold validates cannot be known"),
        ("path,label,is_valid", "images/0.jpg,x,perhaps", "row 1 has the split 'perhaps' (column 'is_valid')"),
    ],
)
def test_where_two_readings_are_possible_the_flag_is_named(oneloop, tmp_path, head, row, message):
    images(tmp_path, ["images/0.jpg"])
    (tmp_path / "t.csv").write_text(f"{head}\n{row}\n")
    code, out, error = oneloop("data", tmp_path / "t.csv")
    assert (code in (2, 4), out, error.count("\n")) == (True, "", 1)
    assert message in error


def grouped(place, count=60, size=3):
    """A table of `count` images, `size` of each patient, all of one class."""
    images(place, [f"{number:03}.jpg" for number in range(count)])
    rows = [f"{number:03}.jpg,{'xy'[number // size % 2]},p{number // size}" for number in range(count)]
    (place / "t.csv").write_text("\n".join(["path,label,patient", *rows]) + "\n")
    return place / "t.csv"


def sides(oneloop, table, *flags):
    """patient -> the sides that its images are on."""
    out = table.with_name("split.csv")
    code, said, error = oneloop("data", table, *flags, "--write-split", out)
    assert code == 0, error
    found = {}
    with open(out, newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(int(row["path"][:3]) // 3, set()).add(row["split"])
    return found, said


def test_a_group_is_on_one_side(oneloop, tmp_path):
    table = grouped(tmp_path)
    apart, said = sides(oneloop, table)
    assert any(len(each) > 1 for each in apart.values())  # control
    assert "patient has 20 values for 60 images: --group patient keeps those of one on one side" in said
    together, said = sides(oneloop, table, "--group", "patient")
    assert all(len(each) == 1 for each in together.values())
    assert {"train", "validation", "test"} == {side for each in together.values() for side in each}
    assert "each of 20 groups is on one side" in said


def test_further_groups_move_none_of_the_others(oneloop, tmp_path):
    before, _ = sides(oneloop, grouped(tmp_path, count=600), "--group", "patient")
    after, _ = sides(oneloop, grouped(tmp_path, count=660), "--group", "patient")
    assert before == {patient: after[patient] for patient in before}


def test_groups_with_an_image_in_common_are_one(oneloop, tmp_path):
    table = grouped(tmp_path, count=12)
    (tmp_path / "003.jpg").write_bytes((tmp_path / "000.jpg").read_bytes())
    found, _ = sides(oneloop, table, "--group", "patient")
    assert found[0] == found[1]


def test_groups_that_a_given_split_takes_apart_are_said_and_mended_in_what_is_written(oneloop, tmp_path):
    table = grouped(tmp_path, count=12)
    rows = table.read_text().splitlines()
    given = [rows[0] + ",split", *(f"{row},{'test' if number % 3 == 2 else 'train'}" for number, row in enumerate(rows[1:]))]
    table.write_text("\n".join(given) + "\n")
    found, said = sides(oneloop, table, "--group", "patient")
    assert "4 groups are in several splits, as p0: the split that is there is used as it is" in said
    assert all(each == {"test"} for each in found.values())


def test_a_group_needs_a_table(oneloop, tmp_path):
    images(tmp_path, ["a/0.jpg", "b/1.jpg"])
    code, _, error = oneloop("data", tmp_path, "--group", "patient")
    assert (code, error.count("\n")) == (2, 1)
    assert "--group patient names a column, and a folder has none" in error


def test_the_last_line_is_the_command_that_trains_as_it_was_shown(oneloop, tmp_path):
    table = grouped(tmp_path)
    last = oneloop("data", table, "--group", "patient", "--test", 0.2)[1].splitlines()[-1]
    assert last == f"to train on them: oneloop train custom --data {table} --test 0.2 --group patient"


def shard(file, kind, numbers):
    """WebDataset's tar shard of images and their labels, as .cls or in .json."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for number in numbers:
            label = str(number % 2) if kind == "cls" else json.dumps({"label": layouts.CD[number % 2], "width": 4})
            for suffix, content in (("jpg", jpeg(number)), (kind, label.encode())):
                entry = tarfile.TarInfo(f"{number:06}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


@pytest.mark.filterwarnings("ignore")  # of datasets 5.2
def test_webdataset_shards_are_read_in_place(said, tmp_path, monkeypatch):
    shard(tmp_path / "set/train-000000.tar", "cls", range(6))
    shard(tmp_path / "set/val-000000.tar", "cls", range(6, 10))
    summary = said(tmp_path / "set")
    assert {name: (row["train"], row["validation"]) for name, row in summary["classes"].items()} == {"0": (3, 2), "1": (3, 2)}
    shard(tmp_path / "json/shard-0.tar", "json", range(8))
    assert {name: row["images"] for name, row in said(tmp_path / "json")["classes"].items()} == {"cat": 4, "dog": 4}


def test_medmnists_arrays_are_read_in_place(oneloop, said, tmp_path):
    arrays = {}
    for seed, (part, count) in enumerate({"train": 8, "val": 4, "test": 4}.items()):
        arrays[f"{part}_images"] = np.random.default_rng(seed).integers(0, 256, (count, 9, 7, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 2
    np.savez(tmp_path / "m.npz", **arrays)
    summary = said(tmp_path / "m.npz")
    assert {name: (row["train"], row["validation"], row["test"]) for name, row in summary["classes"].items()} == {
        "0": (4, 2, 2),
        "1": (4, 2, 2),
    }
    assert summary["sizes"]["median"] == [7, 9]
    for change, message in (
        ({"train_labels": np.full((8, 3), 2)}, "expected a whole number for each image, or 0 and 1 for each of its labels"),
        ({"test_labels": np.ones((4, 3), int)}, "the test labels are (4, 3), others are not of that kind"),
        ({"train_images": np.zeros((8, 9, 7, 2), np.uint8)}, "expected uint8 (n, h, w) or (n, h, w, 3)"),
        ({"train_labels": np.array([None] * 8)}, "cannot be read"),  # which only unpickling could
    ):
        np.savez(tmp_path / "m.npz", **arrays | change)
        code, out, error = oneloop("data", tmp_path / "m.npz")
        assert (code, out, error.count("\n")) == (4, "", 1)
        assert message in error


@pytest.mark.parametrize("page", ["layouts.md", "layouts.zh-CN.md"])
def test_the_page_has_each_layout(page):
    text = (ROOT / "docs" / page).read_text()
    assert [layout.name for layout in ALL if f"\n| {layout.name} |" not in text] == []
    assert all(layout.rule in text for layout in ALL if page == "layouts.md")
    custom = (ROOT / "docs" / page.replace("layouts", "custom")).read_text()
    assert f"{len(ALL)} " in custom


def tried(oneloop, tmp_path, counts: dict[str, int], *flags) -> tuple[int, str, str]:
    """What `oneloop data` says of a folder with so many images in each place."""
    return oneloop("data", write_photos(tmp_path / "data", counts), *flags)


def test_two_folders_of_one_part_of_a_split_are_said(oneloop, tmp_path):
    counts = {f"{part}/{name}": 2 for part in ("train", "val", "validation") for name in "ab"}
    code, out, _ = tried(oneloop, tmp_path, counts)
    assert (code, "val/ and validation/ are all read as validation images" in out) == (0, True), out
    code, out, _ = oneloop("data", write_photos(tmp_path / "one", {f"{part}/{n}": 2 for part in ("train", "val") for n in "ab"}))
    assert (code, "are all read" in out) == (0, False), out


def test_doubled_wrappers_of_two_versions_are_no_classes(oneloop, tmp_path):
    """casting_data/casting_data/train/…, test/… beside casting_512x512/casting_512x512/<class>/, as Kaggle unpacks them."""
    counts = {f"small/small/{part}/{name}": 2 for part in ("train", "test") for name in ("ok", "bad")}
    code, _, error = tried(oneloop, tmp_path, counts | {"large/large/ok": 2, "large/large/bad": 2})
    assert (code, "the class small would have a split inside" in error, "small/small" in error) == (4, True, True), error
    code, out, _ = oneloop("data", write_photos(tmp_path / "classes", {"cat/cat": 3, "dog/dog": 3}))
    assert (code, "6 images, 2 classes" in out) == (0, True), out


def test_folders_inside_all_classes_are_said(oneloop, tmp_path):
    code, out, _ = tried(oneloop, tmp_path, {"left/open": 3, "left/closed": 3, "right/open": 3})
    assert (code, "--classes-at 2 makes them the classes" in out) == (0, True), out


def test_a_class_without_a_training_or_test_image_is_named_and_no_training_advised(oneloop, tmp_path):
    counts = {"train/cat": 2, "train/dog": 2, "test/cat": 2}
    code, out, _ = tried(oneloop, tmp_path, counts)
    assert (code, "no test images of dog: every class needs at least one" in out, "to train on them" in out) == (0, True, False)
    write_photos(tmp_path / "data", {"test/dog": 2, "test/fox": 2}, start=50)
    out = oneloop("data", tmp_path / "data")[1]
    assert ("no test images" in out, "no train images of fox: every" in out, "to train on them" in out) == (False, True, False)
    write_photos(tmp_path / "data", {"train/fox": 2}, start=90)
    assert "to train on them" in oneloop("data", tmp_path / "data")[1]


def test_columns_that_a_folder_has_no_use_for_are_said(oneloop, tmp_path):
    code, out, _ = tried(oneloop, tmp_path, {"cat": 3, "dog": 3}, "--columns", "label=species")
    assert (code, "columns are not used (label=species): the folders are the classes" in out) == (0, True), out


def test_a_column_that_says_the_split_is_taken_whatever_it_is_called(oneloop, tmp_path):
    write_photos(tmp_path, {"images": 12})
    sides = ["train"] * 8 + ["valid", "valid", "test", "test"]
    rows = [f"images/{n:04}.jpg,{'ab'[n % 2]},{side}" for n, side in enumerate(sides)]
    table = tmp_path / "sports.csv"
    table.write_text("\n".join(["filepaths,labels,data set", *rows]))
    code, out, _ = oneloop("data", table)
    assert (code, "8 train, 2 validation, 2 test" in out) == (0, True), out
    assert "split of the column data set: test test, train train, valid validation" in out
    vehicles = [row.rsplit(",", 1)[0] + "," + ("train", "car")[n % 2] for n, row in enumerate(rows)]  # a word that is no part
    table.write_text("\n".join(["filepaths,labels,shown", *vehicles]))
    code, out, _ = oneloop("data", table)
    assert (code, "columns that are not used: shown" in out, "split of the column" in out) == (0, True, False), out


def test_of_several_tables_that_of_the_training_is_proposed(oneloop, tmp_path):
    write_photos(tmp_path / "data", {"images": 6})
    for part in ("test", "train"):
        rows = [f"{n:04}.jpg,{'ab'[n % 2]}" for n in range(6)]
        (tmp_path / "data" / f"{part}.csv").write_text("\n".join(["filename,label", *rows]))
    code, _, error = oneloop("data", tmp_path / "data")
    assert (code, error.strip().endswith("data/train.csv")) == (4, True), error


def test_a_table_called_train_takes_ids_that_are_in_test_too_from_train(oneloop, tmp_path):
    for part in ("train", "test"):
        for number in range(6):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / f"{number}.jpg").write_bytes(jpeg(number + 10 * (part == "test")))
    text = "id,breed\n" + "".join(f"{number},{'ab'[number % 2]}\n" for number in range(6))
    (tmp_path / "train.csv").write_text(text)
    code, out, _ = oneloop("data", tmp_path / "train.csv", "--write-split", tmp_path / "split.csv")
    assert code == 0
    assert "found by the ends of their paths: 0 is train/0.jpg" in out
    assert "train/5.jpg" in (tmp_path / "split.csv").read_text()
    (tmp_path / "labels.csv").write_text(text)  # control: its name says nothing
    code, _, error = oneloop("data", tmp_path / "labels.csv")
    assert (code, "could be" in error) == (4, True)


def test_lists_that_name_an_image_twice_are_said_or_refused(oneloop, tmp_path):
    place = write_photos(tmp_path / "images", {"a": 4, "b": 4}).parent
    names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*.*"))
    lists = {"train.txt": names[::2], "test.txt": names[1::2]}
    for name, lines in lists.items():
        (place / name).write_text("\n".join([*lines, lines[0]]))
    code, out, _ = oneloop("data", place)
    assert (code, "the lists name 2 images again, which are there once" in out) == (0, True)


def test_metadata_that_is_not_the_hubs_is_said_to_be_unused(oneloop, tmp_path):
    place = write_photos(tmp_path / "set", {"001.Auk": 3, "002.Tern": 3})
    (place / "metadata.csv").write_text("img_id,img_filename,y,split,place\n1,001.Auk/0.jpg,0,0,land\n")
    code, out, _ = oneloop("data", place)
    assert code == 0
    assert f"metadata.csv is not used: it has no columns file_name and label; --data {place / 'metadata.csv'} reads it" in out


def test_a_launch_file_for_gpus_without_one_is_one_line(oneloop, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, error = oneloop("train", "--config_file", "launch/gpus.yaml", "cifar2")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "gpus.yaml is for GPUs, and torch sees none here; launch/cpus.yaml" in error
