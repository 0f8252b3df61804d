"""How a run runs: what a recipe imports.

Each name is imported when it is first asked for (PEP 562), so that `oneloop --help` need not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import sources
    from .command_line import cli
    from .run import Run
    from .training.loop import evaluate, train

__all__ = ["Run", "cli", "evaluate", "sources", "train"]
HOMES = {"Run": "run", "cli": "command_line", "evaluate": "training.loop", "train": "training.loop"}


def __getattr__(name: str) -> Any:
    if name == "sources":
        return importlib.import_module(".sources", __name__)
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
