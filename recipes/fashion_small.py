"""Two small nets, built from parts of well-known ones, on Fashion-MNIST.

Source  transfer notes, section 2.2: MyNet1 (32 × 32) and MyNet2 (28 × 28). The notes do not say how they are trained
Data    Fashion-MNIST: 60,000 training and 10,000 test images, (1, 28, 28), resized to 32 × 32 on the device for MyNet1
Expect  test accuracy 0.926 with --epochs 4 (n = 1); MyNet1 0.912 with --epochs 2 (n = 1)
Run     accelerate launch recipes/fashion_small.py --epochs 4
        accelerate launch recipes/fashion_small.py --net MyNet1 --epochs 2
"""

from dataclasses import replace
from typing import Literal

from launch import Run, cli, sources, train
from nets.small import MyNet1, MyNet2

import torch

NETS = {net.__name__: net for net in (MyNet1, MyNet2)}


def main(
    run: Run, net: Literal[tuple(NETS)] = "MyNet2", epochs: int = 10, batch: int = 128, lr: float = 0.05, momentum: float = 0.9
):
    images = sources.fashion_mnist(run.data, limit=run.limit)
    if net == "MyNet1":
        images = replace(images, size=32)
    model = NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, fused=True)
    train(run, model, images, optimizer, epochs=epochs, batch=batch, schedule=lambda epoch: 1 - epoch / epochs)


if __name__ == "__main__":
    cli(main)
