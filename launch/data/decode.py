"""How an image file is decoded: rotated as its EXIF data says, 16-bit grey scaled to 8 bits, transparent parts over white.

Of an animated file, the first frame. DICOM and HEIC are opened by formats.py.
Training, `oneloop predict`, `explain` and `data` decode an image in this one way.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, BinaryIO

from PIL import ExifTags, Image, ImageOps

from . import formats

if TYPE_CHECKING:
    import numpy as np

VERSION = 3  # raise it when a file gives other pixels than before: what was cached earlier is then decoded again
WHITE = 65535  # of 16-bit grey, if nobody says

MIN_IS_WHITE, ALPHA = 0, (1, 2)  # of a TIFF's tags PhotometricInterpretation and ExtraSamples
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES, EXTRA, SIGNED = 258, 259, 262, 277, 284, 338, 339  # the numbers of its tags
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong with a file is said once, not on stderr, too
JPEG = ("JPEG", "MPO")  # as Pillow names it, and what phones write
WITH_ORIENTATION = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # of a JPEG file: where Pillow looks for it
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
LEAST = 8  # pixels of a side: with fewer, several of libjpeg's scales give the same size
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)  # the kinds of frames in a JPEG file that are not scaled


def decode(file: BinaryIO | Path | str, channels: int, bands: formats.Bands = (), white: int = 0) -> Image.Image:
    """An image file in 8 bits per channel: grey (1) or RGB (3). Raises whatever PIL does, and ValueError."""
    with open_image(file, bands, white) as opened:
        return converted(opened, channels, white)


@contextlib.contextmanager
def open_image(file: IO[bytes] | Path | str, bands: formats.Bands = (), white: int = 0) -> Iterator[Image.Image]:
    """Context manager: an image file, not yet decoded, of the formats in formats.py, too; `white` as for `converted`.

    Raises what `formats.opened` does.
    """
    if isinstance(file, str | Path):
        with open(file, "rb") as content, formats.opened(content, bands, white or WHITE) as opened:
            yield opened
    else:
        with formats.opened(file, bands, white or WHITE) as opened:
            yield opened


def converted(opened: Image.Image, channels: int, white: int = 0) -> Image.Image:
    """The same of a file that `open_image` has opened. `white` is the pixel value of 16-bit grey that is white; 0: WHITE."""
    refuse_misread(opened)
    opened.load()
    refuse_unknown_range(opened)
    image: Image.Image = opened
    with contextlib.suppress(Exception):  # broken EXIF data is ignored
        ImageOps.exif_transpose(image, in_place=True)  # else it would be copied, also where nothing is turned
    if opened.mode[0] == "I":
        image = _in_8_bits(image, white or WHITE)
        if _tag(opened, PHOTOMETRIC) == MIN_IS_WHITE:  # PIL inverts 8 bits only
            image = ImageOps.invert(image)
    if image.has_transparency_data:  # PIL would show whatever colour is stored under the transparent parts
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)  # which would copy


def pixels(
    file: IO[bytes] | Path | str, least: int = 0, white: int = 0, bands: formats.Bands = ()
) -> "tuple[np.ndarray, tuple[int, int]]":
    """The same in RGB, uint8 (h, w, 3), and the file's own (width, height), upright; see `draft` for `least`."""
    with open_image(file, bands, white) as opened:
        return pixels_of(opened, least, white)


def pixels_of(opened: Image.Image, least: int = 0, white: int = 0) -> "tuple[np.ndarray, tuple[int, int]]":
    """The same of a file that `open_image` has opened."""
    import numpy as np

    if opened.format not in JPEG:
        array = np.array(converted(opened, 3, white))
        return array, (array.shape[1], array.shape[0])
    (width, height), turned = opened.size, orientation(opened) in TURNED
    if least:
        draft(opened, least)
    decoded = _by_simplejpeg(opened)
    array = np.array(converted(opened, 3, white)) if decoded is None else decoded
    return array, ((height, width) if turned else (width, height))


