"""idx and npz files: every spelling gives the same images; a header is not believed, and nothing is unpickled."""

import gzip
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_files import check_digits, digits, good_npz, idx, write_idx

from launch import sources
from launch.errors import Refused


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize(("pack", "end"), [(lambda raw: raw, ""), (gzip.compress, ".gz")])
def test_idx_files_dashed_or_dotted_plain_or_packed(joint, pack, end, tmp_path):
    check_digits(sources.mnist(str(write_idx(tmp_path, joint, pack, end))))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"\0\0", "too short"),
        ("train-images-idx3-ubyte", idx(2052, 1, 28, 28, data=b""), "magic number is 2052, expected 2051"),
        (
            "train-images-idx3-ubyte",
            idx(2051, 2**31, 28, 28, data=b""),
            "header says 1,683,627,180,032 bytes; the limit is 1,073,741,824",
        ),
        ("train-images-idx3-ubyte", idx(2051, 2, 28, 28, data=bytes(784)), "header says 1,568 bytes, but the file has 784"),
        ("train-images-idx3-ubyte", idx(2051, 1, 28, 28, data=bytes(800)), "header says 784 bytes, but the file has more"),
        ("train-labels-idx1-ubyte", idx(2049, 40, data=bytes([10] * 40)), "label 10"),
        ("t10k-labels-idx1-ubyte", idx(2049, 3, data=bytes(3)), "20 test images, but 3 labels"),
    ],
)
def test_lying_idx_headers_are_refused(file, content, message, tmp_path):
    write_idx(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(Refused, match=message):
        sources.mnist(str(tmp_path))


def test_gzip_that_unpacks_to_more_than_it_claims_is_not_unpacked(tmp_path):
    write_idx(tmp_path, pack=gzip.compress, end=".gz")
    bomb = gzip.compress(idx(2051, 1, 28, 28, data=bytes(200_000_000)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    began = time.monotonic()
    with pytest.raises(Refused, match="has more"):
        sources.mnist(str(tmp_path))
    assert time.monotonic() - began < 1


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
def test_npz_shapes_and_dtypes_of_the_same_images(changed, tmp_path):
    np.savez(tmp_path / "a.npz", **good_npz(**changed))
    check_digits(sources.mnist(str(tmp_path / "a.npz")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": np.zeros((40, 10))}, r"train has images \(40, 10\); expected \(n, 28, 28\) or \(n, 784\)"),
        ({"x_train": np.zeros((40, 14, 56))}, r"train has images \(40, 14, 56\); expected"),
        ({"x_test": np.zeros((784, 20))}, r"test has images float64\(784, 20\) and labels uint8\(20,\)"),
        ({"x_train": np.zeros((0, 784)), "y_train": np.zeros(0)}, "train has no images"),
        ({"x_train": np.full((40, 784), np.nan)}, "NaN or infinite"),
        ({"x_train": np.full((40, 784), 256)}, "pixels outside 0 to 255"),
        ({"x_test": np.full((20, 784), -1.0)}, "test has pixels outside 0 to 255"),
        ({"y_train": np.full(40, 10)}, "labels other than 0 to 9"),
        ({"y_train": np.full(40, 0.5)}, "labels other than 0 to 9"),
        ({"y_train": np.zeros((40, 10))}, r"train has labels \(40, 10\) that are not one-hot"),
        ({"y_train": np.full((40, 10), 0.1)}, r"train has labels \(40, 10\) that are not one-hot"),
        ({"y_train": np.eye(10)[digits(40)[1]] / 2 + 0.5}, r"train has labels \(40, 10\) that are not one-hot"),
        ({"y_test": np.ones((20, 2))}, r"test has labels \(20, 2\) that are not one-hot"),
        ({"y_train": np.zeros((40, 0))}, r"train has labels \(40, 0\) that are not one-hot"),
        ({"y_train": np.array(["a"] * 40)}, "labels <U1"),
        ({"y_train": np.zeros(())}, "and labels float64"),
    ],
)
def test_npz_with_wrong_arrays_is_one_clear_line(changed, message, tmp_path):
    np.savez(tmp_path / "a.npz", **good_npz(**changed))
    with pytest.raises(Refused, match=message) as refused:
        sources.mnist(str(tmp_path / "a.npz"))
    assert refused.value.code == 4
    assert "\n" not in str(refused.value)


def npy(shape: tuple, dtype: str = "|u1", data: bytes = b"", version: tuple[int, int] = (1, 0), header: str = "") -> bytes:
    """An npy file with any header and any data."""
    header = header or f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header.encode() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((10**12, 784)), r"header of x_train says uint8\(1000000000000, 784\), but its data has another size"),
        (npy((4_000_000, 784)), "its data has another size"),  # below the limit
        (npy((10**30, 784)), "its data has another size"),
        (npy((-1, 784)), "its data has another size"),
        (npy((1, 784), data=bytes(783)), "its data has another size"),
        (npy((1, 784), data=bytes(785)), "its data has another size"),
        (npy((1, 784), "|O", bytes(8)), "only unpickling could read"),
        (npy((), header="{'descr': '|u1', 'shape': ("), "cannot be read"),
        (npy((), header="(" * 5000), "cannot be read"),
        (npy((), header="{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (40, 784), }", data=bytes(125440)), "images"),
        (npy((1, 784), data=bytes(784), version=(3, 0)), "named fields"),
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
    """Change two bytes in the header of the archive's first file, and in its directory."""
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
        (lambda path: np.savez(path, a=np.zeros(1)), "has a; expected x_train, y_train, x_test, y_test or trainInps"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "has no arrays; expected"),
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
    monkeypatch.setattr("launch.sources.npz.LIMIT", 260_000)
    with pytest.raises(Refused, match=r"unpacks to .* bytes; the limit is 260,000"):
        sources.mnist(str(tmp_path / "a.npz"))


def test_bad_npz_is_refused_and_never_unpickled(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "payload",))

    np.savez(tmp_path / "object.npz", **good_npz(x_train=np.array([Payload()], dtype=object)))
    with pytest.raises(Refused, match="only unpickling could read"):
        sources.mnist(str(tmp_path / "object.npz"))
    assert not (tmp_path / "payload").exists()
