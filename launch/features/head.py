"""The last layer of a net as a net of its own, to be trained on features: the rest of the net is locked and computed once."""

import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from ..console import say
from ..data.features import by_turns
from ..data.images import Images
from ..errors import Refused
from ..processes import broadcast
from ..run import Run
from ..stop import OUT_OF_TIME, Stop
from ..weights.tensors import weights
from .backbone import Backbone
from .compute import Views, Work, with_features

AT_MOST = 7  # days that processes wait for each other


class Head(nn.Module):
    """The layer `name` of `net`, called as it is there: features float (n, width) -> logits float (n, classes).

    The layer is the net's own, so that what trains this one trains the net; `whole_of` in launch/weights/tensors.py is the net.
    """

    def __init__(self, net: nn.Module, name: str, shape: tuple[int, ...]):
        super().__init__()
        self.whole, self.name, self.shape = (net,), name, shape  # in a tuple: not a part of this one
        place: nn.Module = self
        *above, last = name.split(".")
        for part in above:
            place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(last, net.get_submodule(name))

    def forward(self, features: Tensor) -> Tensor:
        return self.get_submodule(self.name)(features.unflatten(1, self.shape))


def trained_on_features(
    run: Run, net: nn.Module, images: Images, last: tuple[str, ...], views: Views, options: dict[str, Any]
) -> tuple[nn.Module, Images, dict[str, Any]]:
    """The last layer of `net`, the features of `images`, and `options` of `train` for them; or all three as they are.

    They stay as they are where the recipe is only asked what it trains, and, after a line that says so, where images are mixed,
    or the net does more after its last layer than to return the logits. Collective. Raises Refused.
    """
    if not run.trains:
        return net, images, options
    main = run.rank == 0 and not run.quiet
    why = "--mix mixes pixels" if options.get("mix") else f"{type(net).__name__} has several last layers" if len(last) > 1 else ""
    if why:
        return _in_each_epoch(net, images, views, options, why, main)
    net.to(run.accelerator.device).to(memory_format=torch.channels_last)
    broadcast(weights(net).values(), run.world)  # collective: what each process has read or drawn may differ
    began, console = time.perf_counter(), Console(stderr=True)
    with (
        Backbone(net, last[-1], images, run.accelerator) as backbone,
        Progress(console=console, transient=True, disable=not main or not console.is_terminal) as bar,
    ):
        if not backbone.ends_with_head():
            why = f"{type(net).__name__} does more after {last[-1]} than return the logits"
            return _in_each_epoch(net, images, views, options, why, main)
        task, clock = bar.add_task("computing features", total=0), Stop(seconds=run.max_seconds)

        def begin(total: int) -> None:
            bar.update(task, total=total)

        def stop_in_time() -> None:
            if clock.requested(0):
                kept = "those that are computed are kept: run the same command to resume"
                raise Refused(f"stopped after --max-seconds {run.max_seconds} while features are computed; {kept}", OUT_OF_TIME)

        work = Work(run.rank, run.world, begin, lambda done: bar.advance(task, done), stop_in_time)
        found, computed = with_features(images, backbone, views, work)
    if not run.separate_trials:
        run.wait_for_everyone(AT_MOST)  # collective
    torch.set_num_threads(1)  # several would wait for each other longer than they compute; `run.use_threads` has all again
    if main:
        seconds = time.perf_counter() - began
        many = f"each training image and {views.count} views of it ({views.name})" if views.count else "each image as it is"
        how = f"{computed:,} computed in {seconds:.0f} s" if computed else "all known from before"
        more = "" if views.count else "; --views N adds N augmented views"
        say(f"frozen: features of {many}, {how}{more}")
    return Head(net, last[-1], backbone.shape), found, options | {"augment": by_turns}


def _in_each_epoch(
    net: nn.Module, images: Images, views: Views, options: dict[str, Any], why: str, main: bool
) -> tuple[nn.Module, Images, dict[str, Any]]:
    """What was passed, after a line that says `why` it is computed in each epoch. Raises Refused (2) if views were asked for."""
    if views.count:
        raise Refused(f"--views {views.count} needs features that are computed once, but {why}; leave it out", 2)
    if main:
        say(f"frozen: {why}, so the whole net runs in each epoch")
    return net, images, options
