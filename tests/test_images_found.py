"""Images that `oneloop data` finds at a path: class folders, split or not, tables; and files that it passes over."""

import csv
import json
import os

import pytest
from photos import jpeg, write_photos


@pytest.fixture
def said(oneloop):
    """said(path, flags…) -> what `oneloop data --json` prints, of images that are all good."""

    def said(*args) -> dict:
        code, out, error = oneloop("data", *args, "--json")
        assert (code, error) == (0, "")
        return json.loads(out)

    return said


def counts(found: dict, *columns: str) -> dict:
    return {name: tuple(row[column] for column in columns or ("images",)) for name, row in found["classes"].items()}


SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
def test_splits_that_exist_are_used(said, tmp_path, validation):
    places = {"train/cat": 3, "train/dog": 2, f"{validation}/cat": 1, f"{validation}/dog": 2, "test/dog": 1}
    found = said(write_photos(tmp_path / "set", places))
    assert counts(found, *SPLITS) == {"cat": (3, 1, 0), "dog": (2, 2, 1)}


def test_a_split_that_lacks_a_side_is_used_as_it_is_and_said(oneloop, said, tmp_path):
    place = write_photos(tmp_path, {"train/cat": 2, "train/dog": 1, "val/cat": 2})
    assert counts(said(place), *SPLITS) == {"cat": (2, 2, 0), "dog": (1, 0, 0)}
    assert "\nno test images\n" in oneloop("data", place)[1]
    write_photos(place, {"test/cat": 1}, start=50)
    assert "\nno test images\n" not in oneloop("data", place)[1]


@pytest.mark.parametrize(("folder", "code"), [("labels", 0), ("cats", 1)])
def test_images_beside_a_table_are_its_own_only_in_a_folder_for_tables(oneloop, tmp_path, folder, code):
    """Beside another folder may lie images of other data, called alike."""
    write_photos(tmp_path, {"images/cat": 12, "images/dog": 12})
    rows = [f"{path.name},{path.parent.name}\n" for path in (tmp_path / "images").rglob("*.jpg")]
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "train.csv").write_text("path,label\n" + "".join(rows))
    ended, out, error = oneloop("data", tmp_path / folder / "train.csv")
    assert (ended, "24 images" in out) == (code, code == 0), error


def test_a_folder_without_a_split_is_split(said, tmp_path):
    found = said(write_photos(tmp_path / "set", {"cat": 12, "dog": 12}))
    assert counts(found) == {"cat": (12,), "dog": (12,)}
    assert all(count for row in counts(found, *SPLITS).values() for count in row)
    alone = said(write_photos(tmp_path / "alone", {"train/cat": 12, "train/dog": 12}))  # nothing to measure on: split as well
    assert counts(alone, *SPLITS) == counts(found, *SPLITS)


def test_a_class_may_be_called_train(said, tmp_path):
    assert counts(said(write_photos(tmp_path / "one", {"train": 2, "bus": 1}))) == {"bus": (1,), "train": (2,)}
    deep = write_photos(tmp_path / "two", {"train/steam": 2, "train": 1, "bus/red": 1})
    assert counts(said(deep)) == {"bus": (1,), "train": (3,)}


def test_the_class_is_the_first_folder(said, tmp_path):
    places = {"cat/2024/may": 2, "cat": 1, "dog/2024": 1, "10": 1, "9": 1}
    assert counts(said(write_photos(tmp_path / "set", places))) == {"10": (1,), "9": (1,), "cat": (3,), "dog": (1,)}
    split = write_photos(tmp_path / "split", {"train/cat/2024/may": 2, "train/dog": 1, "test/cat": 1})
    assert counts(said(split)) == {"cat": (3,), "dog": (1,)}


def test_classes_that_are_numbers_are_in_their_order(said, tmp_path):
    assert list(said(write_photos(tmp_path, {"10": 1, "9": 1, "0": 1}))["classes"]) == ["0", "9", "10"]


