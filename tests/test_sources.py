"""Where pixels come from: real files of every kind, broken ones, a cache, a hub and its absence."""

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_recipe
from PIL import Image
from servers import hub, silent

from launch import Run, sources
from launch.errors import Refused

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of datasets 5.2
COUNTS = {"train": 40, "test": 20}
GOLDEN = "38b048f8926a919f76c178cb053f00208ed264fa2cf5a0515bedf65fd783b1b3"


def picture(number: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def label(number: int) -> int:
    return number % 10


@pytest.fixture
def folder(tmp_path) -> Path:
    """An image folder with CIFAR-10's classes, lossless."""
    for split, count in COUNTS.items():
        for number in range(count):
            place = tmp_path / "pictures" / split / sources.CIFAR10_CLASSES[label(number)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(number)).save(place / f"{number:03}.png")
    return tmp_path / "pictures"


def write_parquet(
    folder: Path, images: str = "img", labels: str = "label", broken: int = -1, null: int = -1, unlabelled: int = -1
) -> Path:
    """The hub's layout: one parquet file a split, images as encoded bytes."""
    import datasets

    features = datasets.Features({images: datasets.Image(), labels: datasets.ClassLabel(names=list(sources.CIFAR10_CLASSES))})
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            file = BytesIO()
            Image.fromarray(picture(number)).save(file, "PNG")
            raw = file.getvalue() if number != broken else b"no picture"
            image = None if number == null else {"bytes": raw, "path": None}
            rows.append({images: image, labels: None if number == unlabelled else label(number)})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def check(images) -> None:
    """All of airplane and bird, each with its own pixels and label."""
    assert images.classes == ("airplane", "bird")
    for name, count in COUNTS.items():
        split = getattr(images, name)
        numbers = [number for number in range(count) if label(number) in (0, 2)]
        assert sorted(split.labels.tolist()) == sorted(label(number) // 2 for number in numbers)
        got = {pixels.permute(1, 2, 0).numpy().tobytes(): int(target) for pixels, target in zip(*split, strict=True)}
        assert got == {picture(number).tobytes(): label(number) // 2 for number in numbers}


def cifar2(data, **options):
    return sources.cifar10(str(data), keep=("airplane", "bird"), **options)


def test_image_folder(folder):
    check(cifar2(folder))


def test_parquet_folder_as_on_the_hub(tmp_path):
    check(cifar2(write_parquet(tmp_path / "repository")))


def test_second_start_does_not_decode(folder, monkeypatch):
    first = cifar2(folder)
    monkeypatch.setattr(sources, "_decode", lambda *_: pytest.fail("decoded again"))
    again = cifar2(folder)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train.pixels, first.train.pixels)


def test_a_changed_folder_is_read_again(folder):
    first = cifar2(folder)
    Image.fromarray(picture(999)).save(folder / "train/bird/999.png")
    again = cifar2(folder)
    assert len(again.train) == len(first.train) + 1
    assert again.fingerprint != first.fingerprint


def test_limit_keeps_a_mixed_sample(folder):
    assert len(cifar2(folder, limit=4).train) == 4
    assert len(cifar2(folder, limit=4).test) == 4  # the test images stay: 2 of each class
    assert set(cifar2(folder, limit=6).train.labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: [shutil.rmtree(f), f.mkdir()], "the folder is empty"),
        (lambda f: shutil.rmtree(f / "test"), "no test split, only train; an image folder"),
        (lambda f: shutil.rmtree(f / "train/bird"), "no train image of bird"),
        (lambda f: (f / "train/bird/002.png").write_bytes(b"no picture"), r"pictures/train/bird/002.png cannot be decoded"),
        (lambda f: Image.fromarray(picture(1, 16)).save(f / "train/bird/002.png"), r"bird/002.png is 16×16 .* takes 32×32"),
        (lambda f: Image.new("RGB", (32, 31)).save(f / "train/bird/002.png"), r"bird/002.png is 32×31 .* takes 32×32"),
        (lambda f: [each.unlink() for each in f.glob("train/bird/*")], "no train image of bird; every class needs one"),
        (lambda f: Image.new("RGB", (32, 32)).save(f / "train/1.png"), "train/1.png is in no folder of a class"),
        (lambda f: (f / "test/bird/1.png").symlink_to("nowhere"), "test/bird/1.png: a link to nowhere, which is not there"),
        (lambda f: (f / "test").rename(f / "toast"), "no test split, only toast, train; an image folder has train/<class>/"),
        (lambda f: [shutil.rmtree(f / "test"), (f / "train").rename(f / "data")], "no test split, only train; .*test/<class>/"),
    ],
)
def test_bad_folders_are_one_clear_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(Refused, match=message) as refused:
        cifar2(folder)
    assert "\n" not in str(refused.value)
    assert refused.value.code == (1 if message in ("no such folder", "the folder is empty") else 4)
    assert not list(sources.cache_folder().glob(f"folder-{folder.name}-{sources._digest(str(folder))}.*tmp"))


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [("broken", "image 7 cannot be decoded"), ("null", "train image 7 is null"), ("unlabelled", "train image 7 has no label")],
)
def test_bad_image_in_parquet_is_named_by_number(spoilt, message, tmp_path):
    with pytest.raises(Refused, match=message) as refused:
        cifar2(write_parquet(tmp_path / "repository", **{spoilt: 7}))
    assert refused.value.code == 4


