"""A net that learns CIFAR-10 in few epochs, and its evaluation over several views of each image.

Source  Jordan: 94% on CIFAR-10 in 3.29 Seconds on a Single GPU (arXiv:2404.00498) and github.com/KellerJordan/cifar10-airbench;
        whitening: Page, How to Train Your ResNet 8 (2019)
Shapes  images float (N, 3, 32, 32) -> logits float (N, 10)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """3×3, without bias; its first filters hand the channels on as they are (the paper's section 3.3)."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:in_channels])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    """Learns a bias only; its running statistics follow fast, as an epoch has few steps."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


class Group(nn.Module):
    """Two convolutions, pooled after the first: (N, C, H, W) -> (N, channels, H / 2, W / 2)."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv1, self.norm1 = _conv(in_channels, channels), _norm(channels)
        self.conv2, self.norm2 = _conv(channels, channels), _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class FastNet(nn.Module):
    """A frozen 2×2 layer that whitens, three groups of 64, 256 and 256 channels, one linear layer; 1,972,792 parameters.

    The linear layer's weights have a standard deviation of 1, and its outputs are divided by its 256 inputs.

    `whiten` sets the first layer from images.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, kernel_size=2)
        self.whitening.weight.requires_grad_(False)
        assert self.whitening.bias is not None
        nn.init.zeros_(self.whitening.bias)
        self.groups = nn.Sequential(Group(24, 64), Group(64, 256), Group(256, 256))
        self.head = nn.Linear(256, num_classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(self.whitening(x)))  # (N, 256, 3, 3)
        return self.head(F.max_pool2d(x, 3).flatten(1)) / self.head.in_features

    @torch.no_grad()
    def whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the first layer so that its outputs over the 2×2 patches of `images`, float (N, 3, H, W), are uncorrelated.

        Its filters are the eigenvectors of the patches' covariance, each divided by its standard deviation, and their negatives.
        """
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 12).double()  # (N·H'·W', 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # else LAPACK chooses the signs
        filters = (vectors / (values + eps).sqrt()).T.reshape(12, 3, 2, 2)
        self.whitening.weight.copy_(torch.cat((filters, -filters)))


class SixViews(nn.Module):
    """The mean logits of `net` over an image, the image moved by a pixel up and left, or down and right, and all mirrored.

    The image itself counts half, the two others a quarter each (the paper's section 3.5). Edges are reflected.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        moved = padded[:, :, :height, :width], padded[:, :, 2 : 2 + height, 2 : 2 + width]
        return self._mirrored(x) / 2 + self._mirrored(moved[0]) / 4 + self._mirrored(moved[1]) / 4

    def _mirrored(self, x: Tensor) -> Tensor:
        return (self.net(x) + self.net(x.flip(3))) / 2
