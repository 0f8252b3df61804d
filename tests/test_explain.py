"""`oneloop explain`: Grad-CAM of the last convolution, for the class asked for."""

import csv
import io

import pytest
import torch
from PIL import Image
from torch import nn

from launch.commands.explain import grad_cam
from launch.errors import Refused

pytestmark = pytest.mark.usefixtures("own_path")


def test_explain_draws_an_image(trained_runs, oneloop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = oneloop("explain", trained_runs / "birds", trained_runs / "images/test/bird/01.png", "--class", "airplane")
    assert (code, error) == (0, "")
    assert out.startswith("airplane: ")
    assert "from conv2; 01-explained.png" in out
    with Image.open("01-explained.png") as image:
        assert image.size == (1080, 540)
    code, _, error = oneloop("explain", trained_runs / "birds", trained_runs / "images/test/bird/01.png", "--class", "cat")
    assert (code, error) == (2, f"no class 'cat'; those of {trained_runs / 'birds'} are airplane, bird\n")


def test_explain_takes_the_most_probable_class(trained_runs, oneloop, tmp_path):
    for image in sorted((trained_runs / "images/test").rglob("*.png"))[:3]:
        first = next(csv.DictReader(io.StringIO(oneloop("predict", trained_runs / "birds", image)[1])))
        code, out, _ = oneloop("explain", trained_runs / "birds", image, "--out", tmp_path / "explained.png")
        assert code == 0
        assert out.startswith(f"{first['class']}: {float(first['probability']):.1%}, from conv2; ")


def test_grad_cam_is_where_the_class_is():
    """One class is brightness, the other its opposite: the bright quarter of the image raises the first, nothing the second."""
    first, maps, last = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
    for module, weight in ((first, [[1.0]]), (maps, [[1.0], [-1.0]]), (last, [[1.0, 0.0], [-1.0, 0.0]])):
        nn.init.zeros_(module.bias)
        module.weight.data = torch.tensor(weight)[..., None, None]
    net = nn.Sequential(first, maps, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), last, nn.Flatten())
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4, :4] = 2
    name, heat = grad_cam(net, image, 0, (16, 16))
    assert name == "1"  # not the last, which sees one trained_runs
    assert heat.shape == (16, 16)
    assert heat.max() == 1
    assert heat[:6, :6].min() == 1
    assert heat[10:, 10:].max() == 0
    assert not grad_cam(net, image, 1, (16, 16))[1].any()
    with pytest.raises(Refused, match="neither a convolution nor tokens"):
        grad_cam(nn.Flatten(), image, 0, (8, 8))


def test_grad_cam_of_convolutions_is_captums():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2)
    )
    image = torch.randn(1, 3, 12, 12)
    net(image)
    for index in range(2):
        expected = attr.LayerGradCam(net, net[2]).attribute(image.clone().requires_grad_(), target=index, relu_attributions=True)
        expected = attr.LayerAttribution.interpolate(expected.detach(), (12, 12), "bilinear")[0, 0]
        name, heat = grad_cam(net, image, index, (12, 12))
        assert name == "2"
        torch.testing.assert_close(heat, expected / expected.max())


class Tokens(nn.Module):
    """Attention over the patches of a grey image of 16 × 16, whose first tokens are no patches; one class is brightness.

    The logits depend on the first token alone, which looks at bright patches in the one block; or on the mean of all patches.
    """

    def __init__(self, others: int, laid_out: bool = False):
        super().__init__()
        self.patch, self.others, self.laid_out = nn.Conv2d(1, 2, 4, 4), others, laid_out
        self.norm1, self.norm2 = nn.LayerNorm(2), nn.LayerNorm(2)
        self.head = nn.Linear(2, 2)
        nn.init.zeros_(self.patch.bias)
        nn.init.zeros_(self.head.bias)
        self.patch.weight.data = torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, 1, 4, 4).clone()
        self.head.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])

    def forward(self, x):
        tokens = self.patch(x).flatten(2).mT  # (1, 16, 2)
        if self.laid_out:  # channels last, as in Swin: no class token, the mean decides
            return self.head(self.norm2(tokens.view(1, 4, 4, 2)).mean((1, 2)))
        tokens = torch.cat((torch.zeros(1, self.others, 2), tokens), dim=1)
        seen = self.norm1(tokens)
        first = tokens[:, :1] + (seen[:, :, :1].softmax(1) * seen).sum(1, keepdim=True)
        tokens = self.norm2(torch.cat((first, tokens[:, 1:]), dim=1))
        return self.head(tokens[:, 0])


@pytest.mark.parametrize(("others", "laid_out", "layer"), [(1, False, "norm1"), (5, False, "norm1"), (0, True, "norm2")])
def test_of_a_transformer_the_last_tokens_are_laid_out_as_a_grid(others, laid_out, layer):
    """Not its patch embedding, and not what comes after its last attention, where the class token alone counts."""
    image = torch.full((1, 1, 16, 16), -1.0)
    image[..., 4:8, 8:12] = 1
    name, heat = grad_cam(Tokens(others, laid_out), image, 0, (16, 16))
    assert (name, heat.shape) == (layer, (16, 16))
    assert heat[5:7, 9:11].min() > 0.6
    assert heat[10:].max() < 0.3
    assert heat[:, :6].max() < 0.3


@pytest.mark.parametrize(
    ("name", "layer"),
    [("vit_tiny_patch16_224", "blocks.11 (its input)"), ("swin_tiny_patch4_window7_224", "norm")],
)
def test_timms_transformers_have_a_heat_map(name, layer):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=2).eval().requires_grad_(False)
    image = torch.randn(1, 3, 224, 224)
    found, heat = grad_cam(net, image, 0, (224, 224))
    other = grad_cam(net, image, 1, (224, 224))[1]
    assert found == layer
    assert heat.any() or other.any()
