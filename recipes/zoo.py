"""torchvision's architectures on small images, from scratch or from published weights.

Source  transfer notes, sections 2.1 and 2.3, which give no settings; --net takes every classification net in torchvision.models
Data    CIFAR-10 (3, 32, 32) or Fashion-MNIST (1, 28, 28), resized with --size on the device
Expect  no accuracy measured yet
Run     accelerate launch recipes/zoo.py
        accelerate launch recipes/zoo.py --net vgg16_bn --stem imagenet --dataset fashion_mnist --size 32
        accelerate launch --config_file launch/gpus.yaml recipes/zoo.py --net resnet50 --stem imagenet --size 224 --pretrained

--stem small gives a ResNet a 3 × 3 first layer without pooling, for images of 32 × 32; other nets need --stem imagenet.
--pretrained downloads torchvision's weights, checked against the sha256 digits in the file name, and normalises images with
ImageNet's mean and std. For grey images the first layer's kernels are summed over R, G and B.
"""

from dataclasses import replace
from typing import Literal

from launch import Run, cli, sources, train
from launch.errors import Refused
from launch.weights import load
from nets.zoo import check_size, published_scale, weights_url, zoo

import torch


def main(
    run: Run,
    net: str = "resnet18",
    dataset: Literal["cifar10", "fashion_mnist"] = "cifar10",
    size: int = 0,
    stem: Literal["small", "imagenet"] = "small",
    pretrained: bool = False,
    epochs: int = 10,
    batch: int = 128,
    lr: float = 0.05,
):
    """Train one of torchvision's nets.

    Args:
        net: The architecture, by torchvision's name for it.
        dataset: The data set.
        size: Resize images to this height and width in pixels; 0 keeps their size.
        stem: First layer: small for images of 32 x 32 (ResNets only), imagenet as torchvision has it.
        pretrained: Start from torchvision's published weights.
    """
    images = sources.cifar10(run.data, limit=run.limit) if dataset == "cifar10" else sources.fashion_mnist(run.data, run.limit)
    images = replace(images, size=size)
    channels, height = images.train.pixels.shape[1:3]
    try:
        check_size(net, size or height)
        state = load(weights_url(net)) if pretrained else None
        model = zoo(net, in_channels=channels, stem=stem, grey="sum" if pretrained else "fresh", state=state)
    except ValueError as error:
        raise Refused(f"{error} (use --size N to resize; nets other than ResNets need --stem imagenet)", 2) from error
    if pretrained:
        images = replace(images, **published_scale(channels))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, fused=True)
    train(run, model, images, optimizer, epochs=epochs, batch=batch, schedule=lambda epoch: 1 - epoch / epochs)


if __name__ == "__main__":
    cli(main)
