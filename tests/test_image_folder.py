"""Image folders, train/<class>/… and test/<class>/…: whatever they are called and linked to; wrong ones are one clear line."""

import shutil

import pytest
from data_files import COUNTS, check, cifar2, image
from PIL import Image

from launch import sources
from launch.errors import Refused

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of datasets 5.2


def test_images_and_labels_of_an_image_folder(folder):
    check(cifar2(folder))


def test_classes_are_those_of_both_splits(folder):
    (folder / "test/truck").rename(folder / "test/van")
    check(cifar2(folder))
    with pytest.raises(Refused, match=r"no class .zebra.; its classes are .*, truck, van"):
        sources.cifar10(str(folder), keep=("zebra",))


def test_validation_images_are_the_test_where_there_are_no_others(folder):
    (folder / "test").rename(folder / "val")
    check(cifar2(folder))
    shutil.copytree(folder / "train", folder / "test")
    assert len(cifar2(folder).test) == 8  # control: test comes first


def test_brackets_links_and_misleading_names_in_an_image_folder(folder, tmp_path):
    """Also links in a circle, files named like other splits, hidden and other files, folders inside a class folder."""
    place = tmp_path / "a [1]*?" / ("long" * 60)
    place.parent.mkdir()
    folder.rename(place)
    (place / "train/bird").rename(tmp_path / "birds")
    (place / "train/bird").symlink_to(tmp_path / "birds")
    (place / "test").rename(tmp_path / "tests")
    (place / "validation").symlink_to(tmp_path / "tests")
    (place / "train/airplane/round").symlink_to("..")
    for number, path in enumerate(sorted(place.glob("train/airplane/*.png"))):
        path.rename(path.with_name(("test-1.png", "train[2].PNG", "val_3.png", "data.png")[number]))
    (place / "train/airplane/more").mkdir()
    (place / "train/airplane/data.png").rename(place / "train/airplane/more/data.png")
    (place / "train/__MACOSX").mkdir()
    for name in ("airplane/.hidden.png", "airplane/notes.txt", "metadata.csv", ".DS_Store", "bird/Thumbs.db", "__MACOSX/x.png"):
        (place / "train" / name).write_text("no image")
    check(cifar2(place))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: [shutil.rmtree(f), f.mkdir()], "the folder is empty"),
        (lambda f: shutil.rmtree(f / "test"), "no test split, only train; an image folder"),
        (lambda f: shutil.rmtree(f / "train/bird"), "no train images of bird"),
        (lambda f: (f / "train/bird/002.png").write_bytes(b"no image"), r"images/train/bird/002.png cannot be decoded"),
        (lambda f: Image.fromarray(image(1, 16)).save(f / "train/bird/002.png"), r"bird/002.png is 16×16 .* takes 32×32"),
        (lambda f: Image.new("RGB", (32, 31)).save(f / "train/bird/002.png"), r"bird/002.png is 32×31 .* takes 32×32"),
        (lambda f: [each.unlink() for each in f.glob("train/bird/*")], "no train images of bird; every class needs at least one"),
        (lambda f: Image.new("RGB", (32, 32)).save(f / "train/1.png"), "train/1.png is not in a class folder; move it to "),
        (lambda f: (f / "test/bird/1.png").symlink_to("nowhere"), "test/bird/1.png: broken link to nowhere"),
        (lambda f: (f / "test").rename(f / "toast"), "no test split, only toast, train; an image folder has train/<class>/"),
        (lambda f: [shutil.rmtree(f / "test"), (f / "train").rename(f / "data")], "no test split, only train; .*test/<class>/"),
    ],
)
def test_bad_folders_are_one_clear_line(folder, spoil, message, tmp_path, monkeypatch):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    spoil(folder)
    with pytest.raises(Refused, match=message) as refused:
        cifar2(folder)
    assert "\n" not in str(refused.value)
    assert refused.value.code == (1 if message in ("no such folder", "the folder is empty") else 4)
    assert not list((tmp_path / "cache").glob("*.tmp"))  # nothing is left half-written


def test_a_wrong_size_is_refused_at_the_first_image(folder):
    """Before the others are read, and not when all are in memory."""
    Image.new("1", (4000, 3000)).save(folder / "train/airplane/000.png")
    (folder / "train/bird/002.png").write_bytes(b"not looked at")
    with pytest.raises(Refused, match=r"airplane/000.png is 4000×3000 .* takes 32×32; resize"):
        cifar2(folder)


def test_image_folder_of_garments_keeps_its_names(tmp_path):
    """They are sorted by name, and "T-shirt/top" cannot be the name of a folder."""
    for split in COUNTS:
        for name in sources.FASHION_CLASSES:
            place = tmp_path / split / name.replace("/", "-")
            place.mkdir(parents=True)
            Image.fromarray(image(1, 28)).convert("L").save(place / "1.png")
    with pytest.raises(Refused, match="no class 'T-shirt/top'; its classes are Ankle boot"):
        sources.fashion_mnist(str(tmp_path))
