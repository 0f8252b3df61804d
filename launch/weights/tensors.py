"""A net's weights as tensors by name: read, put in, compared, written."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import Refused
from ..files import write_atomically


def weights(net: nn.Module) -> dict[str, Tensor]:
    """The net's parameters and persistent buffers by name; a tensor that has several names appears under its first."""
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def whole_of(net: nn.Module) -> nn.Module:
    """The net that `net` is the trained layer of (launch/features/head.py), else `net` itself."""
    return getattr(net, "whole", (net,))[0]


def load_weights(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy `tensors`, as `weights` names them, into the net. Raises Refused, naming them, if names or shapes differ."""
    own = weights(net)
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong = wrong or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise Refused(f"the saved weights are not those of {type(net).__name__}: {', '.join(wrong[:4])} differ", 4)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


@contextlib.contextmanager
def other_weights(net: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Within it the net has the weights `tensors`, and afterwards its own again. Raises Refused as `load_weights`."""
    kept = {name: tensor.detach().clone() for name, tensor in weights(net).items()}
    load_weights(net, tensors)
    try:
        yield
    finally:
        load_weights(net, kept)


def weights_sha256(tensors: dict[str, Tensor]) -> str:
    """One digest over the tensors, sorted by name: name, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Replace the safetensors file `path` atomically."""
    write_atomically(path, packed(tensors, metadata))


def packed(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file."""
    # Host-device sync: the tensors are copied to main memory.
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
