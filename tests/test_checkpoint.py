"""A checkpoint verifies or is not used."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

from launch.errors import Refused
from launch.training import checkpoint
from launch.weights.tensors import load_weights, packed, weights

MODEL, OPTIMIZER = {"w": torch.arange(6.0)}, {"w/momentum_buffer": torch.ones(6)}


def save(folder, step):
    checkpoint.save(folder, {"w": MODEL["w"] + step}, OPTIMIZER, {"step": step})


def test_round_trip_and_rotation(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    found, complaints = checkpoint.latest(tmp_path)
    assert complaints == []
    assert torch.equal(found["model"]["w"], MODEL["w"] + 3)
    assert torch.equal(found["optimizer"]["w/momentum_buffer"], OPTIMIZER["w/momentum_buffer"])
    assert found["state"] == {"step": 3}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are Linux's")
def test_files_are_on_the_disk_before_their_checkpoint_gets_its_name(tmp_path, monkeypatch):
    """Then the folder that holds it: what a crash of the machine leaves is the old or the new."""
    done, sync, rename = [], os.fsync, Path.rename

    def named(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition("-")[0])
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", named)
    monkeypatch.setattr(Path, "rename", lambda self, to: done.append("renamed") or rename(self, to))
    checkpoint.save(tmp_path / "checkpoints", {"w": torch.zeros(2)}, {}, {"step": 1})
    files = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
    assert done == [*files, ".tmp", "renamed", "checkpoints"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damage_falls_back_to_the_one_before_and_names_it(name, damage, tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    file = tmp_path / "step-00000002" / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"flip": flipped, "cut": content[:middle], "empty": b""}[damage])
    found, complaints = checkpoint.latest(tmp_path)
    assert found["state"]["step"] == 1
    assert len(complaints) == 1
    assert "step-00000002" in complaints[0]


def test_manifest_cannot_point_outside(tmp_path):
    save(tmp_path, 1)
    file = tmp_path / "step-00000001/manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"]["../../secret"] = manifest["files"].pop("state.json")
    file.write_text(json.dumps(manifest))
    (tmp_path.parent / "secret").write_text("x")
    assert checkpoint.latest(tmp_path)[0] is None


def test_other_format_is_not_guessed_at(tmp_path):
    save(tmp_path, 1)
    file = tmp_path / "step-00000001/manifest.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    found, complaints = checkpoint.latest(tmp_path)
    assert found is None
    assert "format is 2" in complaints[0]


@pytest.mark.parametrize(
    "manifest",
    ["[]", '{"format": 1}', "[" * 5_000, *(f'{{"format": 1, "files": {files}}}' for files in ("[]", "{}", "3", "null"))],
)
def test_manifest_that_lists_no_files_is_one_complaint(manifest, tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-00000002/manifest.json").write_text(manifest)
    found, complaints = checkpoint.latest(tmp_path)
    assert found["state"]["step"] == 1
    assert len(complaints) == 1


def test_failed_save_leaves_the_old_one_and_no_rest(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.latest(tmp_path)[0]["state"]["step"] == 1


def test_left_over_temporary_folders_are_ignored_and_removed(tmp_path):
    (tmp_path / ".tmp-step-00000009-1").mkdir(parents=True)
    assert checkpoint.latest(tmp_path) == (None, [])
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_weights_of_another_net_are_refused_by_name():
    with pytest.raises(checkpoint.Refused, match=r"Linear: bias, w"):
        load_weights(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2), "w": torch.zeros(1)})
    with pytest.raises(checkpoint.Refused, match="weight"):
        load_weights(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})


def test_tensor_with_two_names_is_kept_once():
    block = torch.nn.Linear(2, 2)
    net = torch.nn.Sequential(block, block)
    assert list(weights(net)) == ["0.weight", "0.bias"]
    changed = {name: tensor + 1 for name, tensor in weights(net).items()}
    load_weights(net, changed)
    assert torch.equal(net[1].weight, changed["0.weight"])


def test_optimizer_state_is_by_name_not_by_place():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net(torch.randn(4, 2)).sum().backward()
    optimizer = torch.optim.Adam([{"params": net[0].parameters()}, {"params": net[1].parameters()}])
    optimizer.step()
    kept, scalars = checkpoint.optimizer_state(optimizer, net), checkpoint.optimizer_scalars(optimizer, net)
    assert {name for name in kept if name.startswith("1.bias")} == {"1.bias/step", "1.bias/exp_avg", "1.bias/exp_avg_sq"}
    turned = torch.optim.Adam([{"params": net[1].parameters()}, {"params": net[0].parameters(), "lr": 1.0}])
    checkpoint.load_optimizer_state(turned, net, kept, scalars)
    assert torch.equal(turned.state[net[1].bias]["exp_avg"], kept["1.bias/exp_avg"])
    assert turned.param_groups[1]["lr"] == 1.0


def test_what_an_optimizer_keeps_beside_tensors():
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.param_groups[0]["d"] = 0.5
    optimizer.state[net.weight] = {"step": 3, "mean": torch.ones(2, 2)}
    scalars = json.loads(json.dumps(checkpoint.optimizer_scalars(optimizer, net)))
    fresh = torch.optim.SGD(net.parameters(), lr=0.2)
    checkpoint.load_optimizer_state(fresh, net, checkpoint.optimizer_state(optimizer, net), scalars)
    assert fresh.state[net.weight]["step"] == 3
    assert fresh.state[net.weight]["mean"].eq(1).all()
    assert (fresh.param_groups[0]["d"], fresh.param_groups[0]["lr"]) == (0.5, 0.2)  # the rate is the recipe's
    optimizer.state[net.weight]["history"] = [1, 2]
    with pytest.raises(Refused, match="SGD keeps history, a list"):
        checkpoint.optimizer_scalars(optimizer, net)


def test_unusable_newer_ones_do_not_crowd_out_the_sound(tmp_path):
    for step in (40, 43):
        save(tmp_path, step)
    for manifest in tmp_path.glob("*/manifest.json"):
        manifest.write_text("{}")
    save(tmp_path, 10)
    found, complaints = checkpoint.latest(tmp_path)
    assert (found["state"]["step"], complaints) == (10, [])
    save(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]


# ------------------------------------------------------------------------------------------------- a crash at every file call

CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}  # Python's names for what it asks of the system, and fsync


def faulty(action, nth: int, fault) -> bool:
    """Do `action` in a forked process that meets `fault` at its n-th file call; whether it came to that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork and threads; the child only writes files
        child = os.fork()
    if child == 0:
        calls, struck, sync = itertools.count(1), [], os.fsync

        def call(descriptor: int | None = None) -> None:
            if next(calls) == nth:
                struck.append(nth)
                with contextlib.suppress(OSError, TypeError):  # a file whose last half did not reach the disk
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                fault()

        os.fsync = lambda descriptor: (call(descriptor), sync(descriptor))
        sys.addaudithook(lambda event, _: call() if event in CALLS else None)
        try:
            action()
        finally:
            os._exit(1 if struck else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def kill() -> None:
    os._exit(9)


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def naive_save(folder, model, optimizer, state):
    """Save as accelerate's save_state does: the old ones go first, and files are written in place."""
    for older in folder.glob("step-*"):
        checkpoint.shutil.rmtree(older)
    final = folder / f"step-{state['step']:08d}"
    final.mkdir()
    contents = {"model.safetensors": packed(model), "optimizer.safetensors": packed(optimizer)}
    contents["state.json"] = json.dumps(state).encode()
    files = {name: {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)} for name, raw in contents.items()}
    contents["manifest.json"] = json.dumps({"format": checkpoint.FORMAT, "files": files}).encode()
    for name, raw in contents.items():
        (final / name).write_bytes(raw)


