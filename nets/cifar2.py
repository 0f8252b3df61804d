"""Networks that tell birds from airplanes.

Source  DLwPT ch. 8 (Deep Learning with PyTorch, chapter 8), sections 2.4, 3 and 5 of the notes on it. NetDepth and NetRes,
        which the notes only mention, and NetResDeep follow the chapter's notebook p1ch8/1_convolution.ipynb
Shapes  images float (N, 3, 32, 32) -> logits float (N, 2). Set `in_channels` and `num_classes` for other images
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """The chapter's baseline: two convolutions, two linear layers, tanh (section 3). 18,090 parameters."""

    def __init__(self, in_channels: int = 3, num_classes: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 8, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(8 * 8 * 8, 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        out = F.max_pool2d(torch.tanh(self.conv1(x)), 2)  # (N, 16, 16, 16)
        out = F.max_pool2d(torch.tanh(self.conv2(out)), 2)  # (N, 8, 8, 8)
        out = torch.tanh(self.fc1(out.flatten(1)))  # (N, 32)
        return self.fc2(out)  # (N, 2)


def net_sequential() -> nn.Sequential:
    """`Net` as an nn.Sequential (section 2.4), with the nn.Flatten that the notes forget. 18,090 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, kernel_size=3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 8, kernel_size=3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 32),
        nn.Tanh(),
        nn.Linear(32, 2),
    )


def fully_connected(*hidden: int) -> nn.Sequential:
    """Fully connected nets of the book's chapter 7. (512,): 1,574,402 parameters; (1024, 512, 128): 3,737,474."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise((3 * 32 * 32, *hidden)):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 2))


class NetWidth(nn.Module):
    """`Net` with `n_chans1` channels, then half as many (section 5.1). 38,386 parameters with 32."""

    def __init__(self, n_chans1: int = 32, in_channels: int = 3, num_classes: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, n_chans1, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(n_chans1, n_chans1 // 2, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(8 * 8 * (n_chans1 // 2), 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        out = F.max_pool2d(torch.tanh(self.conv1(x)), 2)  # (N, 32, 16, 16)
        out = F.max_pool2d(torch.tanh(self.conv2(out)), 2)  # (N, 16, 8, 8)
        out = torch.tanh(self.fc1(out.flatten(1)))  # (N, 32)
        return self.fc2(out)  # (N, 2)


class NetDropout(nn.Module):
    """`NetWidth` with Dropout2d, p = 0.4, after each pool (section 5.2). 38,386 parameters."""

    def __init__(self, n_chans1: int = 32, in_channels: int = 3, num_classes: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, n_chans1, kernel_size=3, padding=1)
        self.conv1_dropout = nn.Dropout2d(p=0.4)
        self.conv2 = nn.Conv2d(n_chans1, n_chans1 // 2, kernel_size=3, padding=1)
        self.conv2_dropout = nn.Dropout2d(p=0.4)
        self.fc1 = nn.Linear(8 * 8 * (n_chans1 // 2), 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        out = self.conv1_dropout(F.max_pool2d(torch.tanh(self.conv1(x)), 2))  # (N, 32, 16, 16)
        out = self.conv2_dropout(F.max_pool2d(torch.tanh(self.conv2(out)), 2))  # (N, 16, 8, 8)
        out = torch.tanh(self.fc1(out.flatten(1)))  # (N, 32)
        return self.fc2(out)  # (N, 2)


class NetBatchNorm(nn.Module):
    """`NetWidth` with batch norm before each tanh (section 5.2). 38,482 parameters."""

    def __init__(self, n_chans1: int = 32, in_channels: int = 3, num_classes: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, n_chans1, kernel_size=3, padding=1)
        self.conv1_batchnorm = nn.BatchNorm2d(n_chans1)
        self.conv2 = nn.Conv2d(n_chans1, n_chans1 // 2, kernel_size=3, padding=1)
        self.conv2_batchnorm = nn.BatchNorm2d(n_chans1 // 2)
        self.fc1 = nn.Linear(8 * 8 * (n_chans1 // 2), 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        out = F.max_pool2d(torch.tanh(self.conv1_batchnorm(self.conv1(x))), 2)  # (N, 32, 16, 16)
        out = F.max_pool2d(torch.tanh(self.conv2_batchnorm(self.conv2(out))), 2)  # (N, 16, 8, 8)
        out = torch.tanh(self.fc1(out.flatten(1)))  # (N, 32)
        return self.fc2(out)  # (N, 2)


class NetDepth(nn.Module):
    """`NetWidth` with a third convolution, and relu instead of tanh (mentioned at the end of section 5.2). 16,130 parameters."""

    def __init__(self, n_chans1: int = 32, in_channels: int = 3, num_classes: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, n_chans1, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(n_chans1, n_chans1 // 2, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(n_chans1 // 2, n_chans1 // 2, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(4 * 4 * (n_chans1 // 2), 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        out = F.max_pool2d(torch.relu(self.conv1(x)), 2)  # (N, 32, 16, 16)
        out = F.max_pool2d(torch.relu(self.conv2(out)), 2)  # (N, 16, 8, 8)
        out = F.max_pool2d(torch.relu(self.conv3(out)), 2)  # (N, 16, 4, 4)
        out = torch.relu(self.fc1(out.flatten(1)))  # (N, 32)
        return self.fc2(out)  # (N, 2)


class NetRes(nn.Module):
    """`NetDepth` with a skip connection around the third convolution (mentioned in section 5.2). 16,130 parameters."""

    def __init__(self, n_chans1: int = 32, in_channels: int = 3, num_classes: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, n_chans1, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(n_chans1, n_chans1 // 2, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(n_chans1 // 2, n_chans1 // 2, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(4 * 4 * (n_chans1 // 2), 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        out = F.max_pool2d(torch.relu(self.conv1(x)), 2)  # (N, 32, 16, 16)
        out = F.max_pool2d(torch.relu(self.conv2(out)), 2)  # (N, 16, 8, 8)
        out = F.max_pool2d(torch.relu(self.conv3(out)) + out, 2)  # (N, 16, 4, 4)
        out = torch.relu(self.fc1(out.flatten(1)))  # (N, 32)
        return self.fc2(out)  # (N, 2)


class ResBlock(nn.Module):
    """relu(batch norm(convolution)) plus the input: (N, C, H, W) -> the same shape. 9 C² + 2 C parameters."""

    def __init__(self, n_chans: int):
        super().__init__()
        self.conv = nn.Conv2d(n_chans, n_chans, kernel_size=3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(n_chans)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.constant_(self.batch_norm.weight, 0.5)
        nn.init.zeros_(self.batch_norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.batch_norm(self.conv(x))) + x


class NetResDeep(nn.Module):
    """A chain of residual blocks. 994,530 parameters with 100 blocks, 159,330 with 10.

    DLwPT writes `n_blocks * [ResBlock(...)]`, which uses one block many times: 75,810 parameters however many blocks. Set
    `shared` for that; by default every block has weights of its own.
    """

    def __init__(self, n_chans1: int = 32, n_blocks: int = 100, shared: bool = False, in_channels: int = 3, num_classes: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, n_chans1, kernel_size=3, padding=1)
        blocks = n_blocks * [ResBlock(n_chans1)] if shared else [ResBlock(n_chans1) for _ in range(n_blocks)]
        self.resblocks = nn.Sequential(*blocks)
        self.fc1 = nn.Linear(8 * 8 * n_chans1, 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        out = F.max_pool2d(torch.relu(self.conv1(x)), 2)  # (N, 32, 16, 16)
        out = F.max_pool2d(self.resblocks(out), 2)  # (N, 32, 8, 8)
        out = torch.relu(self.fc1(out.flatten(1)))  # (N, 32)
        return self.fc2(out)  # (N, 2)
