"""How a run runs: what a recipe imports.

Each name is imported when it is first asked for, so that `oneloop --help` need not wait for torch.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import sources
    from .cli import Run, cli
    from .loop import evaluate, train

__all__ = ["Run", "cli", "evaluate", "sources", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "sources":
        return importlib.import_module(".sources", __name__)
    return getattr(importlib.import_module(".loop" if name in ("evaluate", "train") else ".cli", __name__), name)


class _Package(types.ModuleType):
    """This package: its `cli` is the function, also after Python has set it to the file cli.py, as it does on import."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.cli if name == "cli" and isinstance(value, types.ModuleType) else value)


sys.modules[__name__].__class__ = _Package
