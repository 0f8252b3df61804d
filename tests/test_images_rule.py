"""How an image of any size becomes what a net sees, and where it is kept: launch/data/resize.py and store.py."""

import hashlib
import io
import json
import mmap
import multiprocessing
import os
import resource
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from photos import photo
from PIL import Image

from launch.data import store
from launch.data.resize import ResizeRule, centred, read, reduced_size, rule_for
from launch.data.store import LIMIT, Store, StoredImage, clear, decoded
from launch.errors import Refused

RULE = ResizeRule(size=14, cache_size=16)
FORK = multiprocessing.get_context("fork")


def saved(image, kind="PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (40, 40), (10, 30), (16, 17), (1, 1)])
def test_shorter_side_becomes_stored_and_nothing_is_enlarged(size):
    image = read(saved(photo(1, *size)), RULE)
    height, width, _ = image.shape
    assert (width, height) == reduced_size(*size, RULE)
    if min(size) > 16:
        assert min(width, height) == 16
        assert max(width, height) == pytest.approx(max(size) / min(size) * 16, abs=0.5)
    else:
        assert (width, height) == size
    assert centred(image, RULE).shape == (14, 14, 3)


def test_images_are_kept_at_twice_the_size_if_nobody_says():
    assert rule_for(224) == ResizeRule(224, 448)
    assert rule_for(64, 64) == ResizeRule(64, 64)


def test_the_centre_is_seen_and_the_edges_are_not():
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (9, 1, 23, 15))
    assert (centred(np.array(image), RULE) == (0, 0, 255)).all()
    small = Image.new("RGB", (8, 8), "red")  # smaller than stored: the same part of it, enlarged
    small.paste("blue", (1, 1, 7, 7))
    assert (centred(np.array(small), RULE)[3:-3, 3:-3] == (0, 0, 255)).all()


def test_turned_jpeg_is_turned_before_it_is_measured():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    file = saved(photo(2, 300, 100), "JPEG", exif=exif)
    assert read(file, RULE).shape == (48, 16, 3)
    upright = read(saved(photo(2, 300, 100), "JPEG"), RULE)
    assert upright.shape == (16, 48, 3)
    turned = np.rot90(read(io.BytesIO(file.getvalue()), RULE)).astype(int)
    assert np.abs(turned - np.asarray(upright).astype(int)).mean() < 8


