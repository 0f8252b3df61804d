"""What a device that is not a CPU changes in the loop, on one that any machine has: tests/pseudo_device.py.

The tests run in processes of their own, which have the device.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import jobs
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, Tiny, metrics, optimizer_for, result
from pseudo_device import MISSING, built, counts
from tiny import tiny_images
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import ChoosesOnTheHost, MixesDevices, ReadsOnTheHost, fit

from launch import Run, sources, train
from launch.data.augment import crop_and_flip
from launch.data.images import MemoryFeed
from launch.errors import Refused
from launch.recipe import load
from launch.sources import synthetic
from launch.training.step import POLL_STEPS, Step
from nets.cifar2 import Net
from nets.residual import CifarResNet

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"building the device needs {', '.join(MISSING)}")
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "by_hand")  # which has a loop of its own
OPTIONS = {
    "images": {"net": "Net", "size": 32}, "model_selection": {"k": 2, "nets": ("LeNet5",)},
    "transfer": {"source_epochs": 1, "few": 8}, "zoo": {"net": "squeezenet1_1", "stem": "imagenet", "size": 64},
}  # fmt: skip
aten = torch.ops.aten
BROKEN = 10  # the step, from 1, whose loss or gradient is not finite


def forked(body: str, place: Path, device: str = "pseudo", **env) -> None:
    """Call a function of this file, with `place`, in a process that has the device, or only a CPU."""
    start = f"import pseudo_device; pseudo_device.begin({str(built())!r}); " if device == "pseudo" else ""
    fast = "import gc, os, test_pseudo_device; gc.freeze(); os.fsync = lambda _: None; "  # nothing is killed here
    code = f"{start}{fast}test_pseudo_device.{body}(test_pseudo_device.Path.cwd())"
    done = jobs.run("-c", code, cwd=place, env={"ACCELERATE_TORCH_DEVICE": device, "CUDA_VISIBLE_DEVICES": "", **env})
    assert done.returncode == 0, done.stdout + done.stderr


def there(body):
    """A test whose body runs on the device, in the folder `place`."""

    def test(tmp_path):
        forked(f"{body.__name__}.body", tmp_path)

    test.body, test.__doc__ = body, body.__doc__
    return test


def begun(out: Path, **flags) -> Run:
    run = Run(data="synthetic", out=out, wandb="disabled", threads=1, **flags)
    assert run.start("test", {}) is None
    return run


def recipes(place: Path) -> None:
    """Two steps of each training of each recipe."""
    synthetic.COUNTS.update(train=64, test=20)

    def few(run, model, images, optimizer, *args, **options):
        splits = {split: getattr(images, split).select(torch.arange(4)) for split in ("train", "test")}
        images = replace(images, **splits, size=min(images.size, 96))
        options |= {"epochs": 1, "batch": 2, "schedule": lambda _: 0.01, "draw": None}
        return train(run, model, images, optimizer, *args, **options)

    for name in RECIPES:
        module, options = load(ROOT / f"recipes/{name}.py"), OPTIONS.get(name, {})
        module.train = few
        run = Run(data="synthetic", out=place / name, wandb="disabled", threads=1, limit=64, log_every=1)
        run.start(name, options)
        module.main(run, **options)
        run.end()


def test_every_recipe_has_the_losses_of_a_cpu(tmp_path):
    """Two steps, and an evaluation, of each of its trainings."""
    lines = {}
    for device in ("pseudo", "cpu"):
        (tmp_path / device).mkdir()
        forked("recipes", tmp_path / device, device)
        lines[device] = {
            str(file.parent.relative_to(tmp_path / device)): [(line["event"], line["loss"]) for line in metrics(file.parent)]
            for file in sorted((tmp_path / device).rglob("metrics.jsonl"))
        }
        assert {name.split("/")[0] for name in lines[device]} == {*RECIPES}
    for name, expected in lines["cpu"].items():
        first, second, *rest = [event for event, _ in expected]
        assert (first, second, {*rest}) == ("train", "train", {"eval"})
        assert [loss for _, loss in lines["pseudo"][name]] == pytest.approx([loss for _, loss in expected], rel=1e-4), name


def test_bf16_computes_in_bf16_and_keeps_float32(tmp_path):
    forked("in_precision", tmp_path, ACCELERATE_MIXED_PRECISION="bf16")
    (tmp_path / "float32").mkdir()
    forked("in_precision", tmp_path / "float32", ACCELERATE_MIXED_PRECISION="no")
    records = [metrics(place / "run") for place in (tmp_path, tmp_path / "float32")]
    loss, exact = (record[0]["loss"] for record in records)
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.02)


def in_precision(place: Path) -> None:
    model, seen = Tiny(), []
    model.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    fit(run := begun(place / "run"), tiny_images(), model=model, epochs=1)
    expected = torch.bfloat16 if (name := run.config["precision"]) == "bf16" else torch.float32
    assert {*seen} == {expected}, (name, seen)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert result(place / "run")["precision"] == name


@there
def test_resume_is_exact(place):
    """As after a SIGTERM, which is heard at the next poll or in the evaluation before it."""
    options = {"epochs": 5, "batch": 7, "augment": crop_and_flip}  # 9 steps an epoch
    for kind, stops in {"sgd": ((3, 9), (10, 17), (34, 36)), "adam": ((10, 17),)}.items():
        whole = fit(begun(place / f"whole-{kind}"), tiny_images(), kind, **options)
        assert {parameter.device.type for parameter in whole.parameters()} == {"pseudo"}
        for at, heard in stops:
            run = begun(place / f"{kind}-{at}")
            run.stop_when = lambda step, batch, at=at: step >= at
            with pytest.raises(Refused, match=f"stopped by SIGTERM at step {heard}"):
                fit(run, tiny_images(), kind, **options)
            fit(begun(run.folder), tiny_images(), kind, **options)
            assert metrics(run.folder) == metrics(place / f"whole-{kind}")
            assert result(run.folder)["weights_sha256"] == result(place / f"whole-{kind}")["weights_sha256"]


@there
def test_a_broken_loss_or_gradient_is_found_at_the_next_poll_and_never_applied(place):
    def loss(logits, labels):
        calls.append(1)
        value = F.cross_entropy(logits, labels)
        if len(calls) != BROKEN:
            return value
        before.extend(parameter.detach().clone() for parameter in model.parameters())
        return value * torch.nan if what == "loss" else value + (logits * 0).sum().sqrt()

    for what in ("loss", "gradient"):
        calls, before, model = [], [], Tiny()
        with pytest.raises(
            Refused, match=f"not finite at step {BROKEN}; the weights are those after step {BROKEN - 1}"
        ) as refused:
            train(begun(place / what), model, tiny_images(), optimizer_for(model), loss, epochs=1, batch=2)
        assert refused.value.code == 3
        assert len(calls) == POLL_STEPS + 1
        assert all(one.equal(other) for one, other in zip(model.parameters(), before, strict=True))


@there
def test_control_an_optimizer_that_is_not_fused_is_polled_at_every_step(place):
    def loss(logits, labels):
        calls.append(1)
        return F.cross_entropy(logits, labels) * (torch.nan if len(calls) == BROKEN else 1)

    calls, model = [], Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=False)
    with pytest.raises(Refused, match=f"not finite at step {BROKEN};"):
        train(begun(place / "run"), model, tiny_images(), optimizer, loss, epochs=1, batch=2)
    assert len(calls) == BROKEN


def waits(run: Run, model: nn.Module, **options) -> dict[str, set]:
    """How many copies to the host and how many reads a step makes: without a poll, and with one."""
    call, seen = Step.__call__, {"quiet": set(), "poll": set()}

    def watched(self, ids, epoch, step, stop):
        before = counts()
        done = call(self, ids, epoch, step, stop)
        assert self.rates
        assert self.poll == POLL_STEPS
        made = tuple(after - earlier for after, earlier in zip(counts(), before, strict=True))
        seen["quiet" if step % POLL_STEPS else "poll"].add(made)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", watched)
        fit(run, tiny_images(), model=model, epochs=3, **options)
    return seen


@there
def test_the_host_reads_nothing_between_polls(place):
    falling = {"augment": crop_and_flip, "schedule": lambda epoch: 1 - epoch / 3}
    assert waits(begun(place / "one"), Tiny(), **falling) == {"quiet": {(0, 0)}, "poll": {(0, 1)}}
    assert waits(begun(place / "two", micro_batches=2), Tiny(), **falling) == {"quiet": {(0, 0)}, "poll": {(0, 1)}}


@there
def test_control_what_a_net_reads_on_the_host_is_counted(place):
    for net in (ReadsOnTheHost, ChoosesOnTheHost):
        assert all(reads > 0 for _, reads in waits(begun(place / net.__name__), net())["quiet"]), net


@there
def test_control_tensors_of_two_devices_do_not_mix(place):
    with pytest.raises(RuntimeError, match="to be on the same device"):
        fit(begun(place / "run"), tiny_images(), model=MixesDevices(), epochs=1)


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
    feed = MemoryFeed(images.train, images, torch.device("pseudo"))
    step = Step(run, model.train(), feed, optimizer, F.cross_entropy, [augment] if augment else [])
    ids = torch.arange(4, device="pseudo")
    step(ids, 0, 1, False)
    with Operators() as mode:
        step(ids, 0, 2, False)
    run.end()
    return mode.seen


@there
def test_operators_of_a_step(place):
    """A step of a small net takes a GPU as long as the host takes to launch its kernels."""
    synthetic.COUNTS.update(train=64, test=20)
    for most, *args in ((39, Net()), (52, Net(), crop_and_flip), (180, CifarResNet(20))):
        seen = operators(place / str(most), *args)
        assert seen.total() <= most, seen
    more = operators(place / "control", nn.Sequential(Net(), nn.ReLU()))
    assert more.total() == 39 + 2, more
