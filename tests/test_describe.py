"""Descriptions of nets: published numbers and receptive fields, and a net that is left as it was."""

import subprocess
import sys
from fractions import Fraction

import jobs
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import ROOT, command
from torch import nn

from launch import commands
from launch.describe import conv_macs, receptive_field, shape_walk, summary
from launch.errors import Refused
from nets import cifar2, mnist, nin, residual, small


def on_meta(make, *arguments, **options):
    """A net on the meta device, without memory."""
    with torch.device("meta"):
        return make(*arguments, **options)


# -------------------------------------------------------------------------------------------------------------------- table


def test_table_of_document_001():
    text = summary(small.MyNet2(), (10, 1, 28, 28))
    for line in (
        "Total params: 925,482",
        "Trainable params: 925,482",
        "Non-trainable params: 0",
        "Total mult-adds (M): 396.55",
        "Input size (MB): 0.03",
        "Forward/backward pass size (MB): 14.09",
        "Params size (MB): 3.70",
        "Estimated Total Size (MB): 17.82",
    ):
        assert line in text.splitlines()
    rows = [line.split() for line in text.splitlines() if line.startswith(("├", "│"))]
    assert [row[-1] for row in rows if row[-1] != "--"] == [
        "896", "25,696", "18,624", "37,056", "37,056", "803,072", "512", "2,570",
    ]  # fmt: skip
    assert "[10, 32, 14, 14]" in text
    assert "3-5" in text
    assert "3-5" not in summary(small.MyNet2(), (10, 1, 28, 28), depth=2)


def test_frozen_parameters_stand_in_parentheses():
    """Transfer notes, section 2.3: resnet18 to layer2 frozen, layer3 and layer4 new, 10 classes."""
    body = on_meta(torchvision.models.resnet18)
    parts = list(body.children())
    net = nn.Sequential(nn.Sequential(*parts[:6]), nn.Sequential(*parts[6:9]), nn.Flatten(), on_meta(nn.Linear, 512, 10))
    net[0].requires_grad_(False)
    text = summary(net, (10, 3, 224, 224))
    for number in ("(9,408)", "(128)", "(73,984)", "(230,144)", "(295,424)", " 919,040", " 4,720,640", " 5,130"):
        assert number in text
    for line in (
        "Total params: 11,181,642",
        "Trainable params: 10,498,570",
        "Non-trainable params: 683,072",
        "Total mult-adds (G): 18.14",
        "Forward/backward pass size (MB): 397.39",
        "Params size (MB): 44.73",
    ):
        assert line in text.splitlines()


class Shared(nn.Module):
    """One layer used twice, a list, a parameter of its own, a frozen one, and a layer that forward leaves out."""

    def __init__(self):
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(4, 4)
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)])
        self.head, self.frozen = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(7), requires_grad=False)

    def forward(self, x):
        x = self.conv(self.conv(x))
        for layer in self.layers:
            x = layer(x)
        return F.linear(x.mean((2, 3)), self.head)


def test_each_parameter_is_counted_once():
    lines = [
        " ".join(line.split()) for line in summary(nn.Sequential(Shared(), nn.Flatten()), (2, 3, 8, 8), depth=2).splitlines()
    ]
    assert lines[3:11] == [
        "Sequential [2, 4] --",
        "├─Shared: 1-1 [2, 4] 39",  # head, frozen, unused
        "│ └─Conv2d: 2-1 [2, 3, 8, 8] 84",
        "│ └─Conv2d: 2-2 [2, 3, 8, 8] (recursive)",
        "│ └─ModuleList: 2-3 -- 24",
        "├─Flatten: 1-2 [2, 4] --",
        lines[0],
        "Total params: 147",
    ]
    assert "Non-trainable params: 7" in lines
    assert "│ │ └─Conv2d: 3-2 [1, 3, 8, 8] 12" in [
        " ".join(line.split()) for line in summary(nn.Sequential(Shared()), (3, 8, 8)).splitlines()
    ]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_costs_its_products_also_where_it_is_one_operator(device):
    """Cost of 40 tokens of 500 values: four projections, tokens against one another twice, two linear layers with 100 between."""
    layer = nn.TransformerEncoderLayer(500, 5, dim_feedforward=100, batch_first=True)
    text = summary(nn.Sequential(nn.Flatten(2), layer).to(device), (40, 20, 25))
    products, biases, norms = 4 * 40 * 500**2 + 2 * 40**2 * 500 + 2 * 40 * 500 * 100, 40 * (100 + 500), 2 * (500 + 500)
    assert f"Total mult-adds (M): {(products + biases + norms) / 1e6:.2f}" in text.splitlines()


