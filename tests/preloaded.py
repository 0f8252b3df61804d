"""Modules that a training, or accelerate's launcher, imports: imported once, by the fork server and by each test process.

The synthetic images, the same at every start, are drawn once, too: else it is a fifth of a second in each run of theirs.

W&B is not: a folder that it makes when it is imported would be removed by the first forked process that ends.
"""

import copy
import functools
import gc
import importlib
import sys

OPTIONAL = dict.fromkeys(("timm", "transformers"))  # else accelerate's command imports them, and they W&B
sys.modules.update(OPTIONAL)
for name in (
    "torch._dynamo", "accelerate.commands.accelerate_cli", "tyro", "docstring_parser", "typeguard", "PIL.JpegImagePlugin",
    "matplotlib.backends.backend_agg", "launch.training.loop", "launch.command_line", "launch.sources.synthetic",
    "launch.report.show", "launch.verify.few_tests",
):  # fmt: skip
    importlib.import_module(name)
for name in OPTIONAL:
    del sys.modules[name]


def drawn_once(read):
    """Return `read` of launch/sources/synthetic.py as a function that gives copies of what it has drawn before."""
    drawn = {}

    @functools.wraps(read)
    def again(classes, shape, counts=synthetic.COUNTS):
        asked = (classes, tuple(shape), *counts.items())
        if asked not in drawn:
            drawn[asked] = read(classes, shape, counts)
        return copy.deepcopy(drawn[asked])

    return again


synthetic = sys.modules["launch.sources.synthetic"]
synthetic.read = drawn_once(synthetic.read)
for keep in (("airplane", "bird"), synthetic.DRAWN):  # for the processes that are forked from this one
    synthetic.read(keep, (3, 32, 32))
gc.collect()
gc.freeze()  # a run ends with a collection of garbage: 0.2 s if it walks, and in a forked process copies, all of this
