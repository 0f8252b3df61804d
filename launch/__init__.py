"""Names that a recipe imports. `oneloop --help` need not wait for torch."""

from typing import TYPE_CHECKING

from . import sources
from .lazy import help_without_torch, lazily

if TYPE_CHECKING:
    from .command_line import cli
    from .run import Run
    from .training.evaluate import evaluate
    from .training.loop import train

__all__ = ["Run", "cli", "evaluate", "sources", "train"]
__getattr__ = lazily(__name__, {"run": "Run", "command_line": "cli", "training.evaluate": "evaluate", "training.loop": "train"})
help_without_torch()
