"""Data sets of the Hugging Face hub: downloaded and decoded once, then read from the cache without a network."""

from ..data.dataset import DataSet, Shape
from . import decoded, hub, table

WAYS_OUT = "--data PATH for a folder, or --data synthetic"


def read(name: str, shape: Shape) -> DataSet:
    """The data set `name` ("owner/name"), images of `shape`.

    Raises Refused: 1 if it cannot be downloaded, 4 if its images or labels are not as expected.
    """
    slug = "hub-" + name.replace("/", "--")
    if cached := decoded.read(slug):
        return cached
    answer = hub.ask(name)  # before the cache's lock, so that processes do not wait for each other's timeouts
    return decoded.read_or_decode(slug, lambda: table.decode(hub.download(name, answer, WAYS_OUT), name, shape))
