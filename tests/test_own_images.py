"""Images of one's own on their way into a training: split, limited, kept, seen by the net."""

import csv
import io
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import jpeg, photo, write_photos
from PIL import Image

from launch import sources, train
from launch.data.augment import EpochRng, random_resized_crop
from launch.data.disk_feed import DiskFeed, DiskReader
from launch.data.resize import ResizeRule, centred, read
from launch.data.store import clear
from launch.errors import Refused
from launch.report import predictions
from launch.sources.options import DataOptions

CPU = torch.device("cpu")
RULE = ResizeRule(size=12, cache_size=14)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(folder, rule=RULE, **options):
    of_run = {name: options.pop(name) for name in ("limit", "validation", "classes", "main") if name in options}
    return sources.custom(str(folder), rule, DataOptions(**options), **of_run)


def unstored(folder, **options):
    """The same, with nothing stored yet of what was examined."""
    load(folder, **options)
    clear(folder)
    return load(folder, **options)


def splits_of(images) -> dict[str, str]:
    """path -> split, of the split.csv that the run folder gets."""
    return {row["path"]: row["split"] for row in csv.DictReader(io.StringIO(images.files["split.csv"].decode()))}


# ---------------------------------------------------------------------------------------------------------------------- splits


def test_a_folder_that_is_not_split_gets_three_parts_by_itself(tmp_path):
    """10 % of each class validate and 10 % test, without any flag: so the test images choose nothing."""
    images = load(write_photos(tmp_path / "photos", {"a": 100, "b": 100}))
    assert images.model_selection_split == "validation"
    parts = {name: getattr(images, name) for name in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 200
    for name, part in parts.items():
        counts = part.labels.bincount(minlength=2).tolist()
        low, high = (70, 90) if name == "train" else (4, 18)
        assert all(low <= count <= high for count in counts), (name, counts)
    said = splits_of(images)
    for name, part in parts.items():
        assert sorted(each.name for each in part.images) == sorted(path for path, where in said.items() if where == name)


def test_fractions_are_each_those_of_their_own_flag(tmp_path):
    images = load(write_photos(tmp_path / "photos", {"a": 60, "b": 60}), validation=0.4, test=0.05)
    assert 30 <= len(images.validation) <= 66
    assert 1 <= len(images.test) <= 16


def test_a_data_set_that_is_split_keeps_its_parts_whatever_validation_says(tmp_path):
    """`held` says which --validation its validation images were made by: here by none."""
    write_photos(tmp_path / "photos", {f"{side}/{name}": 6 for side in ("train", "val", "test") for name in "ab"})
    images = load(tmp_path / "photos", validation=0.5)
    assert (len(images.train), len(images.validation), len(images.test), images.held) == (12, 12, 12, None)


def test_a_class_that_a_test_lacks_is_named(tmp_path):
    write_photos(tmp_path / "photos", {"train/a": 6, "train/b": 6, "train/c": 6, "test/a": 3, "test/c": 3})
    with pytest.raises(Refused, match="no test images of b") as refused:
        load(tmp_path / "photos")
    assert refused.value.code == 4


def test_images_that_several_splits_have_are_said(tmp_path, capsys):
    write_photos(tmp_path / "photos", {f"{side}/{name}": 4 for side in ("train", "test") for name in "ab"})
    load(tmp_path / "photos")
    assert capsys.readouterr().err == ""
    shutil.copy(next((tmp_path / "photos/train/a").iterdir()), tmp_path / "photos/test/a/again.jpg")
    load(tmp_path / "photos")
    assert "1 image is in several splits" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- what makes data another data set


def moved(images, number, where):
    rows = [*csv.reader(io.StringIO(images.files["split.csv"].decode()))]
    rows[number][2] = where
    return "\n".join(",".join(row) for row in rows)


def test_the_fingerprint_knows_what_changes_results_and_nothing_else(tmp_path):
    folder = write_photos(tmp_path / "photos", {"a": 30, "b": 30})
    images = load(folder)
    assert load(folder).fingerprint == images.fingerprint
    given = tmp_path / "split.csv"
    given.write_bytes(images.files["split.csv"])
    found = {"as it is": images.fingerprint, "size": load(folder, ResizeRule(11, 14)).fingerprint}
    found["cache_size"] = load(folder, ResizeRule(12, 15)).fingerprint
    assert load(folder, split=str(given)).fingerprint == images.fingerprint
    said = splits_of(images)
    exchange = {"train": "test", "test": "train", "validation": "validation"}
    given.write_text("path,split\n" + "".join(f"{path},{exchange[where]}\n" for path, where in said.items()))
    found["train and test exchanged"] = load(folder, split=str(given)).fingerprint
    one = next(path for path, where in said.items() if where == "train")
    given.write_text("path,split\n" + "".join(f"{path},{'test' if path == one else where}\n" for path, where in said.items()))
    found["one moved to the test"] = load(folder, split=str(given)).fingerprint
    given.write_bytes(images.files["split.csv"])
    (folder / "a").rename(folder / "z")  # the same contents; the numbers of the classes are exchanged, too
    found["a class renamed"] = load(folder).fingerprint
    (folder / "z").rename(folder / "a")
    assert load(folder).fingerprint == images.fingerprint
    one = next(path for path, where in said.items() if where == "train" and path.startswith("a"))
    shutil.move(folder / one, folder / "b")
    found["a label corrected"] = load(folder).fingerprint
    shutil.move(folder / "b" / Path(one).name, folder / "a")
    (folder / one).write_bytes(jpeg(9999))
    found["another image under the same name"] = load(folder).fingerprint
    (folder / one).unlink()
    found["an image less"] = load(folder).fingerprint
    assert len({*found.values()}) == len(found)


def test_a_label_that_is_corrected_in_a_table_is_other_data(tmp_path):
    write_photos(tmp_path / "photos", {"all": 12})
    sides, found = ["train"] * 8 + ["test"] * 4, []
    rows = [f"photos/all/{number:04}.jpg,{'ab'[number % 2]},{side}" for number, side in enumerate(sides)]
    for label in "ba":
        (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *rows[:-1], rows[-1].replace(",b,", f",{label},")]))
        found.append(load(tmp_path / "table.csv").fingerprint)
    assert found[0] != found[1]


