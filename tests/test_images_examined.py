"""Each file is opened once: bad ones are named with the reason, and what is known is used until a file changes."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from photos import BAD, jpeg, photo, write_bad, write_photos
from PIL import Image

from launch.data.image_file import read_image
from launch.errors import Refused


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """This test's own cache."""
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_kind_of_bad_file_is_named_with_its_reason_and_class(oneloop, said, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    place = write_photos(tmp_path / "set", {"cat": 4, "dog": 3})
    write_bad(place / "dog")
    code, out, error = oneloop("data", place)
    assert code == 4
    assert error == f"{place}: 9 bad files; repair or remove them\n"
    for name, reason in BAD.items():
        assert f"  dog/{name}: {reason}\n" in out
    found = said(place)
    assert {each["path"]: each["reason"] for each in found["bad"]} == {f"dog/{name}": reason for name, reason in BAD.items()}
    assert (found["classes"]["cat"]["bad"], found["classes"]["dog"]["bad"], found["classes"]["dog"]["images"]) == (0, 9, 3)
    assert found["images"] == 7


def test_a_table_names_missing_files_and_those_that_you_may_not_read(said, tmp_path):
    write_photos(tmp_path, {"": 1})
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "table.csv").write_text("path,label\n0000.jpg,x\ngone.jpg,x\nfolder.jpg,y\n")
    reasons = {each["path"]: each["reason"] for each in said(tmp_path / "table.csv")["bad"]}
    assert reasons == {"gone.jpg": "no such file", "folder.jpg": "cannot be read: Is a directory"}
    write_photos(tmp_path, {"": 1}, start=5)
    (tmp_path / "0005.jpg").rename(tmp_path / "gone.jpg")
    assert [each["path"] for each in said(tmp_path / "table.csv")["bad"]] == ["folder.jpg"]  # looked at again