def test_large_jpeg_is_what_the_whole_of_it_reduced_is():
    """JPEG decodes at a half, a quarter or an eighth, but never below what is wanted."""
    whole = photo(3, 1000, 700)
    reduced = np.asarray(read(saved(whole, "JPEG", quality=95), RULE)).astype(int)
    expected = np.asarray(whole.resize((23, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(reduced - expected).mean() < 6


# ------------------------------------------------------------------------------------------------------------------ the store


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "SLACK", 60)  # this machine may be busy
    return tmp_path / "cache"


@pytest.fixture
def wanted(tmp_path) -> list[StoredImage]:
    """80 images of several sizes, in files."""
    made = []
    for number in range(80):
        size = 20 + number % 7, 30 + number % 5
        path = tmp_path / f"{number}.png"
        photo(number, *size).save(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        made.append(StoredImage(sha256, *reduced_size(*size, RULE), path.name, partial(open, path, "rb")))
    return made


def keep(wanted) -> Store:
    store = Store(RULE, Path("/photos"), wanted)
    for each in wanted:
        store.read(each)
    store.flush()
    return store


def pixels(found, image) -> bytes:
    place = found.places[image.sha256]
    return found.path.read_bytes()[place.offset : place.offset + 3 * place.height * place.width]


def whole(found, wanted) -> bool:
    return all(pixels(found, each) == decoded(each, RULE).tobytes() for each in wanted)


def test_stored_images_are_the_decoded_ones_and_are_decoded_once(cache, wanted):
    found = keep(wanted)
    assert len(found.places) == 80
    assert whole(found, wanted)
    again = keep([each._replace(open=lambda: pytest.fail("opened again")) for each in wanted])
    assert again.places == found.places
    assert all(again.read(each).tobytes() == pixels(found, each) for each in wanted)


@pytest.mark.parametrize("at", [3, 0.3, 0.6, -2], ids=["head", "line", "line", "checksum"])
@pytest.mark.parametrize("bit", [1, 128])
def test_a_damaged_byte_of_the_index_is_made_anew(cache, wanted, at, bit):
    found = keep(wanted[:40])
    content = bytearray(found.index.read_bytes())
    content[int(at * len(content)) if isinstance(at, float) else at] ^= bit
    found.index.write_bytes(content)
    assert keep(wanted[:50]).places.keys() == {each.sha256 for each in wanted[:50]}
    assert whole(keep(wanted[:50]), wanted[:50])
    for each in wanted[:40]:  # by who still knows the old places
        assert found.read(each).tobytes() == decoded(each, RULE).tobytes()


def test_a_slow_disk_does_not_hold_up_training(cache, wanted, monkeypatch):
    """Images that it cannot take in this epoch are decoded again, and may be stored in the next."""
    monkeypatch.setattr(store, "SLACK", 0.1)

    def slow(*args, **options):
        time.sleep(0.3)
        return open(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(store, "open", slow, raising=False)
        patched.setattr(store, "SHARE", 0)  # on a busy machine, decoding takes long, too
        found = keep(wanted)
    assert [*found.places] == [each.sha256 for each in wanted[: store.CHUNK]]
    assert all(found.read(each).tobytes() == decoded(each, RULE).tobytes() for each in wanted)
    assert len(keep(wanted).places) == 80


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells no process's memory of mapped files")
def test_the_memory_of_stored_images_that_were_read_is_bounded(cache, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (500, 1000, 3), dtype=np.uint8)
    many = [StoredImage(str(number), 1000, 500, str(number), lambda: None) for number in range(40)]
    monkeypatch.setattr(store, "decoded", lambda *_: pixels)
    keep(many)

    def mapped() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1]) << 10

    for touched, least, most in ((8 << 20, 0, 20 << 20), (1 << 40, 50 << 20, 70 << 20)):  # the second one: control
        monkeypatch.setattr(store, "TOUCHED", touched)
        found, before = Store(RULE, Path("/photos"), many), mapped()
        assert all((found.read(image) == pixels).all() for image in many)
        assert least <= mapped() - before <= most


def test_what_waits_for_a_disk_that_hangs_is_bounded(cache, wanted, monkeypatch):
    with wanted[0].open() as file:
        png = file.read()
    contents = [png + number.to_bytes(2) for number in range(400)]  # what comes after the image does not matter
    many = [
        wanted[0]._replace(sha256=hashlib.sha256(content).hexdigest(), open=partial(io.BytesIO, content)) for content in contents
    ]
    found, writing, done = Store(RULE, Path("/photos"), many), threading.Event(), threading.Event()

    def hanging(*args, **options):
        writing.set()
        assert done.wait(60)
        return open(*args, **options)

    monkeypatch.setattr(store, "open", hanging, raising=False)
    thread = threading.Thread(target=lambda: [found.read(each) for each in many[: store.CHUNK]])
    thread.start()
    assert writing.wait(60)
    for each in many[store.CHUNK :]:
        found.read(each)
    done.set()
    thread.join(60)
    found.flush()
    assert [*found.places] == [each.sha256 for each in many[: 3 * store.CHUNK]]  # written, and twice as many behind


def test_a_new_image_is_added_and_no_other_is_opened(cache, wanted):
    keep(wanted[:70])
    opened = []
    keep([each._replace(open=lambda each=each: opened.append(each.sha256) or each.open()) for each in wanted])
    assert sorted(opened) == sorted(each.sha256 for each in wanted[70:])


def test_the_allowance_is_kept_and_the_rest_stays_files(cache, wanted, monkeypatch):
    size = sum(3 * each.width * each.height for each in wanted[:31])
    monkeypatch.setenv(LIMIT, str((size + 5) / 2**30))
    found = keep(wanted)
    assert [*found.places] == [each.sha256 for each in wanted[:31]]
    monkeypatch.setenv(LIMIT, "plenty")
    with pytest.raises(Refused, match="takes a number of GiB") as refused:
        keep(wanted)
    assert refused.value.code == 2


def killed_at(wanted, number):
    """Store in a process that is killed when it opens this image."""

    def work():
        def opened(each, index):
            if index == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return each.open()

        keep([each._replace(open=lambda each=each, index=index: opened(each, index)) for index, each in enumerate(wanted)])

    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_killed_while_storing_the_finished_part_is_kept(cache, wanted):
    killed_at(wanted, 75)
    opened = []
    found = keep([each._replace(open=lambda each=each: opened.append(each) or each.open()) for each in wanted])
    assert len(opened) == 80 - 64  # the first chunk was finished
    assert whole(found, wanted)


def test_control_what_was_cut_off_is_not_used(cache, wanted):
    """Pixels without their line, a line without its pixels, half a line."""
    found = keep(wanted[:40])
    index = found.path.with_suffix(".rgb.jsonl")
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[:30]) + lines[30][:20])
    with open(found.path, "ab") as file:
        file.write(b"torn")
    again = keep(wanted)
    assert len(again.places) == 80
    assert whole(again, wanted)
    os.truncate(again.path, again.places[wanted[-1].sha256].offset)
    assert whole(keep(wanted), wanted)


