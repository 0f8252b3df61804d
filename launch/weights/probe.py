"""How a net answers to a fixed image: recorded with its weights, and compared by whoever makes the net anew.

Weights say what numbers a net has, not what it does with them: a class of the same name whose forward was edited takes them
without a word. Its answers tell.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

KEPT = 32  # logits, at most
TOLERANCE = 1e-3  # relative to the largest logit: devices and versions of torch round differently


def image(shape: Sequence[int]) -> Tensor:
    """One image of `shape` (C, H, W), float32 (1, C, H, W) from -2 to 2, as if it were normalised: the same everywhere."""
    levels = (torch.arange(math.prod(shape)) * 2654435761) % 2**32 >> 24  # no random numbers: versions of torch share these
    return ((levels.float() / 255 - 0.5) * 4).view(1, *shape)


@torch.no_grad()
def answers(net: nn.Module, shape: Sequence[int], times: int = 2) -> list[float]:
    """The first KEPT logits of `net`, in eval mode, for `image`; none if they are not finite or differ from time to time.

    Leaves the net's mode and buffers as they are. Host-device sync.
    """
    device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in net.modules()}
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    pixels = image(shape).to(device, memory_format=torch.channels_last)
    try:
        logits = [net.eval()(pixels).float()[0, :KEPT].cpu() for _ in range(times)]
    except Exception:  # of any kind: a net of somebody's own may want other images; then nothing is recorded
        return []
    finally:
        for module, training in modes.items():
            module.training = training
        for name, buffer in net.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
    if not (torch.isfinite(logits[0]).all() and torch.equal(logits[0], logits[-1])):
        return []
    return [float(f"{logit:.6g}") for logit in logits[0].tolist()]


def difference(net: nn.Module, shape: Sequence[int], recorded: Sequence[float]) -> float:
    """The largest difference of `net`'s answers from those recorded, relative to the largest logit; 0 if none are recorded."""
    if not recorded:
        return 0.0
    now, then = (torch.tensor(logits, dtype=torch.float64) for logits in (answers(net, shape, times=1), recorded))
    return (now - then).abs().max().item() / max(then.abs().max().item(), 1.0) if now.shape == then.shape else math.inf
