"""How an image file is decoded: alike by a training and by `oneloop predict`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import COUNTS, cifar2, image
from PIL import Image

from launch import sources
from launch.data.image_file import read_image
from launch.errors import Refused

RAMP = np.linspace(0, 65535, 28 * 28).round().astype(np.uint16).reshape(28, 28)


TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip


def trained_and_predicted(place: Path, file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An image file's pixels (C, H, W) in a training, which must be those that `oneloop predict` and `explain` read."""
    names, load = (("airplane", "bird"), cifar2) if shape[0] == 3 else (tuple("0123456789"), sources.mnist)
    for split in COUNTS:
        for name in names:
            (place / split / name).mkdir(parents=True)
            shutil.copy(file, place / split / name)
    pixels = load(str(place)).train.pixels
    assert len({each.numpy().tobytes() for each in pixels}) == 1
    assert torch.equal(pixels[0], read_image(file, shape))
    return pixels[0].numpy()


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


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image(1)).save(tmp_path / "a.png", exif=exif)
    pixels = trained_and_predicted(tmp_path / "set", tmp_path / "a.png", (3, 32, 32))
    assert np.array_equal(pixels.transpose(1, 2, 0), TURNED[orientation](image(1)))


def test_broken_exif_is_ignored(tmp_path):
    Image.fromarray(image(1)).save(tmp_path / "a.png", exif=b"garbage")
    pixels = trained_and_predicted(tmp_path / "set", tmp_path / "a.png", (3, 32, 32))
    assert np.array_equal(pixels.transpose(1, 2, 0), image(1))


def test_transparent_parts_become_white(tmp_path):
    alpha = np.resize(np.arange(256, dtype=np.uint8), (32, 32))
    Image.fromarray(np.dstack([image(1), alpha])).save(tmp_path / "a.png")
    pixels = trained_and_predicted(tmp_path / "colour", tmp_path / "a.png", (3, 32, 32)).transpose(1, 2, 0)
    share = alpha[..., None] / 255
    assert np.abs(pixels - (share * image(1) + (1 - share) * 255)).max() <= 1
    assert (pixels[alpha == 0] == 255).all()
    assert (pixels[alpha == 255] == image(1)[alpha == 255]).all()
    grey = np.dstack([image(1, 28)[..., 0], np.resize(alpha, (28, 28))])
    Image.fromarray(grey).save(tmp_path / "b.png")  # LA
    (pixels,) = trained_and_predicted(tmp_path / "grey", tmp_path / "b.png", (1, 28, 28))
    assert (pixels[grey[..., 1] == 0] == 255).all()
    assert (pixels[grey[..., 1] == 255] == grey[grey[..., 1] == 255][:, 0]).all()
    palette = Image.fromarray(image(1)).quantize(16)
    colours = np.array(palette.convert("RGB"))
    palette.save(tmp_path / "c.png", transparency=bytes([0] + [255] * 15))
    pixels = trained_and_predicted(tmp_path / "palette", tmp_path / "c.png", (3, 32, 32)).transpose(1, 2, 0)
    clear = np.array(palette) == 0
    assert (pixels[clear] == 255).all()
    assert (pixels[~clear] == colours[~clear]).all()


def test_cmyk_one_bit_and_colour_as_grey(tmp_path):
    inks = np.dstack([image(1), np.zeros((32, 32), dtype=np.uint8)])
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tiff")
    pixels = trained_and_predicted(tmp_path / "inks", tmp_path / "a.tiff", (3, 32, 32)).transpose(1, 2, 0)
    assert np.array_equal(pixels, 255 - image(1))
    bits = image(1, 28)[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "b.png")
    assert np.array_equal(trained_and_predicted(tmp_path / "bits", tmp_path / "b.png", (1, 28, 28))[0], bits * 255)
    Image.fromarray(image(1, 28)).save(tmp_path / "c.png")  # luma of ITU-R BT.601
    (pixels,) = trained_and_predicted(tmp_path / "eye", tmp_path / "c.png", (1, 28, 28))
    assert np.abs(pixels - image(1, 28) @ (0.299, 0.587, 0.114)).max() <= 0.51


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(kind, tmp_path):
    Image.fromarray(np.ones((28, 28), dtype=kind)).save(tmp_path / "a.tiff")
    for split in COUNTS:
        (tmp_path / "set" / split / "0").mkdir(parents=True)
        shutil.copy(tmp_path / "a.tiff", tmp_path / "set" / split / "0")
    with pytest.raises(Refused, match=r"no known range .* save it with 8 or 16 bits") as refused:
        sources.mnist(str(tmp_path / "set"))
    assert refused.value.code == 4
    with pytest.raises(Refused, match="no known range") as refused:
        read_image(tmp_path / "a.tiff", (1, 28, 28))
    assert refused.value.code == 1


@pytest.mark.parametrize("size", [(8, 4), (4, 8), (8, 8), (2, 4)])  # one side as asked for, both, neither
def test_read_image_stretches_to_the_size_asked_for(size, tmp_path):
    across = np.linspace(0, 255, size[0]).round()
    Image.fromarray(np.broadcast_to(across, (size[1], size[0])).astype(np.uint8)).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", (1, 4, 4))
    assert pixels.shape == (1, 4, 4)
    assert (pixels == pixels[:, :1]).all()
    assert (pixels[0, 0].diff() > 0).all()
    checks = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)  # antialiased: each pixel counts
    Image.fromarray(checks).save(tmp_path / "b.png")
    assert (read_image(tmp_path / "b.png", (1, 4, 4)).float() - 127.5).abs().max() < 32