def test_bad_is_what_training_cannot_decode(said, tmp_path):
    """Cut at any place, progressive or not: examined at an eighth of its size, and decoded in full, alike."""
    contents = [jpeg(3, width=90, height=70)]
    file = io.BytesIO()
    photo(4, 90, 70).save(file, "JPEG", progressive=True, quality=90)
    contents.append(file.getvalue())
    (tmp_path / "cut").mkdir()
    for kind, content in enumerate(contents):
        for end in (*range(10, len(content), len(content) // 25), len(content) - 2, len(content) - 1, len(content)):
            (tmp_path / f"cut/{kind}-{end:05}.jpg").write_bytes(content[:end])
    write_photos(tmp_path, {"whole": 1})
    bad = {tmp_path / each["path"] for each in said(tmp_path)["bad"]}
    for path in (tmp_path / "cut").iterdir():
        try:
            read_image(path, (3, 8, 8))
            assert path not in bad
        except Refused:
            assert path in bad
    assert 20 < len(bad) < len([*(tmp_path / "cut").iterdir()])


def test_size_and_mode_are_those_of_the_decoded_image(said, tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    photo(1, 30, 20).save(tmp_path / "set/a/turned.jpg", exif=exif)
    photo(2, 30, 20).save(tmp_path / "set/a/turned.png", exif=exif)
    photo(3, 20, 30).convert("CMYK").save(tmp_path / "set/a/inks.jpg")
    photo(4, 20, 30).quantize(16).save(tmp_path / "set/a/palette.png")
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(30, 20)).save(tmp_path / "set/a/deep.png")
    photo(5, 20, 30).convert("RGBA").save(tmp_path / "set/a/clear.png")
    (tmp_path / "set/b").mkdir()
    (tmp_path / "set/a/clear.png").rename(tmp_path / "set/b/clear.png")
    found = said(tmp_path / "set")
    assert found["sizes"] == {"smallest": [20, 30], "median": [20, 30], "largest": [20, 30]}
    assert found["modes"] == {"RGB": 2, "CMYK": 1, "P": 1, "I;16": 1, "RGBA": 1}
    assert found["cost"]["decoded_224"] == 6 * 3 * 224 * 224
    assert found["cost"]["decoded_own_size"] == 6 * 3 * 20 * 30
    assert found["cost"]["files"] == sum(path.stat().st_size for path in (tmp_path / "set").glob("*/*"))


def test_sizes_are_smallest_median_and_largest_by_area(said, tmp_path):
    for number in range(3):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
    for number, (width, height) in enumerate(((100, 9), (40, 40), (20, 20))):
        (tmp_path / f"{'ab'[number % 2]}/{number}.jpg").write_bytes(jpeg(number, width=width, height=height))
    assert said(tmp_path)["sizes"] == {"smallest": [20, 20], "median": [40, 20], "largest": [40, 40]}


def test_of_an_animated_file_the_first_frame_is_used_and_said(oneloop, said, tmp_path):
    write_photos(tmp_path / "set", {"a": 1, "b": 1})
    frames = [photo(number).convert("P") for number in range(3)]
    frames[0].save(tmp_path / "set/a/moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "set/a/still.gif")
    assert said(tmp_path / "set")["first_frame_only"] == ["a/moving.gif"]
    assert "of 1 with several frames, the first is used: a/moving.gif" in oneloop("data", tmp_path / "set")[1]
    content = (tmp_path / "set/a/moving.gif").read_bytes()
    frames[0].save(tmp_path / "set/a/still.gif")
    for end in range((tmp_path / "set/a/still.gif").stat().st_size, len(content), 40):  # a later frame is cut off
        (tmp_path / "set/a/moving.gif").write_bytes(content[:end])
        assert not said(tmp_path / "set")["bad"]


def test_duplicates_are_counted_and_named_where_labels_or_splits_differ(oneloop, said, tmp_path):
    place = write_photos(tmp_path / "set", {"train/cat": 3, "train/dog": 2, "test/cat": 2, "test/dog": 2})
    shutil.copy(place / "train/cat/0000.jpg", place / "train/cat/again.jpg")
    shutil.copy(place / "train/cat/0001.jpg", place / "train/dog/wrong.jpg")
    shutil.copy(place / "train/dog/0003.jpg", place / "test/dog/seen.jpg")
    found = said(place)["duplicates"]
    assert found["files"] == 3
    assert found["across_classes"] == [
        [{"path": "train/cat/0001.jpg", "class": "cat"}, {"path": "train/dog/wrong.jpg", "class": "dog"}]
    ]
    assert found["across_splits"] == [
        [{"path": "test/dog/seen.jpg", "split": "test"}, {"path": "train/dog/0003.jpg", "split": "train"}]
    ]
    _, out, _ = oneloop("data", place)
    assert "duplicates: 3 files have the same content as another" in out
    assert "  train/cat/0001.jpg (cat) = train/dog/wrong.jpg (dog)\n" in out
    assert "  test/dog/seen.jpg (test) = train/dog/0003.jpg (train)\n" in out


# ----------------------------------------------------------------------------------------------------------------- the index


def test_a_second_start_opens_nothing(said, tmp_path, monkeypatch):
    place = write_photos(tmp_path / "set", {"a": 5, "b": 5})
    (place / "b/bad.jpg").write_bytes(b"no image")
    first = said(place)
    assert first.pop("examined") == {"opened": 11, "unchanged": 0}
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened again"))
        again = said(place)
    assert again.pop("examined") == {"opened": 0, "unchanged": 11}
    assert again == first


@pytest.mark.parametrize("change", ["size", "time", "name", "new"])
def test_control_a_changed_file_is_opened_again_and_only_that(said, tmp_path, change):
    place = write_photos(tmp_path / "set", {"a": 4, "b": 1})
    said(place)
    file = place / "a/0002.jpg"
    before = file.stat()
    if change == "size":
        file.write_bytes(b"no image")
        os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns))
    elif change == "time":
        file.write_bytes(bytes(before.st_size))
        os.utime(file, ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))
    elif change == "name":
        file.rename(file.with_name("other.jpg"))
    else:
        (place / "a/new.jpg").write_bytes(b"no image")
    found = said(place)
    assert found["examined"] == {"opened": 1, "unchanged": 5 if change == "new" else 4}
    assert len(found["bad"]) == (change != "name")
    assert said(place)["examined"]["opened"] == 0


def test_what_another_decoder_found_is_not_used(said, tmp_path, monkeypatch):
    place = write_photos(tmp_path / "set", {"a": 2, "b": 1})
    said(place)
    monkeypatch.setattr("launch.data.decode.VERSION", 99)
    assert said(place)["examined"]["opened"] == 3


