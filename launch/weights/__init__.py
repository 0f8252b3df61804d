"""Weights from elsewhere: a file, an address or a run of ours. Nothing that a file holds is executed, whatever it is.

    load("weights/resnet18.safetensors")                    safetensors, or a state dict saved by torch (.pt, .pth, .th)
    load("https://…/resnet18-f37072fd.pth")                 an address; sha256 given, or the digits at the end of the name
    load("runs/cifar10/CifarResNet-0a1b2c3d")               a run folder: its last weights, else its best so far

What is downloaded lies in the cache's folder `weights`, named by its sha256, which is computed at every load from the very bytes
that are then read. A file of `train`, the last weights and the best alike, is compared with the digests that it and its run's
result.json hold. No message shows a user, a password or a query of an address. `load_into` copies tensors into a net and reports
what it did.

Source  document 001, section 2.3 (weights from an address, from a file, from another saved model)
"""

import base64
import hashlib
import http.client
import io
import json
import os
import pickle
import re
import threading
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from concurrent.futures import Future
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import filelock
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..checkpoint import weights, weights_sha256
from ..data.cache import cache_folder
from ..errors import Refused, first_line

ANSWER_SECONDS = 30  # until the file begins, connection and redirects included; and for each silence after that
DOWNLOAD_SECONDS = 3600  # for the whole of one file
DOWNLOAD_BYTES = 4 << 30  # the largest file of torchvision has 2.6e9
CONVERT = (
    'if you trust who made it, convert it where its classes are at home: torch.save(model.state_dict(), "weights.pt"), '
    "or safetensors.torch.save_model(model, ...)"
)


def load(source: str | Path, sha256: str = "") -> dict[str, Tensor]:
    """The tensors in `source` by name, on the CPU: a file, a run folder, or an http, https or file address.

    A dictionary under "state_dict" or "model" is unpacked, and the prefixes `module.` (DistributedDataParallel) and `_orig_mod.`
    (torch.compile) are taken off. `sha256` is checked at every load, cached or not; 8 or more of its first digits will do. An
    address needs it, unless its file's name ends in them, as torchvision's do.

    In a job of several processes each may call it: one downloads, the others wait.

    Raises Refused: cannot be had (1), sha256 that is none (2), wrong bytes, no weights, or an object that needs unpickling (4).
    """
    sha256 = sha256.lower()
    if sha256 and not re.fullmatch(r"[0-9a-f]{8,64}", sha256):
        raise Refused(f"a sha256 has 64 digits 0-9 and a-f, of which at least 8 are needed; {sha256!r} is none", 2)
    try:
        address = urlsplit(str(source))
        address.port  # noqa: B018 - raises
    except ValueError as error:
        raise Refused(f"{_shown(str(source))} is no address", 2) from error
    if address.scheme in ("http", "https"):
        where, content = _fetched(address, sha256 or _digits_in_name(address))
        return _tensors(content, where)
    if address.scheme == "file":
        if address.netloc not in ("", "localhost"):
            raise Refused(f"{_shown(str(source))} names another machine; a file address begins with file:///", 2)
        sha256 = sha256 or _digits_in_name(address)
        path = Path(urllib.request.url2pathname(address.path))
    elif "://" in str(source):
        raise Refused(f"{_shown(str(source))}: weights come from http, https and file addresses, a file or a run folder", 2)
    else:
        path = Path(source).expanduser()
    if path.is_dir():
        path = _of_run(path)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read the weights {path}: {getattr(error, 'strerror', None) or error}") from error
    if sha256:
        _check(content, sha256, str(path), "get the right file, or give this sha256 if it is the right one")
    tensors = _tensors(content, str(path))
    _check_with_result(path, tensors)
    return tensors


class Report(NamedTuple):
    """What `load_into` did: names copied, names not taken and why, names of the net that keep what they had."""

    matched: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"weights: {len(self.matched)} matched, {len(self.dropped)} dropped, {len(self.new)} new"]
        lines += [f"  dropped {name}: {reason}" for name, reason in self.dropped[:8]]
        lines += [f"  … and {len(self.dropped) - 8} more dropped"] if len(self.dropped) > 8 else []
        lines += [f"  new {_some(self.new)}"] if self.new else []
        return "\n".join(lines)


