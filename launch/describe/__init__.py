"""Description of a net before it trains: its table, receptive fields, shapes and cost.

All but `conv_macs` run the net once on zeros, in eval mode, without gradients, on the net's device, and leave its modes, its
buffers and the random state as they were. `shape` is that of one image, (C, H, W), or of a batch, (N, C, H, W).
"""

from .field import Layer, receptive_field
from .shapes import Step, conv_macs, shape_walk
from .table import summary

__all__ = ["Layer", "Step", "conv_macs", "receptive_field", "shape_walk", "summary"]
