"""The run folder: which one a command means, what it may write there, what it says of it."""

import json
import os
import signal
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import Tiny, metrics, optimizer_for, result

from launch import Run, train
from launch.errors import Refused
from launch.folder import MARK
from launch.processes import cpu_only_emulates_bf16 as cpu_emulates
from launch.processes import only_emulates_bf16


def test_a_fresh_run_never_takes_an_older_ones_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folder(**flags) -> str:
        run = Run(data="synthetic", wandb="disabled", **flags)
        run.configure("test", {}, "no")
        found = run.find_folder()[0]
        if run.fresh:
            found.mkdir(parents=True)
            (found / "config.json").write_text(json.dumps({"format": 1, "config": run.config, "micro_batches": 1}))
        return found.name

    first = folder(fresh=True)
    assert [folder(fresh=True) for _ in range(2)] == [f"{first}-2", f"{first}-3"]
    for gone in (f"{first}-2", first):
        os.remove(tmp_path / "runs/test" / gone / "config.json")
        os.rmdir(tmp_path / "runs/test" / gone)
        assert folder() == f"{first}-3"
    assert folder(fresh=True) == f"{first}-4"


@pytest.mark.parametrize("out", ["/", "", "."])
def test_out_that_is_no_place_for_a_run(out, tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    run = Run(data="synthetic", out=tmp_path.__class__(out), wandb="disabled")
    with pytest.raises(Refused, match="cannot be a run folder" if out == "/" else "is not empty and not a run folder") as refused:
        run.start("test", {})
    assert refused.value.code == (2 if out == "/" else 4)
    run.end()


def test_more_threads_than_a_machine_can_have(tmp_path):
    with pytest.raises(Refused, match="--threads is 100000; this machine takes") as refused:
        Run(data="synthetic", threads=100_000).configure("test", {}, "no")
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("flags", "options"),
    [({name: 10**23}, {}) for name in ("micro_batches", "limit", "save_every", "eval_every", "log_every", "max_seconds")]
    + [({"micro_batches": 2**16 + 1}, {}), ({}, {"batch": 10**23}), ({}, {"epochs": 2**31})],
)
def test_numbers_that_nothing_has_so_many_of(flags, options):
    """Refused before anything counts up to them."""
    name = next(iter(flags | options))
    with pytest.raises(Refused, match=f"--{name.replace('_', '-')} (must be at most|is too large)") as refused:
        Run(data="synthetic", **flags).start("test", options)
    assert refused.value.code == 2


def test_links_in_a_prepared_folder_are_not_written_through(start, images, tmp_path):
    """A folder that others may write to: whoever put a link there does not get another file overwritten."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("lock.pid", *(f".tmp-{name}-{os.getpid()}" for name in ("config.json", "metrics.jsonl", "model.safetensors"))):
        (tmp_path / "run" / name).symlink_to(victim)
    (tmp_path / "run" / MARK).touch()
    model = Tiny()
    train(start(), model, images, optimizer_for(model), epochs=1, batch=8)
    assert victim.read_text() == "mine"
    assert result(tmp_path / "run")["epochs"] == 1
    assert len(metrics(tmp_path / "run")) == 3


def killed_at(event: int, folder: str, action) -> bool:
    """Return whether `action`, in a process of its own, came to this event in `folder`'s file system and was killed there."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    seen = count(1)

    def hook(name: str, args: tuple) -> None:
        if name in ("open", "os.mkdir", "os.rename", "os.remove") and folder in str(args) and next(seen) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(hook)
        action()
    finally:
        os._exit(0)


@pytest.mark.parametrize(("flags", "step"), [({}, 1), ({"fresh": True}, 6), ({"out": Path("mine")}, 6)])
def test_kill_at_any_moment_while_the_folder_is_prepared(flags, step, images, tmp_path, monkeypatch):
    """The same command goes on, whatever files are there; a folder of somebody else's is still refused."""
    images = replace(images, files={"split.csv": b"path,split", "bad.csv": b"path"})
    code = {"recipe.py": "import nets", "nets/__init__.py": ""}
    (tmp_path / "runs").mkdir()

    def prepare() -> Run:
        run = Run(data="synthetic", wandb="disabled", threads=1, **flags)
        run.code = code
        assert run.start("test", {}) is None
        run.open(images, {})
        run.end()
        return run

    monkeypatch.setattr("launch.environment._git_revision", lambda: "")
    monkeypatch.setattr("launch.files.os.fsync", lambda _: None)
    for event in count(1, step):
        (tmp_path / str(event)).mkdir()
        monkeypatch.chdir(tmp_path / str(event))
        killed = killed_at(event, "mine" if "out" in flags else "runs/test", prepare)
        run = prepare()
        assert {path.name for path in run.folder.glob("[!.]*")} == {"config.json", "lock", "code", "split.csv", "bad.csv"}
        if not killed:
            break
    assert event > 15
    (run.folder / "config.json").unlink()
    with pytest.raises(Refused, match="is not empty and not a run folder"):
        Run(data="synthetic", out=run.folder, wandb="disabled").start("test", {})


