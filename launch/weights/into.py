"""Loaded weights into a net: all of them, or those that fit, with a report of what happened."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import Refused, printable
from .files import Source
from .saved import AVERAGE
from .tensors import load_weights, weights

DEEPEST = 4  # parts of a name that may stand before the net's own


class Report(NamedTuple):
    """What `load_into` did: names copied, names dropped and why, names that the net keeps as they were."""

    matched: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    new: tuple[str, ...]
    part: str = ""  # a line that says which part of them was taken

    def __str__(self) -> str:
        lines = [self.part] if self.part else []
        lines += [f"weights: {len(self.matched)} matched, {len(self.dropped)} dropped, {len(self.new)} new"]
        lines += [f"  dropped {name}: {reason}" for name, reason in self.dropped[:8]]
        lines += [f"  … and {len(self.dropped) - 8} more dropped"] if len(self.dropped) > 8 else []
        lines += [f"  new {_some(self.new)}"] if self.new else []
        return "\n".join(lines)


def load_into(net: nn.Module, tensors: dict[str, Tensor], partial: bool = False) -> Report:
    """Copy `tensors` into the net's own parameters and buffers, which keep their identity, device and dtype.

    Without `partial` all names and shapes must match, or nothing is copied; with it, what fits is copied. Weights from before
    torch 0.4.1 may lack batch norm's counters, which nothing uses. Raises Refused (4), naming what differs, or if `partial` finds
    nothing that fits.
    """
    own = weights(net)
    tensors, part = without_prefix(net, tensors)
    aliases = net.state_dict().keys() - own.keys()  # further names of shared tensors
    dropped = []
    for name, tensor in tensors.items():
        if name not in own:
            if name not in aliases:
                dropped.append((name, "the net has no such tensor"))
        elif tensor.shape != own[name].shape:
            dropped.append((name, f"shape {_shape(tensor)}, the net's is {_shape(own[name])}"))
        elif tensor.is_floating_point() != own[name].is_floating_point():
            dropped.append((name, f"{tensor.dtype}, the net's is {own[name].dtype}"))
    reasons = dict(dropped)
    matched = [name for name in own if name in tensors and name not in reasons]
    new = [name for name in own if name not in matched and not (_is_counter(name) and name not in tensors)]
    report = Report(tuple(matched), tuple(dropped), tuple(new), part)
    if not partial and (dropped or new):
        missing = [name for name in new if name not in tensors]
        differences = [f"{name} ({reason})" for name, reason in dropped[:4]] + ([f"missing: {_some(missing)}"] if missing else [])
        raise Refused(f"the weights do not fit {type(net).__name__}: {'; '.join(differences)}", 4)
    if not [name for name in matched if not _is_counter(name)]:
        theirs = f"none of the {len(tensors)} tensors ({_some(list(tensors))})"
        raise Refused(f"{theirs} fits {type(net).__name__}, which has {_some(list(own))}", 4)
    load_weights(net, own | {name: tensors[name] for name in matched})
    return report


def without_prefix(net: nn.Module, tensors: dict[str, Tensor], average: bool = True) -> tuple[dict[str, Tensor], str]:
    """The tensors by the net's names, where they were saved as a part of something, and a line that says so.

    As under `model.` in a module of Lightning's, `backbone.`, `encoder.`: the names then fit without it. What lies beside that
    part is left out. Of a part and its average, that is taken or not, as `average` says. Raises Refused (4) where two fit alike.
    """
    own = net.state_dict()
    fits = dict.fromkeys([""], 0)
    for name, tensor in tensors.items():
        parts = name.split(".")
        for depth in range(min(len(parts), DEEPEST)):
            prefix, rest = "".join(f"{part}." for part in parts[:depth]), ".".join(parts[depth:])
            if rest in own and own[rest].shape == tensor.shape and not _is_counter(rest):
                fits[prefix] = fits.get(prefix, 0) + 1
    most = max(fits.values())
    best = [prefix for prefix, count in fits.items() if count == most]
    if not most or "" in best:
        return tensors, ""
    averages = [prefix for prefix in best if any(map(AVERAGE.search, prefix.split(".")))]
    further = ""
    if len(best) == 2 and len(averages) == 1:
        best.sort(key=lambda prefix: (prefix in averages) != average)
        further = f", not {best.pop()}: one is the average of the other (--average or --no-average)"
    if len(best) > 1:
        raise Refused(f"several parts of these weights fit {type(net).__name__}: {_some(best)}; save the one you mean", 4)
    (prefix,) = best
    part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    left = f", {len(tensors) - len(part)} others left out" if len(part) < len(tensors) and not further else ""
    return part, f"those under {printable(prefix)} are taken{left}{further}"


def for_classes(source: Source, net: nn.Module, layers: Sequence[str], classes: Sequence[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors of `source` for a net whose last `layers` tell `classes` apart, and a line that says what these get.

    Their rows are taken by the names of the classes, if the source knows all of them; else the layers are left out, and stay new
    in the net. Those of a source that names no classes are taken if they have as many outputs. An empty line: see `load_into`'s.
    """
    own, last = weights(net), ", ".join(layers)
    theirs = {name: tensor for name, tensor in source.tensors.items() if name.rpartition(".")[0] in layers}
    as_it_is = not source.classes or source.classes == (*classes,)
    if not as_it_is:
        known = all(tensor.shape[:1] == (len(source.classes),) for tensor in theirs.values())
        if not (known and {*classes} <= {*source.classes}):
            others = {name: tensor for name, tensor in source.tensors.items() if name not in theirs}
            return others, f"last layer {last}: new, because the source tells other classes apart ({_names(source.classes)})"
        rows = [source.classes.index(name) for name in classes]
        theirs = {name: tensor[rows] for name, tensor in theirs.items()}
    if not theirs or any(name not in own or own[name].shape != tensor.shape for name, tensor in theirs.items()):
        return source.tensors, ""
    if not as_it_is:
        return source.tensors | theirs, f"last layer {last}: the source's, its rows by the names of the classes"
    if source.classes:
        return source.tensors, f"last layer {last}: the source's, which tells the same classes apart"
    return source.tensors, f"last layer {last}: {kept(len(classes), classes)}"


def kept(count: int, classes: Sequence[str]) -> str:
    """What is said of a last layer of `count` outputs whose classes nobody knows."""
    order = f"they have to be {_names(classes)}, in this order"
    return f"kept, but the weights do not say what its {count} classes are: {order}; weights without this layer give a new one"


def _names(classes: Sequence[str]) -> str:
    return printable(_some([*classes]))[:200]


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
