"""What a trained net sees in a data set: the features of all its images, with what is known of each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from ..data.disk_feed import DiskSplit
from ..data.images import Images
from ..errors import Refused
from ..processes import accelerator
from ..recipe import RECIPES, build, load
from .backbone import Backbone
from .compute import Work, with_features

RECIPE = "custom"  # which takes nets by name, and images of your own


class Seen(NamedTuple):
    """Of N images: `features` float32 (N, width), `labels` int64 (N,), their files' sha256, their paths, their splits."""

    features: Tensor
    labels: Tensor
    contents: list[str]
    paths: list[str]
    splits: list[str]
    images: Images
    parameters: int  # of the net
    images_per_second: float  # that the net computes here, once they are decoded
    computed: int  # images, now: the others were known


def flags_for(data: str, net: str, source: str, mode: str) -> list[str]:
    """The recipe's flags for `net` with the weights of `source`, or with the published ones."""
    return ["--data", data, "--net", net, *(["--source", source] if source else []), "--mode", mode]


def seen_by(data: str, net: str, source: str, flags: Sequence[str], splits: Sequence[str], command: str) -> Seen:
    """What `net`, as recipes/custom.py makes it with these `flags`, sees in the images of `splits`. Raises Refused."""
    recipe = load(RECIPES / f"{RECIPE}.py")
    try:
        model, images, _ = build(recipe, [*flags_for(data, net, source, "frozen"), *flags], prog=f"oneloop {command}")
    except Refused as error:
        what, of_recipe, _ = str(error).partition("; --mode scratch trains without weights")
        if not of_recipe:
            raise
        raise Refused(f"{what}; {net}=SOURCE takes other weights: a file, a URL or a run folder", error.code) from error
    if images.source == "synthetic":
        raise Refused("drawings show nothing about your images: name a folder, a table or OWNER/NAME", 2)
    if images.multi_label:
        raise Refused(f"{images.source} has several labels an image, of which features are not judged yet", 2)
    heads = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    if len(heads) > 1:
        raise Refused(f"{net} has several last layers, {', '.join(sorted(heads))}: it has no one set of features", 2)
    return _seen(model, heads.pop(), images, splits)


def _seen(model: nn.Module, head: str, images: Images, sides: Sequence[str]) -> Seen:
    there = accelerator("no")
    model.to(there.device).to(memory_format=torch.channels_last)
    console = Console(stderr=True)
    with (
        Backbone(model, head, images, there) as backbone,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("computing features", total=0)
        work = Work(begin=lambda total: bar.update(task, total=total), tick=lambda done: bar.advance(task, done))
        images, computed = with_features(images, backbone, work=work, sides=sides)
        speed = backbone.images_per_second()
    parts: list[tuple[str, DiskSplit]] = [
        (name, split) for name in sides if isinstance(split := getattr(images, name), DiskSplit)
    ]
    return Seen(
        torch.cat([split.features.table[split.features.rows[:, 0]] for _, split in parts if split.features]),
        torch.cat([split.labels for _, split in parts]),
        [image.sha256 for _, split in parts for image in split.images],
        [image.name for _, split in parts for image in split.images],
        [name for name, split in parts for _ in split.images],
        images,
        sum(parameter.numel() for parameter in model.parameters()),
        speed,
        computed,
    )