@pytest.mark.parametrize("out", [None, "run"])
@pytest.mark.parametrize("finished", [True, False])
def test_data_that_have_moved_are_the_same_data(out, finished, images, tmp_path, monkeypatch):
    """The sha256 of the images says what a run was trained on, not the path that they had."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.report.show.show", lambda *_: None)

    def trained(place: str, stop: bool = False, **other) -> tuple[Run, dict]:
        run = Run(data=str(tmp_path / place), wandb="disabled", threads=1, out=out and tmp_path / out)
        assert run.start("test", {}) is None
        torch.manual_seed(1)
        model = Tiny()
        try:
            run.stop_when = lambda step, batch: stop
            return run, train(run, model, replace(images, **other), optimizer_for(model), epochs=2, batch=8)
        finally:
            run.end()

    if finished:
        _, first = trained("before")
        again, second = trained("after")
        assert second["seconds"] == first["seconds"]  # not trained again
    else:
        with pytest.raises(Refused, match="stopped"):
            trained("before", stop=True)
        for folder in (tmp_path / "run",) if out else (tmp_path / "runs/test").iterdir():
            (folder / "stopped.json").write_text("[]")  # damaged: the run is found all the same
        again, second = trained("after")
    assert second["steps"] == 16
    steps = [line["step"] for line in metrics(again.folder) if line["event"] == "train"]
    assert steps == [8, 16]
    if out is None:
        (folder,) = (tmp_path / "runs/test").iterdir()
        assert again.folder.resolve() == folder
        other, _ = trained("elsewhere", fingerprint="62")  # control
        assert other.folder.resolve() != folder
    else:
        with pytest.raises(Refused, match="was trained on other data"):
            trained("elsewhere", fingerprint="62")


def test_what_changes_the_numbers_names_the_folder(tmp_path, monkeypatch):
    """And nothing else does: cadences, threads and W&B are no difference."""
    monkeypatch.chdir(tmp_path)

    def folder(options=None, precision="no", **flags) -> str:
        run = Run(**({"data": "synthetic"} | flags))
        run.configure("test", {"lr": 0.1} | (options or {}), precision)
        return run.find_folder()[0].name

    ours = folder()
    same = [{"threads": 2}, {"save_every": 5}, {"eval_every": 2}, {"log_every": 1}, {"wandb": "disabled"}]
    assert {folder(**flags) for flags in same} == {ours}
    other = [
        {"data": str(tmp_path)}, {"limit": 5}, {"seed": 2}, {"micro_batches": 2}, {"compile": True}, {"deterministic": True},
        {"precision": "bf16"}, {"options": {"lr": 0.2}},
    ]  # fmt: skip
    assert len({ours, *(folder(**flags) for flags in other)}) == 1 + len(other)


def test_seed_decides_the_first_weights(start):
    first = []
    for out, seed in (("one", 1), ("two", 2), ("again", 1)):
        torch.manual_seed(99)
        start(out=out, seed=seed)
        first.append(Tiny().fc.weight)
    assert first[0].equal(first[2])
    assert not first[0].equal(first[1])


@pytest.mark.parametrize(("capability", "emulated"), [((7, 5), True), ((8, 0), False), ((8, 9), False), ((9, 0), False)])
def test_cards_that_only_emulate_bf16(capability, emulated):
    """Turing and before; Ampere, Ada and Hopper compute in it."""
    assert only_emulates_bf16(capability) == emulated


@pytest.mark.parametrize(
    ("machine", "instructions", "allowed", "emulated"),
    [
        ("x86_64", (True, False), "", False), ("x86_64", (False, True), "", False), ("x86_64", (False, False), "", True),
        ("AMD64", (False, False), "", True), ("x86_64", (True, True), "AVX2", True), ("x86_64", (True, False), "ALL", False),
        ("x86_64", (True, False), "avx512_core", True), ("aarch64", (False, False), "", False),
    ],
)  # fmt: skip
def test_cpus_that_only_emulate_bf16(machine, instructions, allowed, emulated, monkeypatch):
    """Zen 3 and Ice Lake; Zen 4, Cooper Lake and Sapphire Rapids compute in it, if oneDNN may."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    for name, there in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), instructions, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda there=there: there)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert cpu_emulates() == emulated


