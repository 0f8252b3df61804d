"""Images that tables hold, in parquet files and on the hub: found, opened by row, read once."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from photos import jpeg, write_photos, write_table
from rich.progress import Progress
from servers import COMMIT, hub

from launch.sources.dataset_report import DatasetReport, dataset_report
from launch.sources.listing import Reading, open_image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """This test's own cache."""
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def surveyed(path: Path) -> DatasetReport:
    with Progress(disable=True) as bar:
        return dataset_report(path, Reading(), None, 0.1, 0.1, bar)


def contents(found: DatasetReport) -> dict[str, bytes]:
    """path -> what opening each image gives, in no order."""
    images = [*found.listing.images]
    random.Random(0).shuffle(images)
    read = {}
    for each in images:
        with open_image(found.listing, each) as file:
            read[each.path] = file.read()
    return read


def counts(found: dict, *columns: str) -> dict:
    return {name: tuple(row[column] for column in columns or ("images",)) for name, row in found["classes"].items()}


SPLITS = ("train", "validation", "test")
IMAGES = [jpeg(number) for number in range(12)]


# -------------------------------------------------------------------------------------------------------------- parquet files


@pytest.mark.parametrize("binary", [False, True], ids=["structs", "binary"])
def test_each_row_is_an_image_of_its_own(said, tmp_path, binary):
    table = write_table(tmp_path / "cats.parquet", IMAGES, ["x", "y"] * 6, binary=binary)
    assert counts(said(table)) == {"x": (6,), "y": (6,)}
    assert contents(surveyed(table)) == {f"cats.parquet#{number}": content for number, content in enumerate(IMAGES)}
    assert [each.label for each in surveyed(table).listing.images] == ["x", "y"] * 6


def test_control_other_rows_are_other_images(tmp_path):
    table = write_table(tmp_path / "cats.parquet", IMAGES[::-1], ["x", "y"] * 6)
    assert contents(surveyed(table)) == {f"cats.parquet#{number}": content for number, content in enumerate(IMAGES[::-1])}


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ([0, 1, 2] * 4, ("pear", "apple", "fig"), ["pear", "apple", "fig"]),  # in the order of the numbers
        ([0, 2, 2] * 4, ("pear", "apple", "fig"), ["pear", "fig"]),
        ([10, 9, 10] * 4, (), ["9", "10"]),
        (["pear", "apple", "fig"] * 4, (), ["apple", "fig", "pear"]),
        ([True, False, True] * 4, (), ["False", "True"]),
    ],
    ids=["ClassLabel", "unused name", "int", "string", "bool"],
)
def test_labels_are_names_numbers_or_text(said, tmp_path, labels, names, classes):
    assert list(said(write_table(tmp_path / "a.parquet", IMAGES, labels, names))["classes"]) == classes


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/valid/0000.parquet", "default/test/0000.parquet"),
        ("Train.parquet", "birds_val.parquet", "my-test-2.parquet"),
    ],
)
def test_a_folder_of_parquet_files_has_the_splits_of_their_names(said, tmp_path, train, validation, test):
    for name, start, end in ((train, 0, 6), (validation, 6, 9), (test, 9, 12)):
        write_table(tmp_path / "set" / name, IMAGES[start:end], ["x", "y", "x", "y", "x", "y"][: end - start])
    found = said(tmp_path / "set")
    assert counts(found, *SPLITS) == {"x": (3, 2, 2), "y": (3, 1, 1)}
    assert f"{test}#2" in contents(surveyed(tmp_path / "set"))


def test_shards_of_train_alone_are_split_by_content_as_a_folder_is(oneloop, said, tmp_path):
    images = [jpeg(number) for number in range(60)]
    for shard in (0, 1):
        part = images[30 * shard : 30 * (shard + 1)]
        write_table(tmp_path / f"set/data/train-0000{shard}-of-00002.parquet", part, ["x"] * 29 + ["y"])
    write_photos(tmp_path / "files", {"x": 60})
    (tmp_path / "files/y").mkdir()
    for number in (29, 59):
        (tmp_path / f"files/x/{number:04}.jpg").rename(tmp_path / f"files/y/{number:04}.jpg")
    sides = []
    for place in ("set", "files"):
        assert oneloop("data", tmp_path / place, "--write-split", tmp_path / "split.csv")[0] == 0
        rows = [line.split(",") for line in (tmp_path / "split.csv").read_text().splitlines()[1:]]
        sides.append({sha256: split for _, _, split, sha256 in rows})
    assert sides[0] == sides[1]
    assert {*sides[0].values()} == {*SPLITS}


