"""Environment of a launch, as config.json records it: command, revision, versions, device, processes."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from .errors import public_address

LIBRARIES = ("oneloop", "torch", "torchvision", "accelerate", "datasets", "wandb", "pillow", "timm", "numpy")


def environment(accelerator: Accelerator, world: int) -> dict:
    """The environment of this launch, on `world` processes."""
    device = accelerator.device
    return {
        "command": shlex.join(_without_secrets(sys.argv)),
        "launcher": shlex.join(_without_secrets(_launcher(sys.argv))),
        "git": _git_revision(),
        "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "world_size": world,
        "threads": torch.get_num_threads(),
        "precision": accelerator.mixed_precision,
        "tf32": torch.backends.cudnn.allow_tf32,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _launcher(command: Sequence[str]) -> list[str]:
    """Launcher of `command`, the process's own words, such as `accelerate launch --config_file launch/cpus.yaml`; else python.

    It precedes these words on the parent's command line.
    """
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):  # no parent, or not to be asked
        words = []
    before, own = words[: len(words) - len(command)], words[len(words) - len(command) :]
    if own != [*command] or not before:
        return ["python"]
    interpreter, *rest = before
    if rest and Path(interpreter).name.startswith("python"):  # python /…/bin/accelerate launch …
        before = [Path(interpreter).name, *rest] if rest[0].startswith("-") else [Path(rest[0]).name, *rest[1:]]
    return before


def _without_secrets(words: Sequence[str]) -> list[str]:
    """A command line, its addresses without what may be secret."""
    parts = (word.partition("=") if word.startswith("--") else ("", "", word) for word in words)
    return [flag + joint + public_address(value) for flag, joint, value in parts]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git_revision() -> str:
    here = Path(sys.argv[0]).resolve().parent
    if {"site-packages", "dist-packages"} & {*here.parts}:
        return "unknown"  # an installed recipe: the repository around it is another one
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
