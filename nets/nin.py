"""Network in Network: 1×1 convolutions in place of larger ones, global average pooling in place of linear layers.

Source  NiN notes; Lin, Chen, Yan: Network In Network (arXiv:1312.4400)
Shapes  images float (N, 1, 224, 224) -> logits float (N, 10)
"""

from torch import Tensor, nn


def make_layers(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, final_relu: bool = True
) -> nn.Sequential:
    """The notes' mlpconv: a convolution, then two 1×1 convolutions, a ReLU after each (the last if `final_relu`)."""
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, kernel_size=1),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if final_relu else []))


class NinNet(nn.Module):
    """The notes' net: feature maps of 55, 27, 27, 13, 13, 6 and 6 pixels, then their average. 1,992,166 parameters.

    `final_relu`, as in the notes, clips the logits at 0. A class whose logit is 0 for every image gets no gradient and never
    recovers.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, final_relu: bool = True):
        super().__init__()
        self.conv = nn.Sequential(
            make_layers(in_channels, 96, 11, stride=4, padding=2),  # (N, 96, 55, 55)
            nn.MaxPool2d(kernel_size=3, stride=2),  # (N, 96, 27, 27)
            make_layers(96, 256, 5, padding=2),
            nn.MaxPool2d(kernel_size=3, stride=2),  # (N, 256, 13, 13)
            make_layers(256, 384, 3, padding=1),
            nn.MaxPool2d(kernel_size=3, stride=2),  # (N, 384, 6, 6)
            make_layers(384, num_classes, 3, padding=1, final_relu=final_relu),  # (N, 10, 6, 6): one map per class
        )

    def forward(self, img: Tensor) -> Tensor:  # (N, 1, 224, 224)
        return self.conv(img).mean((2, 3))  # global average pooling: (N, 10)