def test_a_split_column_and_named_columns(said, cache, tmp_path):
    more = {"subset": ["train", "val", "test"] * 4, "kind": ["p", "q"] * 6}
    table = write_table(tmp_path / "train.parquet", IMAGES, ["x", "y"] * 6, **more)
    assert counts(said(table), *SPLITS) == {"x": (2, 2, 2), "y": (2, 2, 2)}
    (written,) = cache.glob("rows-*/*/*")
    assert list(said(table, "--columns", "label=kind")["classes"]) == ["p", "q"]
    assert written.exists()  # another process may be about to open it
    table.rename(tmp_path / "a.parquet")
    assert list(said(tmp_path / "a.parquet", "--columns", "image=img", "label=subset")["classes"]) == [
        "test", "train", "val",
    ]  # fmt: skip


def test_a_table_of_paths_may_have_thumbnails(said, tmp_path):
    write_photos(tmp_path, {"": 2}, start=50)
    paths = {"path": ["0050.jpg", "0051.jpg"]}
    table = write_table(tmp_path / "table.parquet", IMAGES[:2], ["x", "y"], binary=True, **paths)
    assert contents(surveyed(table)).keys() == {"table.parquet#0", "table.parquet#1"}
    assert said(table, "--columns", "image=path")["unit"] == "file"


def test_bad_rows_are_named_and_a_pipe_is_not_waited_for(oneloop, said, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "beside.jpg").write_bytes(IMAGES[0])
    rows = [IMAGES[1], None, b"", b"no image", (None, "gone.jpg"), (None, "pipe.jpg"), (None, "beside.jpg")]
    table = write_table(tmp_path / "a.parquet", rows, ["x"] * 6 + ["y"])
    assert {each["path"]: each["reason"] for each in said(table)["bad"]} == {
        "a.parquet#1": "no image in this row",
        "a.parquet#2": "empty file: 0 bytes",
        "a.parquet#3": "not an image in a format that Pillow reads",
        "a.parquet#4": "no image in this row",
        "a.parquet#5": f"cannot be read: {tmp_path}/pipe.jpg is not a file",
    }
    assert oneloop("data", table)[2] == f"{table}: 5 bad rows; repair or remove them\n"


def test_images_may_be_views_or_dictionaries_and_a_path_may_be_a_number(said, tmp_path):
    import pyarrow
    import pyarrow.parquet

    binary = pyarrow.array(IMAGES, pyarrow.binary())
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.int64()})
    numbered = pyarrow.array([{"bytes": each, "path": number} for number, each in enumerate(IMAGES[:-1])] + [{"path": 7}], kind)
    columns = {"view": binary.cast(pyarrow.binary_view()), "dictionary": binary.dictionary_encode(), "number": numbered}
    for name, images in columns.items():
        table = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"img": images, "label": ["x", "y"] * 6}), table)
        found = said(table)
        assert found["unit"] == "row"
        if name != "number":
            assert contents(surveyed(table)) == {f"{name}.parquet#{number}": content for number, content in enumerate(IMAGES)}
        else:
            assert (found["images"], found["bad"][0]["reason"]) == (11, "no image in this row")


def test_a_damaged_copy_of_an_image_can_be_deleted(oneloop, said, tmp_path, cache):
    import pyarrow
    import pyarrow.parquet

    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": IMAGES, "label": ["x", "y"] * 6}), table)
    assert said(table)["notes"] == []
    (copy,), (index,) = cache.rglob("*.arrow"), cache.rglob("*.jsonl")
    content = copy.read_bytes()
    copy.write_bytes(content.replace(IMAGES[0], bytes(len(IMAGES[0]))))
    index.unlink()
    (note,) = said(table)["notes"]
    whole = "if the bad rows are whole in the table, its copy in the cache is damaged"
    assert note == f"{whole}: oneloop data {table} --clear deletes it"
    assert oneloop("data", table, "--clear")[0] == 0
    assert (said(table)["bad"], copy.read_bytes()) == ([], content)