def test_folders_that_are_not_how_they_seem(folder, tmp_path):
    """Brackets in a path, links to folders and in a circle, files called as other splits, hidden ones, folders in a class's."""
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
        (place / "train" / name).write_text("no picture")
    check(cifar2(place))


def test_parquet_in_a_folder_with_brackets_and_links(tmp_path):
    place = write_parquet(tmp_path / "data [1]")
    (place / "data").rename(tmp_path / "elsewhere")
    (place / "data").symlink_to(tmp_path / "elsewhere")
    check(cifar2(place))


def test_data_that_is_no_folder_says_what_it_may_be(tmp_path):
    (tmp_path / "train.parquet").write_text("x")
    np.savez(tmp_path / "digits.npz", x=np.zeros(1))
    for path, message in (
        (tmp_path / "train.parquet", "is a file; it takes hub, synthetic or a folder"),
        (tmp_path / "none", "no such folder"),
        (tmp_path / ("long" * 100), "name too long"),
        (tmp_path / "digits.npz", "npz files are read for the grey sets"),
    ):
        with pytest.raises(Refused, match=message) as refused:
            cifar2(path)
        assert "\n" not in str(refused.value)
    for data, message in (("", "--data is empty"), (" ", "--data is empty"), ("~nobody-of-this-name/x", "home directory")):
        with pytest.raises(Refused, match=message) as refused:
            Run(data=data).configure("test", {}, "no")
        assert refused.value.code == 2
    assert Run(data="hub").configure("test", {}, "no") is None  # control


def test_images_that_are_too_large_are_refused_at_the_first(folder):
    """Not when all are in memory."""
    Image.new("1", (4000, 3000)).save(folder / "train/airplane/000.png")
    (folder / "train/bird/002.png").write_bytes(b"not looked at")
    with pytest.raises(Refused, match=r"airplane/000.png is 4000×3000 .* takes 32×32: resize"):
        cifar2(folder)


# ---------------------------------------------------------------------------------------------------------- one way to read


def trained_and_predicted(place: Path, file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """(C, H, W) of an image, as a training has it, which must be as `oneloop predict` and `explain` have it."""
    names, load = (("airplane", "bird"), cifar2) if shape[0] == 3 else (tuple("0123456789"), sources.mnist)
    for split in COUNTS:
        for name in names:
            (place / split / name).mkdir(parents=True)
            shutil.copy(file, place / split / name)
    pixels = load(str(place)).train.pixels
    assert len({each.numpy().tobytes() for each in pixels}) == 1
    assert torch.equal(pixels[0], sources.read_image(file, shape))
    return pixels[0].numpy()


RAMP = np.linspace(0, 65535, 28 * 28).round().astype(np.uint16).reshape(28, 28)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
def test_16_bit_grey_keeps_its_levels(name, tmp_path):
    Image.fromarray(RAMP).save(tmp_path / name)
    pixels = trained_and_predicted(tmp_path / "set", tmp_path / name, (1, 28, 28))
    assert np.array_equal(pixels[0], np.rint(RAMP / 257))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_16_bit_grey_in_colour_and_with_a_transparent_level(tmp_path):
    levels = np.resize(RAMP, (32, 32))
    levels[3:5] = 1000
    Image.fromarray(levels).save(tmp_path / "a.png", transparency=1000)
    pixels = trained_and_predicted(tmp_path / "set", tmp_path / "a.png", (3, 32, 32))
    expected = np.rint(levels / 257)
    expected[3:5] = 255
    assert np.array_equal(pixels, [expected] * 3)


TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_followed_by_all(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(1)).save(tmp_path / "a.png", exif=exif)
    pixels = trained_and_predicted(tmp_path / "set", tmp_path / "a.png", (3, 32, 32))
    assert np.array_equal(pixels.transpose(1, 2, 0), TURNED[orientation](picture(1)))


def test_broken_exif_says_nothing(tmp_path):
    Image.fromarray(picture(1)).save(tmp_path / "a.png", exif=b"garbage")
    pixels = trained_and_predicted(tmp_path / "set", tmp_path / "a.png", (3, 32, 32))
    assert np.array_equal(pixels.transpose(1, 2, 0), picture(1))


def test_transparent_parts_are_over_white(tmp_path):
    alpha = np.resize(np.arange(256, dtype=np.uint8), (32, 32))
    Image.fromarray(np.dstack([picture(1), alpha])).save(tmp_path / "a.png")
    pixels = trained_and_predicted(tmp_path / "colour", tmp_path / "a.png", (3, 32, 32)).transpose(1, 2, 0)
    share = alpha[..., None] / 255
    assert np.abs(pixels - (share * picture(1) + (1 - share) * 255)).max() <= 1
    assert (pixels[alpha == 0] == 255).all()
    assert (pixels[alpha == 255] == picture(1)[alpha == 255]).all()
    grey = np.dstack([picture(1, 28)[..., 0], np.resize(alpha, (28, 28))])
    Image.fromarray(grey).save(tmp_path / "b.png")  # LA
    (pixels,) = trained_and_predicted(tmp_path / "grey", tmp_path / "b.png", (1, 28, 28))
    assert (pixels[grey[..., 1] == 0] == 255).all()
    assert (pixels[grey[..., 1] == 255] == grey[grey[..., 1] == 255][:, 0]).all()
    palette = Image.fromarray(picture(1)).quantize(16)
    colours = np.array(palette.convert("RGB"))
    palette.save(tmp_path / "c.png", transparency=bytes([0] + [255] * 15))
    pixels = trained_and_predicted(tmp_path / "palette", tmp_path / "c.png", (3, 32, 32)).transpose(1, 2, 0)
    clear = np.array(palette) == 0
    assert (pixels[clear] == 255).all()
    assert (pixels[~clear] == colours[~clear]).all()


def test_inks_palettes_and_bits_are_read_right(tmp_path):
    inks = np.dstack([picture(1), np.zeros((32, 32), dtype=np.uint8)])
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tiff")
    pixels = trained_and_predicted(tmp_path / "inks", tmp_path / "a.tiff", (3, 32, 32)).transpose(1, 2, 0)
    assert np.array_equal(pixels, 255 - picture(1))
    bits = picture(1, 28)[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "b.png")
    assert np.array_equal(trained_and_predicted(tmp_path / "bits", tmp_path / "b.png", (1, 28, 28))[0], bits * 255)
    Image.fromarray(picture(1, 28)).save(tmp_path / "c.png")  # grey as the eye sees it: ITU-R 601
    (pixels,) = trained_and_predicted(tmp_path / "eye", tmp_path / "c.png", (1, 28, 28))
    assert np.abs(pixels - picture(1, 28) @ (0.299, 0.587, 0.114)).max() <= 0.51


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_white_are_refused_by_all(kind, tmp_path):
    Image.fromarray(np.ones((28, 28), dtype=kind)).save(tmp_path / "a.tiff")
    for split in COUNTS:
        (tmp_path / "set" / split / "0").mkdir(parents=True)
        shutil.copy(tmp_path / "a.tiff", tmp_path / "set" / split / "0")
    with pytest.raises(Refused, match=r"without a known white .* save it with 8 or 16 bits") as refused:
        sources.mnist(str(tmp_path / "set"))
    assert refused.value.code == 4
    with pytest.raises(Refused, match="without a known white") as refused:
        sources.read_image(tmp_path / "a.tiff", (1, 28, 28))
    assert refused.value.code == 1


@pytest.mark.parametrize("size", [(8, 4), (4, 8), (8, 8), (2, 4)])  # with one side right, both, none
def test_predicted_images_are_stretched_to_the_size_of_the_trained(size, tmp_path):
    across = np.linspace(0, 255, size[0]).round()
    Image.fromarray(np.broadcast_to(across, (size[1], size[0])).astype(np.uint8)).save(tmp_path / "a.png")
    pixels = sources.read_image(tmp_path / "a.png", (1, 4, 4))
    assert pixels.shape == (1, 4, 4)
    assert (pixels == pixels[:, :1]).all()
    assert (pixels[0, 0].diff() > 0).all()
    checks = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)  # antialiased: no single dot is taken for all
    Image.fromarray(checks).save(tmp_path / "b.png")
    assert (sources.read_image(tmp_path / "b.png", (1, 4, 4)).float() - 127.5).abs().max() < 32


