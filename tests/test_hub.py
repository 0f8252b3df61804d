"""The hub is asked once, by one process; without it there is one clear line, soon."""

import shutil
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import jobs
from data_files import write_parquet
from servers import hub, silent

LOAD = (
    "import sys\n"  # imported again, what reads the environment then
    "for name in [name for name in sys.modules if name.startswith(('huggingface_hub', 'datasets'))]: del sys.modules[name]\n"
    "from launch import sources; from launch.errors import Refused\n"
    "try: images = sources.cifar10(keep=('airplane', 'bird'))\n"
    "except Refused as error: sys.exit(f'refused: {error}')\n"
    "print(images.fingerprint, len(images.train))"
)


def load_from_hub(address: str, place: Path, offline: str = "0"):
    env = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": offline, "HF_HOME": str(place / "hf"), "ONELOOP_CACHE": str(place / "cache")}
    began = time.monotonic()
    done = jobs.run("-c", LOAD, cwd=place, env=env)
    return done.returncode, done.stdout, done.stderr.strip().splitlines(), time.monotonic() - began


def test_hub_once_then_never_asked_again(tmp_path):
    """Later starts need neither the hub nor `datasets`' own cache, and do not wait for a hub that hangs."""
    with hub(write_parquet(tmp_path / "repository"), "uoft-cs/cifar10") as (address, requests):
        code, out, err, _ = load_from_hub(address, tmp_path)
        assert code == 0, err
        assert any("resolve" in request for request in requests)
        names = [path.name for path in (tmp_path / "cache").glob("*.safetensors")]
        assert names == [f"hub-uoft-cs--cifar10.{out[:16]}.safetensors"]
        del requests[:]
        assert load_from_hub(address, tmp_path)[1] == out
        assert requests == []
    shutil.rmtree(tmp_path / "hf")
    with silent() as address:
        code, again, err, seconds = load_from_hub(address, tmp_path)
    assert (code, again) == (0, out), err
    assert seconds < 15


def test_hub_two_processes_at_once(tmp_path):
    with hub(write_parquet(tmp_path / "repository"), "uoft-cs/cifar10") as (address, requests), ThreadPool(2) as threads:
        both = threads.starmap(load_from_hub, [(address, tmp_path)] * 2)
    assert [code for code, *_ in both] == [0, 0], both
    assert both[0][1] == both[1][1]
    assert len([request for request in requests if request.startswith("GET") and "train-" in request]) == 1


def test_hub_that_refuses_and_nothing_cached(tmp_path):
    code, _, err, seconds = load_from_hub("http://127.0.0.1:9", tmp_path)
    assert code == 1
    for word in ("uoft-cs/cifar10", "HF_ENDPOINT", "HF_HUB_OFFLINE", "--data PATH", "--data synthetic"):
        assert word in err[-1]
    assert seconds < 30
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_hub_that_sends_garbage(tmp_path):
    root = write_parquet(tmp_path / "repository")
    for file in root.rglob("*.parquet"):
        file.write_bytes(b"PAR1, or so it says")
    with hub(root, "uoft-cs/cifar10") as (address, _):
        code, _, err, _ = load_from_hub(address, tmp_path)
    assert code == 1
    assert "cannot download the data set 'uoft-cs/cifar10'" in err[-1]
    assert not any("Traceback" in line for line in err)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_hub_that_hangs_and_nothing_cached(tmp_path):
    with silent() as address:
        code, _, err, seconds = load_from_hub(address, tmp_path)
    assert (code, seconds < 30) == (1, True), (err, seconds)
    assert "--data synthetic" in err[-1]


def test_hub_without_the_data_set(tmp_path):
    with hub(tmp_path, "someone/else") as (address, _):
        code, _, err, _ = load_from_hub(address, tmp_path)
    assert code == 1
    assert "no data set 'uoft-cs/cifar10'" in err[-1]
