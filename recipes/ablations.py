"""DLwPT ch. 8's chart, continued: what today's methods add to the net that its section 5 widens, regularises and deepens.

Source  DLwPT ch. 8, section 5: `Net` on birds and airplanes, its settings, for half of its epochs; docs/training.md has the
        source of each method
Data    CIFAR-10, birds and airplanes only: 10,000 training and 2,000 test images, (3, 32, 32)
Expect  docs/training.md has the table and the plot of five seeds
Run     accelerate launch recipes/ablations.py --method crop
        oneloop sweep recipes/ablations.py --method none smoothing mixup cutmix crop ema cosine adamw muon --seed 1 2 3 4 5
        make ablations

Each method is added to plain SGD at DLwPT's constant rate; one that brings a rate of its own has the usual one.
"""

from functools import partial
from typing import Literal

from launch import Run, cli, sources, train
from launch.data import crop_and_flip, cutmix, mixup
from launch.training.optimizers import Muon, groups
from launch.training.schedules import cosine
from nets.cifar2 import Net

import torch
import torch.nn.functional as F

METHODS = "none", "smoothing", "mixup", "cutmix", "crop", "ema", "cosine", "adamw", "muon"


def main(run: Run, method: Literal[METHODS] = "none", epochs: int = 50, batch: int = 64, lr: float = 1e-2):
    """Train `Net` with one method.

    Args:
        method: What is added; docs/training.md says what each is.
        lr: Learning rate of plain SGD; AdamW and Muon have their own.
    """
    images = sources.cifar10(run.data, keep=("airplane", "bird"), limit=run.limit)
    model = Net()
    if method == "muon":
        matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
        last = [{"params": [model.fc2.weight, *vectors], "lr": lr}]
        optimizer = Muon([{"params": matrices[:-1], "muon": True}, *last], lr=0.005, momentum=0.9, nesterov=True, fused=True)
    elif method == "adamw":
        optimizer = torch.optim.AdamW(groups(model, lr=1e-3, weight_decay=0.01), fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=True)
    train(
        run,
        model,
        images,
        optimizer,
        partial(F.cross_entropy, label_smoothing=0.1) if method == "smoothing" else F.cross_entropy,
        epochs=epochs,
        batch=batch,
        schedule=cosine(epochs) if method == "cosine" else None,
        augment=crop_and_flip if method == "crop" else (),
        mix=mixup(0.2) if method == "mixup" else cutmix() if method == "cutmix" else None,
        ema=0.998 if method == "ema" else 0.0,
    )


if __name__ == "__main__":
    cli(main)
