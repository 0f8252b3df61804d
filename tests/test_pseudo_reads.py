"""Waits and launches of the host of a device that is not a CPU, and that any machine has."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from on_pseudo_device import begun, there
from pseudo_device import MISSING, counts
from tiny import Tiny, tiny_images
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import ChoosesOnTheHost, ReadsOnTheHost, fit

from launch import Run, sources
from launch.data.augment import Augment, EpochRng, alternating_flip, crop_and_flip, random_resized_crop, translate
from launch.data.feed import MemoryFeed
from launch.data.images import Images
from launch.sources import synthetic
from launch.training.batches import TrainingFeed
from launch.training.evaluate import measure
from launch.training.finite import POLL_STEPS
from launch.training.step import Step
from nets.cifar2 import Net
from nets.residual import CifarResNet

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"building the device needs {', '.join(MISSING)}")
aten = torch.ops.aten


@contextlib.contextmanager
def pixels_in(home: str) -> Iterator[None]:
    """Feeds that are made within it keep their pixels there; in main memory as those that do not fit on the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launch.data.feed._fits", lambda rows, device: home == device.type)
        yield


def batch_there(images: Images, ids: Tensor, augment: Augment | None, device: torch.device, home: str) -> list[Tensor]:
    """The first images of an epoch; a batch is made on `device`, wherever the feed's pixels are."""
    feed, epoch = MemoryFeed(images.train, images, device), EpochRng(1, 61, device)
    assert {feed.rows.device.type, feed.order(ids).device.type} == {home}
    assert feed.resident == (home == device.type)
    epoch.begin(1)
    pixels, labels = feed.batch(feed.order(ids), [lambda pixels, ids: augment(pixels, epoch.of(ids))] if augment else [])
    assert {pixels.device.type, labels.device.type} == {device.type}
    assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    sizes = torch.full((len(ids), 2), 30, device=device)
    views = random_resized_crop(sizes, epoch.of(ids.to(device)))
    return [pixels, labels, views]


@there
def test_a_batch_is_made_on_the_device(place):
    """With the bits of one made on a CPU, and nothing is read, wherever the pixels are."""
    ids, augments = torch.arange(7), (None, crop_and_flip, translate, alternating_flip)
    for size, augment in itertools.product((0, 12, 6), augments):
        images = replace(tiny_images(), size=size)
        on_cpu = batch_there(images, ids, augment, torch.device("cpu"), "cpu")
        for home in ("pseudo", "cpu"):
            with pixels_in(home):
                before = counts()
                made = batch_there(images, ids, augment, torch.device("pseudo", 0), home)
                assert counts() == before, (size, augment, home)
            assert all(one.cpu().equal(other) for one, other in zip(made, on_cpu, strict=True)), (size, augment, home)


def waits(run: Run, model: nn.Module, **options) -> dict[str, set]:
    """How many copies to the host and how many reads a step makes: without a poll, and with one."""
    call, seen = Step.__call__, {"quiet": set(), "poll": set()}

    def watched(self, batch, stop):
        before = counts()
        done = call(self, batch, stop)
        made = tuple(after - earlier for after, earlier in zip(counts(), before, strict=True))
        assert self.finite.poll == POLL_STEPS
        assert len(self.device_lrs.rates) == 1
        kept = (done[0], *self.device_lrs.rates, self.finite.found_inf, self.finite.bad_steps, *self.net.state_dict().values())
        assert {tensor.device.type for tensor in kept} == {"pseudo"}
        seen["quiet" if batch.step % POLL_STEPS else "poll"].add(made)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", watched)
        fit(run, tiny_images(), model=model, epochs=3, **options)
    return seen


@there
def test_the_host_reads_nothing_between_polls(place):
    falling = {"augment": crop_and_flip, "schedule": lambda epoch: 1 - epoch / 3}
    for home, micro_batches in itertools.product(("pseudo", "cpu"), (1, 2)):
        with pixels_in(home):
            seen = waits(begun(place / f"{home}-{micro_batches}", micro_batches=micro_batches), Tiny(), **falling)
        assert seen == {"quiet": {(0, 0)}, "poll": {(0, 1)}}, (home, micro_batches)


def reads_of_an_evaluation(run: Run, model: nn.Module, train_mode_batch: int) -> tuple[int, ...]:
    """Copies and reads, of several batches."""
    images = tiny_images()
    feed = MemoryFeed(images.test, images, torch.device("pseudo", 0))
    feed.evaluation_batch = 4
    before = counts()
    measure(run, model.to("pseudo"), feed, 8, None, train_mode_batch)
    return tuple(after - earlier for after, earlier in zip(counts(), before, strict=True))


@there
def test_an_evaluation_reads_once(place):
    """Its numbers, all together: loss and right ones of each batch, the wish to stop."""
    run = begun(place)
    for home, train_mode_batch in itertools.product(("pseudo", "cpu"), (0, 5)):
        with pixels_in(home):
            assert reads_of_an_evaluation(run, Tiny(), train_mode_batch) == (1, 0), (home, train_mode_batch)
    assert reads_of_an_evaluation(run, ReadsOnTheHost(), 0) == (1, 6)  # a control: once for each batch
    run.end()


@there
def test_control_what_a_net_reads_on_the_host_is_counted(place):
    for net in (ReadsOnTheHost, ChoosesOnTheHost):
        assert all(reads > 0 for _, reads in waits(begun(place / net.__name__), net())["quiet"]), net


class Operators(TorchDispatchMode):
    """Counts what a GPU would launch a kernel for: neither views nor memory that is taken."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        taken = func.overloadpacket in (aten.empty, aten.empty_like, aten.empty_strided, aten.detach)
        if func.namespace != "profiler" and not func.is_view and not taken:
            self.seen[str(func)] += 1
        return func(*args, **kwargs or {})


def operators(place: Path, model: nn.Module, augment=None) -> Counter:
    """Those of a step without a poll, once the optimizer has its state."""
    images = sources.cifar10("synthetic", keep=("airplane", "bird"), limit=8)
    model = model.to("pseudo", memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    run = begun(place)
    feed = TrainingFeed(run, MemoryFeed(images.train, images, torch.device("pseudo")), [augment] if augment else [])
    step = Step(run, model.train(), feed, optimizer, F.cross_entropy)
    first, second = feed.batches([torch.arange(4, device="pseudo")] * 2, 0, 1)
    step(first, False)
    with Operators() as mode:
        step(second, False)
    run.end()
    return mode.seen


@there
def test_operators_of_a_step(place):
    """A step of a small net takes a GPU as long as the host takes to launch its kernels."""
    synthetic.COUNTS.update(train=64, test=20)
    for most, *args in ((38, Net()), (51, Net(), crop_and_flip), (179, CifarResNet(20))):
        seen = operators(place / str(most), *args)
        assert seen.total() <= most, seen
    more = operators(place / "control", nn.Sequential(Net(), nn.ReLU()))
    assert more.total() == 38 + 2, more