def test_any_names_and_links_in_a_circle(said, tmp_path):
    place = write_photos(tmp_path / "my photos [1]*", {"猫 und Hund": 2, "naïve/Ångström x": 1})
    (place / "naïve/round").symlink_to(place)
    (place / "naïve/self").symlink_to(place / "naïve/self")
    write_photos(tmp_path / "elsewhere", {".": 3}, start=50)
    (place / "linked").symlink_to(tmp_path / "elsewhere")
    odd = os.fsencode(place / "naïve") + b"/caf\xe9.jpg"
    with open(odd, "wb") as file:
        file.write(jpeg(99))
    found = said(place)
    assert counts(found) == {"linked": (3,), "naïve": (2,), "猫 und Hund": (2,)}
    assert found["ignored"] == {"link in a circle": 1, "broken link": 1}
    assert said(place)["examined"] == {"opened": 0, "unchanged": 7}


def test_what_is_not_an_image_is_counted_by_kind(said, tmp_path):
    places = {"train/cat": 1, "test/cat": 1, "test/cow": 1, "train": 2, "unlabelled": 1, "train/.thumbs": 3}
    place = write_photos(tmp_path, places, start=1)
    for name in ("train/cat/a.txt", "train/cat/b.TXT", "train/cat/README", "test/cat/.DS_Store", "labels.csv"):
        (place / name).write_text("no image")
    (place / "train/dog").mkdir()
    (place / "train/__MACOSX").mkdir()
    found = said(place)
    assert counts(found) == {"cat": (2,), "cow": (1,)}
    assert found["ignored"] == {
        ".txt": 2, "no extension": 1, "hidden": 3, ".csv": 1, "images outside a class folder": 2,
        "images without a class in unlabelled/": 1, "class folders without images": 1,
    }  # fmt: skip


def test_the_order_of_files_on_disk_does_not_matter(oneloop, tmp_path):
    write_photos(tmp_path / "one", {"b": 3, "a": 3})
    names = sorted((tmp_path / "one").rglob("*.jpg"), reverse=True)
    for file in names:
        copy = tmp_path / "two" / file.relative_to(tmp_path / "one")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    written = []
    for place in ("one", "two"):
        assert oneloop("data", tmp_path / place, "--write-split", tmp_path / f"{place}.csv")[0] == 0
        written.append((tmp_path / f"{place}.csv").read_text())
    assert written[0] == written[1]
    paths = [row["path"] for row in csv.DictReader(written[0].splitlines())]
    assert paths == sorted(paths)
    assert len(paths) == 6