def test_images_without_bytes_are_paths_and_others_are_one_line(oneloop, said, tmp_path):
    import pyarrow
    import pyarrow.parquet

    for number, content in enumerate(IMAGES):
        (tmp_path / f"{number}.jpg").write_bytes(content)
    table, paths = tmp_path / "a.parquet", [f"{number}.jpg" for number in range(12)]
    for images in ([{"bytes": None, "path": path} for path in paths], [{"path": path} for path in paths]):
        pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": ["x", "y"] * 6}), table)
        assert counts(said(table)) == {"x": (6,), "y": (6,)}
    for images in ([{"bytes": {"bytes": each}} for each in IMAGES], [[each] for each in IMAGES]):
        pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": ["x", "y"] * 6}), table)
        code, out, error = oneloop("data", table)
        assert (code, out, error.count("\n")) == (4, "", 1)
        assert "the column holds no paths" in error


def test_columns_with_the_same_name_and_several_labels_are_one_line(oneloop, tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.jpg").write_bytes(IMAGES[0])
    bytes_, paths, labels = pyarrow.array(IMAGES[:2]), pyarrow.array(["a.jpg", "b.jpg"]), pyarrow.array(["x", "y"])
    lists = pyarrow.array([["x"], []])
    for arrays, names, message in (
        ([bytes_, labels, labels], ["img", "label", "label"], "several columns are called 'label'; rename all but one"),
        ([paths, labels, labels], ["path", "label", "label"], "2 columns are called 'label'; rename all but one"),
        ([bytes_, lists], ["img", "label"], "a.parquet row 1 has an empty list of labels, no row has several: --multi-label yes"),
        ([paths, lists], ["path", "label"], "row 2 has an empty list of labels, no row has several: --multi-label yes takes it"),
    ):
        pyarrow.parquet.write_table(pyarrow.table(arrays, names=names), tmp_path / "a.parquet")
        code, out, error = oneloop("data", tmp_path / "a.parquet")
        assert (code, out, error.count("\n")) == (4, "", 1)
        assert message in error


def test_labels_of_rows_that_say_the_same_are_one_class(said, tmp_path):
    table = write_table(tmp_path / "a.parquet", IMAGES[:4], ["cat", "cat ", "dog", "dog"])
    assert (counts(said(table)), said(table)["notes"]) == (
        {"cat": (2,), "dog": (2,)},
        ["blanks at the ends of labels are left out, as in a.parquet row 1: 'cat '"],
    )
    table = write_table(tmp_path / "b.parquet", IMAGES[:4], [0, 1, 1, 2], ("cat", "dog", "dog "))
    assert counts(said(table)) == {"cat": (1,), "dog": (3,)}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"mask": IMAGES}, 2, "which column is the image? Name it with --columns image=NAME; it has img, mask"),
        ({"label": None}, 2, "which column is the label? Name it with --columns label=NAME; it has no other than images"),
        ({"label": None, "text": ["t"] * 12}, 2, "which column is the label? Name it with --columns label=NAME; it has text"),
        ({"label": [0.5] * 12}, 4, "the column 'label' is double; labels are whole numbers or text"),
        ({"label": ["x"] * 11 + [None]}, 4, "a.parquet row 11 has nothing in the column 'label'; fill it or remove"),
        ({"label": [0] * 11 + [7], "names": ("x", "y")}, 4, "a.parquet has the label 7 (column 'label'); labels are 0 to 1"),
        ({"label": [-1] * 12, "names": ("x", "y")}, 4, "no images with a label in it (images of a.parquet without a label)"),
        ({"split": ["later"] * 12}, 4, "a.parquet row 0 has the split 'later' (column 'split'); it takes train, validation"),
    ],
)
def test_a_wrong_table_is_one_line(oneloop, tmp_path, options, code, message):
    import pyarrow.parquet

    labels = options.pop("label", ["x"] * 12)
    table = write_table(tmp_path / "a.parquet", IMAGES, labels or ["x"] * 12, options.pop("names", ()), **options)
    if labels is None:
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(table).drop_columns("label"), table)
    got, out, error = oneloop("data", table)
    assert (got, out, error.count("\n")) == (code, "", 1)
    assert message in error


def test_a_column_that_is_not_there_is_one_line(oneloop, tmp_path):
    table = write_table(tmp_path / "a.parquet", IMAGES, ["x"] * 12)
    for what in ("image", "label", "split"):
        said = f"{table}: no column 'brid'; its columns are img, label\n"
        assert oneloop("data", table, "--columns", f"{what}=brid")[::2] == (2, said)


