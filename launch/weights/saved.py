"""The state dict in a checkpoint of torch.save's, whatever lies beside it. Nothing in it is made or called.

What holds no weights is refused in words that say what it is.
"""

import gzip
import io
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import Refused, first_line, printable

CONVERT = (
    'if you trust its author, convert it where its classes can be imported: torch.save(model.state_dict(), "weights.pt"), '
    "or safetensors.torch.save_model(model, ...)"
)
LIGHTNING = (
    "pytorch_lightning.utilities.parsing",
    "lightning.pytorch.utilities.parsing",
    "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
)
OMEGACONF = "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode"
# What may lie beside weights and is left unread, by the name under which it is pickled: nothing of the kind is made or called.
BESIDE = {
    "argparse.Namespace": "argparse.Namespace",
    "datetime.datetime": "datetime.datetime",
    "datetime.timedelta": "datetime.timedelta",
    "numpy.dtype": "numpy.dtype",
    "numpy.ndarray": "numpy.ndarray",
    **{f"numpy.{core}.multiarray.scalar": "numpy scalar" for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": "numpy.ndarray" for core in ("core", "_core")},
    **{f"pathlib.{place}{kind}Path": "pathlib.Path" for place in ("", "_local.") for kind in ("Posix", "Windows")},
    **{f"pathlib.Pure{kind}Path": "pathlib.Path" for kind in ("Posix", "Windows")},
    "types.SimpleNamespace": "types.SimpleNamespace",
    **{f"omegaconf.{name}": "a configuration" for name in OMEGACONF},
    "typing.Any": "a configuration",
}
GZIP = b"\x1f\x8b"
# Dicts with a class of their own, which are read as dicts: torch's reader fills no other.
DICTS = *(f"{place}.AttributeDict" for place in LIGHTNING), "easydict.EasyDict", "addict.addict.Dict", "yacs.config.CfgNode"
KNOWN, DEEPEST = ("state_dict", "model"), 5  # where weights usually are, and how far dicts in dicts are looked into
# What a set of weights is called that is the average of another one over the training: timm's state_dict_ema, DINO's teacher.
AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?|shadow|teacher)($|_)|average", re.IGNORECASE)
BEFORE_AVERAGE = "current_model_state"  # Lightning's WeightAveraging: the average is under state_dict then
MOST_UNPACKED = 100  # times the bytes of a file compressed with gzip that are unpacked
# Files that are often taken for weights, by their first bytes.
OTHER_FILES = {
    b"<": "is a web page or XML, not weights: download the file itself",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: git lfs pull",
    b"\x89HDF": "is an HDF5 file, as Keras writes, which is not read",
    b"GGUF": "is a GGUF file, which is not read",
}


def refuse_others(content: bytes, where: str) -> None:
    """Raise Refused (4), in true words, for a file of another kind that is often taken for weights."""
    start = content[:4096].lstrip()
    said = next((said for first, said in OTHER_FILES.items() if start.startswith(first)), "")
    if not content:
        said = "is empty"
    elif start.startswith((b"{", b"[")):
        said = "is JSON, not weights"
        if b'"weight_map"' in content:
            said = "is an index of weights in several files: name the folder that they are in"
    elif content[257:262] == b"ustar":
        said = "is a tar archive: unpack it first"
    if said:
        raise Refused(f"{where} {said}", 4)


def unpacked(content: bytes, where: str) -> bytes:
    """`content`, without gzip's compression if it has that. Raises Refused (4)."""
    if not content.startswith(GZIP):
        return content
    most = MOST_UNPACKED * len(content)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            whole = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"{where} is damaged: {first_line(error)}", 4) from error
    if len(whole) > most:
        raise Refused(f"{where} unpacks to more than {MOST_UNPACKED} times its size: unpacking it could exhaust memory", 4)
    return whole


