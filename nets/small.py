"""Two small nets for small images, built from parts of well-known ones.

Source  transfer notes, section 2.2
Shapes  MyNet1: images float (N, 1, 32, 32) -> logits (N, 10); MyNet2: (N, 1, 28, 28) -> (N, 10)

The notes take the parts from module-level VGG and ResNet objects, so two instances share weights. Here each net has its own.
"""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class MyNet1(nn.Module):
    """A convolution, vgg16_bn's second stage, resnet18's layer3, global average pooling. 2,325,002 parameters."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        self.block2 = nn.Sequential(  # vgg16_bn.features[7:14]
            nn.Conv2d(64, 128, kernel_size=3, padding=1),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, kernel_size=3, padding=1),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),
        )
        halve = nn.Sequential(nn.Conv2d(128, 256, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(256))
        self.block3 = nn.Sequential(BasicBlock(128, 256, stride=2, downsample=halve), BasicBlock(256, 256))  # resnet18.layer3
        self.fc = nn.Linear(256, num_classes)
        for module in (*self.block2.modules(), *self.block3.modules()):  # torchvision's initialisation of VGG and ResNet
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 32, 32)
        x = self.block2(self.conv1(x))  # (N, 128, 16, 16)
        x = self.block3(x)  # (N, 256, 8, 8)
        return self.fc(x.mean((2, 3)))  # (N, 10)


class BasicConv2d(nn.Module):
    """Convolution, batch norm, ReLU: (N, C, H, W) -> (N, out_channels, H, W). The redundant bias is that of the notes."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MyNet2(nn.Module):
    """AlexNet scaled down: two convolutions, three more, two linear layers. 925,482 parameters.

    Returns logits. `log_softmax` appends the notes' LogSoftmax; cross-entropy is the same with and without it.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, log_softmax: bool = False):
        super().__init__()
        self.block1 = nn.Sequential(
            BasicConv2d(in_channels, 32, kernel_size=5, padding=2),
            BasicConv2d(32, 32, kernel_size=5, padding=2),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.25),
        )
        self.block2 = nn.Sequential(
            BasicConv2d(32, 64, kernel_size=3, padding=1),
            BasicConv2d(64, 64, kernel_size=3, padding=1),
            BasicConv2d(64, 64, kernel_size=3, padding=1),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.25),
        )
        self.classifier_ = nn.Sequential(
            nn.Linear(64 * 7 * 7, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Linear(256, num_classes)
        )
        if log_softmax:
            self.classifier_.append(nn.LogSoftmax(dim=1))

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 28, 28)
        x = self.block1(x)  # (N, 32, 14, 14)
        x = self.block2(x)  # (N, 64, 7, 7)
        return self.classifier_(x.flatten(1))  # (N, 10)
