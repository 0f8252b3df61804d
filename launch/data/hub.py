"""Data sets of the Hugging Face hub: downloaded and decoded once, then read from the cache without a network."""

import contextlib

from ..errors import Refused, first_line
from . import cache, table
from .dataset import DataSet, Shape

PROBE_SECONDS = 10  # `load_dataset` alone would retry for minutes when the hub hangs


def read(name: str, shape: Shape) -> DataSet:
    """The data set `name` ("owner/name"), images of `shape`.

    Raises Refused: 1 if it cannot be downloaded, 4 if its images or labels are not as expected.
    """
    slug = "hub-" + name.replace("/", "--")
    if cached := cache.read(slug):
        return cached
    offline = _probe(name)  # before the cache's lock, so that processes do not wait for each other's timeouts
    return cache.read_or_decode(slug, lambda: _download(name, shape, offline))


def _probe(name: str) -> Exception | None:
    """Ask the hub, within seconds, whether the data set exists. Returns the error if the hub cannot be reached.

    This process is then offline, as with HF_HUB_OFFLINE=1, and `datasets` uses what it has cached itself. Raises Refused (1) if
    the hub does not have the data set.
    """
    import datasets
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=PROBE_SECONDS)
        with contextlib.suppress(huggingface_hub.errors.EntryNotFoundError):  # files may be on another server, so ask for one
            file = huggingface_hub.hf_hub_url(name, "README.md", repo_type="dataset")
            huggingface_hub.get_hf_file_metadata(file, timeout=PROBE_SECONDS)
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        endpoint = huggingface_hub.constants.ENDPOINT
        raise Refused(f"{endpoint} has no data set {name!r}, or it is private; HF_ENDPOINT=URL selects a mirror") from error
    except Exception as error:  # whatever the network does, the way out is the same
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        return error
    return None


def _download(name: str, shape: Shape, offline: Exception | None) -> DataSet:
    try:
        tables = table.load(name)
    except Exception as error:  # network, hub or disk: the ways out are the same
        raise Refused(
            f"cannot download the data set {name!r}: {first_line(offline or error)}. Try HF_ENDPOINT=URL for a mirror, "
            "HF_HUB_OFFLINE=1 if `datasets` has it cached, --data PATH for a folder, or --data synthetic"
        ) from error
    return table.decode(tables, name, shape)