def test_classes_of_one_name_order_differ_from_those_of_another(tmp_path):
    """The same images and numbers under other names are other data."""
    first = load(write_photos(tmp_path / "one", {"a": 12, "b": 12}))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two/b").rename(tmp_path / "two/c")
    second = load(tmp_path / "two")
    assert (second.classes, [*second.train.labels]) == (("a", "c"), [*first.train.labels])
    assert second.fingerprint != first.fingerprint


# ----------------------------------------------------------------------------------------------------------------------- limit


def colours(folder, counts, size=(20, 20)):
    """Images of a class of one colour: label and image can be compared."""
    for number, (place, count) in enumerate(counts.items()):
        (folder / place).mkdir(parents=True)
        for index in range(count):
            shade = 40 * number + index % 20
            Image.new("RGB", size, (shade, shade, shade)).save(folder / place / f"{index:03}.png", compress_level=index % 9)
            with open(folder / place / f"{index:03}.png", "ab") as file:  # no two files the same
                file.write(f"{place}{index}".encode())
    return folder


def test_a_limit_is_a_sample_of_all_classes_with_their_own_labels(tmp_path):
    folder = colours(tmp_path / "photos", {f"{side}/{name}": 40 for side in ("train", "test") for name in "abc"})
    whole, images = load(folder), load(folder, limit=30)
    assert (len(images.train), len(images.test), len(whole.train)) == (30, 120, 120)
    assert images.train.labels.bincount(minlength=3).min() >= 4
    pixels, labels = images.train.some(torch.arange(30))
    assert (pixels[:, 0, 0, 0] // 40).tolist() == labels.tolist() == images.train.labels.tolist()
    assert {each.name for each in images.train.images} <= {each.name for each in whole.train.images}
    assert [each.name for each in load(folder, limit=30).train.images] == [each.name for each in images.train.images]
    assert len(load(folder, limit=1000).train) == 120
    assert images.fingerprint == whole.fingerprint  # of everything that is there


def test_some_of_a_split_are_those_images_with_their_labels(tmp_path):
    images = load(colours(tmp_path / "photos", {f"{side}/{name}": 10 for side in ("train", "test") for name in "abc"}))
    ids = torch.tensor([25, 3, 17, 3])
    few = images.train.select(ids)
    assert len(few) == 4
    assert (few.some(torch.arange(4)).pixels[:, 0, 0, 0] // 40).tolist() == few.labels.tolist() == [2, 0, 1, 0]


def test_a_limit_that_leaves_out_a_class_is_no_uneven_data_set(tmp_path):
    """None of the classes that have images has so few that accuracy alone misleads."""
    images = load(colours(tmp_path / "photos", {f"{side}/{name}": 10 for side in ("train", "test") for name in "abc"}))
    two = images.train.select((images.train.labels < 2).nonzero().flatten())
    assert DiskFeed(two, images.mean, images.std, CPU).uneven == ()
    few = images.train.select(torch.cat((torch.arange(10), torch.arange(10, 14))))
    assert DiskFeed(few, images.mean, images.std, CPU).uneven == (10, 4)


# ---------------------------------------------------------------------------------------------------------- what the net sees


def test_a_batch_is_normalised_as_imagenets_in_this_order_of_colours(tmp_path):
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        Image.new("RGB", (20, 20), (200, 100, 30)).save(tmp_path / f"photos/{place}/1.png")
    images = load(tmp_path / "photos")
    pixels, _ = DiskFeed(images.test, images.mean, images.std, CPU).batch(torch.tensor([0]))
    expected = [(value / 255 - mean) / std for value, mean, std in ((200, 0.485, 0.229), (100, 0.456, 0.224), (30, 0.406, 0.225))]
    assert pixels.shape == (1, 3, 12, 12)
    assert pixels[0, :, 5, 5].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("size", [(60, 20), (20, 60)])
def test_crops_of_a_training_come_from_all_of_an_image_and_from_nothing_else(size, tmp_path):
    """An image that brightens from left to right, or from top to bottom: crops reach both ends, and never beyond."""
    wide = size[0] > size[1]
    ramp = np.linspace(10, 250, max(size)).round().astype(np.uint8)
    grey = np.broadcast_to(ramp[None] if wide else ramp[:, None], size[::-1])
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / f"photos/{place}/1.png")
    images = load(tmp_path / "photos")
    feed = DiskFeed(images.train, images.mean, images.std, CPU)
    rng, lows, highs, flips = EpochRng(1, 1, CPU), [], [], 0
    for epoch in range(60):
        rng.begin(epoch)
        batch, _ = feed.batch(torch.tensor([0]), [lambda sizes, ids: random_resized_crop(sizes, rng.of(ids))])
        seen = (batch[0, 0] * images.std[0] + images.mean[0]) * 255
        line = seen.mean(0) if wide else seen.mean(1)
        lows.append(line.min().item())
        highs.append(line.max().item())
        flips += int(wide and line[0] > line[-1])
    assert min(lows) < 35
    assert max(highs) > 225
    assert not wide or 15 < flips < 45


def test_every_augmentation_is_applied_in_its_order(tmp_path):
    images = load(colours(tmp_path / "photos", {"train/a": 6, "train/b": 6, "test/a": 2, "test/b": 2}))
    feed = DiskFeed(images.train, (0.0,) * 3, (1 / 255,) * 3, CPU)
    ids = torch.tensor([4, 1, 0])
    views = [lambda sizes, _: torch.tensor([[0, 0, 12, 12, 0]]).expand(len(sizes), 5)]
    more = [lambda pixels, ids: pixels + ids[:, None, None, None].to(torch.uint8), lambda pixels, _: pixels * 2]
    pixels, _ = feed.batch(ids, views + more)
    shades = images.train.some(ids).pixels[:, 0, 0, 0].float()
    torch.testing.assert_close(pixels[:, 0, 3, 3], (shades + ids) * 2)


def test_an_image_that_broke_is_named_wherever_it_is_in_a_batch(tmp_path):
    images = unstored(colours(tmp_path / "photos", {"train/a": 24, "train/b": 2, "test/a": 2, "test/b": 2}))
    (tmp_path / "photos/train/a/023.png").write_bytes(b"")
    feed = DiskFeed(images.train, images.mean, images.std, CPU)
    with pytest.raises(Refused, match=r"train/a/023\.png"):
        feed.batch(torch.arange(24))


def test_an_image_that_was_replaced_by_one_of_another_size_is_named(tmp_path):
    images = unstored(colours(tmp_path / "photos", {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2}))
    photo(1, 30, 20).save(tmp_path / "photos/train/a/001.png")
    with pytest.raises(Refused, match=r"train/a/001\.png has changed") as refused:
        DiskReader(images.train).reduced(1)
    assert refused.value.code == 4


def detailed(width, height):
    """An image with detail of about three pixels, of which a quarter of the size shows nothing."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("cache_size", [75, 100, 220])
def test_a_stored_jpeg_has_the_detail_of_its_stored_size(cache_size):
    """Any size may be stored, whatever the net sees: training crops parts of it."""
    file = io.BytesIO()
    detailed(600, 450).save(file, "JPEG", quality=97, subsampling=0)
    whole = Image.open(io.BytesIO(file.getvalue()))
    expected = np.asarray(whole.resize((round(cache_size * 4 / 3), cache_size), Image.Resampling.BILINEAR))
    for size in (8, cache_size // 2, cache_size):
        found = read(io.BytesIO(file.getvalue()), ResizeRule(size, cache_size))
        assert found.shape == expected.shape
        assert found.astype(float).std() > 0.85 * expected.astype(float).std()  # not enlarged from less
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.88
    small = whole.resize((cache_size // 3, cache_size // 4), Image.Resampling.BILINEAR)  # control
    enlarged = np.asarray(small.resize(expected.shape[1::-1], Image.Resampling.BILINEAR))
    assert enlarged.astype(float).std() < 0.85 * expected.astype(float).std()


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (45, 45)])
def test_the_seen_square_lies_in_the_middle_of_both_sides(size):
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack((x * 255 / width, y * 255 / height, x * 0), -1).astype(np.uint8)
    seen = centred(pixels, ResizeRule(15, 30)).astype(float)
    assert seen[..., 0].mean() == pytest.approx(127, abs=4)
    assert seen[..., 1].mean() == pytest.approx(127, abs=4)
    side = round(min(size) * 7 / 8)
    assert np.ptp(seen[..., 0]) == pytest.approx(255 * side / width, rel=0.15)
    assert np.ptp(seen[..., 1]) == pytest.approx(255 * side / height, rel=0.15)


def test_what_shrinks_is_averaged_and_does_not_flicker():
    """A fine chessboard becomes grey."""
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    board = np.stack([((x + y) % 2 * 255).astype(np.uint8)] * 3, -1)
    seen = centred(board, ResizeRule(13, 64)).astype(float)
    assert np.abs(seen - 127.5).max() < 25
    assert np.abs(read(io.BytesIO(_png(board)), ResizeRule(9, 9)).astype(float) - 127.5).max() < 25


def _png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_or_mirrored_jpeg_is_trained_on_upright(orientation, tmp_path):
    """All eight of EXIF's orientations: width and height are those of the upright image, and so are the pixels."""
    upright = np.zeros((40, 60, 3), dtype=np.uint8)
    upright[:15, :20] = 255  # a mark in one corner
    how = {2: [np.fliplr], 3: [np.flipud, np.fliplr], 4: [np.flipud], 5: [_transposed], 6: [partial(np.rot90, k=1)],
           7: [np.flipud, np.fliplr, _transposed], 8: [partial(np.rot90, k=-1)]}  # fmt: skip
    turned = upright
    for each in how.get(orientation, []):
        turned = each(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "photos" / place).mkdir(parents=True)
        Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / f"photos/{place}/1.jpg", quality=95, exif=exif)
    images = load(tmp_path / "photos", ResizeRule(10, 40))
    assert [(each.width, each.height) for each in images.train.images] == [(60, 40)] * 2
    for number in range(2):
        found = DiskReader(images.train).reduced(number).astype(int)
        assert np.abs(found - upright).mean() < 8


