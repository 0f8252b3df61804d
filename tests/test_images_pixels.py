"""Pixels of files that Pillow reads too dark, inverted, in part or wrongly, and the messages about them."""

import base64
import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from conftest import ROOT
from photos import photo, write_photos
from PIL import Image
from trained import train_here

from launch import sources
from launch.data import decode
from launch.data.image_file import read_image
from launch.data.resize import read, rule_for
from launch.errors import Refused
from launch.sources.dataset_report import DatasetReport
from launch.sources.index import FileInfo
from launch.sources.options import DataOptions
from launch.trained import feed, find_run, rebuild

LOSSLESS = base64.b64decode(  # 16×16, grey 8·y + 4·x, as imagecodecs writes it
    "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALCAAQABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAAAwQI/9oACAEBAAEAAM/oiIiIiIiIiUIiIiIiIiIiUIiIiIiIiI"
    "iUIiIiIiIiIiUIiIiIiIiIiUIiIiIiIiIiUIiIiIiIiIiUIiIiIiIiIiUIiIiIiIiIiUIiIiIiIiIiUIiIiIiIiIiUIiIiIiIiIiUIiIiIiIiIiUIiIiIiIiIiU"
    "IiIiIiIiIiUIiIiIiIiIif/2Q=="
)
GREY = np.arange(48, dtype=np.uint16).reshape(6, 8)


def tiff(pixels: np.ndarray, photometric: int, extra: int | None = None, planes: bool = False, signed: bool = False) -> bytes:
    """An uncompressed TIFF file of `pixels` (h, w) or (h, w, bands), uint8 or uint16, written without Pillow."""
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    height, width, bands = pixels.shape
    content = np.ascontiguousarray(pixels.transpose(2, 0, 1) if planes else pixels).tobytes()
    size = len(content) // (bands if planes else 1)
    parts = range(8, 8 + len(content), size)
    tags = {
        256: [width], 257: [height], 258: [8 * pixels.itemsize] * bands, 259: [1], 262: [photometric], 273: [*parts],
        277: [bands], 278: [height], 279: [size] * len(parts), 284: [2 if planes else 1],
    }  # fmt: skip
    tags |= ({338: [extra]} if extra is not None else {}) | ({339: [2] * bands} if signed else {})
    after, entries, more = 8 + len(content), b"", b""
    start = after + 2 + 12 * len(tags) + 4
    for number, values in sorted(tags.items()):
        value = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            value, more = struct.pack("<I", start + len(more)), more + value
        entries += struct.pack("<HHI", number, 4, len(values)) + value
    return struct.pack("<2sHI", b"II", 42, after) + content + struct.pack("<H", len(tags)) + entries + bytes(4) + more


@pytest.fixture
def said(oneloop, tmp_path):
    """said(content of files…) -> what `oneloop data --json` says of them beside a photograph of another class."""

    def said(*contents: bytes, suffix: str = ".tif") -> dict:
        place = write_photos(tmp_path / "set", {"b": 1}, start=99)
        for number, content in enumerate(contents):
            (place / "a").mkdir(exist_ok=True)
            (place / f"a/{number}{suffix}").write_bytes(content)
        return json.loads(oneloop("data", place, "--json")[1])

    return said


def decoded(content: bytes, white: int = 0) -> np.ndarray:
    return read(io.BytesIO(content), rule_for(64, white=white))[:, :, 0]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_the_range_of_16_bit_grey_is_said_and_white_sets_it(said, bits):
    levels = np.linspace(0, 2**bits - 1, 48).round().astype(np.uint16).reshape(6, 8)
    for content in (png(levels), tiff(levels, 1)):
        (note,) = said(content, suffix=".png")["notes"]
        start = f"16-bit grey: values up to {2**bits - 1:,} of 65,535"
        advice = f", so {2**bits - 1:,} is taken as white ({bits} bits); --white N says another"
        assert note == start + advice * (bits < 16)
        expected = (levels.astype(int) * 255 / (2**bits - 1) + 0.5).astype(int)
        assert np.array_equal(decoded(content, white=2**bits - 1), expected)
        assert decoded(content).max() == (2**bits + 127) // 257
        assert decoded(content, white=100).max() == 255  # above white is white


