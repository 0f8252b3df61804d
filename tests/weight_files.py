"""Files of weights, good and evil, for the tests of loading them. conftest.py imports the fixtures."""

import hashlib
import io

import pytest
import torch
from tiny import Tiny

from launch.errors import Refused
from launch.weights import load


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def tensors():
    """The weights of a Tiny."""
    torch.manual_seed(0)
    return Tiny().state_dict()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of downloads for this test alone, and no proxy before the servers of the test."""
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def saved(found, **how) -> bytes:
    file = io.BytesIO()
    torch.save(found, file, **how)
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refusal(code, match, source, *arguments) -> str:
    """The one line with which `load` refuses the source, with this exit code."""
    with pytest.raises(Refused, match=match) as caught:
        load(source, *arguments)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)