class Restless(nn.Module):
    """Has all that a forward pass could change: statistics, a frozen part in eval mode, dropout that ignores the mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return F.dropout(self.frozen(self.norm(self.conv(x))), training=True).mean((2, 3))


@pytest.mark.parametrize("function", [summary, receptive_field, shape_walk])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 1, 1)], ids=["fits", "fails"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_leaves_the_net_as_it_was(function, shape, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    net = Restless().to(device)
    net.frozen.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None
    if shape == (3, 8, 8):
        function(net, shape)
    else:
        with pytest.raises(Refused):
            function(net, shape)
    assert (net.training, net.norm.training, net.frozen.training) == (True, True, False)
    assert all(value.equal(before[name]) and value.device.type == device for name, value in net.state_dict().items())
    assert torch.get_rng_state().equal(random[0])
    assert device == "cpu" or torch.cuda.get_rng_state().equal(random[1])
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    net(torch.zeros(2, 3, 8, 8, device=device))  # control: a plain forward does change them
    assert not net.norm.num_batches_tracked.equal(before["norm.num_batches_tracked"])
    assert device == "cuda" or not torch.get_rng_state().equal(random[0])


def test_cost_of_a_convolution():
    """Inception notes: 5×5 from 192 to 32 channels at 28 × 28, directly and through 16 channels."""
    assert conv_macs(192, 32, 5, 28, 28) == 120_422_400
    assert conv_macs(192, 16, 1, 28, 28) == 2_408_448
    assert conv_macs(16, 32, 5, 28, 28) == 10_035_200
    assert conv_macs(192, 16, 1, 28, 28) + conv_macs(16, 32, 5, 28, 28) == 12_443_648
    direct = nn.Conv2d(192, 32, 5, padding=2, bias=False)
    assert "Total mult-adds (M): 120.42" in summary(direct, (192, 28, 28))


# ------------------------------------------------------------------------------------------------------------------- shapes


def test_shape_walk():
    assert [tuple(step) for step in shape_walk(cifar2.Net(), (3, 32, 32))] == [
        ("conv1", (1, 3, 32, 32), (1, 16, 32, 32)),
        ("conv2", (1, 16, 16, 16), (1, 8, 16, 16)),
        ("fc1", (1, 512), (1, 32)),
        ("fc2", (1, 32), (1, 2)),
    ]
    sizes = [step.gives[-1] for step in shape_walk(on_meta(nin.NinNet), (1, 224, 224))]
    assert list(dict.fromkeys(sizes)) == [55, 27, 13, 6]  # NiN notes
    assert shape_walk(small.MyNet2(), (10, 1, 28, 28))[-1].gives == (10, 10)


@pytest.mark.parametrize(
    ("net", "shape", "says"),
    [
        (cifar2.Net, (3, 28, 28), "Net cannot take (1, 3, 28, 28): fc1 expects 512 features, got 392; before it, conv2 gives "),
        (cifar2.Net, (1, 32, 32), "conv1 expects 3 channels, got 1"),
        (small.MyNet2, (1, 32, 32), "classifier_.0 expects 3136 features, got 4096"),
        (mnist.MnistNet, (1, 3, 3), "conv1 fails on an input of (1, 1, 3, 3): Calculated padded input size"),
        (mnist.MnistNet, (1, 5, 5), "MnistNet fails on an input of (1, 1, 5, 5): Given input size"),
        (residual.CifarResNet, (16, 32, 32), "conv1 expects 3 channels, got 16"),
    ],
)
def test_wrong_size_names_the_layer(net, shape, says):
    for function in (shape_walk, receptive_field, summary):
        with pytest.raises(Refused) as refused:
            function(net(), shape)
        assert says in str(refused.value)
        assert refused.value.code == 4
        assert "\n" not in str(refused.value)


def test_impossible_shapes_are_refused():
    for shape in ((32, 32), (3, 0, 32), (1, 1, 3, 32, 32)):
        with pytest.raises(Refused, match=r"\(C, H, W\) or \(N, C, H, W\)"):
            shape_walk(cifar2.Net(), shape)


# ---------------------------------------------------------------------------------------------------------- receptive field


def seen(net, shape) -> dict[str, tuple]:
    return {layer.name: (layer.field, layer.jump) for layer in receptive_field(net, shape)}


def test_fields_of_the_documents_nets():
    assert seen(cifar2.Net(), (3, 32, 32)) == {
        "conv1": (3, 1), "max_pool2d_1": (4, 2), "conv2": (8, 2), "max_pool2d_2": (10, 4),
    }  # fmt: skip
    assert seen(cifar2.NetDepth(), (3, 32, 32))["max_pool2d_3"] == (22, 8)
    assert seen(cifar2.NetRes(), (3, 32, 32))["max_pool2d_3"] == (22, 8)
    assert seen(mnist.MnistNet(), (1, 28, 28))["max_pool2d_2"] == (16, 4)
    last = receptive_field(on_meta(nin.NinNet), (1, 224, 224))[-2:]
    assert last[0] == ("conv.6.4", (1, 10, 6, 6), 195, 32)
    assert last[1][:3] == ("mean_1", (1, 10), 224)  # the global average sees the whole image


@pytest.mark.parametrize(("stride", "field"), [(1, 4), (2, 5)])
def test_the_documents_example_needs_stride_2(stride, field):
    """The notes on DLwPT ch. 8 say 5 for a 3×3 and a 2×2 convolution."""
    net = nn.Sequential(nn.Conv2d(1, 1, 3, stride=stride), nn.Conv2d(1, 1, 2))
    assert [layer.field for layer in receptive_field(net, (1, 9, 9))] == [3, field]


@pytest.mark.parametrize(
    ("net", "size", "layer", "field"),
    [  # Araujo et al.: Computing Receptive Fields of Convolutional Neural Networks (Distill 2019), table 1
        ("alexnet", 224, "features.12", 195),
        ("vgg16", 224, "features.30", 212),
        ("inception_v3", 299, "Mixed_7c.branch3x3dbl_3b.conv", 1311),
    ],
)
def test_published_fields(net, size, layer, field):
    options = {"init_weights": False} if net == "inception_v3" else {}
    assert seen(on_meta(getattr(torchvision.models, net), **options), (3, size, size))[layer] == (field, 32)


class Branches(nn.Module):
    """Dilation, unequal sides, crops, pads, steps, and branches that are shifted against each other."""

    def __init__(self):
        super().__init__()
        self.wide, self.tall = nn.Conv2d(1, 1, (1, 5), padding=(0, 2)), nn.Conv2d(1, 1, (7, 1), stride=2, padding=(3, 0))
        self.dilated, self.last = nn.Conv2d(1, 2, 3, dilation=2, padding=2), nn.Conv2d(4, 1, 2)

    def forward(self, x):
        x = F.avg_pool2d(self.tall(self.wide(x)) + x[:, :, ::2, ::2], 3, 2)
        shifted = F.pad(x[..., 3:], (0, 3))
        x = torch.cat((self.dilated(x), shifted.expand(-1, 2, -1, -1)), dim=1)
        return self.last(x).relu_()


@pytest.mark.parametrize("make", [Branches, lambda: residual.CifarResNet(14, num_classes=1)], ids=["branches", "resnet"])
def test_field_is_what_gradients_reach(make):
    """With positive weights and images, an output's gradient is positive at the pixels that it sees, and 0 at the others."""
    net = make().double().eval()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    channels = next(net.parameters()).shape[1]
    layer = [layer for layer in receptive_field(net, (channels, 160, 160)) if not layer.name.startswith("mean")][-1]
    outputs = []
    net.get_submodule(layer.name).register_forward_hook(lambda _module, _args, output: outputs.append(output))
    images = torch.ones(1, channels, 160, 160, dtype=torch.double, requires_grad=True)
    net(images)
    rows, columns = (size // 2 for size in outputs[0].shape[2:])
    places = []
    for step in (0, 1):
        (gradient,) = torch.autograd.grad(outputs[0][0, 0, rows + step, columns + step], images, retain_graph=True)
        places.append(gradient[0, 0].nonzero())
    spans = [(place.max(0).values - place.min(0).values + 1).max().item() for place in places]
    assert spans == [layer.field] * 2
    assert (places[1].min(0).values - places[0].min(0).values).tolist() == [layer.jump] * 2


def test_after_a_global_mean_everything_sees_the_whole_image():
    """Squeeze and excitation scales each channel by what the whole image says."""
    layers = seen(on_meta(torchvision.models.efficientnet_b0), (3, 224, 224))
    assert layers["features.0.0"] == (3, 2)
    assert layers["features.1.0.block.0.0"] == (7, 2)
    assert layers["features.1.0.block.1.avgpool"][0] == 224
    assert layers["features.8.0"] == (224, 32)


def test_a_window_larger_than_the_image_is_not_the_whole_image():
    """With several positions, some see padding beyond the image. A single position that covers it sees the whole image."""
    net = nn.Sequential(nn.Conv2d(1, 1, 9, padding=4), nn.AdaptiveAvgPool2d(1))
    assert [(layer.field, layer.shape[-1]) for layer in receptive_field(net, (1, 5, 5))] == [(9, 5), (5, 1)]


def test_unknown_fields_are_none():
    turned = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(2), nn.Unflatten(2, (5, 20)), nn.Conv2d(1, 1, 3))
    assert [(layer.field, layer.jump) for layer in receptive_field(turned, (1, 12, 12))] == [(3, 1), (None, None)]
    upwards = nn.Sequential(nn.ConvTranspose2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3))
    assert [layer.field for layer in receptive_field(upwards, (1, 8, 8))] == [None, None]