def test_the_usual_range_is_what_it_was():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(decode.decode(io.BytesIO(png(levels)), 1), (levels.astype(int) + 128) // 257)


def test_where_0_is_white_16_bits_are_inverted_as_8_are(said):
    wide = GREY * 1000
    assert np.array_equal(decoded(tiff(wide, 0)), 255 - decoded(tiff(wide, 1)))
    assert np.array_equal(decoded(tiff(GREY, 0), white=47), 255 - decoded(tiff(GREY, 1), white=47))
    assert np.array_equal(decoded(tiff(GREY.astype(np.uint8), 0)), 255 - GREY)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            tiff(np.dstack([GREY * 900] * 3), 2, planes=True),
            "16 bits in planes, not compressed, which Pillow reads wrongly; save it",
        ),
        (
            tiff(np.dstack([GREY.astype(np.uint8)] * 2), 1, extra=0),
            "TIFF of 2 bands: --bands R G B chooses three of them, from 1 on, or save it with one band",
        ),
        (tiff(GREY.astype(np.uint8), 1, signed=True), "signed pixel values, which Pillow reads as unsigned ones"),
    ],
)
def test_what_pillow_reads_wrongly_or_in_part_is_bad(said, tmp_path, content, reason):
    (bad,) = said(content)["bad"]
    assert bad["path"] == "a/0.tif"
    assert reason in bad["reason"]
    with pytest.raises(Refused, match=reason[:20]):
        read_image(tmp_path / "set/a/0.tif", (3, 6, 8))


def test_control_planes_that_pillow_reads_rightly_are_good(said):
    colours = np.dstack([GREY, GREY * 2, GREY * 3]).astype(np.uint8)
    for content in (tiff(colours, 2, planes=True), tiff(colours, 2), tiff(np.dstack([GREY * 256] * 3), 2)):
        assert said(content)["bad"] == []
    assert np.array_equal(read(io.BytesIO(tiff(colours, 2, planes=True)), rule_for(64)), colours)


def test_more_bands_than_colours_are_said(said):
    colours = np.dstack([GREY, GREY * 2, GREY * 3, GREY * 5]).astype(np.uint8)
    (alpha,) = said(tiff(colours, 2, extra=2))["notes"]
    assert (
        alpha == "1 image is TIFF with a band marked as transparency: shown over white; if it is another, as infrared, remove it"
    )
    (dropped,) = said(tiff(colours, 2, extra=0))["notes"]
    assert dropped == "1 image is TIFF with more bands than colours: the others are left out"
    assert said(tiff(colours[:, :, :2], 1, extra=2))["notes"] == [alpha]
    assert said(tiff(colours[:, :, :3], 2))["notes"] == []


def test_16_bit_colours_that_are_dark_are_said(said):
    dark = np.dstack([GREY * 80] * 3)
    (note,) = said(tiff(dark, 2))["notes"]
    assert note == "1 image is of 16-bit colours and dark: no value is above a quarter of 65,535; scale them"
    assert said(tiff(dark * 10, 2))["notes"] == []


def test_images_of_one_colour_are_said(said):
    clear = Image.new("RGBA", (20, 20), (255, 255, 255, 0))
    clear.putpixel((3, 3), (0, 0, 0, 0))
    logo = Image.new("RGBA", (20, 20), (255, 255, 255, 0))
    logo.paste((255, 255, 255, 255), (5, 5, 9, 9))  # white on transparent
    files = [io.BytesIO() for _ in range(5)]
    clear.save(files[0], "PNG"), logo.save(files[1], "PNG"), Image.new("L", (64, 64), 7).save(files[2], "JPEG")
    fine = np.tile(np.array([[0, 255], [255, 0]], dtype=np.uint8), (16, 16))  # the same mean in each block of 8×8
    Image.fromarray(fine).save(files[3], "JPEG", quality=100), photo(3, 8, 8).save(files[4], "JPEG")  # one pixel, at an eighth
    (note,) = said(*(file.getvalue() for file in files), suffix=".png")["notes"]
    assert note == "3 images are of one colour: a/0.png, a/1.png, a/2.png"


def test_lossless_jpeg_is_good_and_read(said):
    assert said(LOSSLESS, suffix=".jpg")["bad"] == []
    right = 8 * np.arange(16)[:, None] + 4 * np.arange(16)
    assert np.array_equal(decoded(LOSSLESS), right)
    small = read(io.BytesIO(LOSSLESS), rule_for(1))  # reduced to 2, where PIL would let libjpeg scale
    assert small.shape == (2, 2, 3)
    assert abs(small[:, :, 0].astype(int) - [[42, 74], [106, 138]]).max() < 10


def test_a_phone_s_two_images_in_one_file_are_reduced_while_decoding(said):
    """Reduced while it is decoded, as JPEG is, to the same pixels."""
    file, plain = io.BytesIO(), io.BytesIO()
    large = photo(1, 800, 600)
    large.save(file, "MPO", save_all=True, append_images=[photo(2, 80, 60)], quality=90)
    large.save(plain, "JPEG", quality=90)
    assert Image.open(file).format == "MPO"
    assert said(file.getvalue(), suffix=".jpg")["first_frame_only"] == ["a/0.jpg"]
    assert np.array_equal(decoded_at(file, 32), decoded_at(plain, 32))
    with Image.open(file) as opened:
        decode.draft(opened, 64)
        assert opened.size == (100, 75)


def decoded_at(file, size: int) -> np.ndarray:
    file.seek(0)
    return read(file, rule_for(size))


