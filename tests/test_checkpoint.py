"""A checkpoint verifies or is not used."""

import json

import pytest
import torch

from launch import checkpoint

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
        checkpoint.load_weights(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2), "w": torch.zeros(1)})
    with pytest.raises(checkpoint.Refused, match="weight"):
        checkpoint.load_weights(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})


def test_tensor_with_two_names_is_kept_once():
    block = torch.nn.Linear(2, 2)
    net = torch.nn.Sequential(block, block)
    assert list(checkpoint.weights(net)) == ["0.weight", "0.bias"]
    changed = {name: tensor + 1 for name, tensor in checkpoint.weights(net).items()}
    checkpoint.load_weights(net, changed)
    assert torch.equal(net[1].weight, changed["0.weight"])


def test_optimizer_state_is_by_name_not_by_place():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net(torch.randn(4, 2)).sum().backward()
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.step()
    kept = checkpoint.optimizer_state(optimizer, net)
    assert {name for name in kept if name.startswith("1.bias")} == {"1.bias/step", "1.bias/exp_avg", "1.bias/exp_avg_sq"}
    turned = torch.optim.Adam([{"params": net[1].parameters()}, {"params": net[0].parameters(), "lr": 1.0}])
    checkpoint.load_optimizer_state(turned, net, kept)
    assert torch.equal(turned.state[net[1].bias]["exp_avg"], kept["1.bias/exp_avg"])
    assert turned.param_groups[1]["lr"] == 1.0
