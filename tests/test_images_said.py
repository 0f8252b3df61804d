"""`oneloop data` says what a plain look at the same files says, in text, JSON and HTML; and forgets all of it when told."""

import base64
import csv
import io
import os
import re
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
from photos import jpeg, photo, write_bad, write_photos, write_table
from PIL import Image

from launch.sources import folder as folders


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows_of(table) -> list[dict]:
    return [*csv.DictReader(io.StringIO(table.read_text()))]


def sides_of(table) -> dict[str, str]:
    return {row["path"]: row["split"] for row in rows_of(table)}


def counts(found) -> dict[str, int]:
    return {name: row["images"] for name, row in found["classes"].items()}


@pytest.fixture
def place(tmp_path):
    """Classes of 24, 8 and 4 images of many sizes, two of them twice, three bad files."""
    folder = tmp_path / "photos"
    for number, (name, count) in enumerate({"ant": 24, "bee": 8, "cow": 4}.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            photo(100 * number + index, 20 + 3 * index, 60 - 2 * index).save(folder / name / f"{index:02}.png")
    shutil.copy(folder / "ant/00.png", folder / "ant/copy.png")
    shutil.copy(folder / "bee/00.png", folder / "cow/other.png")
    for name in ("ant/broken1.png", "ant/broken2.png", "cow/broken.png"):
        (folder / name).write_bytes(b"no image")
    (folder / "ant/notes.txt").write_text("seen in May")
    return folder


def test_what_is_said_is_what_a_plain_look_finds(said, oneloop, place):
    found = said(place)
    files = [path for path in sorted(place.rglob("*.png")) if "broken" not in path.name]
    sizes = []
    for path in files:
        with Image.open(path) as opened:
            sizes.append(opened.size)
    assert found["images"] == len(files) == 38
    assert {name: (row["images"], row["bad"]) for name, row in found["classes"].items()} == {
        "ant": (25, 2), "bee": (8, 0), "cow": (5, 1),
    }  # fmt: skip
    for name, row in found["classes"].items():
        assert row["train"] + row["validation"] + row["test"] == row["images"], name
        assert min(row["train"], row["validation"], row["test"]) >= 1
    for side in ("train", "validation", "test"):
        assert found["splits"][side] == sum(row[side] for row in found["classes"].values())
    assert found["imbalance"] == 5.0
    areas = sorted(sizes, key=lambda size: size[0] * size[1])
    assert (tuple(found["sizes"]["smallest"]), tuple(found["sizes"]["largest"])) == (areas[0], areas[-1])
    assert found["sizes"]["median"] == [int(statistics.median(size[axis] for size in sizes)) for axis in (0, 1)]
    cost = {"files": sum(path.stat().st_size for path in files), "decoded_224": 38 * 3 * 224 * 224}
    assert found["cost"] == cost | {"decoded_own_size": sum(3 * width * height for width, height in sizes)}
    assert found["duplicates"]["files"] == 2
    (twice,) = found["duplicates"]["across_classes"]
    assert {(each["path"], each["class"]) for each in twice} == {("bee/00.png", "bee"), ("cow/other.png", "cow")}
    assert found["duplicates"]["across_splits"] == []
    assert found["examined"] == {"opened": 41, "unchanged": 0}
    assert said(place)["examined"] == {"opened": 0, "unchanged": 41}
    assert found["ignored"] == {".txt": 1}
    code, out, error = oneloop("data", place)
    assert (code, "3 bad files; repair or remove them" in error) == (4, True)
    assert oneloop("data", place, "--json")[0] == 4
    assert "imbalance: the largest class has 5 times the images of the smallest" in out
    assert "duplicates: 2 files have the same content as another" in out
    assert "1 image is in several classes: one of the labels is wrong" in out
    assert "ignored: 1 .txt" in out


def test_a_folder_in_order_says_nothing_of_trouble(oneloop, tmp_path):
    write_photos(tmp_path / "photos", {"a": 20, "b": 20})
    code, out, error = oneloop("data", tmp_path / "photos")
    assert (code, error) == (0, "")
    for trouble in ("imbalance", "duplicates", "bad", "ignored", "without", "several", "no train", "no validation", "no test"):
        assert trouble not in out, trouble


def test_images_of_the_test_that_are_in_train_are_named(said, oneloop, tmp_path):
    write_photos(tmp_path / "photos", {f"{side}/{name}": 3 for side in ("train", "test") for name in "ab"})
    shutil.copy(tmp_path / "photos/train/a/0000.jpg", tmp_path / "photos/test/a/leak.jpg")
    (pair,) = said(tmp_path / "photos")["duplicates"]["across_splits"]
    assert {(each["path"], each["split"]) for each in pair} == {("train/a/0000.jpg", "train"), ("test/a/leak.jpg", "test")}
    out = oneloop("data", tmp_path / "photos")[1]
    assert "1 image is in several splits: what is measured there has been trained on" in out
    assert "no validation images" in out


def test_a_split_that_is_written_is_the_one_that_is_shown_and_trained_on(said, oneloop, tmp_path):
    write_photos(tmp_path / "photos", {"a": 40, "b": 40})
    table = tmp_path / "split.csv"
    found = said(tmp_path / "photos", "--write-split", table, "--validation", 0.3, "--test", 0.05)
    assert 12 <= found["splits"]["validation"] <= 38
    assert 2 <= found["splits"]["test"] <= 10
    rows = rows_of(table)
    assert {side: sum(row["split"] == side for row in rows) for side in found["splits"]} == found["splits"]
    for name in "ab":
        sides = {side: sum(row["split"] == side and row["label"] == name for row in rows) for side in found["splits"]}
        assert sides == {side: found["classes"][name][side] for side in found["splits"]}
    for row in rows:
        assert (tmp_path / "photos" / row["path"]).parent.name == row["label"]
    moved = rows[0]["path"]
    other = {"train": "test", "test": "train", "validation": "train"}[rows[0]["split"]]
    table.write_text(table.read_text().replace(f"{moved},a,{rows[0]['split']}", f"{moved},a,{other}"))
    again = said(tmp_path / "photos", "--split", table, "--write-split", tmp_path / "again.csv")
    assert again["splits"][other] == found["splits"][other] + 1
    assert sides_of(tmp_path / "again.csv")[moved] == other


def test_the_same_images_are_always_split_in_the_same_way(said, tmp_path):
    """By the sha256 of their content, as a fraction: whoever has them, and in whatever version, has the same test."""
    import hashlib

    write_photos(tmp_path / "photos", {"a": 60, "b": 60})
    table = tmp_path / "split.csv"
    said(tmp_path / "photos", "--write-split", table, "--validation", 0.2, "--test", 0.3)
    for row in rows_of(table):
        digest = hashlib.sha256((tmp_path / "photos" / row["path"]).read_bytes()).hexdigest()
        place = int(digest, 16) / 16**64
        assert row["sha256"] == digest
        assert row["split"] == ("train" if place < 0.5 else "validation" if place < 0.7 else "test")


def test_a_class_of_two_images_is_in_train_and_validation_and_nothing_is_split_off_if_not_asked(said, tmp_path):
    write_photos(tmp_path / "photos", {"a": 30, "b": 2, "c": 1, "d": 3})
    classes = said(tmp_path / "photos")["classes"]
    sides = {name: tuple(classes[name][side] for side in ("train", "validation", "test")) for name in "bcd"}
    assert sides == {"b": (1, 1, 0), "c": (1, 0, 0), "d": (1, 1, 1)}
    none = said(tmp_path / "photos", "--validation", 0, "--test", 0)
    assert none["splits"] == {"train": 36, "validation": 0, "test": 0}
    assert said(tmp_path / "photos", "--validation", 0)["splits"]["validation"] == 0


def test_bad_files_move_no_image_to_another_side(said, tmp_path):
    write_photos(tmp_path / "photos", {"a": 12, "b": 2, "c": 3})
    said(tmp_path / "photos", "--write-split", tmp_path / "one.csv")
    for number in range(60):
        (tmp_path / f"photos/{'bc'[number % 2]}/bad{number}.jpg").write_bytes(bytes([number]) * 50)
    said(tmp_path / "photos", "--write-split", tmp_path / "two.csv")
    assert sides_of(tmp_path / "two.csv") == sides_of(tmp_path / "one.csv")


def test_an_image_twice_in_a_class_counts_once_for_its_share(said, tmp_path):
    """Copies cannot move another image to another side."""
    write_photos(tmp_path / "photos", {"a": 12, "b": 3})
    said(tmp_path / "photos", "--write-split", tmp_path / "one.csv")
    for number in range(9):
        shutil.copy(tmp_path / "photos/b/0012.jpg", tmp_path / f"photos/b/copy{number}.jpg")
    said(tmp_path / "photos", "--write-split", tmp_path / "two.csv")
    one, two = (sides_of(tmp_path / f"{name}.csv") for name in ("one", "two"))
    assert {path: side for path, side in two.items() if "copy" not in path} == one
    assert {side for path, side in two.items() if "copy" in path} == {one["b/0012.jpg"]}


# ----------------------------------------------------------------------------------------------------------------- what is found


def test_the_order_of_the_disk_decides_nothing(said, tmp_path, monkeypatch):
    write_photos(tmp_path / "photos", {f"{name}/deep/er": 3 for name in ("b", "a", "c")})
    first, real = said(tmp_path / "photos", "--write-split", tmp_path / "one.csv"), os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def backwards(folder):
        with real(folder) as entries:
            return Backwards(sorted(entries, key=lambda entry: entry.name, reverse=True))

    with monkeypatch.context() as patched:
        patched.setattr(folders.os, "scandir", backwards)
        second = said(tmp_path / "photos", "--write-split", tmp_path / "two.csv")
    assert [*first["classes"]] == [*second["classes"]] == ["a", "b", "c"]
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_what_lies_beside_the_classes_is_no_class(said, tmp_path):
    write_photos(tmp_path / "photos", {"a": 4, "b": 4, "__pycache__": 2, "__MACOSX/a": 2, ".git": 2})
    photo(1).save(tmp_path / "photos/loose.png")
    found = said(tmp_path / "photos")
    assert [*found["classes"]] == ["a", "b"]
    assert found["images"] == 8
    assert found["ignored"] == {"hidden": 3, "images outside a class folder": 1}


def test_a_class_is_its_first_folder_however_deep_its_images_lie(said, tmp_path):
    write_photos(tmp_path / "one", {"a/2020/may": 3, "a/2021": 3, "b": 4})
    assert counts(said(tmp_path / "one")) == {"a": 6, "b": 4}
    for start, side in enumerate(("Train", "VALID", "test")):
        write_photos(tmp_path / "two", {f"{side}/{place}": 2 for place in ("a/x/y", "a/z", "b")}, start=100 * start)
    found = said(tmp_path / "two")
    assert counts(found) == {"a": 12, "b": 6}
    assert found["splits"] == {"train": 6, "validation": 6, "test": 6}


def test_images_are_known_by_their_endings_in_capitals_too(said, tmp_path):
    for number, name in enumerate(("a/one.JPG", "a/two.Jpeg", "b/three.PNG")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(tmp_path / "photos" / name, "PNG" if name.endswith("PNG") else "JPEG")
    assert counts(said(tmp_path / "photos")) == {"a": 2, "b": 1}


def test_a_link_to_a_folder_above_is_not_followed_for_ever(said, tmp_path):
    write_photos(tmp_path / "photos", {"a/b/c": 2, "d": 2})
    (tmp_path / "photos/a/b/c/up").symlink_to(tmp_path / "photos/a")
    found = said(tmp_path / "photos")
    assert (found["images"], found["ignored"]) == (4, {"link in a circle": 1})


def test_the_same_folder_by_another_name_is_known(said, tmp_path, monkeypatch):
    write_photos(tmp_path / "photos", {"a": 3, "b": 3})
    said(tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "./photos/../photos", "link"):
        assert said(name)["examined"]["opened"] == 0, name


def test_what_another_pillow_found_is_found_again(said, tmp_path, monkeypatch):
    write_photos(tmp_path / "photos", {"a": 3, "b": 3})
    said(tmp_path / "photos")
    assert said(tmp_path / "photos")["examined"] == {"opened": 0, "unchanged": 6}
    monkeypatch.setattr("PIL.__version__", "99.0")
    assert said(tmp_path / "photos")["examined"] == {"opened": 6, "unchanged": 0}


def test_two_large_files_that_begin_alike_are_no_duplicates(said, tmp_path):
    for name in "ab":
        (tmp_path / f"photos/{name}").mkdir(parents=True)
        image = photo(1, 200, 200)
        if name == "b":
            image.paste((0, 0, 0), (100, 0, 200, 10))  # which BMP has last
        image.save(tmp_path / f"photos/{name}/1.bmp")
    assert said(tmp_path / "photos")["duplicates"]["files"] == 0


# ------------------------------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("between", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_as_programs_write_it(said, tmp_path, between, mark, monkeypatch):
    """With any of the usual separators, with a byte order mark, from whatever folder the command runs in."""
    write_photos(tmp_path / "set/photos", {"": 6})
    rows = [("file", "label", "split")]
    for number in range(6):
        rows.append((f"photos/{number:04}.jpg", "ant" if number % 2 else "bee", "TRAIN" if number < 4 else "Test"))
    (tmp_path / "set/table.csv").write_text(mark + "\n".join(between.join(row) for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = said("set/table.csv")
    assert counts(found) == {"ant": 3, "bee": 3}
    assert found["splits"] == {"train": 4, "validation": 0, "test": 2}
    assert found["bad"] == []
    assert said("set/table.csv")["examined"]["opened"] == 0


def test_the_likeliest_column_is_taken_and_a_row_is_called_by_its_number(said, oneloop, tmp_path):
    write_photos(tmp_path, {"": 3})
    rows = [("name", "path", "y", "label"), ("x", "0000.jpg", "1", "a"), ("y", "0001.jpg", "2", "b"), ("z", "0002.jpg", "3", "a")]
    for order in (1, -1):  # whichever comes first
        (tmp_path / "table.csv").write_text("".join(",".join(row[::order]) + "\n" for row in rows))
        assert [*said(tmp_path / "table.csv")["classes"]] == ["a", "b"]
    (tmp_path / "table.csv").write_text("path,label\n0000.jpg,a\n0001.jpg,b\n0000.jpg,b\n")
    code, _, error = oneloop("data", tmp_path / "table.csv")
    assert (code, "row 3 names 0000.jpg again, after row 1" in error) == (4, True)
    (tmp_path / "table.csv").write_text("path,label\n0000.jpg,a\n0001.jpg,\n")
    assert "row 2 has nothing in the column 'label'" in oneloop("data", tmp_path / "table.csv")[2]


def test_a_column_of_splits_can_be_named(said, tmp_path):
    write_photos(tmp_path, {"": 4})
    rows = "".join(f"{number:04}.jpg,{'ab'[number % 2]},{'test' if number else 'train'}\n" for number in range(4))
    (tmp_path / "table.csv").write_text("path,label,where\n" + rows)
    assert said(tmp_path / "table.csv", "--columns", "split=where")["splits"] == {"train": 1, "validation": 0, "test": 3}


def parquet(place, splits=("train", "test"), names=("cat", "dog"), start=0):
    for number, name in enumerate(splits):
        first = start + 10 * number
        write_table(place / f"{name}.parquet", [jpeg(first + each) for each in range(4)], [0, 1, 0, 1], names)
    return place


def test_the_nearest_name_says_the_split_of_a_parquet_file(said, tmp_path):
    """The file's own, else that of the folder that it is in, else of one above."""
    parquet(tmp_path / "set/train/fold", ("test-00000", "data-1"))
    write_table(tmp_path / "set/train/val/part.parquet", [jpeg(90)], [1], ("cat", "dog"))
    write_table(tmp_path / "set/train/TEST/part.parquet", [jpeg(91), jpeg(92)], [1, 0], ("cat", "dog"))
    assert said(tmp_path / "set")["splits"] == {"train": 4, "validation": 1, "test": 6}


def test_other_columns_of_a_table_are_other_data(said, tmp_path):
    images, more = [jpeg(number) for number in range(4)], ["x", "x", "y", "z"]
    write_table(tmp_path / "set.parquet", images, ["a", "b", "a", "b"], other=more)
    assert counts(said(tmp_path / "set.parquet")) == {"a": 2, "b": 2}
    assert counts(said(tmp_path / "set.parquet", "--columns", "label=other")) == {"x": 2, "y": 1, "z": 1}


def test_a_table_that_changed_but_not_in_size_is_read_again(said, tmp_path):
    images, found, sizes = [jpeg(1), jpeg(2), jpeg(3)], [], set()
    for second, labels in enumerate((["a", "a", "b"], ["b", "b", "a"])):
        file = write_table(tmp_path / "set.parquet", images, labels)
        os.utime(file, ns=(10**18, 10**18 + second * 10**9))
        sizes.add(file.stat().st_size)
        found.append(counts(said(tmp_path / "set.parquet")))
    assert (found, len(sizes)) == ([{"a": 2, "b": 1}, {"a": 1, "b": 2}], 1)


def test_parquet_files_of_train_alone_are_split_and_a_file_without_a_split_among_others_is_named(said, oneloop, tmp_path):
    for number in range(2):
        images = [jpeg(40 * number + each) for each in range(30)]
        write_table(tmp_path / f"one/train-0000{number}.parquet", images, ["a", "b"] * 15)
    splits = said(tmp_path / "one")["splits"]
    assert sum(splits.values()) == 60
    assert min(splits.values()) >= 2
    parquet(tmp_path / "two", ("train", "test", "more"))
    code, _, error = oneloop("data", tmp_path / "two")
    assert (code, "more.parquet has no split in its name, others do" in error) == (4, True)


def test_a_column_of_splits_counts_unless_the_files_say_them(said, tmp_path):
    """In capitals, too."""
    sides = ["Train", "TRAIN", "Valid", "test"]
    write_table(tmp_path / "one.parquet", [jpeg(number) for number in range(4)], [*"abab"], split=sides)
    assert said(tmp_path / "one.parquet")["splits"] == {"train": 2, "validation": 1, "test": 1}
    for start, name in enumerate(("train", "test")):
        images = [jpeg(10 * start + number) for number in range(4)]
        write_table(tmp_path / f"two/{name}.parquet", images, [*"abab"], split=["north", "south", "north", "train"])
    assert said(tmp_path / "two")["splits"] == {"train": 4, "validation": 0, "test": 4}


def test_another_image_of_as_many_bytes_is_examined_again(said, tmp_path):
    def bmp(shade) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(file, "BMP")
        return file.getvalue()

    found = []
    for last in (30, 31):
        file = write_table(tmp_path / "set.parquet", [bmp(10), bmp(20), bmp(last)], [*"aba"])
        os.utime(file, ns=(10**18, 10**18 + last * 10**9))
        said(tmp_path / "set.parquet", "--write-split", tmp_path / "split.csv")
        found.append([row["sha256"] for row in rows_of(tmp_path / "split.csv")])
    assert [one == two for one, two in zip(*found, strict=True)] == [True, True, False]


def test_classes_are_in_the_order_of_the_table_and_a_secret_label_is_none(said, tmp_path):
    for place, (name, labels) in enumerate({"train": [1, 0, 2, 1], "val": [1, 0], "test": [-1, -1, -1]}.items()):
        images = [jpeg(10 * place + number) for number in range(len(labels))]
        write_table(tmp_path / f"set/{name}.parquet", images, labels, ("zebra", "ant", "bee", "cow"))
    found = said(tmp_path / "set")
    assert [*found["classes"]] == ["zebra", "ant", "bee"]
    assert found["splits"] == {"train": 4, "validation": 2, "test": 0}
    assert found["ignored"] == {"images of test.parquet without a label": 3}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(split=number of images, …): what the hub has of any data set; the list has what was asked for."""
    import pyarrow
    import pyarrow.ipc

    asked = []

    def hub(**splits):
        found = {}
        for start, (name, count) in enumerate(splits.items()):
            images = [{"bytes": jpeg(1000 * start + number), "path": None} for number in range(count)]
            table = pyarrow.table({"image": images, "label": ["ant" if number % 2 else "bee" for number in range(count)]})
            file = tmp_path / f"hub-{name}.arrow"
            with pyarrow.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
            found[name] = SimpleNamespace(cache_files=[{"filename": str(file)}])
        monkeypatch.setattr("launch.sources.hub.ask", lambda name: asked.append(name) or SimpleNamespace(revision="0123abcd"))
        monkeypatch.setattr("launch.sources.hub.download", lambda *_: found)

    hub.asked = asked
    return hub


def test_a_data_set_of_the_hub_is_asked_for_once_and_its_splits_are_used(said, oneloop, hub):
    hub(train=6, validation=2, test=3, extra=5)
    found = said("someone/animals")
    assert found["splits"] == {"train": 6, "validation": 2, "test": 3}
    assert (found["revision"], found["ignored"]) == ("0123abcd", {"split extra": 1})
    assert said("someone/animals")["images"] == 11
    assert hub.asked == ["someone/animals"]
    assert oneloop("data", "someone/animals", "--clear")[0] == 0
    said("someone/animals")
    assert hub.asked == ["someone/animals"] * 2


@pytest.mark.parametrize("only", ["train", "full"])
def test_a_data_set_of_the_hub_with_one_split_is_split(said, hub, only):
    hub(**{only: 60})
    splits = said("someone/animals")["splits"]
    assert sum(splits.values()) == 60
    assert min(splits.values()) >= 2


def test_a_data_set_of_the_hub_that_says_no_split_is_one_line(oneloop, hub):
    hub(north=3, south=3)
    code, _, error = oneloop("data", "someone/animals")
    assert (code, "its splits are north, south; none is called train, validation or test" in error) == (4, True)


# -------------------------------------------------------------------------------------------------------------------- the page


def test_the_page_has_its_numbers_and_images_of_each_class_from_all_of_it(oneloop, tmp_path):
    """The images get brighter by their names: those that are shown reach from the first to the last."""
    for name, high, count in (("a", 255, 30), ("b", 120, 40)):
        (tmp_path / f"photos/{name}").mkdir(parents=True)
        for index in range(count):
            shade = high * index // (count - 1)
            image = Image.new("RGB", (90, 30), (255 - shade, 0, 0))
            image.paste((shade, shade, shade), (30, 0, 60, 30))  # the middle, which is shown
            image.save(tmp_path / f"photos/{name}/{index:02}.png")
    write_bad(tmp_path / "photos/b")
    (tmp_path / "photos/b/lost.jpg").unlink()
    (tmp_path / "photos/a/notes.txt").write_text("")
    oneloop("data", tmp_path / "photos", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    shades = []
    for each in re.findall(r"data:image/jpeg;base64,([^\"]+)", page):
        red, green, blue = Image.open(io.BytesIO(base64.b64decode(each))).resize((1, 1)).getpixel((0, 0))
        assert max(red, green, blue) - min(red, green, blue) < 30  # grey: nothing of the edges
        shades.append(green)
    shades = shades[:20]  # after them, those that are there twice
    assert len(shades) == 20
    for few, high in ((shades[:10], 255), (shades[10:], 120)):  # in the order of the classes
        assert few == sorted(few)
        assert (few[0] < high * 0.1, few[-1] > high * 0.85) == (True, True)
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    for said in ("70 images", "2 classes", "8 bad files"):
        number, _, what = said.partition(" ")
        assert said in words or f"{what} {number}" in words, said


def test_what_is_known_of_a_folder_is_deleted_when_told(said, oneloop, tmp_path, cache, monkeypatch):
    import torch

    from launch import sources
    from launch.data.disk_feed import DiskFeed
    from launch.data.resize import ResizeRule

    folder = write_photos(tmp_path / "photos", {f"{side}/{name}": 3 for side in ("train", "test") for name in "ab"})
    images = sources.custom(str(folder), ResizeRule(8, 10))
    DiskFeed(images.train, images.mean, images.std, torch.device("cpu")).batch(torch.arange(3))
    kept = {path.name for path in cache.iterdir() if path.is_file() and path.stat().st_size and "lock" not in path.name}
    kept = {name for name in kept if not name.startswith("native")}  # the store's compiled part
    assert len(kept) == 3  # what was examined, the pixels and their index
    code, out, _ = oneloop("data", folder, "--clear")
    assert (code, out.count("deleted ")) == (0, 3)
    assert not kept & {path.name for path in cache.iterdir()}
    assert oneloop("data", folder, "--clear")[1].startswith("the cache holds nothing of ")