FLAGS = ("--net", "Net", "--mode", "scratch", "--size", 32, "--epochs", 1, "--batch", 8, "--ema", 0, "--wandb", "disabled")


def twelve_bits(folder: Path) -> Path:
    """Images of which only the brightness tells the class."""
    for number, (name, high) in enumerate((("dark", 1000), ("light", 4095)) * 8):
        (folder / name).mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(number).integers(high // 2, high, (32, 32)).astype(np.uint16)
        (folder / f"{name}/{number}.png").write_bytes(png(levels))
    return folder


@pytest.mark.usefixtures("own_path")
def test_white_is_part_of_a_run_and_what_predict_and_an_export_know(oneloop, tmp_path, capsys):
    """The same images; evaluation and predict see them alike. Where nobody says what is white, it is by the highest of all."""
    flags, recipe, data = FLAGS, ROOT / "recipes/custom.py", twelve_bits(tmp_path / "set")
    train_here(recipe, "--data", data, *flags, "--out", tmp_path / "run")
    assert "16-bit grey: values up to 4,09" in (said := capsys.readouterr().err)
    assert ", so 4,095 is taken as white (12 bits)" in said
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["white"] == 4095
    trained = rebuild(*find_run(tmp_path / "run"))
    assert trained.rule == rule_for(32, white=4095)
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    for path in sorted(copy.glob("*/*"))[::2]:
        path.unlink()
    shutil.rmtree(copy / "light")  # by itself, it would be of 10 bits
    code, out, _ = oneloop("evaluate", tmp_path / "run", "--data", copy, "--json")
    pixels = torch.stack([read_image(path, trained.shape, trained.rule) for path in sorted(copy.glob("dark/*"))])
    with torch.no_grad():
        expected = trained.net(feed(trained, pixels).batch(torch.arange(len(pixels)))[0])
    loss = torch.nn.functional.cross_entropy(expected, torch.zeros(len(pixels), dtype=torch.int64)).item()
    assert (code, json.loads(out)["loss"]) == (0, pytest.approx(loss, rel=1e-4))
    seen = trained.images.train.some(torch.arange(1)).pixels
    (first,) = [each.name for each in trained.images.train.images[:1]]
    assert torch.equal(seen[0], read_image(data / first, trained.shape, trained.rule))
    assert not torch.equal(seen[0], read_image(data / first, trained.shape, rule_for(32)))
    assert sources.custom(str(data), DataOptions(white=3000).rule(32)).train.rule.white == 3000
    other = sources.custom(str(data), rule_for(32))  # what is stored is that of its white
    assert torch.equal(other.train.some(torch.arange(1)).pixels[0], read_image(data / first, trained.shape, rule_for(32)))
    assert oneloop("export", tmp_path / "run", "--format", "safetensors", "--out", tmp_path / "net.safetensors")[0] == 0
    with safetensors.safe_open(tmp_path / "net.safetensors", "np") as file:
        assert json.loads(file.metadata()["oneloop"])["white"] == 4095
    with pytest.raises(SystemExit):
        train_here(recipe, "--data", data, "--white", 70000, *flags, "--out", tmp_path / "other")
    assert "--white must be from 0 to 65535, it is 70000" in capsys.readouterr().err


def test_a_run_from_before_the_range_was_guessed_keeps_its_own(tmp_path, capsys, monkeypatch):
    recipe, data = ROOT / "recipes/custom.py", twelve_bits(tmp_path / "set")
    command = (recipe, "--data", data, *FLAGS, "--out", tmp_path / "run")
    monkeypatch.setattr("launch.sources.options.DataOptions.open_white", 0)
    train_here(*command)
    monkeypatch.undo()
    config = json.loads((place := tmp_path / "run/config.json").read_text())
    assert config["data"].pop("white") == 0
    place.write_text(json.dumps(config))
    capsys.readouterr()
    train_here(*command)
    assert "already finished" in capsys.readouterr().out
    assert rebuild(*find_run(tmp_path / "run")).images.fingerprint == config["data"]["fingerprint"]
    config["data"]["white"] = 4095  # control: these would be other data
    place.write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        train_here(*command)
    assert "was trained on other data" in capsys.readouterr().err


def test_a_range_is_guessed_of_10_12_and_14_bits_alone():
    def guess(*highest: int, mode: str = "I;16", bits: int = 16) -> int:
        files = {str(value): FileInfo(1, 1, mode=mode, bits=bits, highest=value) for value in highest}
        return DatasetReport(None, files, {}, 0).white

    assert [guess(255), guess(256), guess(1023), guess(1024), guess(4095), guess(4096)] == [0, 1023, 1023, 4095, 4095, 16383]
    assert [guess(16383), guess(16384), guess(65535)] == [16383, 0, 0]
    assert [guess(3, 4000), guess(), guess(900, mode="RGB"), guess(0, mode="L", bits=8)] == [4095, 0, 0, 0]