def _transposed(pixels):
    return pixels.transpose(1, 0, 2)


def test_a_transparent_colour_of_a_palette_becomes_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    image.paste(1, (0, 0, 8, 4))
    file = io.BytesIO()
    image.save(file, "GIF", transparency=0)
    pixels = read(io.BytesIO(file.getvalue()), ResizeRule(8, 8))
    assert pixels[6, 4].tolist() == [255, 255, 255]
    assert pixels[1, 4].tolist() == [0, 0, 255]


# ------------------------------------------------------------------------------------------------------------------ decoded once


@pytest.fixture
def opened(monkeypatch):
    """How often an image was decoded, as a list of one entry for each time."""
    calls, real = [], Image.open

    def noted(*args, **options):
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(Image, "open", noted)
    monkeypatch.setattr("launch.data.store.SLACK", 60)  # this machine may be busy
    return calls


def epoch(images, ids=None):
    """Images that an epoch and its evaluations read: a part of the training images, or all."""
    found = []
    for split, chosen in ((images.train, ids), (images.validation, None), (images.test, None)):
        feed = DiskFeed(split, images.mean, images.std, CPU)
        parts = (torch.arange(len(split)) if chosen is None else chosen).split(7)
        found += [pixels for pixels, _ in feed.stream(parts)]
    return torch.cat(found)


