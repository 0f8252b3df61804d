"""Weights from files, URLs and run folders, and how they get into a net. Nothing in a file is ever executed."""

from .files import Source, load, read
from .into import Report, for_classes, kept, load_into, without_prefix

__all__ = ["Report", "Source", "for_classes", "kept", "load", "load_into", "read", "without_prefix"]
