"""A run of another recipe inside a run: on this process alone, in a folder of its own, which is that of an ordinary run."""

import copy
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import source_copy
from .errors import Refused
from .report.runs import recorded_json
from .run import Run
from .sources.options import as_recorded


def run_inside(run: Run, recipe: ModuleType, options: dict[str, Any], folder: Path) -> dict:
    """Result of `recipe.main` with these `options`, and the defaults of the others, in `folder`; of an earlier launch, too.

    It has the seed and the flags of `run`, which is open, and says nothing. A finished one is only read: that its data are the
    same is for `run.open` to check. Not collective. Raises Refused.
    """
    inner = copy.copy(run.single_process())
    inner.out, inner.fresh, inner.opened, inner.loaded, inner.notes = folder, False, False, [], []
    inner.code = source_copy.sources(recipe)
    defaults = {name: parameter.default for name, parameter in inspect.signature(recipe.main).parameters.items() if name != "run"}
    inner.configure(Path(str(recipe.__file__)).stem, defaults | options, run.accelerator.mixed_precision)
    result = inner.take_folder(inner.find_folder())
    if result is not None:
        return result
    inner.use_threads()
    torch.manual_seed(inner.seed)
    try:
        recipe.main(inner, **as_recorded(defaults | options, inner.white))
    except Refused as error:
        inner.stopped(error.code, str(error))
        raise
    finally:
        inner.leave()
    return recorded_json(folder / "result.json")