def outcomes(folder, fault, saver) -> list[int | None]:
    """For a fault at each file call of the third save: which step `latest` then finds, None for none; and the next save works."""
    found = []
    for nth in itertools.count(1):
        place = folder / str(nth)
        for step in (1, 2):
            save(place, step)
        (place / ".tmp-step-00000009-1").mkdir()
        struck = faulty(lambda place=place: saver(place, {"w": MODEL["w"] + 3}, OPTIMIZER, {"step": 3}), nth, fault)
        got, _ = checkpoint.latest(place)
        found.append(got["state"]["step"] if got else None)
        assert got is None or torch.equal(got["model"]["w"], MODEL["w"] + got["state"]["step"])
        if fault is full:
            assert {path.name for path in place.glob(".tmp-*")} <= {".tmp-step-00000009-1"}, nth
        save(place, 4)
        assert checkpoint.latest(place)[0]["state"]["step"] == 4
        assert all(path.name.startswith("step-") for path in place.iterdir())
        if not struck:
            return found


@pytest.mark.parametrize("fault", [kill, full])
def test_fault_at_every_file_call_leaves_the_old_or_the_new(fault, tmp_path):
    found = outcomes(tmp_path, fault, checkpoint.save)
    assert len(found) > 20
    assert set(found) == {2, 3}
    assert fault is full or found == sorted(found)  # first the old one, from the rename on the new one


def test_fault_while_a_step_is_saved_again_loses_nothing(tmp_path):
    """A step is saved again after a stop during the evaluation at an epoch's end."""
    for nth in itertools.count(1):
        place = tmp_path / str(nth)
        save(place, 1)
        struck = faulty(lambda place=place: checkpoint.save(place, MODEL, OPTIMIZER, {"step": 1, "again": True}), nth, kill)
        found, complaints = checkpoint.latest(place)
        assert (found["state"]["step"], complaints) == (1, [])
        if not struck:
            break
    assert nth > 10
    assert found["state"]["again"]
    save(place, 2)
    assert len(list(place.iterdir())) == 2


def test_control_a_save_in_place_loses_both(tmp_path):
    assert None in outcomes(tmp_path, kill, naive_save)
