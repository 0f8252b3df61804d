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

synthetic = sys.modules["launch.sources.synthetic"]
read = synthetic.read


@functools.cache
def drawn(classes, shape, counts):
    return read(classes, shape, dict(counts))


@functools.wraps(read)
def copied(classes, shape, counts=synthetic.COUNTS):
    return copy.deepcopy(drawn(classes, shape, tuple(counts.items())))


synthetic.read = copied
for keep in (("airplane", "bird"), synthetic.DRAWN):
    # For the processes that are forked from this one. No copy: it would start OpenMP's threads, for which they would wait.
    drawn(keep, (3, 32, 32), tuple(synthetic.COUNTS.items()))
gc.collect()
gc.freeze()  # a run ends with a collection of garbage: 0.2 s if it walks, and in a forked process copies, all of this
