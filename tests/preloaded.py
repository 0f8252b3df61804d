"""Modules that a training, or accelerate's launcher, imports: imported once, by the fork server and by each test process.

W&B is not: a folder that it makes when it is imported would be removed by the first forked process that ends.
"""

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
gc.collect()
gc.freeze()  # a run ends with a collection of garbage: 0.2 s if it walks, and in a forked process copies, all of this