def load_into(net: nn.Module, tensors: dict[str, Tensor], partial: bool = False) -> Report:
    """Copy `tensors` into the net's own parameters and buffers, which stay the same objects, on their devices, in their dtypes.

    All must agree, or nothing is copied; with `partial` what fits is copied. Weights from before torch 0.4.1 may lack batch
    norm's counters: nothing uses these. Raises Refused (4), naming what differs, or if `partial` finds nothing that fits.
    """
    own = weights(net)
    aliases = net.state_dict().keys() - own.keys()  # second names of shared tensors
    dropped = []
    for name, tensor in tensors.items():
        if name not in own:
            if name not in aliases:
                dropped.append((name, "the net has no such tensor"))
        elif tensor.shape != own[name].shape:
            dropped.append((name, f"{_shape(tensor)} there, {_shape(own[name])} here"))
        elif tensor.is_floating_point() != own[name].is_floating_point():
            dropped.append((name, f"{tensor.dtype} there, {own[name].dtype} here"))
    not_taken = {name for name, _ in dropped}
    matched = [name for name in own if name in tensors and name not in not_taken]
    new = [name for name in own if name not in matched and not (_is_counter(name) and name not in tensors)]
    report = Report(tuple(matched), tuple(dropped), tuple(new))
    if not partial and (dropped or new):
        lacking = [name for name in new if name not in tensors]
        differences = [f"{name} ({reason})" for name, reason in dropped[:4]] + ([f"lacking: {_some(lacking)}"] if lacking else [])
        raise Refused(f"the weights are not those of {type(net).__name__}: {'; '.join(differences)}", 4)
    if not [name for name in matched if not _is_counter(name)]:
        raise Refused(f"none of the {len(tensors)} tensors fits {type(net).__name__}, which has {_some(list(own))}", 4)
    with torch.no_grad():
        for name in matched:
            own[name].copy_(tensors[name])
    return report


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# -------------------------------------------------------------------------------------------------------------------- files


