"""Files that Pillow does not read by itself: DICOM by pydicom, HEIC by pillow-heif, each an extra.

A DICOM image is shown as its file says, by pydicom's functions: rescaled (slope and intercept, or a table), then by its VOI table
or its first window, else by the range of the bits that it stores; MONOCHROME1, in which 0 is white, is inverted.
"""

import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import IO, TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    import numpy as np
    import pydicom

MAGIC, MAGIC_AT = b"DICM", 128
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftyphevx", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")
SHOWN_AS = "shown as"  # in the info of an image: what was applied, in words


def versions() -> dict[str, str]:
    """What the pixels of files in other formats depend on: the libraries that are installed."""
    found = {}
    for name in ("pydicom", "pillow-heif"):
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


def opened(file: IO[bytes]) -> Image.Image:
    """`Image.open`, of DICOM and HEIC, too. Raises whatever PIL does, and ValueError, naming the extra that is missing."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        if _has_magic(file):
            return _dicom(file)
        file.seek(4)
        if file.read(8) not in HEIC:
            raise
    try:
        import pillow_heif
    except ImportError as error:
        raise ValueError("HEIC needs pillow-heif: pip install oneloop[heic]") from error
    file.seek(0)
    return pillow_heif.HeifImageFile(file)  # turned as it says; its EXIF data then say upright


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
