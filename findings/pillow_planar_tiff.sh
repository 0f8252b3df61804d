#!/usr/bin/env bash
# Pillow 13.0.0 reads an uncompressed 16-bit RGB TIFF whose planes lie apart (PlanarConfiguration 2) as other pixels, without an error.
# The file is valid TIFF 6.0, and tifffile reads what it wrote. The same pixels compressed with deflate are right in Pillow too, as are
# planes of 8 bits. Pillow takes the bytes of the 16-bit planes for 8-bit pixels, so half of them are low bytes.
#
# Seen (Pillow 13.0.0, tifffile 2026.3.3, Python 3.11, Linux), first row of the high bytes, red: written 16 32 48 64
#   deflate:      16 32 48 64
#   uncompressed: 0 16 0 32
# For oneloop: such a file is a bad file by its tags (launch/data/decode.py, docs/custom.md).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==13.0.0" "tifffile==2026.3.3" "numpy==2.4.6" "imagecodecs==2026.3.6" 2> >(grep -v ignored >&2)
"$place/venv/bin/python" - "$place" <<'P'
import sys
from pathlib import Path

import numpy as np
import PIL
import tifffile
from PIL import Image

written = (np.arange(1, 13, dtype=np.uint16).reshape(3, 1, 4) * 0x1000)  # planes, rows, columns
red = {}
for name, compression in (("uncompressed", None), ("deflate", "zlib")):
    path = Path(sys.argv[1], f"{name}.tif")
    tifffile.imwrite(path, written, photometric="rgb", planarconfig="separate", compression=compression)
    assert (tifffile.imread(path) == written).all()
    red[name] = np.asarray(Image.open(path).convert("RGB"))[0, :, 0].tolist()
    print(f"Pillow {PIL.__version__}, tifffile {tifffile.__version__}, {name}: red {red[name]}, written {(written[0, 0] >> 8).tolist()}")
right = (written[0, 0] >> 8).tolist()
sys.exit(not (red["deflate"] == right and red["uncompressed"] != right))
P
