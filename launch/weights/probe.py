"""How a net answers to two fixed images: recorded with its weights, and compared by whoever makes the net anew.

Weights say what numbers a net has, not what it does with them: a class of the same name whose forward was edited takes them
without a word. Its answers tell.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

KEPT = 16  # logits of each image, at most
TOLERANCE = 1e-3  # relative to the largest logit: devices and versions of torch round differently


def images(shape: Sequence[int]) -> Tensor:
    """Two images of `shape` (C, H, W), float32 from -2 to 2, as if they were normalised: the same everywhere."""
    count = 2 * math.prod(shape)
    levels = (torch.arange(count) * 2654435761) % 2**32 >> 24  # no random numbers: these are the same in every version
    return ((levels.float() / 255 - 0.5) * 4).view(2, *shape)


@torch.no_grad()
def answers(net: nn.Module, shape: Sequence[int]) -> list[list[float]]:
    """The first KEPT logits of `net`, in eval mode, for `images`; none if they are not finite, or chance is in them.

    Leaves the net's mode and buffers as they are. Host-device sync.
    """
    device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in net.modules()}
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    pixels = images(shape).to(device, memory_format=torch.channels_last)
    try:
        first, second = (net.eval()(pixels).float()[:, :KEPT].cpu() for _ in range(2))
    except Exception:  # of any kind: a net of somebody's own may want other images; then nothing is recorded
        return []
    finally:
        for module, training in modes.items():
            module.training = training
        for name, buffer in net.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
    if not (torch.isfinite(first).all() and torch.equal(first, second)):
        return []
    return [[float(f"{logit:.6g}") for logit in row] for row in first.tolist()]


def difference(net: nn.Module, shape: Sequence[int], recorded: Sequence[Sequence[float]]) -> float:
    """The largest difference of `net`'s answers from those recorded, relative to the largest logit; 0 if none are recorded."""
    if not recorded:
        return 0.0
    now, then = (torch.tensor(logits, dtype=torch.float64) for logits in (answers(net, shape), recorded))
    return (now - then).abs().max().item() / max(then.abs().max().item(), 1.0) if now.shape == then.shape else math.inf