def _by_simplejpeg(opened: Image.Image) -> "np.ndarray | None":
    """The RGB pixels, uint8 (h, w, 3), of a JPEG file at the size to which it was drafted, with Pillow's bits in less time.

    None where more is to be done than to decode it, or where it is broken: Pillow decides then.
    """
    width, height = opened.size
    if not (decoder := simplejpeg()) or opened.mode not in ("RGB", "L") or min(width, height) < LEAST:
        return None
    if orientation(opened) not in (None, 1):
        return None
    file: BinaryIO = opened.fp  # type: ignore[attr-defined]  # of an ImageFile
    file.seek(0)
    try:
        array = decoder.decode_jpeg(file.read(), "RGB", min_height=height, min_width=width)
    except ValueError:
        return None
    return array if array.shape == (height, width, 3) else None


@functools.cache
def simplejpeg() -> ModuleType | None:
    """The library, if it is installed: there is no build of it for some platforms. It loads NumPy, which takes 0.1 s."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def orientation(opened: Image.Image) -> int | None:
    """As the EXIF data, or what XMP has in their place, say; None without any, or where they are broken."""
    if opened.format == "JPEG" and not opened.info.keys() & WITH_ORIENTATION:
        return None  # 20 µs sooner
    with contextlib.suppress(Exception):
        return opened.getexif().get(ExifTags.Base.Orientation)
    return None


def refuse_misread(opened: Image.Image) -> None:
    """Raises ValueError for a TIFF file of which PIL would read other values than it has, or not all that matter."""
    samples, several = _tag(opened, SAMPLES) or 1, (_tag(opened, PLANES) or 1) > 1
    if samples > 1 and several and (_tag(opened, BITS) or 1) > 8 and (_tag(opened, COMPRESSION) or 1) == 1:
        raise ValueError("16 bits in planes, not compressed, which Pillow reads wrongly; save it interleaved or compressed")
    if samples == 2 and _tag(opened, EXTRA) not in ALPHA:
        raise ValueError(f"{formats.several(2)}, or save it with one band")
    if _tag(opened, SIGNED) == 2 and opened.mode == "L":
        raise ValueError("signed pixel values, which Pillow reads as unsigned ones; save it with unsigned values")


def bands(opened: Image.Image) -> str:
    """What is made of other bands than colours that a TIFF file has: "alpha", "left out", or nothing; how DICOM is shown."""
    if shown_as := opened.info.get(formats.SHOWN_AS):
        return f"DICOM {shown_as}"
    if (_tag(opened, SAMPLES) or 1) in (1, 3) or opened.mode == "CMYK":
        return ""
    return "alpha" if opened.has_transparency_data else "left out"


def draft(opened: Image.Image, size: int) -> None:
    """Let a JPEG file be decoded at 1/2, 1/4 or 1/8, if its sides are then still at least `size`."""
    if opened.format in JPEG and not _lossless(opened):  # PIL would call a lossless one broken
        opened.draft(None, (size, size))


def refuse_unknown_range(opened: Image.Image) -> None:
    """Raises ValueError if nobody can say which pixel value is white."""
    mode = opened.mode
    if mode == "F" or (mode == "I" and opened.format not in ("PNG", "PPM")):  # in PNG and PPM, mode I is 16 bits
        raise ValueError(f"pixel values have no known range (PIL mode {mode}); save it with 8 or 16 bits")


def _tag(opened: Image.Image, number: int) -> int | None:
    """The (first) value of a tag of a TIFF file, if it is one."""
    value = getattr(opened, "tag_v2", {}).get(number) if opened.format == "TIFF" else None
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else None


def _lossless(opened: Image.Image) -> bool:
    file: BinaryIO = opened.fp  # type: ignore[attr-defined]  # of an ImageFile
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):  # these are no frames
            return head[1] in LOSSLESS
        file.seek(int.from_bytes(head[2:]) - 2, os.SEEK_CUR)
    return False


def _in_8_bits(image: Image.Image, white: int) -> Image.Image:
    """16-bit grey as 8 bits, 255 for `white` and above, with the level that is transparent, if any."""
    import numpy as np  # takes 0.1 s, and few files need it

    levels = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(((levels.clip(max=white) * 255 + white // 2) // white).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    return grey
