"""A trained net from a run folder, ready to predict.

A net that its recorded name says how to make is made by that name, without its recipe and what it imports. It is used only if all
its weights fit and if it answers the probe as the trained one did (launch/weights/probe.py); else its recipe makes it, as for
`oneloop evaluate`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from launch.errors import Refused
from launch.report import calibration
from launch.report.runs import read_json
from launch.trained import CHOSEN, about_of, described, find_run, rebuild, seen, weights_file
from launch.weights import load as load_tensors
from launch.weights import probe
from launch.weights.tensors import load_weights

from . import by_name
from .model import Model

if TYPE_CHECKING:
    from torch import nn


def load(
    path: str | os.PathLike[str],
    *,
    weights: str = CHOSEN,
    recipe: str | os.PathLike[str] | None = None,
    device: str = "",
    tta: str = "",
) -> Model:
    """The trained net in the run folder `path`, or in the folder of a stage of it.

    `weights`: "last", "best", "ema", or those "chosen" by the training. `recipe`: the recipe's file, if it is to make the net.
    `device`: as torch names it; by default the accelerator, if there is one. `tta`: "flip" or "six" predicts with the mean logits
    over views of each image (oneloop/views.py).

    Raises Refused, in one line: no such run (2), no or damaged weights, or a net that no longer computes what was trained (4).
    """
    path = Path(path)
    if is_published(path):
        return _published(path, device, tta)
    record, stage = find_run(path)
    about = described(record, stage, weights)
    file, which = weights_file(record, stage, weights)
    net = None if recipe else _by_name(about, file)
    if net is None:
        net = rebuild(record, stage, weights=weights, recipe=Path(recipe) if recipe else None).net
    return Model(net, about | {"temperature": calibration.recorded(file.parent, which)}, device, tta)


def is_published(path: Path) -> bool:
    """Whether `oneloop publish` made the folder."""
    known = read_json(path / "config.json") or {}
    return isinstance(known.get("oneloop"), dict)


def _published(path: Path, device: str, tta: str) -> Model:
    about = about_of(path / "model.safetensors")
    if net := _by_name(about, path / "model.safetensors"):
        return Model(net, about, device, tta)
    raise Refused(f"{path}: oneloop cannot make {about['net']} by its name as it was trained; load the run itself", 4)


def _by_name(about: dict, path: Path) -> "nn.Module | None":
    """The net with its weights in `path`, if its name is enough to make it."""
    if not about["probe"]:
        return None
    try:
        net = by_name.build(about["net"], seen(about), len(about["classes"]))
    except Exception:  # of any kind: the name may be that of another net; its recipe says what is wrong
        return None
    if net is None:
        return None
    tensors = load_tensors(path)
    try:
        load_weights(net, tensors)
    except Refused:  # another net of this name: the recipe gave it other options
        return None
    fits = probe.difference(net, seen(about), about["probe"]) <= probe.TOLERANCE
    return net.eval().requires_grad_(False) if fits else None