def _of_run(folder: Path) -> Path:
    for name in ("model.safetensors", "best.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise Refused(f"{folder} has neither model.safetensors nor best.safetensors: no run folder, or its run has no weights yet", 4)


def _check_with_result(path: Path, tensors: dict[str, Tensor]) -> None:
    """A finished run recorded the sha256 of its weights, the last and the best: these must be the ones."""
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
        raise Refused(f"{path} does not hold the weights that {result} records: one of them is damaged or of another run", 4)


def _tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """The state dict in the bytes of a file. What kind of file it is, the bytes say and not its name."""
    head = content[8:9]  # after its length, where there is one
    found = _safetensors(content, where) if head == b"{" else _saved_by_torch(content, where)
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise Refused(f"{where} holds no weights but {type(found).__name__}; {CONVERT}", 4)
    for name, tensor in found.items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
        if not dense or not isinstance(name, str):
            raise Refused(f"{where} is no state dict: {name!r} is no dense tensor but {type(tensor).__name__}; {CONVERT}", 4)
        if tensor.is_floating_point() and tensor.isnan().any():
            raise Refused(f"{where}: {name} holds values that are no numbers (NaN); these weights cannot be used", 4)
    return _without_prefixes(found)


def _safetensors(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; where its metadata hold their digest, as `train` writes it, they must have it."""
    try:
        tensors = safetensors.torch.load(content)
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {}).get("oneloop")
        recorded = json.loads(about).get("weights_sha256") if about else None
        differ = recorded and recorded != weights_sha256(tensors)
    except Exception as error:  # of many kinds, for what a head may claim
        raise Refused(f"{where} is damaged: {first_line(error)}", 4) from error
    if differ:
        raise Refused(f"{where} is damaged: its tensors are not those that were saved", 4)
    return tensors


def _saved_by_torch(content: bytes, where: str) -> object:
    file = io.BytesIO(content)
    try:
        if zipfile.is_zipfile(file) and sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > len(content):
            raise Refused(f"{where} is compressed, which torch's files are not: it could fill the memory. It is not read", 4)
        file.seek(0)
        with warnings.catch_warnings():  # torch warns of what it then reads, or refuses with an error
            warnings.simplefilter("ignore")
            # Only tensors, numbers, strings and containers: anything else in the file raises instead of being called.
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(
            f"{where} is not read: it is damaged, or holds more than a state dict, such as a whole model. Only unpickling could "
            f"rebuild that, and would run whatever code its maker put in; {CONVERT}",
            4,
        ) from error
    except Refused:
        raise
    except Exception as error:  # torch's reader raises a dozen kinds for broken files
        raise Refused(f"{where} cannot be read as weights: {first_line(error)}", 4) from error


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): tensor for name, tensor in tensors.items()}
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _check(content: bytes, sha256: str, where: str, remedy: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(sha256):
        raise Refused(f"{where} has the sha256 {digest}, expected {sha256}: {remedy}", 4)


# ---------------------------------------------------------------------------------------------------------------- addresses


def public_address(text: str) -> str:
    """An http or https address without user, password, query and fragment, which may be secrets; any other text as it is."""
    return _shown(text) if re.match(r"\s*https?://", text, re.IGNORECASE) else text


def _shown(address: str) -> str:
    """Any address without what may be secret, as a message may show it; only its scheme where its host cannot be told."""
    found = re.match(r"\s*([a-z][a-z0-9+.-]*)://([^/?#]*)([^?#]*)", address, re.IGNORECASE | re.ASCII)
    if not found:
        return address
    scheme, (host, path) = found[1].lower(), (found[2].rpartition("@")[2], found[3])
    # A password with an unescaped / or ? in it would pass for host and path.
    sound = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\s:@\[\]]*)(:\d*)?", host, re.IGNORECASE)
    return f"{scheme}://{host}{path}".rstrip() if sound else f"{scheme}://…"


def _digits_in_name(address: SplitResult) -> str:
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", address.path)
    if not found:
        raise Refused(f"{_shown(address.geturl())}: weights from an address need their sha256", 2)
    return found[1]


def _fetched(address: SplitResult, sha256: str) -> tuple[str, bytes]:
    """A name for messages, and the bytes that have this sha256 (or its first digits): from the cache, else from the address."""
    folder = cache_folder() / "weights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f".lock-{sha256}"):
            path = next(folder.glob(f"{sha256}*"), None) or _download(address, sha256, folder)
            content = path.read_bytes()
    except OSError as error:
        raise Refused(f"cannot use the cache {folder}: {error.strerror or error}; choose another with ONELOOP_CACHE") from error
    _check(content, path.name, f"the cached file {path}", "delete it, and it is fetched anew")
    return f"{_shown(address.geturl())} (cached as {path})", content


def _download(address: SplitResult, sha256: str, folder: Path) -> Path:
    """Fetch the address into `folder`, under its full sha256. Only what is complete and right gets that name."""
    shown, temporary = _shown(address.geturl()), folder / f".tmp-{sha256}"  # the lock is held: nobody else writes it
    deadline, answered, outcome = time.monotonic() + DOWNLOAD_SECONDS, threading.Event(), Future()

    def fetch() -> None:
        try:
            with _opener().open(_request(address), timeout=ANSWER_SECONDS) as response:
                answered.set()
                outcome.set_result(_copy(response, file, shown, deadline))
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            answered.set()

    try:
        with open(temporary, "wb") as file:
            # A server that sends a byte now and then, in its headers or between chunks, holds up for ever who reads them: that
            # is a thread, which ends with the process at the latest.
            thread = threading.Thread(target=fetch, daemon=True)
            thread.start()
            if answered.wait(min(ANSWER_SECONDS, DOWNLOAD_SECONDS)):
                thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                if answered.is_set() or time.monotonic() > deadline:
                    raise _beyond(shown)
                raise TimeoutError(f"timed out, no answer within {ANSWER_SECONDS} s")
            digest, size, promised = outcome.result()
            file.flush()
            os.fsync(file.fileno())
        if promised is not None and size != int(promised):
            raise Refused(f"{shown} ended after {size:,} of {int(promised):,} bytes; the same command tries again", 1)
        if not digest.startswith(sha256):
            raise Refused(f"{shown} has the sha256 {digest}, expected {sha256}; nothing is kept of it", 4)
        return temporary.replace(folder / digest)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Refused(f"cannot get the weights {shown}: {_reason(error)}; fetch them by other means and give the file") from error
    finally:
        temporary.unlink(missing_ok=True)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, shown: str, deadline: float) -> tuple[str, int, str | None]:
    """Write the answer to the file. Returns its sha256, its bytes and how many its server promised. Raises Refused (1)."""
    digest, size = hashlib.sha256(), 0
    while chunk := response.read1(1 << 20):  # read1: what is there, without waiting for more
        size += len(chunk)
        if size > DOWNLOAD_BYTES or time.monotonic() > deadline:
            raise _beyond(shown)
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest(), size, response.headers.get("Content-Length")


def _beyond(shown: str) -> Refused:
    limits = f"{DOWNLOAD_BYTES / 1e9:.1f} GB and {DOWNLOAD_SECONDS:,} s"
    return Refused(f"{shown} goes beyond {limits}; fetch it by other means and give the file", 1)


def _request(address: SplitResult) -> urllib.request.Request:
    """What asks for the address. A user and a password go along as a header, to this server and to none that it redirects to."""
    url = address._replace(netloc=address.netloc.rpartition("@")[2], fragment="").geturl()
    request = urllib.request.Request(url, headers={"User-Agent": "oneloop"})
    if address.username is not None:
        both = f"{unquote(address.username)}:{unquote(address.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(both.encode()).decode()}")
    return request


def _reason(error: Exception) -> str:
    """Why an address could not be had, in words that hold no address: the one that a server redirects to may be signed."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it is the answer itself, with its connection
        if 300 <= error.code < 400:
            return "it redirects in a circle, or to what is neither http nor https"
        return f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip()
    if isinstance(error, OSError):
        return first_line(error)
    return f"the address, or the answer to it, is not as it should be ({type(error).__name__})"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows what leads to http and https, but nothing is sent without encryption where the address asked for it."""

    def redirect_request(self, request, answer, code, message, headers, url):
        if request.type == "https" and urlsplit(url).scheme != "https":
            answer.close()
            here, there = _shown(request.full_url), _shown(url)
            raise Refused(f"{here} redirects to {there}, which has no encryption; it is not followed", 4)
        return super().redirect_request(request, answer, code, message, headers, url)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https and nothing else: what redirects to file:// or ftp:// finds nobody to open it."""
    opener = urllib.request.OpenerDirector()
    for part in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        _Redirects,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(part())
    return opener