def plain_folder(place: Path) -> Path:
    for number, name in enumerate(sources.CIFAR10_CLASSES):
        for split in COUNTS:
            (place / split / name).mkdir(parents=True)
            pixels = np.arange(32 * 32 * 3, dtype=np.int64).reshape(32, 32, 3) * (number + 3) + (split == "test")
            Image.fromarray((pixels % 256).astype(np.uint8)).save(place / split / name / "1.png")
    return place


def test_ordinary_images_keep_their_fingerprint(tmp_path):
    """Golden: recorded runs go on only with the same one."""
    assert sources.cifar10(str(plain_folder(tmp_path / "set"))).fingerprint == GOLDEN


def test_a_folder_cached_by_the_reading_that_spoilt_16_bits_is_read_again(tmp_path):
    place = plain_folder(tmp_path / "set")
    files = sorted((path for path in place.rglob("*") if path.is_file()), key=str)
    facts = [(str(path.relative_to(place)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    first, state = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (str(place), json.dumps([3, facts])))
    cifar2(place)
    (cached,) = sources.cache_folder().glob(f"folder-set-{first}.*.safetensors")
    cached.unlink()
    cached.with_name(f"folder-set-{first}.{state}.safetensors").write_bytes(b"what was read then")
    assert sources.cifar10(str(place)).fingerprint == GOLDEN


# -------------------------------------------------------------------------------------------------------------------- cache


@contextlib.contextmanager
def nobody():
    """What follows is not done as root, who may do anything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shared(folder, monkeypatch):
    """A folder of images and a cache that others may look into, and not write to."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder, f"{place}/pictures")
        (Path(place) / "cache").mkdir()
        for path in (Path(place), *Path(place).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        monkeypatch.setenv("ONELOOP_CACHE", f"{place}/cache")
        yield Path(place)
        (Path(place) / "cache").chmod(0o755)


def test_a_cache_that_cannot_be_written_is_one_line(shared, monkeypatch):
    (shared / "cache").chmod(0o555)
    with nobody(), pytest.raises(Refused, match=r"cannot write the cache .*/cache: Permission denied; .* ONELOOP_CACHE"):
        cifar2(shared / "pictures")
    (shared / "file").touch()
    for place in (shared / "file", shared / ("long" * 100)):
        monkeypatch.setenv("ONELOOP_CACHE", str(place))
        with pytest.raises(Refused, match=r"cannot write the cache .* choose another with ONELOOP_CACHE") as refused:
            cifar2(shared / "pictures")
        assert refused.value.code == 1
    with pytest.raises(Refused, match="cannot write the cache"):
        cifar2("hub")


def test_a_shared_cache_is_read_by_those_who_may_not_write_it(shared):
    umask = os.umask(0o022)
    try:
        cifar2(shared / "pictures")
        (cached,) = (shared / "cache").glob("*.safetensors")
        assert cached.stat().st_mode & 0o777 == 0o644
        (shared / "cache").chmod(0o555)
        with nobody():
            check(cifar2(shared / "pictures"))
        cached.chmod(0o600)
        if os.geteuid() == 0:
            with nobody(), pytest.raises(Refused, match=r"may not be read by you; .* ONELOOP_CACHE"):
                cifar2(shared / "pictures")
        cached.unlink()
        (shared / "cache").chmod(0o755)
        os.umask(0o077)
        cifar2(shared / "pictures")
        assert cached.stat().st_mode & 0o777 == 0o600  # as the umask says
    finally:
        os.umask(umask)


def test_without_a_home_folder(folder, monkeypatch):
    import pwd

    def nobody_known(_):
        raise KeyError

    for name in ("HOME", "ONELOOP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody_known)  # as in a container with a user of its own
    for data in (folder, "hub"):
        with pytest.raises(Refused, match=r"no home folder .* ONELOOP_CACHE=FOLDER"):
            cifar2(data)


@pytest.mark.parametrize("change", ["size", "time", "name"])
def test_what_a_cache_notices_of_a_folder(change, folder):
    first = cifar2(folder)
    file = folder / "train/bird/002.png"
    before = file.stat()
    Image.fromarray(picture(999)).save(file)
    content = file.read_bytes()
    if change == "size":
        file.write_bytes(content + b"\0")
    if change == "name":
        file = file.rename(file.with_name("003.png"))
    moved = before.st_mtime_ns + (change == "time")
    os.utime(file, ns=(moved, moved))
    assert cifar2(folder).fingerprint != first.fingerprint
    (cached,) = sources.cache_folder().glob(f"folder-{folder.name}-{sources._digest(str(folder))}.*.safetensors")
    assert cached.stat().st_size > 0  # the older one is gone


def test_grey_and_colour_of_one_folder_are_kept_apart(tmp_path):
    for split in COUNTS:
        for name in sources.CIFAR10_CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(picture(1)).save(tmp_path / split / name / "1.png")
    assert sources.cifar10(str(tmp_path)).train.pixels.shape == (10, 3, 32, 32)
    with pytest.raises(Refused, match=r"is 32×32 .* takes 28×28"):
        sources.mnist(str(tmp_path))
    assert sources.cifar10(str(tmp_path)).train.pixels.shape == (10, 3, 32, 32)


def test_wrong_columns_are_listed(tmp_path):
    import datasets

    (tmp_path / "table").mkdir()
    for split in COUNTS:
        datasets.Dataset.from_dict({"a": [1], "b": ["x"]}).to_parquet(tmp_path / f"table/{split}.parquet")
    with pytest.raises(Refused, match="needs one image column and one label column, it has a: Value, b: Value"):
        cifar2(tmp_path / "table")


def test_wrong_size_and_missing_class_say_what_is_there(folder, tmp_path):
    with pytest.raises(Refused, match="no class 'zebra'; its classes are airplane, automobile"):
        sources.cifar10(str(folder), keep=("zebra",))
    for file in folder.rglob("*.png"):
        Image.open(file).resize((28, 28)).save(file)
    with pytest.raises(Refused, match=r"train/airplane/000.png is 28×28 \(width×height\), this recipe takes 32×32: resize"):
        cifar2(folder)


def test_damaged_cache_is_named_and_not_used(folder):
    cifar2(folder)
    (file,) = sources.cache_folder().glob(f"folder-{folder.name}-{sources._digest(str(folder))}.*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(Refused, match=r"is damaged: sha256 .*delete it"):
        cifar2(folder)
    file.write_bytes(content[:100])
    with pytest.raises(Refused, match="cannot be read"):
        cifar2(folder)


def test_synthetic_is_the_same_each_time_and_balanced():
    first, second = cifar2("synthetic"), cifar2("synthetic")
    assert first.fingerprint == second.fingerprint
    assert first.train.pixels.shape == (2000, 3, 32, 32)
    assert first.train.labels.bincount().tolist() == [1000, 1000]
    assert first.source == "synthetic"
    assert not torch.equal(first.train.pixels[: len(first.test)], first.test.pixels)


LOAD = (
    "import sys; from launch import sources; from launch.errors import Refused\n"
    "try: images = sources.cifar10(keep=('airplane', 'bird'))\n"
    "except Refused as error: sys.exit(f'refused: {error}')\n"
    "print(images.fingerprint, len(images.train))"
)


def load_from_hub(address: str, place: Path, offline: str = "0", wait: bool = True):
    env = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": offline, "HF_HOME": str(place / "hf")}
    env["ONELOOP_CACHE"] = str(place / "cache")
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", LOAD], env=env, stdout=-1, stderr=-1, text=True)
    if not wait:
        return process
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err.strip().splitlines(), time.monotonic() - began


def test_hub_once_then_never_asked_again(tmp_path):
    """The ordinary client downloads; later starts need neither the hub nor `datasets`' own cache, and do not wait for it."""
    with hub(write_parquet(tmp_path / "repository"), "uoft-cs/cifar10") as (address, requests):
        code, out, err, _ = load_from_hub(address, tmp_path)
        assert code == 0, err
        assert any("resolve" in request for request in requests)
        del requests[:]
        assert load_from_hub(address, tmp_path)[1] == out
        assert requests == []
    shutil.rmtree(tmp_path / "hf")
    with silent() as address:
        code, again, err, seconds = load_from_hub(address, tmp_path)
    assert (code, again) == (0, out), err
    assert seconds < 15


def test_hub_two_processes_at_once(tmp_path):
    with hub(write_parquet(tmp_path / "repository"), "uoft-cs/cifar10") as (address, requests):
        both = [load_from_hub(address, tmp_path, wait=False) for _ in range(2)]
        outs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert outs[0][0] == outs[1][0]
    assert len([request for request in requests if request.startswith("GET") and "train-" in request]) == 1


def test_hub_that_refuses_and_nothing_cached(tmp_path):
    code, _, err, seconds = load_from_hub("http://127.0.0.1:9", tmp_path)
    assert code == 1
    for word in ("uoft-cs/cifar10", "HF_ENDPOINT", "HF_HUB_OFFLINE", "--data PATH", "--data synthetic"):
        assert word in err[-1]
    assert seconds < 30
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_hub_that_gives_rubbish(tmp_path):
    root = write_parquet(tmp_path / "repository")
    for file in root.rglob("*.parquet"):
        file.write_bytes(b"PAR1, or so it says")
    with hub(root, "uoft-cs/cifar10") as (address, _):
        code, _, err, _ = load_from_hub(address, tmp_path)
    assert code == 1
    assert "cannot get the data set 'uoft-cs/cifar10'" in err[-1]
    assert not any("Traceback" in line for line in err)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_hub_that_hangs_and_nothing_cached(tmp_path):
    with silent() as address:
        code, _, err, seconds = load_from_hub(address, tmp_path)
    assert (code, seconds < 30) == (1, True), (err, seconds)
    assert "--data synthetic" in err[-1]


def test_hub_without_the_data_set(tmp_path):
    with hub(tmp_path, "someone/else") as (address, _):
        code, _, err, _ = load_from_hub(address, tmp_path)
    assert code == 1
    assert "no data set 'uoft-cs/cifar10'" in err[-1]


def test_refusal_reaches_the_user_as_one_line_and_leaves_no_folder(tmp_path):
    done = run_recipe("cifar2", "--data", tmp_path / "missing", cwd=tmp_path)
    assert done.returncode == 1
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ idx and npz


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    return random.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)


def write_idx(folder: Path, joint: str = "-", pack=lambda raw: raw, end: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", 40), ("t10k", 20)):
        pixels, labels = digits(count)
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        (folder / f"{stem}-images{joint}idx3-ubyte{end}").write_bytes(pack(images))
        (folder / f"{stem}-labels{joint}idx1-ubyte{end}").write_bytes(pack(struct.pack(">II", 2049, count) + labels.tobytes()))
    return folder


def check_digits(images) -> None:
    for split, count in ((images.train, 40), (images.test, 20)):
        pixels, labels = digits(count)
        assert np.array_equal(split.pixels[:, 0].numpy(), pixels)
        assert split.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize(("pack", "end"), [(lambda raw: raw, ""), (gzip.compress, ".gz")])
def test_idx_files_dashed_or_dotted_plain_or_packed(joint, pack, end, tmp_path):
    check_digits(sources.mnist(str(write_idx(tmp_path, joint, pack, end))))


def test_npz_of_both_kinds(tmp_path):
    (x, y), (x_test, y_test) = digits(40), digits(20)
    np.savez(tmp_path / "keras.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    check_digits(sources.mnist(str(tmp_path / "keras.npz")))
    rows, one_hot = (lambda a: a.reshape(-1, 784).astype(np.float32) / 255), (lambda a: np.eye(10, dtype=np.float32)[a])
    np.savez_compressed(
        tmp_path / "rows.npz", trainInps=rows(x), trainTargs=one_hot(y), testInps=rows(x_test), testTargs=one_hot(y_test)
    )
    check_digits(sources.mnist(str(tmp_path / "rows.npz")))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"\0\0", "too short"),
        ("train-images-idx3-ubyte", struct.pack(">IIII", 2052, 1, 28, 28), "magic number 2052"),
        ("train-images-idx3-ubyte", struct.pack(">IIII", 2051, 2**31, 28, 28), "claims 1,683,627,180,032 bytes"),
        ("train-images-idx3-ubyte", struct.pack(">IIII", 2051, 2, 28, 28) + bytes(784), "claims 1,568 bytes, it has 784"),
        ("train-images-idx3-ubyte", struct.pack(">IIII", 2051, 1, 28, 28) + bytes(800), "claims 784 bytes, it has more"),
        ("train-labels-idx1-ubyte", struct.pack(">II", 2049, 40) + bytes([10] * 40), "label 10"),
        ("t10k-labels-idx1-ubyte", struct.pack(">II", 2049, 3) + bytes(3), "20 test images and 3 labels"),
    ],
)
def test_lying_idx_headers_are_refused(file, content, message, tmp_path):
    write_idx(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(Refused, match=message):
        sources.mnist(str(tmp_path))


def test_gzip_that_unpacks_to_more_than_it_claims_is_not_unpacked(tmp_path):
    write_idx(tmp_path, pack=gzip.compress, end=".gz")
    bomb = gzip.compress(struct.pack(">IIII", 2051, 1, 28, 28) + bytes(200_000_000))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    began = time.monotonic()
    with pytest.raises(Refused, match="has more"):
        sources.mnist(str(tmp_path))
    assert time.monotonic() - began < 1


def good_npz(**changed) -> dict[str, np.ndarray]:
    (x, y), (x_test, y_test) = digits(40), digits(20)
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test} | changed


@pytest.mark.parametrize(
    "changed",
    [
        {"y_train": digits(40)[1][:, None], "y_test": digits(20)[1][:, None].astype(np.float64)},
        {"x_train": digits(40)[0][..., None].astype(np.int64), "x_test": digits(20)[0][:, None].astype(np.float32)},
        {"x_train": np.asfortranarray(digits(40)[0]), "y_train": np.eye(10, dtype=np.int64)[digits(40)[1]]},
        {"x_train": digits(40)[0].astype(">u2"), "y_train": digits(40)[1].astype(">i8")},
        {"x_train": (digits(40)[0] - 0.4).clip(0) / 255},
    ],
    ids=["column of labels", "channels and types", "by column", "the other byte order", "rounded"],
)
def test_npz_of_every_shape_that_says_the_same(changed, tmp_path):
    np.savez(tmp_path / "a.npz", **good_npz(**changed))
    check_digits(sources.mnist(str(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": np.zeros((40, 10))}, r"train images \(40, 10\); they are \(n, 28, 28\), or rows of 784"),
        ({"x_train": np.zeros((40, 14, 56))}, r"train images \(40, 14, 56\); they are"),
        ({"x_test": np.zeros((784, 20))}, r"test images float64\(784, 20\) and labels uint8\(20,\)"),
        ({"x_train": np.zeros((0, 784)), "y_train": np.zeros(0)}, "train has no images"),
        ({"x_train": np.full((40, 784), np.nan)}, "no numbers"),
        ({"x_train": np.full((40, 784), 256)}, "beyond 0 to 255"),
        ({"x_test": np.full((20, 784), -1.0)}, "test has pixels beyond 0 to 255"),
        ({"y_train": np.full(40, 10)}, "labels that are not 0 to 9"),
        ({"y_train": np.full(40, 0.5)}, "labels that are not 0 to 9"),
        ({"y_train": np.zeros((40, 10))}, r"train labels \(40, 10\) are not one-hot"),
        ({"y_train": np.full((40, 10), 0.1)}, r"train labels \(40, 10\) are not one-hot"),
        ({"y_train": np.eye(10)[digits(40)[1]] / 2 + 0.5}, r"train labels \(40, 10\) are not one-hot"),
        ({"y_test": np.ones((20, 2))}, r"test labels \(20, 2\) are not one-hot"),
        ({"y_train": np.zeros((40, 0))}, r"train labels \(40, 0\) are not one-hot"),
        ({"y_train": np.array(["a"] * 40)}, "labels <U1"),
        ({"y_train": np.zeros(())}, "and labels float64"),
    ],
)
def test_npz_with_other_numbers_is_one_clear_line(changed, message, tmp_path):
    np.savez(tmp_path / "a.npz", **good_npz(**changed))
    with pytest.raises(Refused, match=message) as refused:
        sources.mnist(str(tmp_path / "a.npz"))
    assert refused.value.code == 4
    assert "\n" not in str(refused.value)


def npy(shape: tuple, dtype: str = "|u1", data: bytes = b"", version: tuple[int, int] = (1, 0), header: str = "") -> bytes:
    """An npy file that says of itself whatever is asked."""
    header = header or f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header.encode() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((10**12, 784)), r"x_train is \(1000000000000, 784\) of uint8 by its header, which is not what is there"),
        (npy((4_000_000, 784)), "which is not what is there"),  # of a size that would be believed
        (npy((10**30, 784)), "which is not what is there"),
        (npy((-1, 784)), "which is not what is there"),
        (npy((1, 784), data=bytes(783)), "which is not what is there"),
        (npy((1, 784), data=bytes(785)), "which is not what is there"),
        (npy((1, 784), "|O", bytes(8)), "only unpickling could read"),
        (npy((), header="{'descr': '|u1', 'shape': ("), "cannot be read"),
        (npy((), header="(" * 5000), "cannot be read"),
        (npy((), header="{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (40, 784), }", data=bytes(125440)), "images"),
        (npy((1, 784), data=bytes(784), version=(3, 0)), "names of fields"),
        (npy((1, 784), data=bytes(784), version=(9, 9)), "cannot be read"),
        (b"no array", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_lying_npz_headers_are_refused_before_memory_is_taken(content, message, tmp_path):
    np.savez(tmp_path / "a.npz", **{name: array for name, array in good_npz().items() if name != "x_train"})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("x_train.npy", content)
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match=message) as refused:
            sources.mnist(str(tmp_path / "a.npz"))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert refused.value.code == 4
    assert "\n" not in str(refused.value)


def spoilt_zip(path: Path, offset_in_local: int, offset_in_directory: int, number: int) -> None:
    """Change two bytes in the headers of the archive's first file, and in its directory."""
    content = bytearray(path.read_bytes())
    for start, offset in ((content.index(b"PK\3\4"), offset_in_local), (content.index(b"PK\1\2"), offset_in_directory)):
        content[start + offset : start + offset + 2] = number.to_bytes(2, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: spoilt_zip(path, 6, 8, 1), "is encrypted"),
        (lambda path: spoilt_zip(path, 8, 10, 77), "compression method is not supported"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "not a zip file"),
        (lambda path: path.write_bytes(b""), "not a zip file"),
        (lambda path: path.write_bytes(path.read_bytes().replace(digits(40)[0].tobytes()[:99], bytes(99))), "CRC"),
        (lambda path: [path.unlink(), path.mkdir()], "the folder is empty"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: np.savez(path, a=np.zeros(1)), "has a; it takes x_train, y_train, x_test, y_test or trainInps"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "has nothing; it takes"),
    ],
)
def test_broken_npz_is_one_clear_line(spoil, message, tmp_path):
    np.savez(tmp_path / "a.npz", **good_npz())
    spoil(tmp_path / "a.npz")
    with pytest.raises(Refused, match=message) as refused:
        sources.mnist(str(tmp_path / "a.npz"))
    assert "\n" not in str(refused.value)


def test_npz_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", **good_npz(x_train=np.zeros((40, 784))))
    monkeypatch.setattr(sources, "NPZ_LIMIT", 260_000)
    with pytest.raises(Refused, match=r"unpacks to .* bytes; 260,000 are believed"):
        sources.mnist(str(tmp_path / "a.npz"))


def test_bad_npz_is_refused_and_never_unpickled(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "payload",))

    np.savez(tmp_path / "object.npz", **good_npz(x_train=np.array([Payload()], dtype=object)))
    with pytest.raises(Refused, match="only unpickling could read"):
        sources.mnist(str(tmp_path / "object.npz"))
    assert not (tmp_path / "payload").exists()