@pytest.mark.parametrize("kind", ["comma", "semicolon", "tab", "parquet"])
@pytest.mark.parametrize("with_split", [True, False], ids=["split", "unsplit"])
def test_a_table_of_paths_and_labels(said, tmp_path, kind, with_split):
    write_photos(tmp_path / "pics, all", {"": 4})
    rows = [
        ("Filename", "class", "subset"),
        *((f"pics, all/000{i}.jpg", "xy"[i % 2], ["train", "val", "test", "train"][i]) for i in range(4)),
    ]
    rows = [row if with_split else row[:2] for row in rows]
    table = tmp_path / ("table.parquet" if kind == "parquet" else "table.csv")
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))), table)
    else:
        with open(table, "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, delimiter={"comma": ",", "semicolon": ";", "tab": "\t"}[kind]).writerows(rows)
    found = said(table)
    assert counts(found) == {"x": (2,), "y": (2,)}
    if with_split:
        assert counts(found, *SPLITS) == {"x": (1, 0, 1), "y": (1, 1, 0)}


def test_columns_can_be_named(said, oneloop, tmp_path):
    write_photos(tmp_path, {"": 2})
    table = tmp_path / "table.csv"
    table.write_text("path,where,label,bird\nx.jpg,0000.jpg,1,owl\ny.jpg,0001.jpg,1,crow\n")
    assert counts(said(table, "--columns", "image=where", "label=bird")) == {"crow": (1,), "owl": (1,)}
    code, _, error = oneloop("data", table, "--columns", "label=brid")
    assert (code, error) == (2, f"{table}: no column 'brid'; its columns are path, where, label, bird\n")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("a,b\n1,2\n", 2, "which column is the image? Name it with --columns image=NAME; it has a, b"),
        ("path,label\n0000.jpg,\n", 4, "row 1 has nothing in the column 'label'; fill it or remove the row"),
        ("path,label\n0000.jpg,x\n,y\n", 4, "row 2 has nothing in the column 'path'; fill it or remove the row"),
        ("path,label,split\n0000.jpg,x,later\n", 4, "row 1 has the split 'later' (column 'split'); it takes train, validation"),
        ("path,label\n0000.jpg,x,y\n", 4, "row 1 has 3 values for 2 columns"),
        ("path,label\n0000.jpg,x\n0000.jpg,y\n", 4, "row 2 names 0000.jpg again, after row 1; its labels belong into one row"),
        ("path,label\n", 1, "the table has no rows"),
        ("", 1, "the table has no rows"),
        ("path,label\n['0000.jpg'],x\n", 4, "the column holds no paths"),
    ],
)
def test_a_wrong_table_is_one_line(oneloop, tmp_path, text, code, message):
    write_photos(tmp_path, {"": 1})
    (tmp_path / "table.csv").write_text(text)
    got, out, error = oneloop("data", tmp_path / "table.csv")
    assert (got, out, error.count("\n")) == (code, "", 1)
    assert message in error


def test_a_path_without_images_is_one_line(oneloop, tmp_path):
    (tmp_path / "empty").mkdir()
    write_photos(tmp_path / "flat", {"": 2})
    (tmp_path / "notes.pdf").write_text("")
    (tmp_path / "bad.parquet").write_text("no parquet")
    for name, code, message in (
        ("empty", 1, "no images in it; name a folder"),
        ("flat", 4, "no class folders; put the images of each class into a folder of its own"),
        ("notes.pdf", 1, "not a folder, a table or an archive"),
        ("nowhere", 1, "no such folder or table"),
        ("bad.parquet", 1, "cannot be read as a table"),
    ):
        got, out, error = oneloop("data", tmp_path / name)
        assert (got, out, error.count("\n")) == (code, "", 1)
        assert message in error


# ------------------------------------------------------------------------------------------------ folders that are no classes


def written(place, files: str):
    """Images at `files`, as in "train/cat train/dog test": one in each folder, two where it is a class."""
    return write_photos(place, {each: 2 for each in files.split()})


@pytest.mark.parametrize(
    ("files", "why", "right"),
    [
        ("train/cat train/dog extra", "train would be a class and is called like", "train' (classes cat, dog)"),
        ("train test", "test, train would be", ""),
        ("cat dog test", "test would be a class", ""),
        ("photo/cat photo/dog sketch/cat sketch/dog", "same folders, cat, dog: which", "photo' (classes cat, dog)"),
        ("amazon/images/cup amazon/images/pen dslr/images/cup dslr/images/pen", "same folders, cup, pen", "amazon/images'"),
        ("train/cat train/dog test/unknown", "unknown in test would be a class without a training", "train' (classes cat, dog)"),
        ("cat dog more/cat more/dog", "more would be a class and has folders called like other classes, cat, dog", "more'"),
        ("cells/a cells/b cells/cells/a cells/cells/b", "has folders called like other classes", "cells/cells' (classes a, b)"),
        ("p1/0 p1/1 p2/0 p2/1 p3/0", "mostly have the same folders, 0, 1: which are the classes?", "p1' (classes 0, 1)"),
        ("fold1/a fold1/b fold2/a fold2/c fold3/b fold3/c", "the same folders, a, b, c: which", "fold1' (classes a, b)"),
        ("CUB/images/auk CUB/images/owl masks/auk masks/owl", "the same folders, auk, owl", "CUB/images' (classes auk, owl)"),
        ("images annotations/trimaps", "annotations, images would be classes and are called like images and what is drawn", ""),
        ("JPEGImages SegmentationClass SegmentationObject", "are called like images and what is drawn on them", ""),
        ("sick/images sick/masks well/images well/masks", "if the first are the classes, move the images out", ""),
    ],
)  # fmt: skip
def test_folders_that_may_be_no_classes_are_refused_with_what_is_right(oneloop, tmp_path, files, why, right):
    place = written(tmp_path / "my set", files)
    code, out, error = oneloop("data", place)
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert error.startswith(f"{place}: ")
    assert why in error
    if not right:
        assert "put the images of each class into a folder of its own" in error
        return
    assert f"--data '{place}/{right}" in error
    named = error.partition("--data '")[2].partition("'")[0]
    assert oneloop("data", named)[0] == 0  # what is advised is accepted


