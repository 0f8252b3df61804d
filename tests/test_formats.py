"""DICOM, HEIC and AVIF beside libheif, the pixels that were written, and the standard's formula for windows."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from photos import write_photos
from PIL import Image
from trained import train_here

from launch.data.image_file import read_image
from launch.data.resize import read, rule_for
from launch.errors import Refused
from launch.sources import custom
from launch.sources.options import DataOptions
from launch.trained import find_run, rebuild

LEVELS = np.arange(-100, 140, 5, dtype=np.int16).reshape(6, 8)


def dicom(pixels: np.ndarray, bits: int, kind: str = "MONOCHROME2", **more: object) -> bytes:
    """A DICOM file of `pixels`, int16 or uint16 (h, w), or uint8 (h, w, 3)."""
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = pydicom.uid.ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.Dataset()
    data.file_meta, data.SOPClassUID, data.SOPInstanceUID = meta, meta.MediaStorageSOPClassUID, "1.2.3"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1 if pixels.ndim == 2 else 3, kind
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * pixels.itemsize, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype == np.int16)
    for name, value in more.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def windowed(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3, C.11.2.1.2.1, from 0 to 255."""
    return np.clip(((values - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)


def grey(content: bytes) -> np.ndarray:
    pixels = read(io.BytesIO(content), rule_for(64))
    assert (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0].astype(float)


def table(first: int, values: list[int]) -> list:
    import pydicom

    item = pydicom.Dataset()
    item.add_new(0x00283002, "US", [len(values), first, 8])
    item.add_new(0x00283006, "US", values)
    return [item]


@pytest.mark.parametrize(
    ("more", "expected", "how"),
    [
        ({}, (LEVELS + 2048.0) * 255 / 4095, "by the range of 12 bits"),
        ({"WindowCenter": 20, "WindowWidth": 100}, windowed(LEVELS, 20, 100), "by its window"),
        ({"WindowCenter": [20, 0], "WindowWidth": [100, 9]}, windowed(LEVELS, 20, 100), "by the first of its windows"),
        (
            {"RescaleSlope": 2, "RescaleIntercept": -10, "WindowCenter": 20, "WindowWidth": 100},
            windowed(LEVELS * 2.0 - 10, 20, 100),
            "rescaled, by its window",
        ),
        (
            {"RescaleSlope": -2, "RescaleIntercept": 5},
            (LEVELS * -2.0 + 5 - (2047 * -2 + 5)) * 255 / (4095 * 2),
            "rescaled, by the range of 12 bits",
        ),
        (
            {"kind": "MONOCHROME1", "WindowCenter": 20, "WindowWidth": 100},
            255 - windowed(LEVELS, 20, 100),
            "by its window, inverted (MONOCHROME1)",
        ),
        (
            {"WindowCenter": 20, "WindowWidth": 50, "VOILUTFunction": "SIGMOID"},
            255 / (1 + np.exp(-4 * (LEVELS - 20) / 50)),
            "by its window",
        ),
    ],
)
def test_dicom_is_shown_as_the_standard_says(oneloop, tmp_path, more, expected, how):
    content = dicom(LEVELS, 12, **more)
    assert np.abs(grey(content) - expected).max() <= 0.51
    place = write_photos(tmp_path / "set", {"b": 1}, start=99)
    (place / "a").mkdir()
    (place / "a/1.2.840.7").write_bytes(content)  # no suffix
    (place / "a/x.dcm").write_bytes(content)
    (place / "DICOMDIR").write_bytes(content)
    (place / "a/README").write_text("nothing")
    code, out, _ = oneloop("data", place)
    assert code == 0
    assert f"2 images are DICOM {how}\n" in out
    assert "2 no extension" in out


def test_dicom_tables_and_colours():
    values = [200, 10, 100]
    low = np.array([[0, 1, 2, 3]], np.uint16)
    pytest.importorskip("pydicom")
    assert grey(dicom(low, 12, VOILUTSequence=table(1, values))).tolist() == [[200, 200, 10, 100]]
    by_table = dicom(low, 12, ModalityLUTSequence=table(1, values), WindowCenter=128, WindowWidth=256)
    assert grey(by_table).tolist() == [[200, 200, 10, 100]]
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(read(io.BytesIO(dicom(colours, 8, "RGB")), rule_for(8)), colours)
    assert np.array_equal(read(io.BytesIO(dicom(LEVELS.astype(np.uint8), 8)), rule_for(8))[..., 1], LEVELS.astype(np.uint8))


def test_dicom_of_several_frames_and_without_an_image_is_refused_in_one_line(tmp_path):
    (tmp_path / "many.dcm").write_bytes(dicom(LEVELS, 12, NumberOfFrames=3))
    with pytest.raises(Refused, match=r"DICOM of 3 frames, of which a file may have one; write each frame to a file of its own$"):
        read_image(tmp_path / "many.dcm", (3, 8, 8))
    import pydicom

    data = pydicom.dcmread(tmp_path / "many.dcm")
    del data.PixelData
    data.save_as(tmp_path / "none.dcm")
    with pytest.raises(Refused, match=r"DICOM without an image$"):
        read_image(tmp_path / "none.dcm", (3, 8, 8))


@pytest.mark.parametrize(("module", "extra"), [("pydicom", "dicom"), ("pillow_heif", "heic")])
def test_a_missing_extra_is_named(oneloop, tmp_path, monkeypatch, module, extra):
    place = write_photos(tmp_path / "set", {"b": 1}, start=99)
    (place / "a").mkdir()
    content = bytes(128) + b"DICM" + bytes(99) if extra == "dicom" else b"\0\0\0\x1cftypheic" + bytes(99)
    (place / ("a/1.dcm" if extra == "dicom" else "a/1.heic")).write_bytes(content)
    monkeypatch.setitem(sys.modules, module, None)
    code, out, _ = oneloop("data", place)
    assert code == 4
    assert f": pip install oneloop[{extra}]\n" in out


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_has_the_pixels_of_libheif_turned_once(tmp_path, orientation):
    pillow_heif = pytest.importorskip("pillow_heif")
    colours = np.kron(np.random.default_rng(1).integers(0, 256, (4, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(Image.fromarray(colours)).save(path, quality=-1, chroma=444, exif=exif.tobytes())
    pixels = read(path, rule_for(64))
    assert np.array_equal(pixels, np.asarray(pillow_heif.open_heif(path)))
    turned = {1: colours, 3: colours[::-1, ::-1], 6: np.rot90(colours, 3), 8: np.rot90(colours)}[orientation]
    assert np.abs(pixels.astype(int) - turned).max() <= 3  # of YCbCr's rounding


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_avif_is_turned_once(orientation):
    features = pytest.importorskip("PIL.features")
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    colours = np.kron(np.random.default_rng(1).integers(0, 256, (4, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(colours).save(file, "AVIF", quality=100, subsampling="4:4:4", exif=exif.tobytes())
    turned = {1: colours, 3: colours[::-1, ::-1], 6: np.rot90(colours, 3), 8: np.rot90(colours)}[orientation]
    assert np.abs(read(io.BytesIO(file.getvalue()), rule_for(64)).astype(int) - turned).max() <= 12


def bands_folder(place: Path, dtype: str, **more: object) -> np.ndarray:
    """Six TIFF files of five bands in two classes, of 12 bits if they are uint16, and their pixels (6, 8, 10, 5)."""
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(2).integers(0, 256 if dtype == "uint8" else 4096, (6, 8, 10, 5)).astype(dtype)
    pixels[0, 0, 0] = pixels.dtype.type(255 if dtype == "uint8" else 4095)
    for number, image in enumerate(pixels):
        path = place / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        planes = more.get("planarconfig") == "separate"
        how = {"photometric": "minisblack", "planarconfig": "contig"} | more
        tifffile.imwrite(path, image.transpose(2, 0, 1) if planes else image, **how)
    return pixels


@pytest.mark.parametrize(
    ("dtype", "more"),
    [("uint8", {}), ("uint16", {"planarconfig": "separate"}), ("uint16", {"compression": "zlib"})],
)
def test_three_bands_are_those_that_tifffile_reads(oneloop, tmp_path, dtype, more):
    pixels = bands_folder(tmp_path / "set", dtype, **more)
    code, out, said = oneloop("data", tmp_path / "set")
    assert code == 4
    assert out.count("--bands R G B") == 1
    assert "  6 files (a/0.tif, a/2.tif, a/4.tif …): TIFF of 5 bands: --bands R G B chooses three of them, from 1 on\n" in out
    code, out, said = oneloop("data", tmp_path / "set", "--bands", 4, 2, 1)
    assert (code, said) == (0, "")
    assert "--bands 4 2 1" in out.rpartition("to train on them")[2]
    assert ("4,095 is taken as white (12 bits)" in out) == (dtype == "uint16")
    images = custom(str(tmp_path / "set"), DataOptions(bands=(4, 2, 1)).rule(8), DataOptions(bands=(4, 2, 1)))
    white = 255 if dtype == "uint8" else 4095
    expected = (pixels[..., [3, 1, 0]].astype(int) * 255 + white // 2) // white
    for split in (images.train, images.test, images.validation):
        for stored in split.images:
            assert np.array_equal(split.store.read(stored), expected[int(Path(stored.name).stem)])
            again = read(tmp_path / "set" / stored.name, split.rule)
            assert np.array_equal(again, expected[int(Path(stored.name).stem)])
    other = custom(str(tmp_path / "set"), DataOptions(bands=(1, 2, 4)).rule(8), DataOptions(bands=(1, 2, 4)))
    assert other.fingerprint != images.fingerprint


def test_bands_that_are_not_there_are_refused(oneloop, tmp_path):
    bands_folder(tmp_path / "set", "float32")
    assert "values of float32 have no known range" in oneloop("data", tmp_path / "set", "--bands", 4, 2, 1)[1]
    assert "TIFF of 5 bands, of which --bands 6 1 1 wants more" in oneloop("data", tmp_path / "set", "--bands", 6, 1, 1)[1]
    for wrong in ((1, 2), (0, 1, 2)):
        code, _, said = oneloop("data", tmp_path / "set", "--bands", *wrong)
        assert (code, said) == (2, f"--bands takes three numbers from 1 on, it is {' '.join(map(str, wrong))}\n")
    assert oneloop("data", tmp_path / "set", "--clear")[1].count("deleted") == 2


def test_bands_are_part_of_a_run_and_what_predict_knows(oneloop, tmp_path):
    bands_folder(tmp_path / "set", "uint16")
    flags = ("--net", "Net", "--mode", "scratch", "--size", 32, "--epochs", 1, "--batch", 2, "--wandb", "disabled")
    train_here(ROOT / "recipes/custom.py", "--data", tmp_path / "set", "--bands", 4, 2, 1, *flags, "--out", tmp_path / "run")
    assert rebuild(*find_run(tmp_path / "run")).rule == rule_for(32, white=4095, bands=(4, 2, 1))
    code, out, _ = oneloop("predict", tmp_path / "run", tmp_path / "set", "--csv")
    assert (code, out.count("\n")) == (0, 1 + 6 * 2)
    code, out, _ = oneloop("evaluate", tmp_path / "run", "--data", tmp_path / "set", "--json")
    assert code == 0
