"""Test-time augmentation: the mean logits of a net over several views of each image."""

from torch import Tensor, nn

from nets.fast import SixViews


class Flip(nn.Module):
    """The mean logits of `net` over an image, (N, C, H, W), and its mirror image."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        mean: Tensor = (self.net(images) + self.net(images.flip(3))) / 2
        return mean


VIEWS = {"flip": Flip, "six": SixViews}  # six: moved by a pixel and mirrored


def over_views(net: nn.Module, kind: str) -> nn.Module:
    """`net` over one of VIEWS; `net` itself for ""."""
    return VIEWS[kind](net) if kind else net
