"""Small photographs, good ones and every kind of bad one, as files."""

import io
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

BAD = {  # file name -> what is said of it
    "truncated.jpg": "truncated: the end of the file is missing",
    "truncated.png": "truncated: the end of the file is missing",
    "empty.jpg": "empty file: 0 bytes",
    "page.jpg": "a web page (HTML), not an image",
    "bomb.png": "decompression bomb: more than 178,956,970 pixels",
    "letter.jpg": "not an image in a format that Pillow reads",
    "phone.heic": "HEIC needs pillow-heif: pip install oneloop[heic]",
    "float.tiff": "cannot be decoded: pixel values have no known range (PIL mode F); save it with 8 or 16 bits",
    "lost.jpg": "no such file",
}


def photo(number: int, width: int = 24, height: int = 16) -> Image.Image:
    """An image of its own for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def jpeg(number: int, **size: int) -> bytes:
    file = io.BytesIO()
    photo(number, **size).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_photos(folder: Path, counts: dict[str, int], start: int = 0) -> Path:
    """`counts[place]` JPEG files in each place below `folder`, with numbers from `start` on, no two the same."""
    for place, count in counts.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number in range(start, start := start + count):
            (folder / place / f"{number:04}.jpg").write_bytes(jpeg(number))
    return folder


def write_bad(folder: Path) -> None:
    """A file of each kind of BAD."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = jpeg(1000, width=200, height=200)
    png = io.BytesIO()
    photo(1001, 200, 200).save(png, "PNG")
    bomb = _chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + _chunk(b"IDAT", zlib.compress(bytes(99)))
    contents = {
        "truncated.jpg": whole[: len(whole) // 2],
        "truncated.png": png.getvalue()[:5000],
        "empty.jpg": b"",
        "page.jpg": b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "bomb.png": b"\x89PNG\r\n\x1a\n" + bomb,
        "letter.jpg": b"Dear Sir or Madam, " * 40,
        "phone.heic": struct.pack(">I", 24) + b"ftypheic" + bytes(200),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(folder / "float.tiff")
    (folder / "lost.jpg").symlink_to(folder / "nowhere.jpg")


def _chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_table(file: Path, images: list, labels: list, names: Sequence[str] = (), binary: bool = False, **more: list) -> Path:
    """A parquet file with the columns img and label, and `more`. `images` are encoded, None, or (bytes, path) as they stand.

    With `names` the labels are numbers of classes, as `datasets` writes ClassLabel; `binary`: no structs.
    """
    import pyarrow
    import pyarrow.parquet

    rows = [each if isinstance(each, tuple) else (each, None) for each in images]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    values = pyarrow.array([{"bytes": content, "path": path} for content, path in rows], kind)
    columns = {"img": pyarrow.array(images, pyarrow.binary()) if binary else values, "label": pyarrow.array(labels)}
    table = pyarrow.table(columns | {name: pyarrow.array(values) for name, values in more.items()})
    if names:
        features = {"img": {"_type": "Image"}, "label": {"names": [*names], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, file, row_group_size=4)
    return file
