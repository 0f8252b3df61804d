"""The beginning of a training: refuse what would fail later, take the run folder, resume from the newest sound checkpoint."""

import itertools
import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ..data.images import Images, with_validation
from ..data.order import micro_batch_bounds
from ..errors import Refused, first_line
from ..processes import broadcast
from ..report.runs import read_json, read_metrics
from ..run import Run
from ..weights.tensors import load_weights, weights, weights_sha256, whole_of
from . import checkpoint, extend
from .ema import Average
from .job import Job, Plan
from .state import Meter, State
from .train_mode import batch_norms, buffers_kept

FEW_IMAGES = 16  # with fewer in a micro-batch, batch norm's statistics are poor


def begin(
    run: Run,
    model: nn.Module,
    images: Images,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    ema: float,
) -> Job:
    """The training of `model`, as earlier launches left it. Collective. Parameters and errors as `loop.train`."""
    if run.finished:
        run.open(images, {})
    _check_plan(plan, model)
    all_images, images = images, with_validation(images, run.validation)
    net = model.to(run.accelerator.device).to(memory_format=torch.channels_last)
    broadcast(weights(net).values(), run.world)  # what each process has read or drawn may differ
    _check_optimizer(optimizer, net)
    samples, batch = len(images.train), plan.batch
    check_batches(run, net, images, batch)
    whole = whole_of(net)
    facts = {
        "model": type(whole).__name__,
        "parameters": sum(p.numel() for p in whole.parameters()),
        "trainable": sum(p.numel() for p in net.parameters() if p.requires_grad),
    }
    run.open(all_images, facts)
    run = run.stage(plan.stage) if plan.stage else run
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    settings = extend.Settings(groups, plan.schedule, math.ceil(samples / batch))
    result = run.on_main(lambda: read_json(run.folder / "result.json")) or None  # of a stage, or of a run whose data have moved
    start = "" if result else weights_sha256(weights(whole_of(net)))  # host-device sync; of no use once finished
    saved, notes = _newest_checkpoint(run, images.fingerprint, plan.stage, start, settings, finished=result is not None)
    average = Average(net, ema) if ema else None
    state, meter = _restored(run, net, optimizer, saved, average)
    state.start = state.start or start
    if result:
        _check_result(run, net, result, notes)
        if not plan.stage:
            run.say_finished(result)
        torch.manual_seed(run.seed)
    notes = [*run.notes, *notes, *_small_micro_batches(run, net, batch)]
    return Job(run, net, images, optimizer, plan, settings, average, facts, state, meter, notes, result)


def _newest_checkpoint(
    run: Run, fingerprint: str, stage: str, start: str, settings: extend.Settings, *, finished: bool
) -> tuple[dict | None, list[str]]:
    """The checkpoint to resume from, of this run or else of a shorter one, and what to tell the user. Collective.

    `fingerprint` is that of the data, `start` the sha256 of the weights that this run begins with. Raises Refused (4).
    """
    folder = run.folder / "checkpoints"
    saved, notes = run.on_main(lambda: checkpoint.latest(folder))
    if saved and saved["state"].get("origin") != run.origin(fingerprint):
        raise Refused(f"{folder} was saved with another configuration, other data or an older oneloop; --fresh starts over", 4)
    if saved or finished:
        return saved, notes
    begun = run.on_main(lambda: bool(read_metrics(run.folder / "metrics.jsonl")))
    if not stage and not run.fresh:
        saved, notes_on_shorter = run.on_main(lambda: extend.find(run, fingerprint, start, settings))
        notes += notes_on_shorter
    if begun and not saved:
        notes.append(f"{run.folder} has no checkpoint: starts again from step 0")
    return saved, notes