def test_each_image_is_decoded_once_in_all_epochs_and_runs(tmp_path, opened):
    """Also those of the test, and also while the kept file grows from epoch to epoch."""
    folder = write_photos(tmp_path / "photos", {f"{side}/{name}": 9 for side in ("train", "val", "test") for name in "ab"})
    images = unstored(folder)
    opened.clear()
    some = epoch(images, torch.arange(10))
    assert len(opened) == 10 + 36
    assert torch.equal(epoch(images, torch.arange(10)), some)
    assert len(opened) == 46
    whole = epoch(images)  # 8 more, in a file that has been read from
    assert len(opened) == 54
    for _ in range(2):
        assert torch.equal(epoch(images), whole)
    again = load(folder)
    assert torch.equal(epoch(again), whole)
    assert len(opened) == 54


def test_what_is_examined_is_stored_in_the_same_pass(tmp_path, opened, monkeypatch):
    folder = write_photos(tmp_path / "photos", {f"{side}/{name}": 9 for side in ("train", "val", "test") for name in "ab"})
    images = load(folder)
    assert len(images.train.store.places) == 54
    stored = epoch(images)
    assert len(opened) == 54
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "other"))
    images = load(folder, limit=17)  # of which few may be wanted
    assert images.train.store.places == {}
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "third"))
    monkeypatch.setenv("ONELOOP_STORED_GIB", str(20.5 * 3 * 21 * 14 / 2**30))
    images = load(folder)
    assert len(images.train.store.places) == 20
    opened.clear()
    assert torch.equal(epoch(images), stored)
    assert len(opened) == 54 - 20