def state_dict(found: Any, where: str, average: bool = True) -> tuple[Any, list[str]]:
    """The state dict in what a file of torch's holds: that itself, or a dict of tensors in it; and lines about the choice.

    One under "state_dict" or "model" is known, whatever else is there; otherwise the largest is taken. Of a set with the same
    names that is called an average, it or the other is taken, as `average` says. Raises Refused (4) if another set may be meant:
    one with the same names, or as large beside one that is not known.
    """
    sets = dict(_sets(found, (), set()))
    if not sets:
        return found, []
    known = sorted((path for path in sets if path and {*path} <= {*KNOWN}), key=lambda path: (len(path), KNOWN.index(path[0])))
    chosen = known[0] if known else max(sets, key=lambda path: len(_arrays(sets[path])))
    names, several = _arrays(sets[chosen]), [chosen]
    for path, others in ((path, _arrays(its)) for path, its in sets.items() if path != chosen):
        as_large = not known and path[:-1] == chosen[:-1] and 2 * len(others) >= len(names)
        if 2 * len(names & others) >= len(names) or as_large:
            several.append(path)
    if len(several) == 1:
        return sets[chosen], []
    before = [path for path in several if BEFORE_AVERAGE in path]
    averages = [path for path in several if (path not in before if before else any(map(AVERAGE.search, path)))]
    plain = [path for path in several if path not in averages]
    if len(averages) == len(plain) == 1:
        taken, left = (averages, plain) if average else (plain, averages)
        way = "--no-average takes the latter" if average else "--average takes the latter"
        return sets[taken[0]], [f"{_path(taken[0])} is taken, not {_path(left[0])}, of which one is the average: {way}"]
    some = printable(", ".join(map(_path, several)))[:200]
    save = 'torch.save(checkpoint["…"], "weights.pt")'
    raise Refused(f"{where} holds several sets of weights: {some}; save the one you mean: {save}", 4)


def _path(keys: tuple[str, ...]) -> str:
    return printable("".join(f"[{key!r}]" for key in keys) or "the file itself")


def _sets(found: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Each dict of tensors in `found`, once, with the keys that lead to it."""
    if isinstance(found, dict) and len(path) < DEEPEST and id(found) not in seen:
        seen.add(id(found))
        if _arrays(found):
            yield path, found
        for key, value in found.items():
            if isinstance(key, str):
                yield from _sets(value, (*path, key), seen)


def _arrays(found: dict) -> set[str]:
    """The names of the tensors in a dict, without prefixes. Single numbers do not count: they may be a record's."""
    names = [name for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor) and value.ndim]
    return {re.sub(r"(module|_orig_mod)\.", "", name) for name in names}


class _Unread:
    """Stands for what lies beside weights: takes what it is given, and does nothing with it."""

    def __init__(self, *_arguments: object):
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def saved_by_torch(content: bytes, where: str) -> object:
    """What torch.save wrote, with something inert in place of what lies BESIDE. Raises Refused (4)."""
    file = io.BytesIO(content)
    unread: list = [(type(kind, (_Unread,), {}), name) for name, kind in BESIDE.items()]
    unread += [(OrderedDict, name) for name in DICTS]
    try:
        if zipfile.is_zipfile(file):
            entries = zipfile.ZipFile(file).infolist()
            if sum(entry.file_size for entry in entries) > len(content):
                raise Refused(f"{where} is compressed, which torch's files never are: unpacking it could exhaust memory", 4)
            parts = {entry.filename.rpartition("/")[2] for entry in entries}
            if "constants.pkl" in parts:
                raise Refused(f"{where} is a TorchScript program, which is not run; {CONVERT}", 4)
            if "data.pkl" not in parts:
                raise Refused(f"{where} is a zip archive, but not one of torch.save: it has {_first(parts)}", 4)
        file.seek(0)
        with warnings.catch_warnings(), torch.serialization.safe_globals(unread):
            warnings.simplefilter("ignore")  # torch warns about files that it then loads, or rejects with an error
            # Tensors, numbers, strings and containers only: anything else in the file raises instead of being called.
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it holds {named[1][:100]}, and unpickling that" if named else "it is damaged, or needs an unpickling that"
        raise Refused(f"{where} is not loaded: {what} would run whatever code its author put in; {CONVERT}", 4) from error
    except Refused:
        raise
    except Exception as error:  # torch's reader raises a dozen kinds for broken files
        raise Refused(f"cannot load weights from {where}: {first_line(error)}", 4) from error


def _first(names: set[str]) -> str:
    return printable(", ".join(sorted(names)[:3]))[:100]
