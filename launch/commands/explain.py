"""`oneloop explain`: where in an image a trained net looks, by Grad-CAM."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Refused, printable
from ..rebuild import feed, find_run, rebuild
from .arguments import add_trained_net, command_parser, refuse_own_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "explain",
        usage="RUN IMAGE [--class NAME] [--out PNG]",
        description="Draw an image as the net sees it, with a heat map of what supports a class: Grad-CAM (arXiv:1610.02391) of\n"
        "the last convolution, by captum.",
        example="runs/cifar2/Net-0a1b2c3d bird.jpg --class airplane",
    )
    add_trained_net(parser)
    parser.add_argument("image", metavar="IMAGE", type=Path, help="an image file")
    parser.add_argument("--class", dest="name", metavar="NAME", help="default: the most probable one")
    parser.add_argument("--out", type=Path, metavar="PNG", help="default: IMAGE's name with -explained.png, in this folder")
    chosen = parser.parse_args(args)
    try:
        import captum  # noqa: F401
    except ImportError as error:
        raise Refused(f"explain needs {error.name}: pip install captum", 2) from error
    out = chosen.out or Path(f"{chosen.image.stem}-explained.png")
    refuse_own_file(out, ["*-explained.png"])

    import torch

    from ..data.picture import read_image
    from ..files import write_atomically

    trained = rebuild(*find_run(chosen.run), weights=chosen.weights, recipe=chosen.recipe)
    classes = trained.images.classes
    if chosen.name and chosen.name not in classes:
        raise Refused(f"no class {chosen.name!r}; those of {chosen.run} are {', '.join(classes)}", 2)
    pixels = read_image(chosen.image, trained.shape, trained.rule)
    batch, _ = feed(trained, pixels[None]).batch(torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        probabilities = trained.net(batch).softmax(1)[0]
    index = classes.index(chosen.name) if chosen.name else int(probabilities.argmax())
    layer, heat = grad_cam(trained.net, batch, index, pixels.shape[1:])
    title = f"{printable(classes[index])}: {probabilities[index].item():.1%}"
    try:
        write_atomically(out, _picture(pixels.permute(1, 2, 0).numpy(), heat.numpy(), title))
    except OSError as error:
        raise Refused(f"cannot write {out}: {error.strerror or error}") from error
    print(printable(f"{title}, from {layer}; {out}") + ("" if heat.any() else "; nothing in it supports this class"))


def grad_cam(net: "nn.Module", batch: "Tensor", index: int, size: Sequence[int]) -> tuple[str, "Tensor"]:
    """The name of the last convolution and the heat map of what raises the logit `index` of the image `batch` (1, C, H, W).

    The heat map is float32 (H, W) of `size`, from 0 to 1; all 0 if nothing raises the logit. Raises Refused (4) for a net without
    convolution.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    name = _last_convolution(net, batch)
    cam = LayerGradCam(net, net.get_submodule(name))
    heat = cam.attribute(batch.clone().requires_grad_(), target=index, relu_attributions=True).detach()
    heat = LayerAttribution.interpolate(heat, tuple(size), "bilinear")[0, 0]
    return name, heat / heat.max() if heat.any() else heat


def _last_convolution(net: "nn.Module", batch: "Tensor") -> str:
    """The one that runs last, of those whose output has more than one position."""
    import torch
    from torch import nn

    ran: list[nn.Module] = []

    def note(module: nn.Module, _arguments: Any, output: "Tensor") -> None:
        if output[0, 0].numel() > 1:
            ran.append(module)

    hooks = [module.register_forward_hook(note) for module in net.modules() if isinstance(module, nn.Conv2d)]
    try:
        with torch.no_grad():
            net(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise Refused(f"{type(net).__name__} has no convolution with more than one position: Grad-CAM needs one", 4)
    return next(name for name, module in net.named_modules() if module is ran[-1])


def _picture(image: "np.ndarray", heat: "np.ndarray", title: str) -> bytes:
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