@pytest.mark.parametrize(
    "files",
    [
        "car plane train", "car/a car/b train/c train/d", "car bullet_train train_station test_tube", "valid invalid",
        "tester trainer", "cat/images dog/images", "cat/2023 dog/2024", "cat/front cat dog/front dog", "__none__ cat",
        "train/car train/train test/car test/train", "train/cat train/dog val/cat val/dog test",
        "train/cat train/dog test/cat test/cow", "set1 set2", "data images",
        "with_mask without_mask", "cat/2020 cat/2021 dog/2021 dog/2022", "cat/cat dog/dog",
        "a/abbey a/airport b/beach/in b/beach/out", "b/s1/near b/s1/far m/s2/near m/s2/far",
    ],
)  # fmt: skip
def test_control_classes_with_names_like_those_are_classes(said, tmp_path, files):
    split = files.startswith("train/")
    wanted = {each.split("/")[split] for each in files.split() if "/" in each or not split}
    assert {*said(written(tmp_path, files))["classes"]} == wanted


@pytest.mark.parametrize(
    ("files", "splits", "note"),
    [
        ("train/cat train/dog test", None, ""),
        ("TRAIN/cat TRAIN/dog val", None, ""),
        ("data/train/cat data/train/dog", None, "the classes are in data/"),
        ("data/train/cat data/train/dog data/test", None, "the classes are in data/"),
        ("a/b/train/cat a/b/train/dog a/b/val/cat", (4, 2, 0), "the classes are in a/b/"),
        ("training_set/cat training_set/dog test_set/cat test_set/dog", (4, 0, 4), "test_set/ test, training_set/ train"),
        ("train2017/cat train2017/dog val2017/cat", (4, 2, 0), "read as a split: train2017/ train, val2017/ validation"),
        ("s_train/s_train/cat s_train/s_train/dog s_test/s_test/cat s_pred/s_pred", (4, 0, 2), "s_train/s_train/"),
        ("trainImages/cat trainImages/dog TestImages/cat", (4, 0, 2), "TestImages/ test, trainImages/ train"),
        ("train/cat train/dog dev/cat dev/dog", (4, 4, 0), "dev/ validation, train/ train"),
        ("pets-train/cat pets-train/dog pets-holdout/cat", (4, 0, 2), "pets-holdout/ test, pets-train/ train"),
        ("train/train/cat train/train/dog test/test", None, "read from"),
        ("cat/train cat/test dog/train dog/test", (4, 0, 4), "each class has its split inside: test, train"),
    ],
)
def test_folders_around_the_classes_and_other_names_of_a_split_are_read_and_said(said, tmp_path, files, splits, note):
    summary = said(written(tmp_path / "my set", files))
    assert {*summary["classes"]} == {"cat", "dog"}
    assert note in " ".join(summary["notes"])
    if splits:
        assert (*summary["splits"].values(),) == splits
    else:
        assert summary["images"] == 4