def test_grey_sets_have_their_names_and_scale():
    fashion = sources.fashion_mnist("synthetic")
    assert fashion.classes[0] == "T-shirt/top"
    assert fashion.train.pixels.shape == (2000, 1, 28, 28)
    digits_plain = sources.mnist("synthetic", normalised=False)
    assert (digits_plain.mean, digits_plain.std) == ((0.0,), (1.0,))
    assert digits_plain.classes == tuple("0123456789")


def test_image_folder_of_garments_keeps_its_names(tmp_path):
    """A folder's classes come in the order of the alphabet, the hub's in their own."""
    for split in COUNTS:
        for name in sources.FASHION_CLASSES:
            place = tmp_path / split / name.replace("/", "-")
            place.mkdir(parents=True)
            Image.fromarray(picture(1, 28)).convert("L").save(place / "1.png")
    with pytest.raises(Refused, match="no class 'T-shirt/top'; its classes are Ankle boot"):
        sources.fashion_mnist(str(tmp_path))


# ---------------------------------------------------------------------------------------------------------------- selection


def test_kept_classes_are_labelled_in_the_order_asked_for(folder):
    images = sources.cifar10(str(folder), keep=("ship", "airplane", "cat"))
    assert images.classes == ("ship", "airplane", "cat")
    for split, count in zip((images.train, images.test), COUNTS.values(), strict=True):
        expected = sorted((picture(n).tobytes(), [8, 0, 3].index(label(n))) for n in range(count) if label(n) in (8, 0, 3))
        got = sorted((p.permute(1, 2, 0).numpy().tobytes(), int(t)) for p, t in zip(*split, strict=True))
        assert got == expected
    assert images.fingerprint == cifar2(folder).fingerprint  # of all that is there
    assert images.source == str(folder)


