"""Weights from a file, a run folder or a URL. Nothing in a file is ever executed.

    load("weights/resnet18.safetensors")                    safetensors, or a state dict saved by torch (.pt, .pth, .th)
    load("https://…/resnet18-f37072fd.pth")                 a URL; its sha256 is given, or in the digits that end the name
    load("runs/cifar10/CifarResNet-0a1b2c3d")               a run folder: the weights that `oneloop predict` uses, see
                                                            launch/record/runs.py, or the best ones of an unfinished run

The bytes whose sha256 is checked are the bytes that are parsed. Weights written by `train`, last and best alike, must match the
digests in their own file and in the run's result.json.

Source  document 001, section 2.3 (weights from an address, from a file, from another saved model)
"""

import io
import json
import pickle
import re
import urllib.request
import warnings
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import safetensors.torch
import torch
from torch import Tensor

from ..checkpoint import weights_sha256
from ..errors import Refused, first_line
from ..record.runs import read_json, used
from .download import check_sha256, fetch, sha256_in_name, without_secrets

CONVERT = (
    'if you trust its author, convert it where its classes can be imported: torch.save(model.state_dict(), "weights.pt"), '
    "or safetensors.torch.save_model(model, ...)"
)


def load(source: str | Path, sha256: str = "") -> dict[str, Tensor]:
    """The tensors in `source` by name, on the CPU: a file, a run folder, or an http, https or file URL.

    A dictionary under "state_dict" or "model" is unpacked, and the prefixes `module.` (DistributedDataParallel) and `_orig_mod.`
    (torch.compile) are removed. `sha256` is checked on every load, cached or not; its first 8 digits are enough. A URL needs it,
    unless the file name ends in those digits, as torchvision's do.

    Every process of a job may call this: one downloads, the others wait.

    Raises Refused: not available (1), invalid URL or sha256 (2), wrong bytes, no weights, or an object that needs unpickling (4).
    """
    sha256 = sha256.lower()
    if sha256 and not re.fullmatch(r"[0-9a-f]{8,64}", sha256):
        raise Refused(f"{sha256!r} is not a valid sha256: give 8 to 64 of its hexadecimal digits", 2)
    try:
        address = urlsplit(str(source))
        address.port  # noqa: B018 - raises
    except ValueError as error:
        raise Refused(f"{without_secrets(str(source))} is not a valid URL", 2) from error
    if address.scheme in ("http", "https"):
        where, content = fetch(address, sha256 or sha256_in_name(address))
        return _tensors(content, where)
    if address.scheme == "file":
        if address.netloc not in ("", "localhost"):
            raise Refused(f"{without_secrets(str(source))} is on another machine; a file URL starts with file:///", 2)
        sha256 = sha256 or sha256_in_name(address)
        path = Path(urllib.request.url2pathname(address.path))
    elif "://" in str(source):
        raise Refused(f"{without_secrets(str(source))}: weights load from a file, a run folder, or an http, https or file URL", 2)
    else:
        path = Path(source).expanduser()
    if path.is_dir():
        path = _of_run(path)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read weights from {path}: {getattr(error, 'strerror', None) or error}") from error
    if sha256:
        check_sha256(content, sha256, str(path), "get the right file, or pass this sha256 if the file is right")
    tensors = _tensors(content, str(path))
    _check_with_result(path, tensors)
    return tensors


def _of_run(folder: Path) -> Path:
    first = {"best": "best.safetensors", "ema": "ema.safetensors"}.get(used(read_json(folder / "result.json") or {}), "")
    for name in (first or "model.safetensors", "model.safetensors", "best.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise Refused(f"{folder} has neither model.safetensors nor best.safetensors: not a run folder, or no weights saved yet", 4)


def _check_with_result(path: Path, tensors: dict[str, Tensor]) -> None:
    """Compare with the sha256 that a finished run recorded, of its last and of its best weights."""
    result = path.with_name("result.json")
    try:
        if path.name == "model.safetensors":
            recorded = json.loads(result.read_bytes()).get("weights_sha256")
        elif path.name == "best.safetensors":
            recorded = json.loads(result.read_bytes()).get("best", {}).get("weights_sha256")
        else:
            return
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(f"{result} is damaged ({first_line(error)}), so {path} cannot be checked", 4) from error
    if recorded and recorded != weights_sha256(tensors):
        raise Refused(f"{path} does not match the weights_sha256 in {result}: one of them is damaged or from another run", 4)


def _tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """The state dict in the bytes of a file. The bytes tell the format, not the file's name."""
    head = content[8:9]  # after 8 bytes of length, safetensors has JSON
    found = _safetensors(content, where) if head == b"{" else _saved_by_torch(content, where)
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        what = "an empty dict" if isinstance(found, dict) else f"an object of type {type(found).__name__}"
        raise Refused(f"{where} holds {what}, not a state dict; {CONVERT}", 4)
    for name, tensor in found.items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
        if not dense:
            what = f"{name!r}, of type {type(tensor).__name__}, is not a dense tensor"
            raise Refused(f"{where} is not a state dict: {what}; {CONVERT}", 4)
        if not isinstance(name, str):
            raise Refused(f"{where} is not a state dict: key {name!r} is not a string; {CONVERT}", 4)
        if tensor.is_floating_point() and tensor.isnan().any():
            raise Refused(f"{where}: {name} contains NaN; these weights cannot be used", 4)
    return _without_prefixes(found)


def _safetensors(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, checked against the digest in its metadata if `train` wrote one there."""
    try:
        tensors = safetensors.torch.load(content)
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {}).get("oneloop")
        recorded = json.loads(about).get("weights_sha256") if about else None
        differ = recorded and recorded != weights_sha256(tensors)
    except Exception as error:  # a broken header raises many kinds
        raise Refused(f"{where} is damaged: {first_line(error)}", 4) from error
    if differ:
        raise Refused(f"{where} is damaged: its tensors do not match the digest saved with them", 4)
    return tensors


def _saved_by_torch(content: bytes, where: str) -> object:
    file = io.BytesIO(content)
    try:
        if zipfile.is_zipfile(file) and sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > len(content):
            raise Refused(f"{where} is compressed, which torch's files never are: unpacking it could exhaust memory", 4)
        file.seek(0)
        with warnings.catch_warnings():  # torch warns about files that it then loads, or rejects with an error
            warnings.simplefilter("ignore")
            # Tensors, numbers, strings and containers only: anything else in the file raises instead of being called.
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(
            f"{where} is not loaded: it is damaged, or holds more than a state dict, such as a whole model. Unpickling that "
            f"would run whatever code its author put in; {CONVERT}",
            4,
        ) from error
    except Refused:
        raise
    except Exception as error:  # torch's reader raises a dozen kinds for broken files
        raise Refused(f"cannot load weights from {where}: {first_line(error)}", 4) from error


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): tensor for name, tensor in tensors.items()}
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors
