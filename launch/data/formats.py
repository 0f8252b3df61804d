"""Files that Pillow does not read by itself: DICOM by pydicom, HEIC by pillow-heif, bands of a TIFF by tifffile; all extras.

A DICOM image is shown as its file says, by pydicom's functions: rescaled (slope and intercept, or a table), then by its VOI table
or its first window, else by the range of the bits that it stores; MONOCHROME1, in which 0 is white, is inverted.
"""

import functools
import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import IO, TYPE_CHECKING

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

if TYPE_CHECKING:
    import numpy as np
    import pydicom

MAGIC, MAGIC_AT = b"DICM", 128
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftyphevx", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SHOWN_AS = "shown as"  # in the info of an image: what was applied, in words
HIGHEST = "highest"  # in the info of an image of three bands of 16 bits: the highest value
MODE_16 = "RGB;16"  # what such an image is called: Pillow has none

Bands = tuple[int, ...]  # three, as they are red, green and blue, from 1 on as GDAL counts; empty: those that Pillow shows


@functools.cache  # asked for at each flush of the store: 1.5 ms
def versions() -> dict[str, str]:
    """What the pixels of files in other formats depend on: the libraries that are installed."""
    found = {}
    for name in ("pydicom", "pillow-heif", "tifffile"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def is_dicom(path: str) -> bool:
    """Whether a file begins as DICOM does; False for the list of a disk's files, and for what cannot be read."""
    try:
        with open(path, "rb") as file:
            return _has_magic(file) and os.path.basename(path).upper() != "DICOMDIR"
    except OSError:
        return False


def opened(file: IO[bytes], bands: Bands = (), white: int = 65535) -> Image.Image:
    """`Image.open`, of DICOM and HEIC, too, and of `bands` of a TIFF, in 8 bits: of 16, `white` is 255.

    Raises whatever PIL does, and ValueError, naming the extra that is missing.
    """
    if bands:
        file.seek(0)
        if file.read(4) in TIFF:
            return _bands(file, bands, white)
        file.seek(0)
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        if _has_magic(file):
            return _dicom(file)
        file.seek(0)
        start = file.read(12)
        if start[:4] in TIFF and (count := _samples(file)) not in (1, 3):
            raise ValueError(several(count)) from None
        if start[4:] not in HEIC:
            raise
    try:
        import pillow_heif
    except ImportError as error:
        raise ValueError("HEIC needs pillow-heif: pip install oneloop[heic]") from error
    file.seek(0)
    return pillow_heif.HeifImageFile(file)  # turned as it says; its EXIF data then say upright


def several(count: int) -> str:
    """What is wrong with a TIFF of so many bands, and the way out."""
    return f"TIFF of {count} bands: --bands R G B chooses three of them, from 1 on"


def _samples(file: IO[bytes]) -> int:
    """The number of bands of a TIFF; 1 if it does not say."""
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    tags = TiffImagePlugin.ImageFileDirectory_v2(start if start[2:3] in b"*\0" and b"+" not in start[2:4] else file.read(16))
    file.seek(tags.next)
    tags.load(file)
    return int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))


def _bands(file: IO[bytes], bands: Bands, white: int) -> Image.Image:
    """Three bands of the first page of a TIFF file."""
    import numpy as np

    try:
        import tifffile
    except ImportError as error:
        raise ValueError("--bands needs tifffile: pip install oneloop[tiff]") from error
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        count = page.samplesperpixel
        if count < max(bands):
            raise ValueError(f"TIFF of {count} band{'s' * (count > 1)}, of which --bands {' '.join(map(str, bands))} wants more")
        if page.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"values of {page.dtype} have no known range; save them as uint8 or uint16")
        values = page.asarray()
    if page.planarconfig == 1 or count == 1:
        values = values.reshape(page.imagelength, page.imagewidth, count)
    else:
        values = values.reshape(count, page.imagelength, page.imagewidth).transpose(1, 2, 0)
    values = values[..., [band - 1 for band in bands]]
    if values.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(values))
    image = Image.fromarray(((values.astype(np.int64).clip(max=white) * 255 + white // 2) // white).astype(np.uint8))
    image.info[HIGHEST] = int(values.max())
    return image


def _has_magic(file: IO[bytes]) -> bool:
    return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC


def _dicom(file: IO[bytes]) -> Image.Image:
    """The one frame of a DICOM file, in 8 bits. Raises ValueError, and whatever pydicom does."""
    try:
        import pydicom
    except ImportError as error:
        raise ValueError("DICOM needs pydicom: pip install oneloop[dicom]") from error
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that the standard does not allow
        data = pydicom.dcmread(file)
        if "PixelData" not in data:
            raise ValueError("DICOM without an image")
        if (frames := int(data.get("NumberOfFrames") or 1)) > 1:
            raise ValueError(f"DICOM of {frames} frames, of which a file may have one; write each frame to a file of its own")
        pixels, how = _shown(data)
    image = Image.fromarray(pixels)
    image.format, image.info[SHOWN_AS] = "DICOM", how
    return image


def _shown(data: "pydicom.Dataset") -> "tuple[np.ndarray, str]":
    """uint8 (h, w), or (h, w, 3), and what was applied."""
    import numpy as np
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    kind, values = data.PhotometricInterpretation, pixel_array(data)  # YBR as RGB
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(values, data)
        return _scaled(colours, 0, np.iinfo(colours.dtype).max), "its palette"
    if not kind.startswith("MONOCHROME"):
        return _scaled(values, 0, 2**data.BitsStored - 1), "colours"
    values, how = apply_modality_lut(values, data), []
    if data.get("ModalityLUTSequence"):
        how.append("rescaled by a table")
    elif (data.get("RescaleSlope", 1), data.get("RescaleIntercept", 0)) != (1, 0):
        how.append("rescaled")
    low, high = _range(data)
    if tables := data.get("VOILUTSequence"):
        low, high = 0, 2 ** int(tables[0].LUTDescriptor[2]) - 1
        how.append("by its VOI table" if len(tables) == 1 else "by the first of its VOI tables")
    elif "WindowWidth" in data and "WindowCenter" in data:
        how.append("by its window" if data["WindowWidth"].VM == 1 else "by the first of its windows")
    else:
        low, high = min(low, high), max(low, high)
        how.append(f"by the range of {data.BitsStored} bits")
    values = _scaled(apply_voi_lut(values, data), low, high)
    if kind == "MONOCHROME1":
        how.append("inverted (MONOCHROME1)")
        values = 255 - values
    return values, ", ".join(how)


def _range(data: "pydicom.Dataset") -> tuple[float, float]:
    """The lowest and the highest value that may be there, once they are rescaled: what pydicom spreads a window over."""
    if tables := data.get("ModalityLUTSequence"):
        return 0, 2 ** int(tables[0].LUTDescriptor[2]) - 1
    low = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    return low * slope + intercept, (low + 2**data.BitsStored - 1) * slope + intercept


def _scaled(values: "np.ndarray", low: float, high: float) -> "np.ndarray":
    """uint8: 0 for `low`, 255 for `high`, rounded."""
    import numpy as np

    return ((values.astype(np.float64) - low) * (255 / (high - low)) + 0.5).clip(0, 255).astype(np.uint8)
