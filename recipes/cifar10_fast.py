"""CIFAR-10 at 94 % in few epochs: whitening, alternating flips, label smoothing, Muon, six views of each test image.

Source  Jordan: 94% on CIFAR-10 in 3.29 Seconds on a Single GPU (arXiv:2404.00498); settings of airbench94_muon.py at
        github.com/KellerJordan/cifar10-airbench, which trains 8 epochs, and the whitening layer's bias in the first 3 alone
Data    CIFAR-10: 50,000 training and 10,000 test images, (3, 32, 32)
Expect  test accuracy 0.9411 ± 0.0024 over six views of each image, 0.9330 ± 0.0024 over one (3 seeds, bf16, --micro-batches 4:
        about 10 minutes on 2 CPU cores)
Run     accelerate launch --config_file launch/gpu.yaml recipes/cifar10_fast.py --micro-batches 4
"""

from functools import partial

from launch import Run, cli, evaluate, sources, train
from launch.data import MemoryFeed, alternating_flip, translate
from launch.training.optimizers import Muon
from launch.training.schedules import linear
from nets.fast import FastNet, SixViews

import torch
import torch.nn.functional as F

BIASES, HEAD = 0.053, 0.67  # learning rates of SGD for the sum over a batch: of all biases, and of the last layer
WHITENED = 5000  # images that the first layer is computed from


def main(
    run: Run,
    epochs: int = 9,
    batch: int = 2000,
    lr: float = 0.24,
    momentum: float = 0.6,
    weight_decay: float = 2e-6,
    smoothing: float = 0.2,
):
    """Train a net of 1,972,792 parameters.

    Args:
        lr: Learning rate of Muon, for the convolutions.
        momentum: Momentum of Muon.
        weight_decay: Weight decay of an image, for biases and the last layer, independent of their learning rates.
        smoothing: Label smoothing: this part of each label is spread over all classes.
    """
    images = sources.cifar10(run.data, limit=run.limit)
    net = FastNet()
    pixels, _ = MemoryFeed(images.train, images, torch.device("cpu")).batch(torch.arange(min(WHITENED, len(images.train))))
    net.whiten(pixels)
    learning = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    filters = [p for _, p in learning if p.ndim == 4]
    biases = [p for _, p in learning if p.ndim == 1]
    groups = [
        {"params": filters, "muon": True, "normalised": True},
        {"params": biases, "lr": BIASES * batch, "weight_decay": weight_decay / BIASES},
        {"params": [net.head.weight], "lr": HEAD * batch, "weight_decay": weight_decay / HEAD},
    ]
    optimizer = Muon(groups, lr, muon_momentum=momentum, ns_steps=3, momentum=0.85, nesterov=True, fused=True)

    loss = partial(F.cross_entropy, label_smoothing=smoothing)
    options = {"epochs": epochs, "batch": batch, "schedule": linear(epochs), "augment": [alternating_flip, translate]}
    trained = train(run, net, images, optimizer, loss, stage="trained", **options)
    test = evaluate(run, SixViews(net), images)
    summary = f"test accuracy {test['accuracy']:.4f} over six views of each image, {trained['test']['accuracy']:.4f} over one"
    run.finish(summary, test=test, one_view=trained["test"], stages=[trained])


if __name__ == "__main__":
    cli(main)
