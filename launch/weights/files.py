"""Weights from a file, a run folder or a URL. Nothing in a file is ever executed.

    load("weights/resnet18.safetensors")                    safetensors, or a state dict saved by torch (.pt, .pth, .th)
    load("https://…/resnet18-f37072fd.pth")                 a URL; its sha256 is given, or in the digits that end the name
    load("runs/cifar10/CifarResNet-0a1b2c3d")               a run folder: the weights that `oneloop predict` uses, see
                                                            launch/report/runs.py, or the best ones of an unfinished run
    load("hf://timm/resnet18.a1_in1k")                      the Hugging Face hub, or a local folder of the same form (hf.py)

The bytes whose sha256 is checked are the bytes that are parsed. Weights written by `train`, last and best alike, must match the
digests in their own file and in the run's result.json.

Source  transfer notes, section 2.3 (weights from an address, from a file, from another saved model)
"""

import json
import math
import re
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import safetensors.torch
import torch
from torch import Tensor

from ..data.resize import INTERPOLATIONS
from ..errors import Refused, first_line, printable, without_secrets
from ..report.runs import read_json, used
from . import hf
from .download import check_sha256, fetch, sha256_in_name
from .saved import CONVERT, refuse_others, saved_by_torch, state_dict, unpacked
from .tensors import weights_sha256

MOST_SHARED = 8  # times the bytes of a file that its tensors may have together: some share their numbers


class Source(NamedTuple):
    """Weights, and what is known of the training that they are from: nothing, unless `train` wrote the file."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] = ()  # in the order of the last layer's outputs
    mean: tuple[float, ...] = ()  # for each channel, with which images were normalised
    std: tuple[float, ...] = ()
    crop: float = 0.0  # of an image's shorter side: the central square that the net sees
    interpolation: str = ""  # how images were resized
    notes: tuple[str, ...] = ()  # what the user should know: which of several sets of weights was taken, what was left out


def load(source: str | Path, sha256: str = "", average: bool = True) -> dict[str, Tensor]:
    """The tensors in `source` by name, on the CPU: a file, a run folder, or an http, https or file URL.

    A dictionary of tensors in a dictionary, as under "state_dict" or "model", is unpacked, and the prefixes `module.`
    (DistributedDataParallel) and `_orig_mod.` (torch.compile) are removed. Of weights and their `average`, as
    timm's state_dict_ema, that is taken or not. `sha256` is checked on every load, cached or not; its
    first 8 digits are enough. A URL needs it, unless the file name ends in those digits, as torchvision's do.

    Every process of a job may call this: one downloads, the others wait.

    Raises Refused: not available (1), invalid URL or sha256 (2), wrong bytes, no weights, several sets of them, numbers that are
    not finite, or an object that needs unpickling (4).
    """
    return read(source, sha256, average).tensors


def read(source: str | Path, sha256: str = "", average: bool = True) -> Source:
    """What `load` gives, and what the file says beside. Raises as `load` does."""
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
        return _parsed(content, where, average)
    if address.scheme == "hf":
        path = hf.download(str(source))
    elif address.scheme == "file":
        if address.netloc not in ("", "localhost"):
            raise Refused(f"{without_secrets(str(source))} is on another machine; a file URL starts with file:///", 2)
        sha256 = sha256 or sha256_in_name(address)
        path = Path(urllib.request.url2pathname(address.path))
    elif "://" in str(source):
        raise Refused(f"{without_secrets(str(source))}: weights load from a file, a folder, or an http, https, file or hf URL", 2)
    else:
        path = Path(source).expanduser()
    try:
        if not path.is_dir():
            return _of_file(path, sha256, average)
        ours = any((path / name).exists() for name in ("result.json", "metrics.jsonl", "best.safetensors"))
        files = [_of_run(path)] if ours else hf.files(path) or [_of_run(path)]
        if sha256 and len(files) > 1:
            raise Refused(f"--sha256 is that of one file, and {path} has {len(files)} files of weights", 2)
        parts = [_of_file(file, sha256, average) for file in files]
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read weights from {path}: {getattr(error, 'strerror', None) or error}") from error
    whole = parts[0]._replace(tensors={name: tensor for part in parts for name, tensor in part.tensors.items()})
    return whole if whole.mean or whole.classes else whole._replace(**_known(hf.about(path)))


def _of_file(path: Path, sha256: str, average: bool) -> Source:
    if path.exists() and not path.is_file():
        raise Refused(f"cannot read weights from {path}: only regular files are opened, and it is a pipe, socket or device")
    content = path.read_bytes()
    if sha256:
        check_sha256(content, sha256, str(path), "get the right file, or pass this sha256 if the file is right")
    found = _parsed(content, str(path), average)
    _check_with_result(path, found.tensors)
    return found


def _of_run(folder: Path) -> Path:
    first = {"best": "best.safetensors", "ema": "ema.safetensors"}.get(used(read_json(folder / "result.json") or {}), "")
    for name in (first or "model.safetensors", "model.safetensors", "best.safetensors"):
        if (folder / name).is_file():
            return folder / name
    what = "neither a run folder nor a model of the hub, or no weights saved yet"
    raise Refused(f"{folder} has neither model.safetensors nor best.safetensors: {what}", 4)


def _check_with_result(path: Path, tensors: dict[str, Tensor]) -> None:
    """Compare with the sha256 that a finished run recorded, of its last and of its best weights."""
    result = path.with_name("result.json")
    if not result.is_file():
        return
    try:
        if path.name == "model.safetensors":
            recorded = json.loads(result.read_bytes()).get("weights_sha256")
        elif path.name == "best.safetensors":
            recorded = json.loads(result.read_bytes()).get("best", {}).get("weights_sha256")
        else:
            return
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(f"{result} is damaged ({first_line(error)}), so {path} cannot be checked", 4) from error
    if recorded and recorded != weights_sha256(tensors):
        raise Refused(f"{path} does not match the weights_sha256 in {result}: one of them is damaged or from another run", 4)


def _parsed(content: bytes, where: str, average: bool = True) -> Source:
    """What is in the bytes of a file. The bytes tell the format, not the file's name."""
    content, about, notes = unpacked(content, where), dict[str, Any](), list[str]()
    json_ = content.startswith((b"{", b"[")) and int.from_bytes(content[:8], "little") > len(content)
    if content[8:9] == b"{" and not json_:  # after 8 bytes of length, safetensors has JSON
        found, about = _safetensors(content, where)
    else:
        refuse_others(content, where)
        found, notes = state_dict(saved_by_torch(content, where), where, average)
    if not isinstance(found, dict) or not found:
        what = "an empty dict" if isinstance(found, dict) else f"an object of type {type(found).__name__}"
        raise Refused(f"{where} holds {what}, not a state dict; {CONVERT}", 4)
    for name, tensor in found.items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
        if not dense or "float4" in str(tensor.dtype):  # torch cannot convert these
            what = f"{printable(str(name))!r}, of type {type(tensor).__name__}, is not a dense tensor"
            raise Refused(f"{where} is not a state dict: {what}; {CONVERT}", 4)
        if not isinstance(name, str):
            raise Refused(f"{where} is not a state dict: key {name!r} is not a string; {CONVERT}", 4)
    claimed = sum(tensor.nbytes for tensor in found.values())
    if claimed > MOST_SHARED * len(content):  # strides of 0 can ask for any amount of memory
        few = f"{len(content):,} bytes, its tensors ask for {claimed:,}"
        raise Refused(f"{where} has {few}: damaged, or expanded views; save copies of them: tensor.clone()", 4)
    for name, tensor in found.items():
        if tensor.is_floating_point() or tensor.is_complex():
            numbers = tensor if tensor.itemsize > 1 else tensor.float()  # of 8 bits, not all kinds have isfinite
            # A finite sum has finite parts, and is found in one pass; a sum that overflows is looked into.
            if not numbers.sum().isfinite() and not numbers.isfinite().all():
                what = "NaN" if numbers.isnan().any() else "infinity"
                raise Refused(f"{where}: {printable(name)} contains {what}; these weights cannot be used", 4)
    tensors, prefixes = _without_prefixes(found)
    return Source(tensors, notes=(*notes, *prefixes), **_known(about))


