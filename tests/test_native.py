"""The same bits with and without native.c and simplejpeg: launch/data/native.py, resize.py and decode.py."""

import contextlib
import ctypes
import faulthandler
import hashlib
import io
import mmap
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from photos import photo, write_photos
from PIL import Image

from launch.data import decode, native
from launch.data.normalise import Normaliser
from launch.data.resize import ResizeRule, read, resized, viewed
from launch.sources import custom_images

RANDOM = np.random.default_rng(7)
NOISE = RANDOM.integers(0, 256, (300, 400, 3), dtype=np.uint8)
FORK = multiprocessing.get_context("fork")
EVERY = [  # height and width of a view, and of what is made of it: reduced, enlarged, kept, by turns; smaller than a vector
    ((300, 400), (224, 224)), ((37, 41), (224, 224)), ((224, 224), (224, 224)), ((9, 5), (32, 32)), ((32, 32), (32, 32)),
    ((1, 1), (7, 7)), ((299, 3), (1, 1)), ((2, 400), (97, 16)), ((290, 390), (5, 3)), ((150, 225), (100, 150)),
]  # fmt: skip


@pytest.fixture(params=[2, 1, 0], ids=["avx512", "avx2", "portable"])
def code(request, tmp_path, monkeypatch):
    """The native code, as it is for this CPU, and as it is for one without AVX-512, or without AVX2."""
    if not native._compiler():
        pytest.skip("no C compiler")
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, f"-DVECTORS={request.param}"))
    native.library.cache_clear()
    yield native.library()
    native.library.cache_clear()


def without(monkeypatch, work):
    with monkeypatch.context() as patched:
        patched.setattr(native, "library", lambda: None)
        return work()


def test_a_view_has_torchs_bits(code, monkeypatch):
    assert code is not None
    for (height, width), (tall, wide) in EVERY:
        views = [
            (int(RANDOM.integers(0, 301 - height)), int(RANDOM.integers(0, 401 - width)), height, width, mirrored)
            for mirrored in (0, 1, 0)
        ]
        views[2] = 300 - height, 400 - width, height, width, 1  # the last pixels that there are
        normalise = Normaliser((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), wide, torch.device("cpu"))
        for dtype, factors in ((torch.uint8, None), (torch.float32, normalise)):
            batches = (torch.full((3, tall, wide, 3), 99, dtype=dtype) for _ in range(2))  # aligned, as a feed's are
            found, expected = (batch.numpy() for batch in batches)
            viewed([NOISE] * 3, views, found, factors)
            without(monkeypatch, lambda: viewed([NOISE] * 3, views, expected, factors))  # noqa: B023
            assert found.tobytes() == expected.tobytes(), (views, tall, wide)
            if (height, width) == NOISE.shape[:2] == (300, 400):  # control: there is something to mirror
                assert (found[1] != found[0]).any()


def test_nothing_is_read_beyond_an_image(code):
    page = mmap.PAGESIZE

    def last_pixels():
        memory = mmap.mmap(-1, 4 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + 3 * page), page, 0) == 0
        image = np.frombuffer(memory, np.uint8)[: 3 * page].reshape(64, -1, 3)  # 64 rows of 64 pixels, then no memory
        viewed([image, image], [(60, 60, 4, 4, 0), (0, 0, 64, 64, 1)], np.empty((2, 32, 32, 3), np.uint8))
        if os.environ.get("BEYOND"):
            faulthandler.disable()
            image[-1, -1, -1:].ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))[1]

    def ended() -> int | None:
        process = FORK.Process(target=last_pixels)
        process.start()
        process.join(60)
        return process.exitcode

    assert ended() == 0
    os.environ["BEYOND"] = "1"  # control
    try:
        assert ended() < 0
    finally:
        del os.environ["BEYOND"]


def test_torch_has_the_same_bits_on_any_cpu(tmp_path):
    """Without vectors, which is what an old CPU has, as here."""
    script = (
        "import hashlib, sys, numpy as np, torch\nfrom launch.data import native, resize\nnative.library = lambda: None\n"
        "image = np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8)\n"
        "print(hashlib.sha256(b''.join(resize.resized(image, *size).tobytes() for size in ((64, 48), (97, 120)))).hexdigest())"
    )
    command = [sys.executable, "-c", script]
    env = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    without_vectors = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    image = np.random.default_rng(3).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    here = hashlib.sha256(b"".join(resized(image, *size).tobytes() for size in ((64, 48), (97, 120)))).hexdigest()
    assert without_vectors.stdout.strip() == here


