"""`oneloop explain`: where in an image a trained net looks, by Grad-CAM (arXiv:1610.02391)."""

import io
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import Refused, printable
from ..trained import feed, find_run, rebuild
from .arguments import add_trained_net, command_parser, refuse_own_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MOST_OTHERS = 16  # tokens that are no part of an image: of the class, registers


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "explain",
        usage="RUN IMAGE [--class NAME] [--out PNG]",
        description="Draw an image as the net sees it, with a heat map of what supports a class: Grad-CAM (arXiv:1610.02391) of\n"
        "the last convolution; of a transformer, its last block's tokens.",
        example="runs/cifar2/Net-0a1b2c3d bird.jpg --class airplane",
    )
    add_trained_net(parser)
    parser.add_argument("image", metavar="IMAGE", type=Path, help="an image file")
    parser.add_argument("--class", dest="name", metavar="NAME", help="default: the most probable one")
    parser.add_argument("--out", type=Path, metavar="PNG", help="default: IMAGE's name with -explained.png, in this folder")
    chosen = parser.parse_args(args)
    out = chosen.out or Path(f"{chosen.image.stem}-explained.png")
    refuse_own_file(out, ["*-explained.png"])

    import torch

    from ..data.image_file import read_image
    from ..files import write_atomically

    trained = rebuild(*find_run(chosen.run), weights=chosen.weights, recipe=chosen.recipe)
    classes = trained.images.classes
    if chosen.name and chosen.name not in classes:
        raise Refused(f"no class {chosen.name!r}; those of {chosen.run} are {', '.join(classes)}", 2)
    pixels = read_image(chosen.image, trained.shape, trained.rule)
    batch, _ = feed(trained, pixels[None]).batch(torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        probabilities = trained.task.probabilities(trained.net(batch) / trained.about["temperature"])[0]
    index = classes.index(chosen.name) if chosen.name else int(probabilities.argmax())
    layer, heat = grad_cam(trained.net, batch, index, pixels.shape[1:])
    title = f"{printable(classes[index])}: {probabilities[index].item():.1%}"
    try:
        write_atomically(out, _plot(pixels.permute(1, 2, 0).numpy(), heat.numpy(), title))
    except OSError as error:
        raise Refused(f"cannot write {out}: {error.strerror or error}") from error
    print(printable(f"{title}, from {layer}; {out}") + ("" if heat.any() else "; nothing in it supports this class"))


def grad_cam(net: "nn.Module", batch: "Tensor", index: int, size: Sequence[int]) -> tuple[str, "Tensor"]:
    """The name of a layer, and by its output the heat map of what raises the logit `index` of the image `batch` (1, C, H, W).

    The layer is the last one whose output has several positions, at which the logit depends on it: a convolution, or a block of a
    transformer, its tokens as a grid. (After the last block a class token may be all that counts: then it is its input.)

    The heat map is float32 (H, W) of `size`, from 0 to 1; all 0 if nothing raises the logit. Raises Refused (4) for a net without
    such a layer.
    """
    import torch
    import torch.nn.functional as F

    logits, layers = _layers_with_positions(net, batch)
    if not layers:
        neither = "neither a convolution nor tokens with more than one position"
        raise Refused(f"{type(net).__name__} has {neither}: Grad-CAM needs them", 4)
    after = ""  # the block after this layer
    for layer in reversed(layers):
        (gradient,) = torch.autograd.grad(logits[0, index], layer.output, retain_graph=True, materialize_grads=True)
        values, slopes = layer.as_maps(layer.output.detach()), layer.as_maps(gradient)  # (C, h, w)
        if slopes.any():
            break
        after = layer.name if layer.block else ""
    else:  # it depends on none of them
        layer, after = layers[-1], ""
    heat = (slopes.mean((1, 2), keepdim=True) * values).sum(0).relu()
    heat = F.interpolate(heat[None, None], tuple(size), mode="bilinear")[0, 0]
    return (f"{after} (its input)" if after else layer.name), heat / heat.max() if heat.any() else heat


class Layer(NamedTuple):
    """`output` is that for one image; `as_maps` turns it, or its gradient, into (C, h, w)."""

    name: str
    output: "Tensor"
    as_maps: Callable[["Tensor"], "Tensor"]
    block: bool


def _layers_with_positions(net: "nn.Module", batch: "Tensor") -> tuple["Tensor", list[Layer]]:
    """The logits (1, classes), and the layers with more than one position in the order in which they end.

    Those are convolutions, and of transformers the blocks and what normalises after them. What is inside of a block is not: it is
    only added to what passes by.
    """
    import torch
    from torch import nn

    names = {module: name for name, module in net.named_modules()}
    rows = [module for module in names if isinstance(module, nn.Sequential | nn.ModuleList)]
    in_a_row = [child for row in rows for child in row.children() if next(child.children(), None) is not None]
    ran: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _arguments: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or len(output) != 1:
            return None
        ran.append((module, output))
        return output.clone()  # what follows may change it in place

    watched = [module for module in names if isinstance(module, nn.Conv2d) or _is_norm(module)]
    hooks = [module.register_forward_hook(note) for module in dict.fromkeys([*watched, *in_a_row])]
    try:
        with torch.enable_grad():
            logits = net(batch.clone().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    grids = [tuple(output.shape[2:]) for module, output in ran if isinstance(module, nn.Conv2d) and output[0, 0].numel() > 1]
    layers: list[Layer] = []
    for module, output in ran:
        as_maps: Callable[[Tensor], Tensor] | None = None
        if isinstance(module, nn.Conv2d):
            as_maps = operator.itemgetter(0)
        elif output.ndim == 3:
            as_maps = _tokens_as_grid(output.shape[1], grids)
        elif output.ndim == 4 and (inside := [each for each in module.modules() if _is_norm(each)]):
            as_maps = _by_channels(output.shape, math.prod(getattr(inside[-1], "normalized_shape", output.shape[-1:])))
        if as_maps and as_maps(output)[0].numel() > 1:
            if block := module in in_a_row:
                layers = [layer for layer in layers if not layer.name.startswith(f"{names[module]}.")]
            layers.append(Layer(names[module], output, as_maps, block))
    return logits, layers


def _is_norm(module: "nn.Module") -> bool:
    """Return whether it normalises the channels of each token: LayerNorm, RMSNorm, and the like of other packages."""
    return any(kind in type(module).__name__.lower() for kind in ("layernorm", "rmsnorm"))


def _by_channels(shape: Sequence[int], channels: int) -> Callable[["Tensor"], "Tensor"] | None:
    """Function that maps `shape`, (1, h, w, channels) or (1, channels, h, w), to (channels, h, w); None if it is neither."""
    if shape[-1] == channels:
        return lambda output: output[0].permute(2, 0, 1)
    return operator.itemgetter(0) if shape[1] == channels else None


def _tokens_as_grid(count: int, grids: Sequence[tuple[int, ...]]) -> Callable[["Tensor"], "Tensor"] | None:
    """Function that maps (1, count, C) to (C, h, w), without tokens for the class and the like, which come first; else None.

    (h, w) is that of the last convolution in `grids` that fits, else a square.
    """
    side = math.isqrt(count)
    for height, width in (*reversed(grids), (side, side)):
        if height * width > 1 and 0 <= (others := count - height * width) <= MOST_OTHERS:
            return lambda output: output[0, others:].T.reshape(-1, height, width)
    return None


def _plot(image: "np.ndarray", heat: "np.ndarray", title: str) -> bytes:
    """PNG: the image, uint8 (H, W, 1 or 3), beside a grey copy under the heat map (H, W)."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7.2, 3.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    left.imshow(image, cmap="gray", vmin=0, vmax=255)
    right.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    shown = right.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
    left.set_title("what the net sees", fontsize=10)
    right.set_title(title, fontsize=10, parse_math=False)
    for axes in (left, right):
        axes.axis("off")
    figure.colorbar(shown, ax=right, ticks=[0, 1], shrink=0.8).set_ticklabels(["nothing", "most"])
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