def test_limit_is_a_fixed_sample_of_the_kept_classes_in_their_order(folder):
    every, some, again = (cifar2(folder, limit=limit) for limit in (0, 5, 5))
    assert len(every.train) == 8
    assert torch.equal(some.train.pixels, again.train.pixels)
    assert some.fingerprint == every.fingerprint
    places = [next(i for i in range(8) if torch.equal(every.train.pixels[i], pixels)) for pixels in some.train.pixels]
    assert places == sorted(set(places)) != list(range(5))
    assert torch.equal(some.train.labels, every.train.labels[places])
    assert len(cifar2(folder, limit=8).train) == len(cifar2(folder, limit=100).train) == 8
    assert cifar2(folder, limit=1).train.labels.shape == (1,)


@pytest.mark.parametrize(
    ("load", "mean", "std"),
    [
        (sources.cifar10, (0.4915, 0.4823, 0.4468), (0.2470, 0.2435, 0.2616)),
        (sources.mnist, (0.1307,), (0.3081,)),
        (sources.fashion_mnist, (0.2860,), (0.3530,)),
    ],
)
def test_drawn_sets_have_their_scale_and_show_their_classes(load, mean, std):
    """The scale is the book's, chapter 7, and that over all training images of the grey sets.

    The nearest of the classes' mean images is right more than twice as often as chance on images that were not averaged.
    """
    images = load("synthetic")
    assert (images.mean, images.std) == (mean, std)
    assert len(images.classes) == 10
    assert images.train.labels.bincount().tolist() == [200] * 10
    assert images.test.labels.bincount().tolist() == [50] * 10
    train, test = (split.pixels.float().flatten(1) for split in (images.train, images.test))
    assert train.std(dim=0).min() > 5  # no place is the same in all
    train, test = (pixels - pixels.mean(1, keepdim=True) for pixels in (train, test))
    if len(mean) == 3:  # dark on bright or bright on dark, in any colour: what differs is where
        train, test = train.abs(), test.abs()
    means = torch.stack([train[images.train.labels == number].mean(0) for number in range(10)])
    assert (torch.cdist(test, means).argmin(1) == images.test.labels).float().mean() > 0.2


