"""How a run runs: what a recipe imports."""

from . import sources
from .cli import Run, cli
from .loop import evaluate, train

__all__ = ["Run", "cli", "evaluate", "sources", "train"]
