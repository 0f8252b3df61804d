"""The net of a run by its recorded name, made without its recipe: whether it is the right one, its weights and probe tell."""

import importlib
import inspect
from collections.abc import Sequence

from torch import nn

from launch.lazy import without_compiler

TIMM = "timm/"
PLAIN = ("cifar2", "residual", "mnist", "fast", "nin")  # of nets/, with torch alone: torchvision takes as long to import as torch


def build(name: str, shape: Sequence[int], num_classes: int) -> nn.Module | None:
    """The net `name` (a class of nets/, torchvision's name, timm/NAME) for images of `shape` (C, H, W); None if none is known.

    Its numbers are random. Raises ImportError without timm, and whatever the net's own code raises.
    """
    if name.startswith(TIMM):
        import timm

        from nets.sizes import timm_net

        known = timm.is_model(name.removeprefix(TIMM))  # and nothing like hf-hub:OWNER/NAME, which timm would fetch
        return timm_net(name.removeprefix(TIMM), num_classes, shape[1]) if known else None
    for module in (*PLAIN, "small"):
        with without_compiler():
            found = getattr(importlib.import_module(f"nets.{module}"), name, None)
        if inspect.isclass(found) and issubclass(found, nn.Module):
            takes = inspect.signature(found).parameters
            options = {"in_channels": shape[0], "num_classes": num_classes}
            return found(**{key: value for key, value in options.items() if key in takes})
    from nets import zoo

    return zoo.zoo(name, in_channels=shape[0], num_classes=num_classes) if name in zoo.names() else None
