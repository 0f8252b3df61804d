"""The networks of chapter 8: birds against airplanes.

Source  Deep Learning with PyTorch, chapter 8, as noted in document 000, sections 2.4, 3 and 5; the book's notebook
        p1ch8/1_convolution.ipynb for NetDepth and NetRes, which the document only names, and for NetResDeep
Shapes  images float (N, 3, 32, 32) -> logits float (N, 2), for every net here; `in_channels` and `num_classes` change the ends
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """The chapter's baseline: two convolutions, two linear layers, tanh (document 000, section 3). 18,090 parameters."""

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
    """`Net` as the document first writes it (section 2.4), with the reshape that it leaves out: nn.Flatten. 18,090 parameters."""
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
    """The book's nets without convolutions (chapter 7): 1,574,402 parameters with (512,), 3,737,474 with (1024, 512, 128)."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise((3 * 32 * 32, *hidden)):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 2))


class NetWidth(nn.Module):
    """`Net` with `n_chans1` and half as many channels (section 5.1). 38,386 parameters with 32."""

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
    """`NetWidth` with whole channels dropped, p = 0.4, after each pool (section 5.2). 38,386 parameters."""

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
    """`NetWidth` with batch normalisation before each tanh (section 5.2). 38,482 parameters."""

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
    """A third convolution, and relu instead of tanh (the design that section 5.2 names last). 16,130 parameters."""

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
    """`NetDepth` with an identity around the third convolution (named in section 5.2). 16,130 parameters."""

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
    """Convolution, batch normalisation, relu, plus the input: (N, C, H, W) -> the same. 9 C² + 2 C parameters."""

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
    """A row of residual blocks. 994,530 parameters with 100 blocks, 159,330 with 10.

    The book writes `n_blocks * [ResBlock(...)]`, which repeats one block: `shared`, 75,810 parameters for any number. By
    default the blocks are independent.
    """

    def __init__(
        self, n_chans1: int = 32, n_blocks: int = 100, shared: bool = False, in_channels: int = 3, num_classes: int = 2
    ):
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