def test_a_class_of_folders_is_not_taken_apart_and_is_said(said, tmp_path):
    summary = said(write_photos(tmp_path, {"cats/lion": 2, "cats/puma": 2, "dogs/wolf": 2}))
    assert counts(summary) == {"cats": (4,), "dogs": (2,)}
    assert "--classes-at 2 makes them the classes" in " ".join(summary["notes"])
    assert counts(said(tmp_path, "--classes-at", 2)) == {"lion": (2,), "puma": (2,), "wolf": (2,)}


def test_a_class_in_the_names_of_files(oneloop, said, tmp_path):
    for name in ("cat_1", "cat_2", "great_dane_1", "great_dane_2", "cover"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(len(name) * ord(name[-1])))
    summary = said(tmp_path, "--label-from", "^(.+)_[0-9]+$")
    assert counts(summary) == {"cat": (2,), "great_dane": (2,)}
    assert summary["ignored"] == {"images whose name does not match": 1}
    for flags, message in (
        (("--label-from", "^dog"), "has no group: put the class into brackets"),
        (("--label-from", "^(dog)"), "matches no name, such as cat_1.jpg"),
        (("--label-from", "("), "--label-from (: missing"),
        (("--classes-at", 3), "--classes-at 3 is below all images"),
    ):
        code, out, error = oneloop("data", tmp_path, *flags)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert message in error


def test_a_table_beside_the_images_is_named(oneloop, said, tmp_path):
    place = written(tmp_path, "train test")
    (place / "train/labels.csv").write_text("file_name,label\n0000.jpg,x\n0001.jpg,y\n")
    assert f"if a table says the classes, name it: --data {place}/train/labels.csv" in oneloop("data", place)[2]
    assert oneloop("data", place / "train/labels.csv")[0] == 0
    error = oneloop("data", place / "train")[2]  # the images and their table in one folder
    assert error == f"{place}/train: no class folders; if a table says the classes, name it: --data {place}/train/labels.csv\n"
    for name, numbers in (("train", (0, 1)), ("test", (2, 3))):
        rows = "".join(f"{number:04}.jpg,{label}\n" for number, label in zip(numbers, "xy", strict=True))
        (place / f"{name}/metadata.csv").write_text(f"file_name,label\n{rows}")
    assert counts(said(place), "train", "test") == {"x": (1, 1), "y": (1, 1)}


def test_a_table_of_one_class_is_refused(oneloop, tmp_path):
    write_photos(tmp_path, {"": 2})
    (tmp_path / "table.csv").write_text("path,label\n0000.jpg,x\n0001.jpg,x\n")
    said = f"{tmp_path}/table.csv: one class, x; a net tells at least two apart\n"
    assert oneloop("data", tmp_path / "table.csv") == (4, "", said)


# --------------------------------------------------------------------------------------------- one class written in two ways


def table_of(place, labels, head="path,label", **more):
    """A table of photographs with these labels."""
    write_photos(place, {"": len(labels)})
    with open(place / "table.csv", "w", newline="", **more) as file:
        file.write(f"{head}\n" + "".join(f"{number:04}.jpg,{label}\n" for number, label in enumerate(labels)))
    return place / "table.csv"


