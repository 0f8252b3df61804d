"""Decoded images are cached: read once, noticed when changed, checked, shared, and refused in one line where that fails."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from data_files import COUNTS, GOLDEN, check, cifar2, image, write_golden_folder
from PIL import Image

from launch import sources
from launch.errors import Refused

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of datasets 5.2


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """This test's own cache."""
    monkeypatch.setenv("ONELOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.safetensors"))


def test_a_second_start_decodes_nothing(folder, monkeypatch):
    first = cifar2(folder)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    again = cifar2(folder)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train.pixels, first.train.pixels)


def test_a_changed_folder_is_read_again(folder):
    first = cifar2(folder)
    Image.fromarray(image(999)).save(folder / "train/bird/999.png")
    again = cifar2(folder)
    assert len(again.train) == len(first.train) + 1
    assert again.fingerprint != first.fingerprint


@pytest.mark.parametrize("change", ["size", "time", "name"])
def test_a_changed_size_time_or_name_is_noticed(change, folder, cache):
    first = cifar2(folder)
    file = folder / "train/bird/002.png"
    before = file.stat()
    Image.fromarray(image(999)).save(file)
    content = file.read_bytes()
    if change == "size":
        file.write_bytes(content + b"\0")
    if change == "name":
        file = file.rename(file.with_name("003.png"))
    moved = before.st_mtime_ns + (change == "time")
    os.utime(file, ns=(moved, moved))
    assert cifar2(folder).fingerprint != first.fingerprint
    assert len(cached_files(cache)) == 1  # the older one is gone


def test_a_folder_cached_by_an_older_decoder_is_decoded_again(tmp_path, cache):
    place = write_golden_folder(tmp_path / "set")
    files = sorted((path for path in place.rglob("*") if path.is_file()), key=str)
    facts = [(str(path.relative_to(place)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    first, state = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (str(place), json.dumps([3, facts])))
    cifar2(place)
    (cached,) = cached_files(cache)
    cached.unlink()
    cached.with_name(f"folder-set-{first}.{state}.safetensors").write_bytes(b"other pixels")
    assert sources.cifar10(str(place)).fingerprint == GOLDEN


def test_two_folders_of_one_name_are_kept_apart(folder, tmp_path, cache):
    other = shutil.copytree(folder, tmp_path / "other" / folder.name)
    (other / "train/bird/002.png").unlink()
    cifar2(folder), cifar2(other)
    assert len(cached_files(cache)) == 2


def test_a_cache_written_by_an_earlier_version_is_read(cache, monkeypatch):
    """Golden: file name, format and fingerprint, written out here. Without it the hub would be asked, which is not there."""
    cache.mkdir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    labels = torch.arange(10)
    train = torch.arange(10 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(10, 3, 32, 32)
    tensors = {"train.pixels": train, "train.labels": labels, "test.pixels": 255 - train, "test.labels": labels.clone()}
    said = json.dumps([sources.CIFAR10_CLASSES, [[10, 3, 32, 32], [10, 3, 32, 32]]]).encode()
    digest = hashlib.sha256(said + b"".join(tensor.numpy().tobytes() for tensor in tensors.values())).hexdigest()
    facts = {"source": "uoft-cs/cifar10", "classes": sources.CIFAR10_CLASSES, "fingerprint": digest}
    content = safetensors.torch.save(tensors, metadata={"oneloop": json.dumps(facts)})
    (cache / f"hub-uoft-cs--cifar10.{digest[:16]}.safetensors").write_bytes(content)
    images = sources.cifar10("hub")
    assert torch.equal(images.train.pixels, train)
    assert torch.equal(images.test.pixels, 255 - train)
    assert images.fingerprint == digest


def test_grey_and_colour_of_one_folder_are_kept_apart(tmp_path):
    for split in COUNTS:
        for name in sources.CIFAR10_CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(image(1)).save(tmp_path / split / name / "1.png")
    assert sources.cifar10(str(tmp_path)).train.pixels.shape == (10, 3, 32, 32)
    with pytest.raises(Refused, match=r"is 32×32 .* takes 28×28"):
        sources.mnist(str(tmp_path))
    assert sources.cifar10(str(tmp_path)).train.pixels.shape == (10, 3, 32, 32)


def test_a_folder_with_brackets_is_cached(folder, tmp_path, monkeypatch):
    place = folder.rename(tmp_path / "a[1]*")
    first = cifar2(place)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    assert cifar2(place).fingerprint == first.fingerprint


def test_damaged_cache_is_named_and_not_used(folder, cache):
    cifar2(folder)
    (file,) = cached_files(cache)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(Refused, match=rf"the cached data {file} is damaged \(sha256 .*\); delete it to rebuild it"):
        cifar2(folder)
    file.write_bytes(content[:100])
    with pytest.raises(Refused, match=r"cannot be read .*; delete it to rebuild it"):
        cifar2(folder)


@contextlib.contextmanager
def nobody():
    """Not as root, who may read and write everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shared(folder, monkeypatch):
    """A folder of images and a cache, which other users may read and not write."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder, f"{place}/images")
        (Path(place) / "cache").mkdir()
        for path in (Path(place), *Path(place).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        monkeypatch.setenv("ONELOOP_CACHE", f"{place}/cache")
        yield Path(place)
        (Path(place) / "cache").chmod(0o755)


def test_a_cache_that_cannot_be_written_is_one_line(shared, monkeypatch):
    (shared / "cache").chmod(0o555)
    with nobody(), pytest.raises(Refused, match=r"cannot write the cache .*/cache: Permission denied; .* ONELOOP_CACHE"):
        cifar2(shared / "images")
    (shared / "file").touch()
    for place in (shared / "file", shared / ("long" * 100)):
        monkeypatch.setenv("ONELOOP_CACHE", str(place))
        with pytest.raises(Refused, match=r"cannot write the cache .* choose another with ONELOOP_CACHE") as refused:
            cifar2(shared / "images")
        assert refused.value.code == 1
    with pytest.raises(Refused, match="cannot write the cache"):
        cifar2("hub")


def test_a_shared_cache_is_read_by_those_who_may_not_write_it(shared):
    umask = os.umask(0o022)
    try:
        cifar2(shared / "images")
        (cached,) = cached_files(shared / "cache")
        assert cached.stat().st_mode & 0o777 == 0o644
        (shared / "cache").chmod(0o555)
        with nobody():
            check(cifar2(shared / "images"))
        cached.chmod(0o600)
        if os.geteuid() == 0:
            with nobody(), pytest.raises(Refused, match=r"no permission to read the cached data .* ONELOOP_CACHE"):
                cifar2(shared / "images")
        cached.unlink()
        (shared / "cache").chmod(0o755)
        os.umask(0o077)
        cifar2(shared / "images")
        assert cached.stat().st_mode & 0o777 == 0o600  # as the umask says
    finally:
        os.umask(umask)


def test_without_a_home_folder(folder, monkeypatch):
    import pwd

    def nobody_known(_):
        raise KeyError

    for name in ("HOME", "ONELOOP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody_known)  # as in a container with a user of its own
    for data in (folder, "hub"):
        with pytest.raises(Refused, match=r"no home folder .* ONELOOP_CACHE=FOLDER"):
            cifar2(data)
