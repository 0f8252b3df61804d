"""timm's nets for any size of image, their position embeddings resampled; and the sizes that fit where one does not.

Shapes  images float (N, 3, size, size) -> logits float (N, num_classes)
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

STEPS, TRIES = (16, 14), 6  # sizes that are tried are multiples of these, so many in each direction


def timm_net(name: str, num_classes: int, size: int, pretrained: bool = False) -> nn.Module:
    """timm's net `name` for images of `size` × `size`: made for that size, or for sizes that change, if its own is fixed.

    Raises ValueError for an unknown name and a size that the net cannot be made for; ImportError without timm; for weights that
    cannot be downloaded, whatever timm raises.
    """
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:8]
        raise ValueError(f"unknown net timm/{name}; {'similar: ' + ', '.join(near) if near else 'timm.list_models() lists them'}")
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.fixed_input_size or known.input_size[-1] == size:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)

    def made(size: int, pretrained: bool = False) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, img_size=size)
        except TypeError:  # it has no such parameter
            return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, dynamic_img_size=True)

    if not fits(made, size):
        raise ValueError(f"timm/{name} cannot take images of {size}×{size}{fitting(made, size, known.input_size[-1])}")
    return made(size, pretrained)


def fits(made: Callable[[int], nn.Module], size: int) -> bool:
    """Whether the net that `made` makes for a size takes images of it: tried without numbers."""
    try:
        with torch.device("meta"), torch.no_grad():
            made(size).eval()(torch.zeros(1, 3, size, size))
    except Exception:  # whatever a net raises
        return False
    return True


def fitting(made: Callable[[int], nn.Module], size: int, own: int = 0) -> str:
    """The nearest sizes that fit, as the end of a message; empty if none is found."""
    multiples = sorted({step * count for step in STEPS for count in range(1, 2 * size // step + 2)} | {own} - {0})
    below = [other for other in reversed(multiples) if other < size][:TRIES]
    above = [other for other in multiples if other > size][:TRIES]
    found = [next((other for other in side if fits(made, other)), 0) for side in (below, above)]
    if not any(found) and own and own not in (*below, *above):
        found = [own]
    nearest = " and ".join(f"{other}×{other}" for other in found if other)
    return f"; sizes that fit: {nearest}" if nearest else ""


def preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """Of a net's `pretrained_cfg`: mean, std, crop and interpolation, and the size, by the names that `launch` uses."""
    seen = {"mean": config.get("mean"), "std": config.get("std"), "crop": config.get("crop_pct")}
    seen |= {"interpolation": config.get("interpolation"), "size": (config.get("input_size") or (0,))[-1]}
    seen["interpolation"] = seen["interpolation"] if seen["interpolation"] in ("bilinear", "bicubic") else None
    return {name: tuple(value) if isinstance(value, list) else value for name, value in seen.items() if value}


def as_timm_has_them(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a net of timm's or torchvision's from elsewhere: by its names, position embeddings resampled for its size.

    timm's nets bring what converts their authors' own checkpoints. What is not known stays as it is.
    """
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    if all(shapes.get(name) == tensor.shape for name, tensor in tensors.items()):
        return tensors
    try:
        if "encoder.pos_embedding" in tensors and "encoder.pos_embedding" in shapes:  # torchvision's transformers
            from torchvision.models.vision_transformer import interpolate_embeddings

            return {**interpolate_embeddings(net.image_size, net.patch_size, OrderedDict(tensors))}
        convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        converted = convert(dict(tensors), net) if convert and hasattr(net, "pretrained_cfg") else tensors
    except Exception:  # of whatever kind: it is not what the converter knows
        return tensors
    return converted if isinstance(converted, dict) and all(isinstance(each, Tensor) for each in converted.values()) else tensors
