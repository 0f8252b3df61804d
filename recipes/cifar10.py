"""ResNets, plain nets and DenseNets on all of CIFAR-10, with the ResNet paper's schedule.

Source  He et al. (arXiv:1512.03385), section 4.2: SGD with learning rate 0.1, momentum 0.9, weight decay 0.0001, batches of 128,
        the rate divided by 10 at 1/2 and 3/4 of the epochs, crop and flip. The paper subtracts the mean image, this recipe the
        mean colour. DenseNet (arXiv:1608.06993): Nesterov momentum, batches of 64, 300 epochs. Mentioned in the
        transfer notes, section 2.4 (ResNet-110: about 93 %), and the Inception notes
Data    CIFAR-10: 50,000 training and 10,000 test images, (3, 32, 32)
Expect  test accuracy 0.9173 and 0.9263 with the public weights of ResNet-20 and 32, as published. Not yet trained here; the
        papers have 0.9357 for ResNet-110 and 0.9549 for DenseNet-BC(100)
Run     accelerate launch --config_file launch/gpus.yaml recipes/cifar10.py --net ResNet --depth 110
        accelerate launch recipes/cifar10.py --depth 20 --epochs 30
        accelerate launch recipes/cifar10.py --net Plain --depth 56
        accelerate launch --config_file launch/gpus.yaml recipes/cifar10.py --net DenseNetBC --depth 100 --batch 64 --epochs 300
        accelerate launch recipes/cifar10.py --weights resnet20-12fca82f.th --imagenet-scale --epochs 0

--weights starts from the weights in a file, at a URL or in a run folder; --epochs 0 only measures them. The public weights of
github.com/akamaster/pytorch_resnet_cifar10 were trained on images normalised with ImageNet's mean and std.
"""

from dataclasses import replace
from typing import Literal

from launch import Run, cli, evaluate, sources, train
from launch.data import Images, crop_and_flip
from launch.errors import Refused
from launch.weights import load_into
from nets.residual import CifarResNet, DenseNetBC
from nets.zoo import published_scale

import torch

NETS = {
    "ResNet": lambda depth: CifarResNet(depth),
    "Plain": lambda depth: CifarResNet(depth, shortcut=False),
    "PreActResNet": lambda depth: CifarResNet(depth, preact=True),
    "DenseNetBC": lambda depth: DenseNetBC(depth),
}


def main(
    run: Run,
    net: Literal[tuple(NETS)] = "ResNet",
    depth: int = 20,
    epochs: int = 164,
    batch: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    weights: str = "",
    sha256: str = "",
    imagenet_scale: bool = False,
):
    """Train a net, or measure one with --epochs 0.

    Args:
        net: The kind of network.
        depth: Number of layers: 6 n + 2, and 6 n + 4 for DenseNetBC.
        epochs: Epochs to train. 164 are the paper's 64,000 steps; 0 only measures the weights.
        weights: Start from these weights: a file, a URL or a run folder.
        sha256: Expected sha256 of weights at a URL.
        imagenet_scale: Normalise images with ImageNet's mean and std instead of CIFAR-10's.
    """
    images = sources.cifar10(run.data, limit=run.limit)
    if imagenet_scale:
        images = replace(images, **published_scale(channels=3))
    try:
        model = NETS[net](depth)
    except ValueError as error:
        raise Refused(f"--depth: {error}", 2) from error
    if weights:
        source = run.load(weights, sha256)
        if source.classes not in ((), images.classes):
            raise Refused(f"--weights tell other classes apart: {', '.join(source.classes[:10])}", 4)
        load_into(model, source.tensors)
    if epochs == 0:
        return measure(run, model, images)
    nesterov = net == "DenseNetBC" and momentum > 0
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True
    )

    def schedule(epoch: float) -> float:
        warm_up = 0.1 if depth >= 110 and epoch < 1 else 1.0  # as in the paper for 110 layers
        return warm_up * (1.0 if epoch < epochs / 2 else 0.1 if epoch < epochs * 3 / 4 else 0.01)

    train(run, model, images, optimizer, epochs=epochs, batch=batch, schedule=schedule, augment=crop_and_flip)


def measure(run: Run, model: torch.nn.Module, images: Images):
    """Evaluate without training; the run's result is the measurement."""
    run.open(images, {"model": type(model).__name__})
    test = evaluate(run, model, images)
    summary = f"{run.config['net']}-{run.config['depth']} as it is: test accuracy {test['accuracy']:.4f}, loss {test['loss']:.4f}"
    run.finish(summary, test=test)


if __name__ == "__main__":
    cli(main)