@pytest.mark.parametrize(
    ("labels", "classes", "note"),
    [
        (["cat", "cat ", "dog", "dog\u00a0"], {"cat": (2,), "dog": (2,)}, "left out, as in row 2: 'cat '"),
        (["1", "1.0", "0", "0."], {"0": (2,), "1": (2,)}, "numbers that are the same are one class: 1 = 1.0, 0 = 0."),
        (["2.0", "10.0", "3.0"], {"10.0": (1,), "2.0": (1,), "3.0": (1,)}, None),
        (["1.1", "1.2", "1"], {"1": (1,), "1.1": (1,), "1.2": (1,)}, None),
        (["caf\u00e9", "cafe\u0301", "bar"], {"bar": (1,), "caf\u00e9": (2,)}, r"one class: 'caf\xe9' = 'cafe\u0301'"),
        (["Cat", "cat", "dog"], {"Cat": (1,), "cat": (1,), "dog": (1,)}, "classes that differ in capitals only: Cat and cat"),
        (["ice bear", "ice_bear"], {"ice bear": (1,), "ice_bear": (1,)}, "hyphens or forms of letters only: ice bear and"),
        (["None", "dog"], {"None": (1,), "dog": (1,)}, "None is taken as a class: remove its rows if it stands for no label"),
        (["1", "-1"], {"-1": (1,), "1": (1,)}, None),
        (["-", "dog"], {"-": (1,), "dog": (1,)}, "- is taken as a class: remove its rows if it stands for no label"),
        (["cat", "dog", "cat dog"], {"cat": (1,), "cat dog": (1,), "dog": (1,)}, "cat dog is taken as a class of its own"),
        (["cat", "dog", "cattle"], {"cat": (1,), "cattle": (1,), "dog": (1,)}, None),
    ],
)  # fmt: skip
def test_labels_that_say_the_same_are_one_class_and_it_is_said(oneloop, said, tmp_path, labels, classes, note):
    table = table_of(tmp_path, labels, encoding="utf-8")
    found = said(table)
    assert counts(found) == classes
    if note is None:
        assert found["notes"] == []
        return
    (line,) = found["notes"]
    assert note in line
    assert f"\n{line}\n" in oneloop("data", table)[1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "nan", "dog"], "row 2 has the label 'nan', which stands for no label; fill it or remove the row"),
        (["cat", "<NA>", "dog"], "row 2 has the label '<NA>', which stands for no label"),
        (["cat", "  ", "dog"], "row 2 has nothing in the column 'label'"),
        (["01", "1", "2"], "the labels '01' (row 1) and '1' (row 2) are the same number; write it in one way"),
        (["1.50", "2", "1.5"], "the labels '1.5' (row 3) and '1.50' (row 1) are the same number"),
        (["rose", "rose|red"], "row 2 has the label 'rose|red': several labels, it seems; --multi-label yes takes it as"),
        (["a", "['b' 'c']"], "several labels, it seems"),
        (["a", "b;c"], "several labels, it seems"),
        (["red", "rose + red", "rose"], "row 2 has the label 'rose + red', others 'rose' and 'red': several labels, it seems"),
        (["a", "caf\udce9"], "row 2 has the label 'caf\\udce9', which is not UTF-8; save the table as UTF-8"),
    ],
)
def test_labels_that_are_none_or_several_are_refused_by_row(oneloop, tmp_path, labels, message):
    table = table_of(tmp_path, labels, encoding="utf-8", errors="surrogateescape")
    code, out, error = oneloop("data", table)
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert message in error


