"""Where pixels come from: real files of every kind, broken ones, a cache, a hub and its absence."""

import gzip
import os
import shutil
import struct
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_recipe
from PIL import Image
from servers import hub, silent

from launch import sources
from launch.errors import Refused

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of datasets 5.2
COUNTS = {"train": 40, "test": 20}


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


def write_parquet(folder: Path, images: str = "img", labels: str = "label", broken: int | None = None) -> Path:
    """The hub's layout: one parquet file a split, images as encoded bytes."""
    import datasets

    features = datasets.Features({images: datasets.Image(), labels: datasets.ClassLabel(names=list(sources.CIFAR10_CLASSES))})
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            file = BytesIO()
            Image.fromarray(picture(number)).save(file, "PNG")
            raw = file.getvalue() if number != broken else b"no picture"
            rows.append({images: {"bytes": raw, "path": None}, labels: label(number)})
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
        (lambda f: shutil.rmtree(f / "test"), "no test split, only train"),
        (lambda f: shutil.rmtree(f / "train/bird"), "no train image of bird"),
        (lambda f: (f / "train/bird/002.png").write_bytes(b"no picture"), r"train image \d+ cannot be decoded"),
        (lambda f: Image.fromarray(picture(1, 16)).save(f / "train/bird/002.png"), r"train image \d+ is 16×16, image 0 is 32×32"),
    ],
)
def test_bad_folders_are_one_clear_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(Refused, match=message) as refused:
        cifar2(folder)
    assert "\n" not in str(refused.value)
    assert refused.value.code == (1 if message in ("no such folder", "the folder is empty") else 4)
    assert not list(sources.cache_folder().glob(f"folder-{folder.name}-{sources._digest(str(folder))}.*tmp"))


def test_undecodable_image_in_parquet_is_named_by_number(tmp_path):
    with pytest.raises(Refused, match="train image 7 cannot be decoded"):
        cifar2(write_parquet(tmp_path / "repository", broken=7))


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
    with pytest.raises(Refused, match=r"train images are 3×28×28 .* takes 3×32×32"):
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


def test_bad_npz_is_refused_and_never_unpickled(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "payload",))

    good = {"y_train": np.zeros(1), "x_test": np.zeros((1, 784)), "y_test": np.zeros(1)}
    np.savez(tmp_path / "object.npz", x_train=np.array([Payload()], dtype=object), **good)
    np.savez(tmp_path / "keys.npz", a=np.zeros(1))
    np.savez(tmp_path / "size.npz", x_train=np.zeros((1, 10)), **good)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "size.npz").read_bytes()[:100])
    for name, message in (("object", "Object arrays"), ("keys", "has a; it takes"), ("size", "784"), ("torn", "cannot be read")):
        with pytest.raises(Refused, match=message):
            sources.mnist(str(tmp_path / f"{name}.npz"))
    assert not (tmp_path / "payload").exists()
    with pytest.raises(Refused, match="no such file"):
        sources.mnist(str(tmp_path / "none.npz"))


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
