"""Weights from files, URLs and run folders, and how they get into a net. Nothing in a file is ever executed."""

from .download import public_address
from .files import Source, load, read
from .into import Report, load_into

__all__ = ["Report", "Source", "load", "load_into", "public_address", "read"]