def test_images_kept_for_one_size_are_not_taken_for_another(tmp_path, opened):
    folder = write_photos(tmp_path / "photos", {f"{side}/{name}": 2 for side in ("train", "val", "test") for name in "ab"})
    epoch(load(folder, ResizeRule(6, 14)))
    opened.clear()
    found = epoch(load(folder, ResizeRule(6, 10)))
    assert len(opened) == 12
    images = load(folder, ResizeRule(6, 10))
    expected = []
    for image in images.train.images:
        with image.open() as file:
            expected.append(centred(read(file, images.train.rule), images.train.rule))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
    torch.testing.assert_close(found[:4], (torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2) / 255 - mean) / std)
    opened.clear()
    epoch(load(folder, ResizeRule(8, 14)))  # another size of the net, the same kept images
    assert opened == []


def test_another_pillow_decodes_again(tmp_path, opened, monkeypatch):
    folder = write_photos(tmp_path / "photos", {f"{side}/{name}": 2 for side in ("train", "val", "test") for name in "ab"})
    epoch(load(folder))
    monkeypatch.setattr("PIL.__version__", "99.0")
    images = load(folder)
    assert len(opened) == 2 * 12  # stored in the pass that examines
    assert epoch(images).shape[0] == 12
    assert len(opened) == 2 * 12


