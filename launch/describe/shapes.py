"""A net's table, the shapes of its layers, and the cost of a convolution.

Source  document 001, sections 2.2 and 2.3 (the table); document 004 (sizes, 1×1 convolutions)
"""

from collections.abc import Sequence

from torch import nn

from ..errors import Refused, first_line
from .forward import Step, untouched, watched, zeros


def summary(net: nn.Module, shape: Sequence[int], depth: int = 3) -> str:
    """The document's table: layers down to `depth`, output shapes, parameters (frozen ones in parentheses), mult-adds, sizes.

    Mult-adds and sizes are for the whole batch (for one image if `shape` is (C, H, W)) and count layers with parameters only. The
    size of a pass is that of their outputs, twice for the gradients; 1 MB is 10⁶ bytes. Raises Refused (4) as `shape_walk`.
    """
    import torchinfo  # only this function needs it

    images = zeros(net, shape)
    with untouched(net):
        try:
            text = str(torchinfo.summary(net, input_data=images, depth=depth, mode="eval", verbose=0))
        except RuntimeError:  # torchinfo turns every error into this
            shape_walk(net, shape)  # names the layer and the reason
            raise
        finally:
            torchinfo.torchinfo._cached_forward_pass.clear()  # it would keep the net alive
    for name, sign in {"MEGABYTES": "M", "GIGABYTES": "G", "TERABYTES": "T"}.items():
        text = text.replace(f"(Units.{name})", f"({sign})")  # torchinfo 1.8 prints the enum's name on Python 3.11 and later
    return text


def conv_macs(in_channels: int, out_channels: int, kernel: int, height: int, width: int) -> int:
    """Multiply-adds of a kernel × kernel convolution with an output of height × width, for one image, without the bias.

    Document 004's argument for 1×1 convolutions: 5×5 from 192 to 32 channels at 28 × 28 costs 120,422,400; reduced to 16 channels
    by a 1×1 first, it costs 2,408,448 + 10,035,200 = 12,443,648.
    """
    return in_channels * out_channels * kernel**2 * height * width


def shape_walk(net: nn.Module, shape: Sequence[int]) -> list[Step]:
    """Each layer that is a module, in the order of the forward pass, with the shapes of its input and output.

    Raises Refused (4) if the net cannot take images of this shape, naming the layer that fails, the size that it expects and the
    size that it got.
    """
    images = zeros(net, shape)
    with untouched(net), watched(net) as (running, done):
        try:
            net(images)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            before = f"; before it, {done[-1].name} gives {done[-1].gives}" if done else ""
            where = f"{type(net).__name__} cannot take {tuple(images.shape)}: {_reason(*running[-1], error)}"
            raise Refused(where + before, 4) from error
    return done


def _reason(name: str, module: nn.Module, takes: tuple[int, ...], error: Exception) -> str:
    """What `module` expects and what it got, in our words if the module has the number, else in torch's."""
    sizes = {"in_features": -1, "in_channels": 1, "num_features": 1, "num_channels": 1}  # what layers call it -> its axis
    for attribute, axis in sizes.items():
        expected = getattr(module, attribute, None)
        if expected and not any(module.children()) and len(takes) > 1 and takes[axis] != expected:
            return f"{name} expects {expected} {'features' if axis < 0 else 'channels'}, got {takes[axis]}"
    return f"{name} fails on an input of {takes}: {first_line(error)}"
