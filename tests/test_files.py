"""Files are written whole or not at all."""

import os
import tty
from pathlib import Path

import pytest

from launch.files import write_atomically


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_what_is_written_to_a_device_goes_into_it():
    """`--html /dev/stdout`, for one: the device is not replaced."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    device = Path(os.ttyname(theirs))
    write_atomically(device, b"page")
    assert os.read(ours, 10) == b"page"
    assert device.is_char_device()