def test_the_allowance_is_for_all_data_sets_together(tmp_path, opened, monkeypatch):
    counts = {f"{side}/{name}": 2 for side in ("train", "val", "test") for name in "ab"}
    one, two = (write_photos(tmp_path / name, counts) for name in ("one", "two"))
    monkeypatch.setenv("ONELOOP_STORED_GIB", str(12 * 3 * 21 * 14 / 2**30))
    epoch(load(one))
    images = load(two)
    epoch(images)
    opened.clear()
    epoch(images)
    assert len(opened) == 12  # none of the second one's was kept
    opened.clear()
    epoch(load(one))
    assert opened == []


def test_a_training_that_waits_for_its_images_says_how_much_of_the_time(tmp_path, start, monkeypatch, capsys):
    folder = write_photos(tmp_path / "photos", {f"{side}/{name}": 6 for side in ("train", "test") for name in "ab"})
    for pause in (0.02, 0.0):
        images, real = load(folder), DiskReader.reduced

        def slow(self, index, pause=pause, real=real):
            time.sleep(pause)
            return real(self, index)

        with monkeypatch.context() as patched:
            patched.setattr(DiskReader, "reduced", slow)
            if not pause:
                patched.setattr("launch.training.finish.WORTH_SAYING", 2.0)  # control: never, however busy the machine
            net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 144, 2))
            options = {"epochs": 1, "batch": 4, "augment": [random_resized_crop]}
            train(start(out=f"run{pause}"), net, images, torch.optim.SGD(net.parameters(), lr=0.1), **options)
        said = [line for line in capsys.readouterr().out.splitlines() if "waiting for images" in line]
        assert len(said) == bool(pause)
        assert not pause or 50 < int(said[0].partition("%")[0]) <= 100  # the evaluation of these images does not count


def test_uneven_classes_have_their_balanced_accuracy_on_the_screen(tmp_path, start, capsys):
    """The mean over the classes, beside the accuracy, in each line of an epoch and at the end."""
    images = load(write_photos(tmp_path / "photos", {"train/a": 8, "train/b": 4, "test/a": 9, "test/b": 3}))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 144, 2))
    torch.nn.init.zeros_(net[1].weight)
    net[1].bias.data = torch.tensor([1.0, 0.0])  # says a, whatever it sees
    train(start(), net, images, torch.optim.SGD(net.parameters(), lr=0.0), epochs=1, batch=12)
    lines = capsys.readouterr().out.splitlines()
    assert any("test accuracy 0.7500 balanced 0.5000 loss" in line for line in lines if line.startswith("epoch 1/1"))
    assert any("test accuracy 0.7500 (9/12), balanced 0.5000" in line for line in lines)


def test_predictions_name_the_test_images_and_know_them_by_their_content(tmp_path):
    import pyarrow.parquet

    folder = write_photos(tmp_path / "photos", {"train/a": 4, "train/b": 4, "test/a": 3, "test/b": 3})

    def images_of() -> str:
        images = load(folder)
        predictions.write(tmp_path, torch.nn.functional.one_hot(images.test.labels).float(), images)
        return predictions.read(tmp_path).images

    first = images_of()
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert [path.split("/")[:2] for path in table["path"]] == [["test", name] for name in table["true"]]
    assert sorted(table["path"]) == sorted(str(path.relative_to(folder)) for path in (folder / "test").rglob("*.jpg"))
    (folder / "train/a/new.jpg").write_bytes(jpeg(500))
    assert images_of() == first
    (folder / table["path"][0]).write_bytes(jpeg(501))
    assert images_of() != first
