"""Networks for handwritten digits, from the MNIST notes and the Inception notes, and LeNet-5.

Source  MnistNet: MNIST notes, sections 2.2, 2.4 and 2.6. LectureNet: Inception notes, "代码示例". InceptionNet and ResidualNet:
        the figures of the two modules in the Inception notes, with the sizes of the course that these follow
Shapes  images float (N, 1, 28, 28) -> logits float (N, 10). No other image size works
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MnistNet(nn.Module):
    """The MNIST notes' net. 21,840 parameters with the 50 hidden units of their code and results; 25,150 with the 60 of the text.

    `MnistNet(32, 64, 100)` is its wide net (section 2.6): 155,606. Returns logits: cross-entropy on them is the notes'
    log_softmax followed by the negative log-likelihood.
    """

    def __init__(self, chans1: int = 10, chans2: int = 20, hidden: int = 50, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, chans1, kernel_size=5)
        self.conv2 = nn.Conv2d(chans1, chans2, kernel_size=5)
        self.conv2_drop = nn.Dropout2d(0.5)
        self.fc1 = nn.Linear(chans2 * 4 * 4, hidden)
        self.fc1_drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 28, 28)
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (N, 10, 12, 12)
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))  # (N, 20, 4, 4)
        x = self.fc1_drop(F.relu(self.fc1(x.flatten(1))))  # (N, 50)
        return self.fc2(x)  # (N, 10)


class LectureNet(nn.Module):
    """The Inception notes' `Net`: two convolutions and one linear layer. 8,490 parameters."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.fc = nn.Linear(320, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 28, 28)
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (N, 10, 12, 12)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 20, 4, 4)
        return self.fc(x.flatten(1))  # (N, 10)


class InceptionA(nn.Module):
    """Four parallel branches, concatenated along channels: (N, C, H, W) -> (N, 88, H, W); 88 = 16 + 24 + 24 + 24."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.branch1x1 = nn.Conv2d(in_channels, 16, kernel_size=1)
        self.branch5x5 = nn.Sequential(nn.Conv2d(in_channels, 16, kernel_size=1), nn.Conv2d(16, 24, kernel_size=5, padding=2))
        self.branch3x3 = nn.Sequential(
            nn.Conv2d(in_channels, 16, kernel_size=1),
            nn.Conv2d(16, 24, kernel_size=3, padding=1),
            nn.Conv2d(24, 24, kernel_size=3, padding=1),
        )
        self.branch_pool = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(in_channels, 24, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch1x1(x), self.branch5x5(x), self.branch3x3(x), self.branch_pool(x)), dim=1)


class InceptionNet(nn.Module):
    """The Inception notes' net with two Inception modules. 97,298 parameters."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 10, kernel_size=5)
        self.incep1 = InceptionA(10)
        self.conv2 = nn.Conv2d(88, 20, kernel_size=5)
        self.incep2 = InceptionA(20)
        self.fc = nn.Linear(88 * 4 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 28, 28)
        x = self.incep1(F.relu(F.max_pool2d(self.conv1(x), 2)))  # (N, 88, 12, 12)
        x = self.incep2(F.relu(F.max_pool2d(self.conv2(x), 2)))  # (N, 88, 4, 4)
        return self.fc(x.flatten(1))  # (N, 10)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a skip connection around them: (N, C, H, W) -> the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ResidualNet(nn.Module):
    """The Inception notes' net with two residual blocks. 41,514 parameters."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=5)
        self.rblock1 = ResidualBlock(16)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=5)
        self.rblock2 = ResidualBlock(32)
        self.fc = nn.Linear(32 * 4 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 28, 28)
        x = self.rblock1(F.max_pool2d(F.relu(self.conv1(x)), 2))  # (N, 16, 12, 12)
        x = self.rblock2(F.max_pool2d(F.relu(self.conv2(x)), 2))  # (N, 32, 4, 4)
        return self.fc(x.flatten(1))  # (N, 10)


class LeNet5(nn.Module):
    """LeNet-5 as it is usually taught (LeCun et al. 1998; mentioned in the transfer notes, section 2.4). 61,706 parameters."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 28, 28)
        x = F.avg_pool2d(torch.tanh(self.conv1(x)), 2)  # (N, 6, 14, 14)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)), 2)  # (N, 16, 5, 5)
        x = torch.tanh(self.fc2(torch.tanh(self.fc1(x.flatten(1)))))  # (N, 84)
        return self.fc3(x)  # (N, 10)
