"""CIFAR ResNets, with and without shortcuts, in post- and pre-activation order, and DenseNet-BC.

Source  He et al.: Deep Residual Learning (arXiv:1512.03385), section 4.2; He et al.: Identity Mappings (arXiv:1603.05027);
        Huang et al.: Densely Connected Convolutional Networks (arXiv:1608.06993). Mentioned in the transfer and Inception notes
Shapes  images float (N, 3, 32, 32) -> logits float (N, 10)

Parameters: ResNet-20 269,722; 32: 464,154; 44: 658,586; 56: 853,018; 110: 1,727,962. State dict keys are those of
github.com/akamaster/pytorch_resnet_cifar10, whose weights load once the prefix `module.` is removed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm: (N, C, H, W) -> (N, planes, H / stride, W / stride).

    `shortcut` adds the input. Where the shape changes it takes every second pixel and fills new channels with zeros (the paper's
    option A, which has no parameters). Without `shortcut` the block is that of a plain net. `preact` puts batch norm and ReLU
    before each convolution, and in the `first` block of a net before the shortcut as well (Identity Mappings, appendix).
    """

    def __init__(self, in_planes: int, planes: int, stride: int, shortcut: bool, preact: bool, first: bool = False):
        super().__init__()
        self.stride, self.new, self.has_shortcut, self.preact = stride, planes - in_planes, shortcut, preact
        self.first = first
        self.conv1 = nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_planes if preact else planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1 or self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return x

    def forward(self, x: Tensor) -> Tensor:
        if self.preact:
            out = F.relu(self.bn1(x))
            x = out if self.first else x
            out = self.conv2(F.relu(self.bn2(self.conv1(out))))
            return out + self.shortcut(x) if self.has_shortcut else out
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x) if self.has_shortcut else out)


class CifarResNet(nn.Module):
    """The paper's net of `depth` = 6 n + 2 layers: 3 stages of n blocks with 16, 32 and 64 channels.

    Raises ValueError if `depth` is not 6 n + 2.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int = 20, shortcut: bool = True, preact: bool = False, in_channels: int = 3, num_classes: int = 10):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6 n + 2 (20, 32, 44, 56, 110 …), not {depth}")
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64 if preact else 16)
        self.preact = preact
        widths = (16, 16, 32, 64)
        for number in (1, 2, 3):
            row = [Block(widths[number - 1], widths[number], 2 if number > 1 else 1, shortcut, preact, first=number == 1)]
            row += [Block(widths[number], widths[number], 1, shortcut, preact) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*row))
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        out = self.conv1(x)  # (N, 16, 32, 32)
        if not self.preact:
            out = F.relu(self.bn1(out))
        out = self.layer3(self.layer2(self.layer1(out)))  # (N, 64, 8, 8)
        if self.preact:
            out = F.relu(self.bn1(out))
        return self.linear(out.mean((2, 3)))  # (N, 10)


class DenseLayer(nn.Module):
    """BN-ReLU-1×1 to 4 k channels, BN-ReLU-3×3 to k, appended to the input: (N, C, H, W) -> (N, C + k, H, W)."""

    def __init__(self, in_planes: int, growth: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(in_planes), nn.Conv2d(in_planes, 4 * growth, kernel_size=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))), dim=1)


class DenseNetBC(nn.Module):
    """DenseNet-BC of `depth` layers and growth rate k. 769,162 parameters with 100 layers and k = 12.

    Raises ValueError if `depth` is not 6 n + 4.
    """

    def __init__(self, depth: int = 100, growth: int = 12, in_channels: int = 3, num_classes: int = 10):
        super().__init__()
        layers, rest = divmod(depth - 4, 6)
        if rest or layers < 1:
            raise ValueError(f"depth must be 6 n + 4 (40, 100 …), not {depth}")
        width = 2 * growth
        parts: list[nn.Module] = [nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)]
        for stage in range(3):
            parts += [DenseLayer(width + number * growth, growth) for number in range(layers)]
            width += layers * growth
            if stage < 2:  # transition: halves the channels and the size
                parts += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
                width //= 2
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        return self.classifier(self.features(x).mean((2, 3)))  # (N, 342, 8, 8) -> (N, 10)