def test_two_processes_at_once_store_each_image_once(cache, wanted):
    """Each process may have decoded any of them, in any order."""
    processes = [FORK.Process(target=keep, args=(order,)) for order in (wanted, wanted[::-1], wanted[40:] + wanted[:40])]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (index,) = cache.glob("*.rgb.jsonl")
    lines = [json.loads(line.partition("\t")[0])[0] for line in index.read_text().splitlines()[1:]]
    assert sorted(lines) == sorted(each.sha256 for each in wanted)
    assert whole(keep(wanted), wanted)


def test_what_another_process_adds_meanwhile_is_kept(cache, wanted):
    ours, theirs = (Store(RULE, Path("/photos"), wanted) for _ in range(2))  # neither knows of the other
    for each in wanted[:50]:
        ours.read(each)
    ours.flush()
    for each in wanted[40:]:
        theirs.read(each)
    theirs.flush()
    found = Store(RULE, Path("/photos"))
    assert len(found.index.read_text().splitlines()) == 1 + 80
    assert whole(found, wanted)


def test_deleted_meanwhile_images_are_decoded_again(cache, wanted):
    found = keep(wanted[:40])
    clear(Path("/photos"))
    assert whole(keep(wanted[40:]), wanted[40:])
    found.allowed = {each.sha256 for each in wanted}
    assert all(found.read(each).tobytes() == decoded(each, RULE).tobytes() for each in wanted)
    found.flush()
    assert whole(Store(RULE, Path("/photos")), wanted[40:])


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_file_begun_anew_while_a_thread_maps_it_has_no_other_images(cache, wanted, monkeypatch, when):
    """Somebody clears the cache, others begin it anew, in another order, and the thread that writes learns of it."""
    found, own, writers = keep(wanted[:40]), mmap.mmap, []

    def cleared(*_, **__):
        monkeypatch.setattr(store.mmap, "mmap", own)
        clear(Path("/photos"))
        keep(wanted[::-1])
        writers.append(threading.Thread(target=found._read_index))
        writers[0].start()
        writers[0].join(0.2)  # it may have to wait for this thread

    def mapped(*args, **options):
        cleared()
        return own(*args, **options)

    monkeypatch.setattr(store.mmap, "mmap", mapped)
    if when == "before":
        monkeypatch.setattr(found, "mapped", None)
        at = found._at
        monkeypatch.setattr(found, "_at", lambda *of: (writers or cleared(), at(*of))[1])
    assert found.read(wanted[0]).tobytes() == decoded(wanted[0], RULE).tobytes()
    writers[0].join()
    assert [each.sha256 for each in wanted[::-1] if found.read(each).tobytes() != decoded(each, RULE).tobytes()] == []


def test_full_disk_is_one_line_and_the_finished_part_stays(cache, wanted, tmp_path):
    size = sum(3 * each.width * each.height for each in wanted[:70])

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            keep(wanted)
        except Refused as error:
            (tmp_path / "said").write_text(json.dumps([error.code, str(error)]))

    process = FORK.Process(target=work)
    process.start()
    process.join(60)
    code, said = json.loads((tmp_path / "said").read_text())
    assert code == 1
    assert "cannot write the cache" in said
    assert "\n" not in said
    some = Store(RULE, Path("/photos")).places
    assert 0 < len(some) < 80
    assert whole(keep(wanted), wanted)


@pytest.mark.parametrize("size", [(90, 40), (20, 32)])
def test_an_image_that_has_changed_is_named(cache, wanted, tmp_path, size):
    """Also if it is as large as before: its pixels would be kept as those of the image that was checked."""
    with Image.open(tmp_path / "7.png") as before:
        assert before.size == (20, 32)
    photo(200, *size).save(tmp_path / "7.png")
    with pytest.raises(Refused, match=r"7\.png has changed since it was examined") as refused:
        keep(wanted)
    assert refused.value.code == 4
    (tmp_path / "7.png").write_bytes(b"no image")
    with pytest.raises(Refused, match=r"7\.png cannot be decoded any more"):
        keep(wanted)


def test_clear_deletes_it(cache, wanted):
    found = keep(wanted)
    assert clear(Path("/photos")) == [found.path, found.path.with_suffix(".rgb.jsonl")]
    assert not found.path.exists()
    assert clear(Path("/photos")) == []
