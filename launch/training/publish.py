"""The weights of a training in its run folder: written with what their user needs to know, read back when they are measured."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from ..data.disk_feed import DiskSplit
from ..data.images import Images
from ..errors import Refused
from ..run import Run
from ..weights import load, probe
from ..weights.tensors import other_weights, weights, weights_sha256, whole_of, write_tensors


def publish(
    run: Run,
    net: nn.Module,
    images: Images,
    name: str,
    tensors: dict[str, Tensor] | None = None,
    threshold: float | None = None,
) -> str:
    """Write the net's weights, or `tensors` in their place, as the file `name` of the run folder: with those of the whole net, if
    `net` is its last layer. `threshold` is that of probabilities, where an image has several labels.

    Returns their sha256. Collective; host-device sync.
    """
    whole = whole_of(net)
    return run.on_main(lambda: _write(run, whole, images, name, tensors or {}, threshold))


def _write(run: Run, net: nn.Module, images: Images, name: str, others: dict[str, Tensor], threshold: float | None) -> str:
    tensors = weights(net) | others
    digest, net_name = weights_sha256(tensors), run.config.get("net", type(net).__name__)
    about: dict = {"recipe": run.recipe, "classes": images.classes, "mean": images.mean, "std": images.std}
    about |= {"shape": [*images.train.shape], "size": images.size, "net": net_name, "weights_sha256": digest}
    if isinstance(images.train, DiskSplit):
        rule = images.train.rule
        about |= {"cache_size": rule.cache_size, "white": rule.white, "crop": rule.crop, "interpolation": rule.interpolation}
        about |= {"bands": rule.bands} if rule.bands else {}
    if threshold is not None:
        about["threshold"] = threshold
    with other_weights(net, tensors) if others else contextlib.nullcontext():
        about["probe"] = probe.answers(net, (about["shape"][0], *([images.size] * 2 if images.size else about["shape"][1:])))
    write_tensors(run.folder / name, tensors, {"oneloop": json.dumps(about)})
    return digest


@contextlib.contextmanager
def best_weights(run: Run, net: nn.Module, best: dict) -> Iterator[None]:
    """Context manager: temporarily load the weights that State.best describes. Collective.

    Raises Refused (1, 4).
    """
    tensors = run.on_main(lambda: _read(run.folder / "best.safetensors", best))
    with other_weights(net, {name: tensors[name] for name in weights(net)} if whole_of(net) is not net else tensors):
        yield


def _read(path: Path, best: dict) -> dict[str, Tensor]:
    tensors = load(path)
    if weights_sha256(tensors) != best["weights_sha256"]:
        way = "delete it, and the same command ends with the last weights, or start over with --fresh"
        raise Refused(f"{path} has other weights than those of epoch {best['epoch']}; {way}", 4)
    return tensors
