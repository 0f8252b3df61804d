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


def test_explain_draws_a_picture(trained_runs, oneloop, tmp_path, monkeypatch):
    pytest.importorskip("captum")
    monkeypatch.chdir(tmp_path)
    code, out, error = oneloop(
        "explain", trained_runs / "birds", trained_runs / "pictures/test/bird/01.png", "--class", "airplane"
    )
    assert (code, error) == (0, "")
    assert out.startswith("airplane: ")
    assert "from conv2; 01-explained.png" in out
    with Image.open("01-explained.png") as picture:
        assert picture.size == (1080, 540)
    code, _, error = oneloop("explain", trained_runs / "birds", trained_runs / "pictures/test/bird/01.png", "--class", "cat")
    assert (code, error) == (2, f"no class 'cat'; those of {trained_runs / 'birds'} are airplane, bird\n")


def test_explain_takes_the_most_probable_class(trained_runs, oneloop, tmp_path):
    pytest.importorskip("captum")
    for picture in sorted((trained_runs / "pictures/test").rglob("*.png"))[:3]:
        first = next(csv.DictReader(io.StringIO(oneloop("predict", trained_runs / "birds", picture)[1])))
        code, out, _ = oneloop("explain", trained_runs / "birds", picture, "--out", tmp_path / "explained.png")
        assert code == 0
        assert out.startswith(f"{first['class']}: {float(first['probability']):.1%}, from conv2; ")


def test_grad_cam_is_where_the_class_is():
    """One class is brightness, the other its opposite: the bright quarter of the image raises the first, nothing the second."""
    pytest.importorskip("captum")
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
    with pytest.raises(Refused, match="no convolution"):
        grad_cam(nn.Flatten(), image, 0, (8, 8))