def test_files_that_do_not_belong_together_are_one_line(oneloop, tmp_path):
    write_table(tmp_path / "set/train-0.parquet", IMAGES, ["x"] * 12)
    (tmp_path / "set/test-0.parquet").write_bytes(b"PAR1, or so it says")
    assert "test-0.parquet cannot be read as a table" in oneloop("data", tmp_path / "set")[2]
    write_table(tmp_path / "set/test-0.parquet", IMAGES, ["x"] * 12).rename(tmp_path / "set/more.parquet")
    write_table(tmp_path / "set/test-0.parquet", IMAGES, ["x"] * 12)
    code, out, error = oneloop("data", tmp_path / "set")
    assert (code, out, error.count("\n")) == (4, "", 1)
    assert "more.parquet has no split in its name, others do" in error


def test_a_table_is_rewritten_once_and_again_when_it_changes(oneloop, said, cache, tmp_path):
    table = write_table(tmp_path / "a.parquet", IMAGES[:6], ["x", "y"] * 3)
    first = said(table)
    (written,) = cache.glob("rows-*/*/*")
    before = written.stat()
    assert first.pop("examined") == {"opened": 6, "unchanged": 0}
    again = said(table)
    assert again.pop("examined") == {"opened": 0, "unchanged": 6}
    assert again == first
    assert written.stat() == before
    assert "0 rows opened, 6 known from before (checked: the size of each and the time of its table" in oneloop("data", table)[1]
    written.parent.with_suffix(".123.tmp").mkdir()  # as a kill leaves it
    write_table(table, IMAGES[6:], ["x", "y"] * 3)  # control: another table of this name
    assert said(table)["examined"]["opened"] == 6
    assert contents(surveyed(table)) == {f"a.parquet#{number}": content for number, content in enumerate(IMAGES[6:])}
    assert [*cache.glob("rows-*/*/*")] != [written]
    assert len([*cache.glob("rows-*/*/*")]) == 1
    assert oneloop("data", table, "--clear")[1].count("deleted ") == 2
    assert [path.suffix for path in cache.iterdir()] == [".lock"] * 2


def test_damaged_rows_are_rewritten(said, cache, tmp_path):
    table = write_table(tmp_path / "a.parquet", IMAGES, ["x", "y"] * 6)
    first = said(table)
    (written,) = cache.glob("rows-*/*/*")
    content = written.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff" * 200 + content[200:]):
        written.write_bytes(damaged)
        assert said(table)["classes"] == first["classes"]
        assert written.read_bytes() == content


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(oneloop, cache, tmp_path, monkeypatch):
    import pyarrow.ipc

    def full(self, *_):
        raise OSError(28, "No space left on device")

    table = write_table(tmp_path / "a.parquet", IMAGES, ["x", "y"] * 6)
    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.ipc.RecordBatchStreamWriter, "write_table", full)
        code, _, error = oneloop("data", table)
    assert (code, error) == (1, f"cannot write the cache {cache}: No space left on device; choose another with ONELOOP_CACHE\n")
    assert not [*cache.glob("rows-*/*")]
    assert oneloop("data", table)[0] == 0


def test_memory_does_not_hold_the_images(tmp_path):
    """A table of 60 MB costs a few: what is listed and known of each image, not its content."""
    big = [jpeg(number, width=24) + bytes(3_000_000) for number in range(20)]
    table = write_table(tmp_path / "a.parquet", big, ["x", "y"] * 10)
    code = (
        "import re, sys; from launch.commands import main\n"
        "def own(): return int(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1000\n"
        "import pyarrow.parquet, pyarrow.compute, rich.console; before = own(); main(['data', sys.argv[1]])\n"
        "print('grown', own() - before)\n"
    )
    shown = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, str(table)], cwd=ROOT, capture_output=True, text=True, check=True)
        shown.append(int(done.stdout.rpartition("grown ")[2]))
    assert shown[1] < 40, shown


# --------------------------------------------------------------------------------------------------------------------- the hub

ASK = """
import contextlib, io, json, sys
from launch.commands import main
said = []
for name in sys.argv[1:]:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(["data", name, "--json"])
    said.append((code, out.getvalue(), error.getvalue()))
assert "torch" not in sys.modules
print(json.dumps(said))
"""


def ask(place: Path, address: str, *names: str) -> list:
    """(code, what is said or None, error) of `oneloop data` for each data set, in one process of its own."""
    env = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(place / "hf")}
    done = subprocess.run([sys.executable, "-c", ASK, *names], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(code, json.loads(out) if out else None, error) for code, out, error in json.loads(done.stdout)]