def _known(about: dict) -> dict[str, Any]:
    """The classes and the preprocessing of 3 channels in a file's description, as far as they can be true."""

    def listed(name: str, kinds: tuple[type, ...]) -> tuple:
        values = about.get(name)
        return tuple(values) if isinstance(values, list) and all(type(value) in kinds for value in values) else ()

    classes, mean, std = listed("classes", (str,)), listed("mean", (int, float)), listed("std", (int, float))
    known: dict[str, Any] = {"classes": classes if len(set(classes)) == len(classes) else ()}
    if len(mean) == len(std) == 3 and all(map(math.isfinite, mean)) and all(0 < value < math.inf for value in std):
        known |= {"mean": mean, "std": std}
    crop = about.get("crop")
    if isinstance(crop, int | float) and 0 < crop <= 1:
        known["crop"] = float(crop)
    return known | ({"interpolation": way} if (way := about.get("interpolation")) in INTERPOLATIONS else {})


def _safetensors(content: bytes, where: str) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a safetensors file, checked against the digest in its metadata if `train` wrote one there, and these."""
    try:
        tensors = safetensors.torch.load(content)
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {}).get("oneloop")
        about = json.loads(about) if about else {}
        recorded = about.get("weights_sha256")
        differ = recorded and recorded != weights_sha256(tensors)
    except Exception as error:  # a broken header raises many kinds
        raise Refused(f"{where} is damaged: {first_line(error)}", 4) from error
    if differ:
        raise Refused(f"{where} is damaged: its tensors do not match the digest saved with them", 4)
    return tensors, about


def _without_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without the names of wrappers, and lines that say so."""
    wrapped = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): tensor for name, tensor in tensors.items()}
    notes, taken_off = list[str](), ["_orig_mod."] if wrapped.keys() != tensors.keys() else []
    tensors = wrapped
    averaged = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}  # torch's AveragedModel counts there
    if averaged and all(name.startswith("module.") for name in averaged):
        notes = ["an average of the weights, of torch's AveragedModel"] if len(averaged) < len(tensors) else []
        tensors = averaged
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        taken_off = ["module.", *taken_off]
    return tensors, [*notes, *([f"taken off their names: {' '.join(taken_off)}"] if taken_off else [])]
