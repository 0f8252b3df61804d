"""Tests whose bodies run in a process of their own, which has the device of tests/pseudo_device.py: it is there for good."""

from pathlib import Path

import jobs
from pseudo_device import built

from launch import Run


def forked(body: str, place: Path, device: str = "pseudo", **env) -> None:
    """Call the function `body` ("module.name") of a test file, with `place`, in a process that has the device, or only a CPU."""
    module = body.partition(".")[0]
    start = f"import pseudo_device; pseudo_device.begin({str(built())!r}); " if device == "pseudo" else ""
    fast = "import gc, os, pathlib; gc.freeze(); os.fsync = lambda _: None; "  # nothing is killed here
    code = f"{start}{fast}import {module}; {body}(pathlib.Path.cwd())"
    done = jobs.run("-c", code, cwd=place, env={"ACCELERATE_TORCH_DEVICE": device, "CUDA_VISIBLE_DEVICES": "", **env})
    assert done.returncode == 0, done.stdout + done.stderr


def there(body):
    """A test whose body runs on the device, in the folder `place`."""

    def test(tmp_path):
        forked(f"{body.__module__}.{body.__name__}.body", tmp_path)

    test.body, test.__doc__ = body, body.__doc__
    return test


def begun(out: Path, **flags) -> Run:
    run = Run(data="synthetic", out=out, wandb="disabled", threads=1, **flags)
    assert run.start("test", {}) is None
    return run