def test_adaptive_pools():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d(1))
    fields = [(layer.field, layer.jump) for layer in receptive_field(net, (1, 16, 16))]
    assert fields == [(3, 1), (6, 4), (10, Fraction(16, 3)), (16, 16)]


@pytest.mark.parametrize("padding", [0, 1])
def test_a_field_is_a_whole_number_of_pixels_also_after_windows_that_are_not_all_equal(padding):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(5), nn.Conv2d(1, 1, 2, padding=padding))
    fields = [layer.field for layer in receptive_field(net, (1, 32, 32))]
    assert [repr(field) for field in fields] == ["8", "15"]  # a window of 7 or 8 pixels, and the next one 32/5 further on


# ------------------------------------------------------------------------------------------------------------------ command


def oneloop(*args, cwd=ROOT) -> subprocess.CompletedProcess:
    return jobs.run(*command(*args), cwd=cwd)


def test_what_a_recipe_imports_is_there_whatever_was_imported_before():
    imports = "import launch.training.loop, launch.command_line; from launch import Run, cli, evaluate, sources, train"
    code = f"{imports}; cli.__call__, train.__call__, evaluate.__call__, Run.start, sources.cifar10"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_describe_a_recipe(tmp_path):
    done = oneloop("describe", str(ROOT / "recipes/cifar2.py"), "--net", "NetWidth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in ("Total params: 38,386", "max_pool2d_2 (1, 16, 8, 8) 10 4", "fc1 (1, 1024) (1, 32)"):
        assert line in lines
    assert list(tmp_path.iterdir()) == []  # no run folder


MINE = '''"""Mine.

Source  none
"""
from dataclasses import replace
from torch import nn
from launch import Run, sources, train as go

def main(run: Run, width: int = 4):
    images = replace(sources.cifar10(run.data, keep=("airplane", "bird")), size=48)
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))
    print("on", run.accelerator.device.type)
    return go(run, net, images, None, epochs=1, batch=1)["test"]
'''


def test_shape_comes_from_the_recipe_or_the_flag(own_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    assert commands.main(["describe", "mine.py", "--width=5"]) == 0
    assert "0      (1, 3, 48, 48)  (1, 5, 46, 46)" in capsys.readouterr().out
    assert commands.main(["describe", "mine.py", "--shape", "3", "20", "30", "--seed", "2"]) == 0
    text = capsys.readouterr().out
    assert "0      (1, 3, 20, 30)  (1, 4, 18, 28)" in text
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["mine.py"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["recipes/cifar2.py", "--shape", "3", "28", "28"], 4, "fc1 expects 512 features, got 392"),
        (["recipes/cifar2.py", "--data", "/nowhere"], 1, "no such folder"),
        (["recipes/nowhere.py"], 2, "no such file"),
        (["README.md"], 2, "does not end in .py"),
        (["recipes/by_hand.py"], 2, "does not import `train`"),
    ],
)
def test_errors_are_one_line_and_a_code(own_path, monkeypatch, capsys, args, code, says):
    monkeypatch.chdir(ROOT)
    assert commands.main(["describe", *args]) == code
    out, error = capsys.readouterr()
    assert says in error
    assert error.count("\n") == 1
    assert out == ""


def test_the_learning_rate_is_drawn(own_path, monkeypatch, capsys):
    commands.main(["describe", str(ROOT / "recipes/cifar10_fast.py"), "--epochs", "4"])
    *_, head, top, second, third, bottom, axis = capsys.readouterr().out.splitlines()
    assert head == "Learning rate: 0.24, 106, 1340"
    bars = [line[9:] for line in (top, second, third, bottom)]
    assert [len(bar) for bar in bars] == sorted(len(bar) for bar in bars)  # it falls
    assert bars[0].startswith("█")
    assert len(bars[3]) >= 58
    assert axis.split() == ["epoch", "0", "4"]
    commands.main(["describe", str(ROOT / "recipes/cifar2.py")])
    assert capsys.readouterr().out.endswith("Learning rate: 0.01\n")  # constant
