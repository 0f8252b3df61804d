"""Which tensors a file of weights gives, by which names, and which file of a run it is that loads."""

import pytest
import torch
from conftest import Tiny, result
from safetensors.torch import load_file, save_file
from torch import nn
from training import fit
from weight_files import same, saved, sha256

from launch.errors import Refused
from launch.weights import load, load_into

pytestmark = pytest.mark.usefixtures("own_cache")

PREFIXES = ["module.", "_orig_mod.", "module.module.", "module.module.module.", "_orig_mod.module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_around_wrappers_are_taken_off(tensors, tmp_path, prefix):
    """A DataParallel net was wrapped once more when its training was resumed."""
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "w.pt")
    assert same(load(tmp_path / "w.pt"), tensors)
    net = Tiny()
    report = load_into(net, load(tmp_path / "w.pt"))
    assert (report.dropped, report.new) == ((), ())
    assert same(net.state_dict(), tensors)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_nan_is_refused_in_every_precision(kind, tmp_path):
    torch.save({"a": torch.tensor([1.0, float("nan")], dtype=kind)}, tmp_path / "w.pt")
    with pytest.raises(Refused, match="a contains NaN") as refused:
        load(tmp_path / "w.pt")
    assert refused.value.code == 4


def test_some_digits_of_a_sha256_are_checked_and_those_in_the_name_of_a_url(tensors, tmp_path):
    content = saved(tensors)
    digest = sha256(content)
    (tmp_path / "w.pt").write_bytes(content)
    for digits in (digest[:8], digest[:20], digest, digest.upper()):
        assert same(load(tmp_path / "w.pt", digits), tensors)
    for wrong in ("0" * 8, digest[:-1] + ("0" if digest[-1] != "0" else "1")):
        with pytest.raises(Refused, match="sha256 mismatch"):
            load(tmp_path / "w.pt", wrong)
    for digits, fits in ((digest[:8], True), ("0" * 8, False)):
        named = tmp_path / f"net-{digits}.pt"
        named.write_bytes(content)
        if fits:
            assert same(load(named.as_uri()), tensors)
        else:
            with pytest.raises(Refused, match="sha256 mismatch"):
                load(named.as_uri())


class Still(nn.Module):
    """Its first epoch is its best: it learns nothing that it says."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        return 0 * self.fc(x.flatten(1)) + torch.tensor([0.0, 1.0, 0.0])


def test_a_finished_run_gives_weights_that_its_result_records(start, images, tmp_path):
    """Whichever of its files they are from; and each file is held against the digest that is its own."""
    torch.manual_seed(0)
    fit(start(), images, model=Still())
    folder = tmp_path / "run"
    digests = {"model": result(folder)["weights_sha256"], "best": result(folder)["best"]["weights_sha256"]}
    assert digests["model"] == digests["best"] or not same(*(load_file(folder / f"{name}.safetensors") for name in digests))
    assert any(same(load(folder), load_file(folder / f"{name}.safetensors")) for name in digests)
    for name in digests:
        own = load_file(folder / f"{name}.safetensors")
        assert same(load(folder / f"{name}.safetensors"), own)
        save_file({key: tensor + 1 for key, tensor in own.items()}, folder / f"{name}.safetensors")
        with pytest.raises(Refused, match="does not match the weights_sha256 in ") as refused:
            load(folder / f"{name}.safetensors")
        assert refused.value.code == 4
        save_file(own, folder / f"{name}.safetensors")


def test_an_unfinished_run_gives_its_best_weights(start, images, tmp_path):
    fit(start(), images, epochs=1)
    folder = tmp_path / "run"
    best = load_file(folder / "best.safetensors")
    (folder / "model.safetensors").unlink()
    assert same(load(folder), best)
    (folder / "best.safetensors").unlink()
    with pytest.raises(Refused, match="no weights saved yet"):
        load(folder)


# ------------------------------------------------------------------------------------------------------------- into a net


def test_a_tensor_of_another_shape_or_kind_is_dropped_and_said():
    """Also one of as many numbers."""
    net, before = Tiny(), Tiny()
    before.load_state_dict(net.state_dict())
    tensors = {name: torch.ones_like(tensor) for name, tensor in net.state_dict().items()}
    tensors["fc.weight"] = torch.ones(64, 3)
    tensors["conv.bias"] = torch.ones(4, dtype=torch.int64)
    for name, kept in (("fc.weight", "shape 64×3, the net's is 3×64"), ("conv.bias", "torch.int64, the net's is torch.float32")):
        with pytest.raises(Refused, match=f"{name} .{kept}") as refused:
            load_into(net, tensors)
        assert refused.value.code == 4
    assert same(net.state_dict(), before.state_dict())  # nothing was copied
    report = load_into(net, tensors, partial=True)
    assert dict(report.dropped) == {
        "fc.weight": "shape 64×3, the net's is 3×64", "conv.bias": "torch.int64, the net's is torch.float32",
    }  # fmt: skip
    assert {*report.new} == {"fc.weight", "conv.bias"}
    assert net.fc.weight.equal(before.fc.weight)
    assert net.conv.weight.eq(1).all()
    assert str(report).splitlines()[0] == f"weights: {len(report.matched)} matched, 2 dropped, 2 new"


def test_a_tensor_that_the_net_lacks_is_refused_unless_some_will_do():
    net = Tiny()
    more = dict(net.state_dict()) | {"extra.weight": torch.ones(2)}
    with pytest.raises(Refused, match=r"extra\.weight \(the net has no such tensor\)"):
        load_into(net, more)
    assert [name for name, _ in load_into(net, more, partial=True).dropped] == ["extra.weight"]


def test_counters_of_batch_norm_alone_are_no_weights_of_this_net():
    with pytest.raises(Refused, match=r"none of the 1 tensors \(norm\.num_batches_tracked\) fits Tiny"):
        load_into(Tiny(), {"norm.num_batches_tracked": torch.tensor(5)}, partial=True)


def test_a_tensor_under_two_names_needs_to_be_there_under_one():
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    state = {name: torch.full_like(tensor, 3) for name, tensor in net.state_dict().items()}
    report = load_into(net, state)
    assert report.dropped == ()
    assert net["b"].weight.eq(3).all()


def test_what_is_in_a_file_beside_weights_is_left_out(tensors, tmp_path):
    for key in ("state_dict", "model"):
        torch.save({key: tensors, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
        assert same(load(tmp_path / "w.pt"), tensors)
