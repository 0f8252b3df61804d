"""Handwritten digits: the nets of the MNIST notes and the Inception notes, and LeNet-5.

Source  MNIST notes, sections 2.2 to 2.6 (MnistNet, MnistNet60, MnistNetWide): pixels / 255, not shuffled, SGD with learning rate
        0.01 and momentum 0.5, batches of 100. The Inception notes (LectureNet, InceptionNet, ResidualNet) and transfer notes
        (LeNet5) give no settings: their nets get normalised, shuffled images. The course that the former follow uses --batch 64
Data    MNIST: 60,000 training and 10,000 test images, (1, 28, 28). --data also takes a folder of idx files or an npz file
Expect  test accuracy (n = 1): MnistNet 0.955 after 5 epochs, MnistNetWide 0.966 after 4; with --batch 64 InceptionNet 0.985 and
        ResidualNet 0.990 after 5
Run     accelerate launch recipes/mnist.py
        accelerate launch recipes/mnist.py --net MnistNetWide --epochs 4
        accelerate launch recipes/mnist.py --net ResidualNet --epochs 10 --batch 64
        accelerate launch recipes/mnist.py --data ~/.keras/datasets/mnist.npz

The run folder shows the first hundred training images in montage.png and holds ten of them as PNG and JPEG files in images/
(MNIST notes, section 2.1).
"""

from functools import partial
from pathlib import Path
from typing import Literal

from launch import Run, cli, sources, train
from launch.report.plots import export, montage
from nets.mnist import InceptionNet, LectureNet, LeNet5, MnistNet, ResidualNet

import torch

MNIST_NOTES = {
    "MnistNet": MnistNet,
    "MnistNet60": partial(MnistNet, hidden=60),
    "MnistNetWide": partial(MnistNet, chans1=32, chans2=64, hidden=100),
}
OTHERS = {net.__name__: net for net in (LectureNet, InceptionNet, ResidualNet, LeNet5)}
NETS = MNIST_NOTES | OTHERS


def main(
    run: Run, net: Literal[tuple(NETS)] = "MnistNet", epochs: int = 5, batch: int = 100, lr: float = 0.01, momentum: float = 0.5
):
    as_notes = net in MNIST_NOTES  # they neither normalise nor shuffle
    images = sources.mnist(run.data, limit=run.limit, normalised=not as_notes)
    model = NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, fused=True)

    def plots(folder: Path) -> None:
        export(folder / "images", images.train, images.classes, count=10)
        montage(folder / "montage.png", images.train.pixels[:100])

    train(run, model, images, optimizer, epochs=epochs, batch=batch, shuffle=not as_notes, plots=plots)


if __name__ == "__main__":
    cli(main)
