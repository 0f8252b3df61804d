"""CIFAR-10 at 94 % in few epochs: whitening, alternating flips, label smoothing, a large rate for the biases, six views.

Source  Jordan: 94% on CIFAR-10 in 3.29 Seconds on a Single GPU (arXiv:2404.00498); settings of airbench94.py at
        github.com/KellerJordan/cifar10-airbench, without its averaging of weights (Lookahead), for which it trains longer
Data    CIFAR-10: 50,000 training and 10,000 test images, (3, 32, 32)
Expect  test accuracy 0.9422 over six views of each image, 0.9323 over one (n = 1), in bf16: 5 s of training on an NVIDIA H200.
        With 12 epochs 0.9348 and 0.9295 (n = 1)
Run     accelerate launch --mixed_precision bf16 recipes/cifar10_fast.py
        accelerate launch --config_file launch/gpu.yaml recipes/cifar10_fast.py

The rates are those of a batch of 1,024 with momentum 0.85, expressed so that batch and momentum can change without them.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from launch import Run, cli, evaluate, sources, train
from launch.data import Draw, Feed, alternating_flip, translate
from nets.fast import FastNet, SixViews

BIASES = 64  # how much larger the learning rate of batch norm's biases is
WHITENED = 5000  # images that the first layer is computed from


def main(
    run: Run,
    epochs: int = 14,
    batch: int = 1024,
    lr: float = 11.5,
    momentum: float = 0.85,
    weight_decay: float = 0.0153,
    smoothing: float = 0.2,
):
    """Train a net of 1,972,792 parameters.

    Args:
        lr: Learning rate for 1,024 images, before momentum.
        weight_decay: Weight decay for 1,024 images, independent of the learning rate.
        smoothing: Label smoothing: this part of each label is spread over all classes.
    """
    images = sources.cifar10(run.data, limit=run.limit)
    net = FastNet()
    pixels, _ = Feed(images.train, images, torch.device("cpu")).batch(torch.arange(min(WHITENED, len(images.train))))
    net.whiten(pixels)
    scale = batch / 1024 / (1 + 1 / (1 - momentum))  # Nesterov's momentum makes a step this much longer
    lr, decay = lr * scale, weight_decay * scale
    learning = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    biases = [p for name, p in learning if "norm" in name]
    others = [p for name, p in learning if "norm" not in name]
    groups = [
        {"params": biases, "lr": BIASES * lr, "weight_decay": decay / (BIASES * lr)},
        {"params": others, "lr": lr, "weight_decay": decay / lr},
    ]
    optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=True, fused=True)

    def schedule(epoch: float) -> float:
        """From 0.2 up to 1 in 23 % of the epochs, then down to 0.07."""
        done = epoch / epochs
        return 0.2 + 0.8 * done / 0.23 if done < 0.23 else 1 - 0.93 * (done - 0.23) / 0.77

    loss = partial(F.cross_entropy, label_smoothing=smoothing)
    options = {"epochs": epochs, "batch": batch, "schedule": schedule, "augment": augment}
    trained = train(run, net, images, optimizer, loss, stage="trained", **options)
    test = evaluate(run, SixViews(net), images)
    summary = f"test accuracy {test['accuracy']:.4f} over six views of each image, {trained['test']['accuracy']:.4f} over one"
    run.finish({"recipe": run.recipe, "summary": summary, "test": test, "one_view": trained["test"], "stages": [trained]})
    if run.rank == 0:
        print(summary)


def augment(pixels: Tensor, draw: Draw) -> Tensor:
    return translate(alternating_flip(pixels, draw), draw)


if __name__ == "__main__":
    cli(main)