def test_a_data_set_of_the_hub_is_downloaded_once_and_its_revision_is_kept(oneloop, said, cache, tmp_path, monkeypatch):
    for name, start, end in (("train", 0, 6), ("validation", 6, 9), ("test", 9, 12)):
        labels = [0, 1, 0, 1, 0, 1][: end - start]
        write_table(tmp_path / f"hub/data/{name}-00000-of-00001.parquet", IMAGES[start:end], labels, ("pear", "apple"))
    with hub(tmp_path / "hub", "me/fruit") as (address, requests):
        ((code, first, error),) = ask(tmp_path, address, "me/fruit")
        assert (code, error) == (0, "")
        assert requests
        del requests[:]
        monkeypatch.setattr("launch.sources.hub.ask", lambda *_: pytest.fail("asked again"))
        again = said("me/fruit")
        assert requests == []
    assert first.pop("examined") == {"opened": 12, "unchanged": 0}
    assert again.pop("examined") == {"opened": 0, "unchanged": 12}
    assert again == first
    assert counts(first, *SPLITS) == {"pear": (3, 2, 2), "apple": (3, 1, 1)}
    assert (first["source"], first["revision"]) == ("me/fruit", COMMIT)
    assert oneloop("data", "me/fruit")[1].startswith(f"me/fruit at revision {COMMIT}\n")
    found = contents(surveyed(Path("me/fruit")))
    assert [found[f"train#{number}"] for number in range(6)] == IMAGES[:6]
    assert [found[f"test#{number}"] for number in range(3)] == IMAGES[9:]
    out = oneloop("data", "me/fruit", "--clear")[1]
    assert out.count("deleted ") == 2
    assert [path.suffix for path in cache.iterdir()] == [".lock"] * 2


def test_any_image_data_set_of_the_hub(tmp_path):
    """Several configurations; only train; files instead of tables; a test without labels, a split of another name; none."""
    place = tmp_path / "hub/me"
    for config in "ab":
        write_table(place / f"two/{config}/train-00000-of-00001.parquet", IMAGES, [config, "c"] * 6)
    configs = [f"- config_name: {each}\n  data_files:\n  - split: train\n    path: {each}/train-*\n" for each in "ab"]
    (place / "two/README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    write_photos(place / "files", {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    for split, labels in (("train", [0, 1]), ("test", [-1, -1]), ("extra", [0, 1])):
        write_table(place / f"odd/data/{split}-00000-of-00001.parquet", IMAGES[:2], labels, ("x", "y"))
    (place / "odd/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {each}\n    path: data/{each}-*\n" for each in ("train", "test", "extra"))
        + "---\n"
    )
    names = ("me/two", "me/two:c", "me/two:b", "me/files", "me/odd", "me/nothing")
    with hub(tmp_path / "hub", "me/two", "me/files", "me/odd") as (address, _):
        unnamed, wrong, two, files, odd, nothing = ask(tmp_path, address, *names)
    assert unnamed == (2, None, "me/two has several configurations: choose one of a, b, as me/two:a\n")
    assert wrong == (2, None, "me/two has no configuration 'c': choose one of a, b, as me/two:a\n")
    assert counts(two[1]) == {"b": (6,), "c": (6,)}
    assert min(two[1]["splits"].values()) > 0
    assert counts(files[1], *SPLITS) == {"cat": (3, 0, 1), "dog": (2, 0, 1)}
    assert (counts(odd[1], *SPLITS), odd[1]["ignored"]) == (
        {"x": (1, 0, 0), "y": (1, 0, 0)},
        {"images of test without a label": 2, "split extra": 1},
    )
    assert nothing[0] == 1
    assert nothing[2].startswith(f"no folder or table me/nothing here; {address} has no data set 'me/nothing', or it is private")
    assert {each[2].count("\n") for each in (unnamed, wrong, nothing)} == {1}


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, cache):
    ((code, out, error),) = ask(tmp_path, "http://127.0.0.1:9", "me/fruit")
    assert (code, out, error.count("\n")) == (1, None, 1)
    assert "no folder or table me/fruit here; cannot download the data set 'me/fruit'" in error
    assert not [*cache.glob("*.json")]


def test_a_folder_here_is_not_looked_for_on_the_hub(said, tmp_path, monkeypatch):
    write_photos(tmp_path / "me/fruit", {"pear": 2, "fig": 1})
    monkeypatch.chdir(tmp_path)
    assert said("me/fruit")["source"] == str(tmp_path / "me/fruit")
