"""Locked parts stay bit for bit the same whatever happens around them; unlocked, they train again. With controls."""

import copy

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from conftest import Tiny, optimizer_for
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

from launch import train
from nets.transfer import MyNetPretrained, add_trainable, lock, locked, trainable, unlock
from nets.zoo import zoo


class Halves(nn.Module):
    """Two similar halves, each with batch norm and dropout, and a last layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (
            nn.Sequential(
                nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
            )
            for channels in (1, 4)
        )
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.second(self.first(x)).mean((2, 3)))


def values(part) -> dict:
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def changed(part, before) -> set[str]:
    return {name for name, tensor in part.state_dict().items() if not tensor.equal(before[name])}


def fit(net, optimizer, steps=10):
    """Training steps with everything that could change a locked tensor: momentum, weight decay, batch norm, dropout."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        net.train()
        x, y = torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=0.01)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Halves()


def test_ten_steps_leave_the_locked_part_as_it_was(net):
    lock(net, "first")
    first, second = values(net.first), values(net.second)
    fit(net, sgd(net.parameters()))  # including the locked ones, which must not change even so
    assert changed(net.first, first) == set()
    assert changed(net.second, second) == set(second)


def test_control_requires_grad_alone_lets_batch_norm_drift(net):
    net.first.requires_grad_(False)
    before = values(net.first)
    fit(net, sgd(net.parameters()))
    assert changed(net.first, before) == {"0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked"}


def test_dropout_of_the_locked_part_drops_nothing(net):
    x = torch.randn(8, 1, 6, 6)
    net.train()
    assert not net.first(x).equal(net.first(x))  # control
    lock(net, "first")
    net.train()
    assert net.first(x).equal(net.first(x))
    assert not net(x).equal(net(x))  # the other half still drops


@pytest.mark.parametrize("when", ["before", "after"])
def test_holds_in_a_copy(net, when):
    if when == "before":
        lock(net, "first")
        other = copy.deepcopy(net)
    else:
        other = copy.deepcopy(net)
        lock(other, "first")
        assert locked(net) == []
    before = values(other.first)
    fit(other, sgd(trainable(other)))
    assert changed(other.first, before) == set()
    unlock(other)
    assert locked(net) == (["first"] if when == "before" else [])


def test_holds_under_distributed_data_parallel(net):
    lock(net, "first")
    before = values(net)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(net)
        fit(wrapped, sgd(trainable(net)))
    finally:
        torch.distributed.destroy_process_group()
    assert changed(net, before) == {name for name in before if not name.startswith("first.")}


def test_holds_under_compile(net):
    lock(net, "first")
    before = values(net)
    fit(torch.compile(net, backend="eager"), sgd(trainable(net)), steps=3)
    assert changed(net, before) == {name for name in before if not name.startswith("first.")}


def test_holds_in_the_loop(start, images):
    """The loop switches batch norm's statistics off and on between micro-batches and evaluates between epochs."""
    torch.manual_seed(0)
    model = Tiny()
    lock(model, "conv", "norm")
    before = values(model)
    train(start(micro_batches=2), model, images, optimizer_for(model), epochs=2, batch=20)
    assert changed(model, before) == {"fc.weight", "fc.bias"}


def test_lock_during_training_stops_the_momentum_too(net):
    optimizer = sgd(net.parameters())
    fit(net, optimizer, steps=2)
    assert net.first[0][0].weight.grad is not None
    lock(net, "first")
    before = values(net.first)
    optimizer.step()  # with no backward in between
    assert changed(net.first, before) == set()


def test_unlock_a_part_of_a_locked_part(net):
    lock(net, "first", "second")
    assert locked(net) == ["first", "second"]
    unlock(net, "first.0")
    assert locked(net) == ["first.1", "second"]
    before = values(net)
    fit(net, sgd(trainable(net)))
    assert changed(net, before) == {name for name in before if name.startswith(("first.0.", "fc."))}
    x = torch.randn(8, 1, 6, 6)
    h = net.first[0](x)
    assert net.first[1](h).equal(net.first[1](h))  # its dropout is still locked


