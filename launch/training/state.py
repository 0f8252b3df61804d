"""State of a training that a checkpoint holds besides its tensors: the place, and the sums since the last train line."""

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class State:
    """Place of a training, besides its tensors and its sums."""

    step: int = 0  # updates made
    epochs: int = 0  # epochs closed: trained, evaluated and logged
    start: str = ""  # sha256 of the weights before the first step
    seconds: float = 0.0  # since the start of the run, over all launches
    best: dict = field(default_factory=lambda: {"accuracy": -1.0, "epoch": 0})  # on the images that choose
    results: dict = field(default_factory=dict)  # of the last epoch's evaluation, by split


class Reading(NamedTuple):
    """Numbers of a train line: the mean loss over the images since the last line, their speed, the last gradient's norm."""

    loss: float
    images_per_second: float
    gradient_norm: float  # nan before the first step


class Meter:
    """The sums since the last train line, and a clock that runs during training steps only."""

    SAVED = ("images", "seconds", "train_seconds", "norm")  # in a checkpoint, beside the sum of the losses

    def __init__(self, device: torch.device):
        self.loss = torch.zeros((), device=device)  # sum over images; read when a line is logged
        self.images, self.seconds, self.train_seconds = 0, 0.0, 0.0
        self.norm = math.nan  # of the last gradient that was looked at
        self.started: float | None = None

    def start(self) -> None:
        """Start the clock, unless it runs."""
        if self.started is None:
            self.started = time.perf_counter()

    def add(self, mean_loss: Tensor, images: int) -> None:
        self.loss.add_(mean_loss, alpha=images)
        self.images += images

    def stop(self) -> None:
        """Stop the clock, until the next `start`."""
        if self.started is not None:
            passed = time.perf_counter() - self.started
            self.seconds, self.train_seconds, self.started = self.seconds + passed, self.train_seconds + passed, None

    def read(self, net: nn.Module) -> Reading:
        """Return what the next train line says. Host-device sync; stops the clock."""
        gradients = [p.grad for p in net.parameters() if p.requires_grad and p.grad is not None]
        if gradients:  # else no step was taken since a restart: the norm is that of before
            loss, self.norm = torch.stack((self.loss, nn.utils.get_total_norm(gradients).float())).tolist()
        else:
            loss = self.loss.item()
        self.stop()
        return Reading(loss / self.images, self.images / max(self.seconds, 1e-9), self.norm)

    def reset(self) -> None:
        """Begin the next train line."""
        self.loss.zero_()
        self.images, self.seconds = 0, 0.0
