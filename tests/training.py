"""Trainings of the tiny recipe in this process: 61 images in batches of 8, so 8 steps an epoch, the last with 5 images."""

import pytest
import torch
import torch.nn.functional as F
from conftest import optimizer_for
from tiny import Tiny
from torch import nn

from launch import train
from launch.data.augment import Rng
from launch.data.feed import MemoryFeed
from launch.errors import Refused
from launch.training.batches import TrainingFeed
from launch.training.step import Step

EPOCHS, BATCH = 3, 8
STEPS = EPOCHS * 8


def fit(run, images, kind="sgd", model=None, **options):
    model = model or Tiny()
    try:
        train(run, model, images, optimizer_for(model, kind), **({"epochs": EPOCHS, "batch": BATCH} | options))
    finally:
        run.end()
    return model


def step_of(run, model, images):
    """One update, without the loop around it."""
    feed = TrainingFeed(run, MemoryFeed(images.train, images, torch.device("cpu")))
    return Step(run, model, feed, optimizer_for(model), F.cross_entropy)


def batch_of(step, ids, number: int):
    """The batch of step `number`, in the first epoch."""
    return next(step.feed.batches([ids], 0, number))


def at_step(number: int):
    """For Run.stop_when: a stop during this step, counted from 1."""
    return lambda step, batch: batch is None and step == number - 1


def in_evaluation(step: int, batch: int = 0):
    """For Run.stop_when: a stop after this batch of the evaluation that follows the step."""
    return lambda *moment: moment == (step, batch)


def interrupted(start, images, at: int, kind="sgd", epochs=EPOCHS, optimizer=None, **flags):
    """A run that is stopped during step `at`, counted from 1, and then resumed."""
    with pytest.raises(Refused, match="stopped by SIGTERM") as refused:
        fit(start(stop_when=at_step(at), **flags), images, kind, epochs=epochs)
    assert refused.value.code == 143
    return fit(start(**flags), images, kind, epochs=epochs)


class Answers(Rng):
    """Integers as a function answers: (kind, n, by_turns if it is true) -> int64 (batch,)."""

    def __init__(self, answer):
        self.answer = answer

    def integers(self, kind, n, by_turns=False):
        return self.answer(kind, n, *([True] if by_turns else []))

    def on(self, device):
        return self


class Linear(nn.Module):
    """(N, 1, 8, 8) -> (N, 3), without batch norm or dropout."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(x.flatten(1))


class TwoConvolutions(nn.Module):
    """The second one's weight has several channels in and out, so channels last is another order in memory than the usual."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 64, 3)

    def forward(self, x):
        return self.fc(self.conv2(torch.relu(self.conv1(x))).flatten(1))


class ReadsOnTheHost(Tiny):
    def forward(self, x):
        return super().forward(x) * (2 if x.mean() > 0 else 1)


class ChoosesOnTheHost(Tiny):
    def forward(self, x):
        out = super().forward(x)
        return out + 0 * out[out > 0].sum()  # how many there are, the host has to know


class MixesDevices(Tiny):
    def forward(self, x):
        return super().forward(x) + torch.ones(3)
