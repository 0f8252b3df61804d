#!/usr/bin/env bash
# Pillow 13.0.0: Image.open(file, formats=("MPO", "PNG")) raises KeyError for a PNG file, though MPO is a format that Pillow reports of
# files itself: these are opened as "JPEG", and MPO has no entry of its own. A list of formats that was made of what `image.format`
# said, and has MPO in front, opens nothing that comes after it.
#
# Seen (Pillow 13.0.0, Python 3.11, Linux), a PNG file:
#   formats=("PNG",):       PNG
#   formats=("PNG", "MPO"): PNG
#   formats=("MPO", "PNG"): KeyError: 'MPO'
# For oneloop: "JPEG" is what stands for both in launch/commands/try_answers.py.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==13.0.0" 2> >(grep -v ignored >&2)
"$place/venv/bin/python" - <<'P'
import io
import sys

from PIL import Image


def opened(kind, **options):
    file = io.BytesIO()
    image = Image.new("RGB", (4, 4))
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


reported = Image.open(opened("MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])).format
found = {}
for formats in (("PNG",), ("PNG", "MPO"), ("MPO", "PNG")):
    try:
        found[formats] = Image.open(opened("PNG"), formats=formats).format
    except KeyError as error:
        found[formats] = f"KeyError: {error}"
    print(f"formats={formats}: {found[formats]}")
sys.exit(not (reported == "MPO" and [*found.values()] == ["PNG", "PNG", "KeyError: 'MPO'"]))
P
