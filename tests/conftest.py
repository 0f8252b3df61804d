"""Fixtures of the tests: a folder of their own, a data set whose numbers divide nothing, runs in this and in other processes."""

import gc
import importlib
import json
import subprocess
import tempfile
from pathlib import Path

import jobs
import pytest
import torch
from data_files import write_image_folder
from tiny import Tiny as Tiny
from tiny import tiny_images
from trained import birds, oneloop, own_path, said, trained_runs  # noqa: F401 - fixtures
from weight_files import own_cache, tensors  # noqa: F401 - fixtures

from launch import Run
from launch.data.images import Images
from launch.report.runs import without_clock
from launch.sources import synthetic

ROOT = Path(__file__).parents[1]
QUIET = {
    "WANDB_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONWARNINGS": "default",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait by spinning would slow down the other worker's tests
}


def pytest_collection_finish() -> None:
    importlib.import_module("preloaded")


@pytest.fixture(autouse=True, scope="module")
def small_garbage():
    """Exempt what tests have imported since, too, from the garbage collections at the ends of runs."""
    yield
    if len(gc.get_objects()) > 20_000:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_place(tmp_path_factory):
    """Caches and settings of the user are neither read nor written, and nothing goes to a network."""
    place = tmp_path_factory.mktemp("home")
    names = ("ONELOOP_CACHE", "HF_HOME", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, str(place / name.lower()))
        for name, value in QUIET.items():
            patch.setenv(name, value)
        for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(place))
        patch.setattr("launch.processes.cpu_only_emulates_bf16", lambda: False)  # tests of bf16 do not ask for speed
        patch.setattr("launch.training.job.SAVE_SECONDS", 0)  # a checkpoint at the end of each epoch, however short it is
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def images() -> Images:
    return tiny_images()


@pytest.fixture
def few_synthetic(monkeypatch) -> None:
    """Use only 256 and 20 synthetic images: drawing 2,000 and evaluating on 500 takes most of a second."""
    for split, count in {"train": 256, "test": 20}.items():
        monkeypatch.setitem(synthetic.COUNTS, split, count)  # not another dictionary: this one is an argument's default


@pytest.fixture
def folder(tmp_path) -> Path:
    """An image folder."""
    return write_image_folder(tmp_path / "images")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(**flags) -> a started Run in this process, in the folder `out` of the test; half a second faster without plots."""
    begun = []

    def start(out="run", options=None, plots=False, stop_when=None, **flags) -> Run:
        if not plots:
            monkeypatch.setattr("launch.report.show.show", lambda *_: None)
        run = Run(data="synthetic", out=tmp_path / out, wandb="disabled", threads=1, **flags)
        assert run.start("test", options or {}) is None
        run.stop_when = stop_when
        begun.append(run)
        return run

    yield start
    for run in begun:
        run.end()


def optimizer_for(model, kind="sgd"):
    if kind == "adagrad":  # makes its state at once
        return torch.optim.Adagrad(model.parameters(), lr=1e-2, fused=True)
    if kind == "adam":
        return torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what the clock measures."""
    return without_clock(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def launcher(processes: int = 1) -> list[str]:
    """The command `accelerate launch`, up to the recipe's file."""
    config = "accelerate_config.yaml" if processes == 1 else "launch/cpus.yaml"
    return ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / config), "--num_processes", str(processes)]


def command(*args) -> list[str]:
    """`oneloop ARGS`, for Python in a process of its own."""
    return ["-c", "import sys; from launch.commands import main; sys.exit(main())", *map(str, args)]


def run_recipe(recipe: str, *flags, timeout: float = 150, tests: int = 0, **options) -> subprocess.CompletedProcess:
    """Run a recipe to its end in processes of its own; `options` as for jobs.begin, output as text.

    `tests` is the number of test images to evaluate on, as `oneloop verify` has it; 0: all.
    """
    with tempfile.TemporaryDirectory() as place:
        log, errors = Path(place) / "out", Path(place) / "err"
        script = ROOT / f"recipes/{recipe}.py"
        few = (ROOT / "launch/verify/few_tests.py", tests) if tests else ()
        job = jobs.begin(*few, script, *flags, log=log, errors=errors, **options)
        code = job.wait(timeout)
        return subprocess.CompletedProcess(recipe, code, log.read_text(), errors.read_text())
