"""Checkpoints that verify or are not used: one immutable folder each, tensors as safetensors, the rest as JSON, no pickle.

    checkpoints/step-00000157/model.safetensors       parameters and buffers by name, without wrappers' prefixes
                              optimizer.safetensors   its state by parameter name, and the open sums of the log
                              state.json              step and what else the loop must know
                              manifest.json           sha256 and size of the three files; written last

A folder is written as `.tmp-…`, every file is synced, the manifest last, then it is renamed and the parent synced; only then are
older ones removed. Whatever ends the process, `latest` finds the newest folder whose manifest agrees with its files.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import Refused
from ..files import sync_folder, write_synced
from ..weights.tensors import packed

FORMAT = 1
KEEP = 2  # checkpoints
SCALARS = (bool, int, float, str, type(None))


def optimizer_state(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors as "<parameter name>/<entry>", so that order and groups may change between save and load."""
    return {
        f"{name}/{entry}": value
        for name, parameter in net.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def optimizer_scalars(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict:
    """What else the optimizer remembers, as JSON takes it: scalars by parameter name, and those of each group, but its rate.

    Raises Refused (2) for what is neither a tensor nor a scalar.
    """
    others = {
        name: {entry: value for entry, value in optimizer.state.get(parameter, {}).items() if not isinstance(value, Tensor)}
        for name, parameter in net.named_parameters()
    }
    for entry, value in (item for entries in others.values() for item in entries.items()):
        if not isinstance(value, SCALARS):
            raise Refused(f"{type(optimizer).__name__} keeps {entry}, a {type(value).__name__}, which no checkpoint can hold", 2)
    groups = [
        {key: value for key, value in group.items() if key != "lr" and isinstance(value, SCALARS)}
        for group in optimizer.param_groups
    ]
    return {"state": {name: entries for name, entries in others.items() if entries}, "groups": groups}


def load_optimizer_state(optimizer: torch.optim.Optimizer, net: nn.Module, tensors: dict[str, Tensor], scalars: dict) -> None:
    """Give the optimizer back what `optimizer_state` and `optimizer_scalars` returned, on the devices that it uses."""
    entries: dict[str, dict] = {name: dict(values) for name, values in scalars["state"].items()}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    names = {parameter: name for name, parameter in net.named_parameters()}
    described = optimizer.state_dict()
    for group, saved in zip(described["param_groups"], scalars["groups"], strict=True):
        group |= saved
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    described["state"] = {
        index: {entry: _laid_out(value, parameter) for entry, value in entries[names[parameter]].items()}
        for index, parameter in enumerate(parameters)
        if names[parameter] in entries
    }
    optimizer.load_state_dict(described)  # moves each entry to where the optimizer wants it


def _laid_out(value: Tensor | float, parameter: Tensor) -> Tensor | float:
    """`value` in the parameter's memory format: torch's fused optimizers walk both in memory order, whatever their strides."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value  # a count of steps
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


# -------------------------------------------------------------------------------------------------------------- checkpoints


def save(folder: Path, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict) -> None:
    """Publish a checkpoint of `state["step"]` in `folder`, then remove all but it and those before it, KEEP in all.

    Raises OSError.
    """
    final = folder / f"step-{state['step']:08d}"
    while final.exists():  # an unusable one, or one that a stop during the step's evaluation left: neither is overwritten
        final = final.with_name(f"{final.name}.1")
    temporary = folder / f".tmp-{final.name}-{os.getpid()}"
    contents = {
        "model.safetensors": packed(model),
        "optimizer.safetensors": packed(optimizer),
        "state.json": json.dumps(state).encode(),
    }
    files = {name: {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)} for name, raw in contents.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, content in contents.items():
            write_synced(temporary / name, content)
        write_synced(temporary / "manifest.json", json.dumps({"format": FORMAT, "files": files}, indent=1).encode())
        sync_folder(temporary)
        temporary.rename(final)
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    there = _newest_first(folder)
    place = there.index(final)  # what is newer was unusable: the run has gone on without it
    for other in there[:place] + there[place + KEEP :]:
        shutil.rmtree(other, ignore_errors=True)


def latest(folder: Path) -> tuple[dict | None, list[str]]:
    """The newest checkpoint in `folder` that verifies, and a line for each newer one that does not.

    The checkpoint is {"model": tensors, "optimizer": tensors, "state": dict}, or None where there is none.
    """
    complaints: list[str] = []
    for path in _newest_first(folder):
        try:
            return _verified(path), complaints
        except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
            complaints.append(f"checkpoint {path} is not used: {error}")
    return None, complaints


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _verified(path: Path) -> dict:
    manifest = json.loads((path / "manifest.json").read_bytes())
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']}, this version reads {FORMAT}")
    contents = dict(_verified_files(path, manifest["files"]))
    return {
        "model": safetensors.torch.load(contents["model.safetensors"]),
        "optimizer": safetensors.torch.load(contents["optimizer.safetensors"]),
        "state": json.loads(contents["state.json"]),
    }


def _verified_files(path: Path, files: dict) -> Iterator[tuple[str, bytes]]:
    if not isinstance(files, dict):
        raise ValueError("its manifest lists no files")
    for name, expected in files.items():
        content = (path / Path(name).name).read_bytes()
        if len(content) != expected["size"] or hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise ValueError(f"{name} has {len(content)} bytes and is not the file that was saved")
        yield name, content