def test_folders_that_look_the_same_are_one_class(oneloop, said, tmp_path):
    place = write_photos(tmp_path, {"caf\u00e9": 2, "cafe\u0301": 1, "bar": 1, "Bar": 1, "pub ": 1})
    assert counts(said(place)) == {"bar": (1,), "Bar": (1,), "caf\u00e9": (3,), "pub": (1,)}
    out = oneloop("data", place)[1]
    assert "folders that look the same are one class: 'cafe\\u0301' = 'caf\\xe9'\n" in out
    assert "classes that differ in capitals only: Bar and bar\n" in out
    assert oneloop("data", write_photos(tmp_path / "one", {"caf\u00e9": 2, "cafe\u0301": 1}))[0] == 4


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("path,label,label\n0000.jpg,x,y\n", 4, "2 columns are called 'label'; rename all but one"),
        ("path,label, Label\n0000.jpg,x,y\n", 2, "the label? Name it with --columns label=NAME; it has path, label"),
        ("path,split,Split,label\n0000.jpg,test,train,y\n", 2, "which column is the split?"),
        ("path,cat,dog\n0000.jpg,1,0\n0001.jpg,0,0\n", 4, "and row 2 has no ones: correct it, or --multi-label yes trains on"),
        ("path,label\na\\00000.jpg,x\n", 1, "a\\00000.jpg; its paths are relative to its folder, below which no file has such"),
        ("path,label\na.jpg,x\nb.jpg,y\n", 1, "none of the files that it names is there, such as"),
        ("path,label\nPK\0\0,x\n", 1, "it is no text in UTF-8; save it as CSV in UTF-8"),
        ("PK\3\4\0\0,x\n", 1, "it is no text in UTF-8; save it as CSV in UTF-8"),
        (f"path,label\n0000.jpg,x\n{'a' * 5000}.jpg,y\n", 4, "1 bad file; repair or remove them"),
        (f"path,label\n{'a/' * 2500}.jpg,y\n", 1, "none of the files that it names is there"),
    ],
)  # fmt: skip
def test_a_table_with_columns_or_paths_that_are_not_meant_is_one_line(oneloop, tmp_path, text, code, message):
    write_photos(tmp_path, {"": 2})
    (tmp_path / "table.csv").write_text(text)
    got, _, error = oneloop("data", tmp_path / "table.csv")
    assert (got, error.count("\n")) == (code, 1)
    assert message in error


def test_header_cells_and_utf_16_and_long_labels(said, tmp_path):
    table = table_of(tmp_path, [" cat", " dog"], "path, label")
    assert (counts(said(table)), said(table)["notes"]) == ({"cat": (1,), "dog": (1,)}, [])
    for encoding in ("utf-16", "utf-8-sig"):
        table_of(tmp_path, ["猫", "dog", "dog"], " path ,label", encoding=encoding)
        assert counts(said(table)) == {"dog": (2,), "猫": (1,)}
    table_of(tmp_path, ["7" * 5000, "8" * 5000])
    assert [*said(table)["classes"]] == ["7" * 5000, "8" * 5000]
    table.write_text("path,label,is_valid\n0000.jpg,x,1\n0001.jpg,y,0\n")
    assert said(table)["notes"] == ["split of the column is_valid: 0 train, 1 validation"]
    assert said(table, "--split-column", "none")["notes"] == ["columns that are not used: is_valid"]


@pytest.mark.parametrize("path", ["a" * 5000, "a/" * 3000, "a\0b"], ids=["name", "path", "zero"])
def test_a_path_that_cannot_be_one_is_one_line(oneloop, path):
    code, out, error = oneloop("data", path)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert len(error) < 200


def test_only_files_are_opened(oneloop, tmp_path):
    """Not a pipe, which never ends, nor a device, in a table, as a table, or in a folder."""
    write_photos(tmp_path, {"a": 1, "b": 1})
    for name in ("pipe.jpg", "a/pipe.jpg", "pipe.csv", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "a/zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "table.csv").write_text("path,label\na/0000.jpg,x\npipe.jpg,y\n/dev/zero,x\n/dev/tty,y\n")
    code, out, _ = oneloop("data", tmp_path / "table.csv")
    assert code == 4
    assert (
        out.count("/dev/zero is not a file\n")
        == out.count("/pipe.jpg is not a file\n")
        == out.count("/dev/tty is not a file\n")
        == 1
    )
    for name in ("pipe.csv", "pipe.parquet"):
        assert oneloop("data", tmp_path / name)[::2] == (1, f"{tmp_path / name} is not a file or folder\n")
    for name in ("pipe.csv", "/dev/zero"):
        code, _, error = oneloop("data", tmp_path, "--split", tmp_path / name)
        assert (code, error.count("\n")) == (1, 1)
        assert "is not a file" in error
    assert "5 special" in oneloop("data", tmp_path)[1]