def _restored(
    run: Run, net: nn.Module, optimizer: torch.optim.Optimizer, saved: dict | None, average: Average | None
) -> tuple[State, Meter]:
    """State and meter of the checkpoint `saved`, whose tensors net, optimizer and average take; the start without one."""
    meter = Meter(run.accelerator.device)
    if not saved:
        return State(), meter
    tensors, state = saved["optimizer"], saved["state"]
    meter.loss += tensors.pop("log/loss").to(meter.loss.device)
    for name, value in state["meter"].items():
        setattr(meter, name, value)
    load_weights(net, saved["model"])
    if average:
        for name, tensor in average.tensors.items():
            tensor.copy_(tensors.pop(f"average/{name}"))
    checkpoint.load_optimizer_state(optimizer, net, tensors, state["optimizer"])
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    return State(**{name: state[name] for name in State.__dataclass_fields__ if name in state}), meter


def _small_micro_batches(run: Run, net: nn.Module, batch: int) -> list[str]:
    """Note for the user if batch norm sees few images at a time."""
    if run.quiet or batch // run.micro_batches >= FEW_IMAGES or not batch_norms(net):
        return []
    cut = f"--batch {batch} in {run.micro_batches} micro-batches"
    sees = f"batch norm sees only {batch // run.micro_batches} images at a time ({cut})"
    return [f"{sees}; a larger --batch or fewer --micro-batches would give it more"]


def _check_plan(plan: Plan, model: nn.Module) -> None:
    """Raise Refused (2) for numbers and a net that no training can have."""
    if plan.epochs < 1 or plan.batch < 1:
        raise Refused(f"--epochs and --batch must be at least 1, they are {plan.epochs} and {plan.batch}", 2)
    if lazy := [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]:
        raise Refused(f"{', '.join(lazy[:4])} have no shape yet: call the net once on a batch before its optimizer is made", 2)


def _check_result(run: Run, net: nn.Module, result: dict, notes: list[str]) -> None:
    """Raise Refused (4) if the net, as its last checkpoint left it, is not that of the `result`. Collective."""
    digest = run.on_main(lambda: weights_sha256(weights(whole_of(net))))  # host-device sync
    if digest != result["weights_sha256"]:
        why = "; ".join(notes) or f"{run.folder / 'checkpoints'} lacks it"
        raise Refused(f"{run.folder} is finished, but its last checkpoint cannot be used: {why}. --fresh starts over", 4)


def check_batches(run: Run, net: nn.Module, images: Images, batch: int) -> None:
    """Raise Refused (2) if one of the batches of an epoch leaves batch norm one image to normalise."""
    samples = len(images.train)
    sizes = {batch if batch <= samples else 0, samples % batch}
    cuts = {size: itertools.pairwise(micro_batch_bounds(size, run.micro_batches)) for size in sizes}
    alone = [size for size, pairs in cuts.items() if any(end - start == 1 for start, end in pairs)]
    if not alone or not any(isinstance(module, _BatchNorm) for module in net.modules()):
        return
    feed = images.train.select(torch.zeros(1, dtype=torch.int64)).feed(images, run.accelerator.device)
    try:
        with buffers_kept(net), torch.no_grad():
            net.train()(feed.batch(feed.order(torch.zeros(1, dtype=torch.int64)))[0])
    except ValueError as error:
        raise Refused(
            f"a batch of {alone[0]} images in {run.micro_batches} micro-batches leaves one image by itself, which "
            f"{type(net).__name__}'s batch norm cannot normalise ({first_line(error)}); choose another --batch, "
            "--limit or --micro-batches",
            2,
        ) from error


def _check_optimizer(optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    """Raise Refused (2) for an optimizer that no checkpoint can hold; lay out its state as a resume does."""
    of_net = {id(parameter) for parameter in net.parameters()}
    if any(id(parameter) not in of_net for group in optimizer.param_groups for parameter in group["params"]):
        raise Refused("the optimizer has a parameter that is not in the net: no checkpoint would hold it; add it to the net", 2)
    if optimizer.state:  # made by its constructor, before the net moved to its device and memory format
        tensors, scalars = checkpoint.optimizer_state(optimizer, net), checkpoint.optimizer_scalars(optimizer, net)
        checkpoint.load_optimizer_state(optimizer, net, tensors, scalars)
