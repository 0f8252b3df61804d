"""What happens on a GPU, by torch's fake tensors: where each result is, its shape and dtype, what the host would have to read.

Nothing is computed, so no GPU is needed. An operator on tensors of two devices is an error there, and so is reading a number.
"""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import Tiny, optimizer_for
from tiny import tiny_images
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from training import ChoosesOnTheHost, MixesDevices, ReadsOnTheHost

from launch.data.augment import EpochDraws, alternating_flip, crop_and_flip, random_resized_crop, translate
from launch.data.images import MemoryFeed
from launch.data.order import draws
from launch.training.loop import _validate
from launch.training.step import POLL_STEPS, Step
from nets.cifar2 import Net
from nets.residual import CifarResNet

GPU = torch.device("cuda", 0)


@pytest.fixture(params=["on the GPU", "in main memory"])
def fits(request, monkeypatch):
    """Whether the pixels are on the GPU."""
    monkeypatch.setattr("launch.data.images._fits", lambda *_: request.param == "on the GPU")
    return request.param == "on the GPU"


@pytest.fixture
def gpu(monkeypatch):
    """Within it tensors are fake, and there are the generators that a step seeds, and bf16."""
    monkeypatch.setattr(torch.cuda, "default_generators", [torch.Generator()])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with FakeTensorMode():
        yield


def run_there(model: nn.Module, micro_batches: int = 1) -> SimpleNamespace:
    """One process on a GPU, in bf16. Gradients are made without a backward pass, for which torch wants a real GPU."""
    autocast = lambda: torch.autocast("cuda", torch.bfloat16)  # noqa: E731

    def prepared(net, **_):
        def forward(pixels):
            with autocast():
                return net(pixels).float()

        return forward

    def backward(loss):
        assert described(loss) == (GPU, (), torch.float32)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    accelerator = SimpleNamespace(device=GPU, autocast=autocast, prepare_model=prepared, scaler=None)
    accelerator.no_sync, accelerator.backward = lambda net: contextlib.nullcontext(), backward
    place = {"seed": 1, "micro_batches": micro_batches, "world": 1, "rank": 0, "compile": False, "captured": False}
    return SimpleNamespace(accelerator=accelerator, **place)


def described(tensor: Tensor) -> tuple:
    return tensor.device, tuple(tensor.shape), tensor.dtype


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("augment", [None, crop_and_flip, translate, alternating_flip])
@pytest.mark.parametrize("size", [0, 12, 6])
def test_a_batch_is_made_on_the_gpu(augment, size, fits):
    images = replace(tiny_images(), size=size)
    feed, epoch = MemoryFeed(images.train, images, GPU), EpochDraws(1, 61, GPU)
    ids = feed.order(torch.arange(7))
    assert ids.is_cuda == feed.rows.is_cuda == feed.resident == fits
    epoch.begin(1)
    pixels, labels = feed.batch(ids, [lambda pixels, ids: augment(pixels, epoch.of(ids))] if augment else [])
    assert described(pixels) == (GPU, (7, 1, size or 8, size or 8), torch.float32)
    assert described(labels) == (GPU, (7,), torch.int64)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("gpu")
def test_draws_and_views_are_made_on_the_gpu():
    ids = torch.arange(7, device=GPU)
    assert described(draws(1, 2, ids, 0, 9)) == (GPU, (7,), torch.int64)
    sizes = torch.full((7, 2), 30, device=GPU)
    assert described(random_resized_crop(sizes, EpochDraws(1, 61, GPU).of(ids))) == (GPU, (7, 5), torch.int64)


def step_there(model, images, micro_batches: int = 1, augment=crop_and_flip) -> Step:
    """On fake tensors, as `gpu` has them."""
    feed = MemoryFeed(images.train, images, GPU)
    augments = [augment] if augment else []
    return Step(run_there(model, micro_batches), model.train(), feed, optimizer_for(model), F.cross_entropy, augments)


def made_there(net, *args) -> nn.Module:
    with GPU:
        return net(*args)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_reads_nothing_and_leaves_all_on_the_gpu(micro_batches, fits, monkeypatch):
    """Up to what it gives to the optimizer, whose fused kernels torch has no fake ones of."""
    step, given = step_there(model := made_there(Tiny), tiny_images(), micro_batches), []
    optimizer = step.optimizer
    monkeypatch.setattr(optimizer, "step", lambda: given.extend((optimizer.param_groups[0]["lr"], optimizer.found_inf)))
    ids = step.feed.order(torch.arange(7))
    for number in (1, POLL_STEPS - 1):
        loss, stop = step(ids, 0, number, False)
    assert described(loss) == (GPU, (), torch.float32)
    assert stop is False
    assert len(given) == 4
    assert {described(each) for each in (*given, step.broken)} == {(GPU, (), torch.float32)}
    assert {each.device for each in model.state_dict().values()} == {GPU}
    with pytest.raises(DataDependentOutputException):  # a control: at a poll the host reads
        step(ids, 0, POLL_STEPS, False)


@pytest.mark.usefixtures("gpu", "fits")
@pytest.mark.parametrize(
    ("net", "error"),
    [
        (ReadsOnTheHost, DataDependentOutputException),
        (ChoosesOnTheHost, DynamicOutputShapeException),
        (MixesDevices, RuntimeError),
    ],
)
def test_control_a_net_that_reads_or_mixes_devices_is_noticed(net, error):
    step = step_there(made_there(net), tiny_images())
    with pytest.raises(error):
        step(step.feed.order(torch.arange(7)), 0, 1, False)


class Read(Exception):
    pass


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("train_mode_batch", [0, 5])
def test_an_evaluation_reads_once(train_mode_batch, fits, monkeypatch):
    """Its numbers, all together: loss and right ones of each batch, the wish to stop."""

    def read(tensor):
        raise Read(described(tensor))

    images, model = tiny_images(), made_there(Tiny)
    feed = MemoryFeed(images.test, images, GPU)
    monkeypatch.setattr(feed, "batches", 4)
    monkeypatch.setattr(Tensor, "cpu", read)
    batches = -(-23 // (train_mode_batch or 4))
    with pytest.raises(Read) as reading:
        _validate(run_there(model), model, feed, 8, None, train_mode_batch)
    assert reading.value.args[0] == (GPU, (2 * (batches + 1),), torch.float32)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("net", "classes"), [(Net, 2), (CifarResNet, 10)])
def test_nets_of_the_package_compute_in_bf16_and_give_float32(net, classes):
    model, seen = made_there(net), set()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda module, inputs, output: seen.add((output.device, output.dtype)))
    logits = run_there(model).accelerator.prepare_model(model)(torch.zeros(4, 3, 32, 32, device=GPU))
    assert described(logits) == (GPU, (4, classes), torch.float32)
    assert seen == {(GPU, torch.bfloat16)}