@pytest.mark.parametrize("part", ["classes", "train pixels", "test pixels", "train labels", "test labels", "shape"])
def test_the_fingerprint_is_of_all_there_is(part, tmp_path):

    def fingerprint(x, y, x_test, y_test):
        np.savez(tmp_path / "a.npz", **good_npz(x_train=x, y_train=y, x_test=x_test, y_test=y_test))
        return sources.mnist(str(tmp_path / "a.npz")).fingerprint

    (x, y), (x_test, y_test) = digits(40), digits(20)
    first = fingerprint(x, y, x_test, y_test)
    assert first == fingerprint(x, y, x_test, y_test)  # control
    if part == "classes":
        folders = [plain_folder(tmp_path / name) for name in ("one", "two")]
        for split in COUNTS:
            (folders[1] / split / "truck").rename(folders[1] / split / "van")
        one, two = (sources.cifar10(str(place), keep=("bird", "cat")).fingerprint for place in folders)
        assert one != two
        return
    if part == "shape":  # one image more to train and one less to test
        assert first != fingerprint(np.r_[x, x_test[:1]], np.r_[y, y_test[:1]], x_test[1:], y_test[1:])
        return
    changed = {"train pixels": x, "test pixels": x_test, "train labels": y, "test labels": y_test}[part]
    changed[-1] = changed[0] if "labels" not in part else (changed[-1] + 1) % 10
    assert first != fingerprint(x, y, x_test, y_test)