@pytest.mark.parametrize("trouble", ["no compiler", "compiler fails", "cache cannot be written", "another owner"])
def test_without_native_code_torch_resizes(trouble, tmp_path, monkeypatch):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    native.library.cache_clear()
    try:
        assert native.library() is not None or not native._compiler()  # control
        expected = resized(NOISE, 60, 50)
        native.library.cache_clear()
        if trouble == "another owner":
            monkeypatch.setattr(os, "getuid", lambda: 12345)
        elif trouble == "cache cannot be written":
            (tmp_path / "file").touch()
            monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "file/cache"))
        else:
            monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "other"))
            monkeypatch.setenv("CC", {"no compiler": "no-such-compiler", "compiler fails": "false"}[trouble])
        assert native.library() is None
        assert (resized(NOISE, 60, 50) == expected).all()
        assert not [*tmp_path.glob("other/*.so"), *tmp_path.glob("other/*.tmp")]
    finally:
        native.library.cache_clear()


def test_that_torch_resizes_many_images_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(custom_images, "WORTH_COMPILING", 8)
    folder = write_photos(tmp_path / "photos", {f"{side}/{name}": 2 for side in ("train", "test") for name in "ab"})
    for code, lines in ((object(), 0), (None, 1)):
        monkeypatch.setattr(native, "library", lambda: code)  # noqa: B023
        custom_images.custom(str(folder), ResizeRule(8, 8), limit=2)
        assert capsys.readouterr().err.count("no C compiler that works") == lines
    monkeypatch.setattr(custom_images, "WORTH_COMPILING", 9)  # control: few
    custom_images.custom(str(folder), ResizeRule(8, 8), limit=2)
    assert "compiler" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------------ JPEG files


def jpeg(number: int, mode: str = "RGB", turned: int = 1, **options) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = turned
    photo(number, 203, 155).convert(mode).save(file, "JPEG", **({"exif": exif} if turned != 1 else {}), **options)
    return file.getvalue()


FILES = {
    "4:2:0": jpeg(1, subsampling="4:2:0"), "4:2:2": jpeg(2, subsampling="4:2:2"), "4:4:4": jpeg(3, subsampling="4:4:4"),
    "progressive": jpeg(4, progressive=True), "grey": jpeg(5, "L"), "CMYK": jpeg(6, "CMYK"), "turned": jpeg(7, turned=6),
    "mirrored": jpeg(8, turned=2), "upright": jpeg(9, comment=b"text"), "RGB": jpeg(10, keep_rgb=True),
    "poor": jpeg(11, quality=9), "more after its end": jpeg(12) + b"more",
}  # fmt: skip


@pytest.fixture
def by_pillow(monkeypatch):
    def by_pillow(work):
        with monkeypatch.context() as patched:
            patched.setattr(decode, "simplejpeg", lambda: None)
            return work()

    return by_pillow


@pytest.mark.parametrize("name", FILES)
def test_a_jpeg_file_has_pillows_bits(name, by_pillow):
    pytest.importorskip("simplejpeg")
    for stored in (400, 150, 70, 30, 9, 3):  # whole, at 1/2, 1/4 and 1/8
        rule = ResizeRule(3, stored)
        found, expected = read(io.BytesIO(FILES[name]), rule), by_pillow(lambda: read(io.BytesIO(FILES[name]), rule))  # noqa: B023
        assert found.shape == expected.shape
        assert (found == expected).all(), (name, stored)


def test_control_it_is_not_pillow_that_decodes_it(monkeypatch):
    pytest.importorskip("simplejpeg")
    monkeypatch.setattr(decode, "converted", lambda *_: pytest.fail("decoded by Pillow"))
    for name in ("4:2:0", "progressive", "grey", "upright", "RGB", "poor"):
        read(io.BytesIO(FILES[name]), ResizeRule(3, 70))


@pytest.mark.parametrize("damage", ["no end", "cut off", "zeros"])
def test_a_broken_jpeg_file_is_what_pillow_makes_of_it(damage, by_pillow):
    file, rule = FILES["4:2:0"], ResizeRule(3, 400)
    content = {"no end": file[:-2], "cut off": file[:2000], "zeros": file[:1500] + bytes(200) + file[1700:]}[damage]

    def outcome():
        with contextlib.suppress(OSError):
            return read(io.BytesIO(content), rule).tobytes()

    assert outcome() == by_pillow(outcome)