def test_whole_net(net):
    lock(net)
    assert locked(net) == [""]
    assert trainable(net) == []
    net.train()
    net(torch.randn(2, 1, 6, 6))
    unlock(net, *locked(net))
    assert locked(net) == []
    assert len(trainable(net)) == len(list(net.parameters()))
    before = values(net)
    fit(net, sgd(net.parameters()), steps=2)
    assert changed(net, before) == set(before)


def test_locking_twice_needs_unlocking_once(net):
    lock(net, "first")
    lock(net, "first.0")
    unlock(net, "first")
    assert locked(net) == []


def test_unlocked_part_is_in_the_mode_of_the_net(net):
    lock(net, "first")
    unlock(net, "first")
    assert net.first[0][1].training
    lock(net, "first")
    net.eval()
    unlock(net, "first")
    assert not net.first[0][1].training


def test_unknown_names_say_what_there_is(net):
    with pytest.raises(ValueError, match=r"no submodule 'first\.7\.0'; first has first\.0, first\.1"):
        lock(net, "second", "first.7.0")
    assert locked(net) == []
    with pytest.raises(ValueError, match="Halves has no submodule 'body'; it has first, second, fc"):
        unlock(net, "body")


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_unlocked_parameters_join_and_the_others_keep_their_state(net, kind):
    lock(net, "first")
    optimizer = sgd(trainable(net)) if kind == "sgd" else torch.optim.Adam(trainable(net), lr=0.1)
    fit(net, optimizer, steps=3)
    state = {p: {key: value.clone() for key, value in entries.items()} for p, entries in optimizer.state.items()}
    unlock(net, "first.0.0")
    assert add_trainable(optimizer, net, lr=1e-3) == 4 * 9 + 4
    assert add_trainable(optimizer, net, lr=1e-3) == 0
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1e-3]
    assert all(optimizer.state[p][key].equal(value) for p, entries in state.items() for key, value in entries.items())
    assert len(state) == 6
    before = values(net.first)
    fit(net, optimizer, steps=2)
    assert changed(net.first, before) == {"0.0.weight", "0.0.bias"}


# --------------------------------------------------------------------------------------------------------- MyNetPretrained


def counts(net) -> tuple[int, int]:
    learn = sum(p.numel() for p in trainable(net))
    return learn, sum(p.numel() for p in net.parameters()) - learn


def test_documents_counts():
    """Transfer notes, section 2.3: as built, and after its net.pretrained[5][1] is unlocked."""
    with torch.device("meta"):
        net = MyNetPretrained()
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) == 11_181_642
    assert counts(net) == (10_498_570, 683_072)
    assert locked(net) == ["pretrained"]
    unlock(net, "pretrained.5.1")
    assert net.pretrained[5][1].conv1.weight.requires_grad
    assert counts(net) == (10_793_994, 387_648)


def test_takes_the_locked_half_from_the_weights_and_nothing_else():
    torch.manual_seed(0)
    published = resnet18()
    net = MyNetPretrained(state=published.state_dict())
    x = torch.randn(2, 3, 64, 64)
    expected = nn.Sequential(*list(published.children())[:6]).eval()(x)
    assert net.pretrained(x).equal(expected)
    same = [name for name, tensor in net.train_[0].state_dict().items() if tensor.equal(published.layer3.state_dict()[name])]
    assert not [name for name in same if "conv" in name]
    assert net(x).shape == (2, 10)


def test_grey_half_is_that_of_the_zoo():
    state = resnet18().state_dict()
    net = MyNetPretrained(in_channels=1, state=state)
    assert net.pretrained[0].weight.equal(zoo("resnet18", in_channels=1, grey="sum", state=state).conv1.weight)