def test_names_of_garments_are_known_by_number_or_without_spaces(tmp_path):
    """idx and npz files have numbers, the hub names with spaces of its own; digits keep theirs."""
    np.savez(tmp_path / "a.npz", **good_npz())
    garments, numbers = (load(str(tmp_path / "a.npz")) for load in (sources.fashion_mnist, sources.mnist))
    assert garments.classes == sources.FASHION_CLASSES
    assert numbers.classes == tuple("0123456789")
    assert torch.equal(garments.train.labels, numbers.train.labels)


def test_validation_images_are_the_test_where_there_are_no_others(folder):
    (folder / "test").rename(folder / "val")
    check(cifar2(folder))
    shutil.copytree(folder / "train", folder / "test")
    assert len(cifar2(folder).test) == 8  # control: test comes first


def test_all_classes_in_another_order_are_relabelled(folder):
    turned = sources.CIFAR10_CLASSES[::-1]
    straight, images = sources.cifar10(str(folder)), sources.cifar10(str(folder), keep=turned)
    assert images.classes == turned
    assert torch.equal(images.train.labels, 9 - straight.train.labels)


def test_an_empty_class_of_the_test_split_is_named(folder):
    for file in folder.glob("test/bird/*"):
        file.unlink()
    with pytest.raises(Refused, match="no test image of bird; every class needs one"):
        cifar2(folder)