@pytest.fixture
def launched(tmp_path, monkeypatch, capsys):
    """launched(precision, **environment) -> the run, started so on a CPU that only emulates bf16, and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.processes.cpu_only_emulates_bf16", lambda: True)
    begun = []

    def launched(precision, **environment):
        AcceleratorState._reset_state(reset_partial_state=True)
        for name, value in ({"ACCELERATE_MIXED_PRECISION": precision} | environment).items():
            monkeypatch.setenv(name, value)
        begun.append(run := Run(data="synthetic", threads=1, wandb="disabled"))
        run.start("test", {})
        return run, capsys.readouterr().err

    yield launched
    for run in begun:
        run.end()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_cpu_that_only_emulates_bf16_computes_float32_and_says_so(launched, images, tmp_path, monkeypatch):
    run, said = launched("bf16")
    assert said.startswith("this CPU only emulates bf16 (it has neither AVX512-BF16 nor AMX)")
    assert "float32 is used" in said
    assert (run.config["precision"], run.accelerator.mixed_precision, run.accelerator.native_amp) == ("no", "no", False)
    assert launched("no")[0].folder == run.folder
    monkeypatch.setattr("launch.processes.cpu_only_emulates_bf16", lambda: False)
    other, said = launched("bf16")  # control
    assert (other.config["precision"], said) == ("bf16", "")
    assert other.folder != run.folder


def test_a_run_begun_in_bf16_does_not_become_another_one_where_bf16_is_emulated(launched, images, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("launch.processes.cpu_only_emulates_bf16", lambda: False)
        begun, _ = launched("bf16")
        begun.open(images, {})
    with pytest.raises(Refused, match="was begun in bf16, which this machine does not compute in: ") as refused:
        launched("bf16")
    assert refused.value.code == 4
    assert launched("no")[0].config["precision"] == "no"  # which is asked for


@pytest.mark.parametrize("told", ["ACCELERATE_USE_CPU=on", "ACCELERATE_USE_CPU=y", "ACCELERATE_TORCH_DEVICE=cpu"])
def test_fp16_on_a_cpu_is_refused_however_the_cpu_was_chosen(told, launched, monkeypatch):
    """Also where there is a GPU: accelerate would report fp16 and compute float32."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(Refused, match="fp16 needs a GPU; on a CPU use --mixed_precision bf16 or no") as refused:
        launched("fp16", **dict([told.split("=")]))
    assert refused.value.code == 2


def test_secrets_of_an_address_are_not_recorded(start, images, tmp_path, monkeypatch):
    """Neither in config.json nor on the page, which people send to each other; the sha256 says which weights they were."""
    address = "https://me:secret@example.org/w.pt?X-Amz-Signature=5ecre7"
    monkeypatch.setattr("sys.argv", ["recipe.py", "--source", address, f"--weights={address}", "--lr=0.1"])
    model = Tiny()
    train(start(options={"source": address}, plots=True), model, images, optimizer_for(model), epochs=1, batch=8)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["config"]["source"] == "https://example.org/w.pt"
    assert config["command"] == "recipe.py --source https://example.org/w.pt --weights=https://example.org/w.pt --lr=0.1"
    for path in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        assert b"secret" not in path.read_bytes(), path
        assert b"5ecre7" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        (
            "/venv/python /venv/accelerate launch --config_file launch/cpus.yaml",
            "accelerate launch --config_file launch/cpus.yaml",
        ),
        (
            "/venv/python3 -m accelerate.commands.launch --num_processes 2",
            "python3 -m accelerate.commands.launch --num_processes 2",
        ),
        ("timeout 300 python", "timeout 300 python"),
        (None, "python"),  # a shell, which says nothing of its commands
    ],
)
def test_what_started_the_command_is_recorded(words, launcher, start, images, tmp_path, monkeypatch):
    """It is on the parent's command line; the page's command can be copied, flags of the launcher included."""
    own = ["recipe.py", "--data", "my photos"]
    parent = SimpleNamespace(cmdline=lambda: [*words.split(), *own] if words else ["-bash"])
    monkeypatch.setattr(sys, "argv", own)
    monkeypatch.setattr("psutil.Process.parent", lambda _: parent)
    train(start(plots=True), net := Tiny(), images, optimizer_for(net), epochs=1, batch=16)
    assert f"<pre>{launcher} recipe.py --data &#39;my photos&#39;</pre>" in (tmp_path / "run/report.html").read_text()
