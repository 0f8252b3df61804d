"""Run a recipe as `python FILE` does, but evaluates on few of the test images: the processes of `oneloop verify`.

python -m launch.verify.few_tests TESTS RECIPE [the recipe's own flags]
"""

import functools
import runpy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import launch.training.evaluate
import launch.training.loop
from launch.data.images import Images
from launch.data.order import order
from launch.run import Run


def fewer(images: Images, tests: int) -> Images:
    """`images` with at most `tests` test images: a fixed sample, as --limit takes one of the training images."""
    if tests >= len(images.test):
        return images
    some = order(len(images.test), seed=0, epoch=0)[:tests].sort().values
    return replace(images, test=images.test.select(some))


def main(args: Sequence[str]) -> None:
    tests, recipe, *flags = args
    whole, measured = launch.training.loop.train, launch.training.evaluate.evaluate

    @functools.wraps(whole)
    def train(run: Run, model: nn.Module, images: Images, *further: Any, **options: Any) -> dict:
        return whole(run, model, fewer(images, int(tests)), *further, **options)

    @functools.wraps(measured)
    def evaluate(run: Run, model: nn.Module, images: Images, split: str = "test") -> dict:
        return measured(run, model, fewer(images, int(tests)), split)

    launch.training.loop.train, launch.training.evaluate.evaluate = train, evaluate  # before the recipe imports them
    sys.argv = [recipe, *flags]
    sys.path.insert(0, str(Path(recipe).resolve().parent))
    runpy.run_path(recipe, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