def test_two_folders_of_one_name_are_kept_apart(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other" / folder.name)
    (other / "train/bird/002.png").unlink()
    cifar2(folder), cifar2(other)
    slugs = [f"folder-{folder.name}-{sources._digest(str(place))}" for place in (folder, other)]
    assert [len([*sources.cache_folder().glob(f"{slug}.*.safetensors")]) for slug in slugs] == [1, 1]


def test_a_folder_with_brackets_is_cached(folder, tmp_path, monkeypatch):
    place = folder.rename(tmp_path / "a[1]*")
    first = cifar2(place)
    monkeypatch.setattr(sources, "_pixels", lambda *_: pytest.fail("decoded again"))
    assert cifar2(place).fingerprint == first.fingerprint


def test_classes_are_those_of_both_splits(folder):
    (folder / "test/truck").rename(folder / "test/van")
    check(cifar2(folder))
    with pytest.raises(Refused, match=r"no class .zebra.; its classes are .*, truck, van"):
        sources.cifar10(str(folder), keep=("zebra",))


def write_table(folder: Path, split: str, names: list[str], size: int = 28) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = [{"image": Image.fromarray(picture(number, size)), "label": number} for number in range(len(names))]
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_the_hub_has_spaces_of_its_own_in_the_names_of_garments(tmp_path):
    for split in COUNTS:
        write_table(tmp_path / "a", split, ["T - shirt / top", *sources.FASHION_CLASSES[1:]])
    assert sources.fashion_mnist(str(tmp_path / "a")).classes == sources.FASHION_CLASSES


def test_drawn_images_come_mixed():
    """As a book's training without shuffling takes them."""
    assert sources.mnist("synthetic").train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