def test_a_damaged_line_is_examined_again(said, cache, tmp_path):
    place = write_photos(tmp_path / "set", {"a": 3, "b": 1})
    first = said(place)
    (file,) = cache.glob("images-set-*.jsonl")
    for end in (-1, -30):
        file.write_bytes(file.read_bytes()[:end])
        found = said(place)
        assert found["examined"]["opened"] == (1 if end == -30 else 0)
        assert found["sizes"] == first["sizes"]
    assert len(file.read_text().splitlines()) == 5  # one of them says what the file is


@pytest.mark.parametrize("place", [3, 0.3, 0.6, -2], ids=["head", "line", "line", "checksum"])
@pytest.mark.parametrize("bit", [1, 128])
def test_a_damaged_byte_of_the_index_is_examined_again_and_stops_nothing(said, cache, tmp_path, place, bit):
    """The line may become no text, no JSON, or another number."""
    photos = write_photos(tmp_path / "set", {"a": 3, "b": 1})
    first = said(photos)
    (file,) = cache.glob("images-set-*.jsonl")
    content = bytearray(file.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= bit
    file.write_bytes(content)
    again = said(photos)
    assert again.pop("examined")["opened"] == (4 if place == 3 else 1)
    assert again == {name: value for name, value in first.items() if name != "examined"}
    assert said(photos)["examined"]["opened"] == 0


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from launch.sources import check
look = check._look
def slow(*image):
    time.sleep(0.02)
    return look(*image)
check._look = slow
from launch.commands import main
sys.exit(main(sys.argv[1:]))
"""


def slow(place: Path) -> subprocess.Popen:
    """`oneloop data` with a disk on which each file takes 20 ms."""
    return subprocess.Popen([sys.executable, "-c", SLOW, "data", str(place)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_while_examining_the_finished_part_is_kept(said, cache, tmp_path, sign):
    place = write_photos(tmp_path / "set", {"a": 25, "b": 25})
    process = slow(place)
    deadline = time.monotonic() + 30
    while sum(len(file.read_bytes().splitlines()) for file in cache.glob("*.jsonl")) < 17:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sign)
    process.communicate(timeout=20)
    assert process.returncode == (130 if sign == signal.SIGINT else -sign)
    found = said(place)
    assert 0 < found["examined"]["opened"] <= 50 - 16
    assert (found["images"], found["bad"]) == (50, [])
    assert {path.suffix for path in cache.iterdir()} == {".jsonl", ".lock"}


def test_of_two_processes_at_once_one_examines(said, cache, tmp_path):
    place = write_photos(tmp_path / "set", {"a": 32, "b": 32})
    both = [slow(place), slow(place)]
    opened = [process.communicate(timeout=60)[0].splitlines()[1].partition(" files opened")[0] for process in both]
    assert sorted(opened) == ["0", "64"]
    (file,) = cache.glob("*.jsonl")
    assert len(file.read_text().splitlines()) == 65
    assert said(place)["examined"]["opened"] == 0


def test_a_cache_that_cannot_be_written_is_one_line(oneloop, cache, tmp_path):
    cache.write_text("a file")
    code, out, error = oneloop("data", write_photos(tmp_path / "set", {"a": 1, "b": 1}))
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "choose another with ONELOOP_CACHE" in error or "delete it to rebuild it" in error


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(said, cache, oneloop, tmp_path, monkeypatch):
    place = write_photos(tmp_path / "set", {"a": 2, "b": 1})
    said(place)
    (index,) = cache.glob("*.jsonl")
    before = index.read_bytes()
    (place / "a/new.jpg").write_bytes(jpeg(77))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        code, _, error = oneloop("data", place)
    assert (code, error) == (1, f"cannot write the cache {cache}: No space left on device; choose another with ONELOOP_CACHE\n")
    assert index.read_bytes() == before
    assert len([*cache.iterdir()]) == 2


def test_clear_deletes_what_is_known_of_this_folder(oneloop, said, cache, tmp_path):
    ours, other = (write_photos(tmp_path / name / "set", {"a": 1, "b": 1}) for name in ("ours", "other"))
    said(ours), said(other)
    code, out, _ = oneloop("data", ours, "--clear")
    assert code == 0
    assert out.startswith(f"deleted {cache / 'images-set-'}")
    assert said(other)["examined"]["opened"] == 0
    assert said(ours)["examined"]["opened"] == 2
    oneloop("data", ours, "--clear")
    assert oneloop("data", ours, "--clear")[:2] == (0, f"the cache holds nothing of {ours}\n")
