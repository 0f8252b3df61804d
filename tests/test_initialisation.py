"""Each net starts from the weights that its document or paper prescribes, and from PyTorch's default where it says nothing."""

import math

import pytest
import torch
from torch import nn
from written_nets import WRITTEN, net_res_deep

from nets import cifar2, residual, small


def drawn(tensor, std, normal):
    """Return whether the tensor looks like a sample with mean 0 and `std` from a normal or a uniform distribution, within five
    standard errors of its n numbers."""
    n, tensor = tensor.numel(), tensor.detach()
    if n > 100 and abs(tensor.std().item() / std - 1) > 5 * math.sqrt(0.5 / n):
        return False
    limit = math.sqrt(3) * std  # never exceeded by a uniform sample; exceeded by 8 % of a normal one
    beyond = tensor.abs().gt(limit * 1.0001).float().mean().item()
    return n <= 100 or 0.04 < beyond < 0.13 if normal else beyond == 0 and tensor.abs().max() > limit / 4


def kaiming(layer):
    """He et al.'s standard deviation for a layer followed by ReLU: sqrt(2 / fan-in)."""
    return math.sqrt(2 / layer.weight[0].numel())


def usual(layer):
    """Return whether the layer has PyTorch's default: weights and biases uniform within ± 1 / sqrt(fan-in)."""
    std = 1 / math.sqrt(3 * layer.weight[0].numel())
    return drawn(layer.weight, std, normal=False) and (layer.bias is None or drawn(layer.bias, std, normal=False))


def layers(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


OTHERWISE = ("NetResDeep", "NetResDeep_shared", "MyNet1", "ResNet", "Plain", "PreActResNet", "DenseNetBC")


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in OTHERWISE])
def test_other_nets_keep_pytorchs_initialisation(name):
    torch.manual_seed(0)
    assert [path for path, layer in layers(WRITTEN[name][0]()) if not usual(layer)] == []


def test_res_deep_is_initialised_as_in_the_book():
    """DLwPT ch. 8, section 5.2: kaiming_normal for relu, batch norm with weight 0.5 and bias 0; else PyTorch's default."""
    torch.manual_seed(0)
    model = cifar2.NetResDeep(n_blocks=4)
    for block in model.resblocks:
        assert drawn(block.conv.weight, kaiming(block.conv), normal=True)
        assert block.batch_norm.weight.eq(0.5).all()
        assert block.batch_norm.bias.eq(0).all()
    assert all(map(usual, (model.conv1, model.fc1, model.fc2)))


@pytest.mark.parametrize("arguments", [{}, {"shortcut": False}, {"preact": True}])
def test_resnets_are_initialised_as_in_the_paper(arguments):
    """Convolutions, and the last layer as in the public repository, normal by fan-in; its bias PyTorch's default."""
    torch.manual_seed(0)
    model = residual.CifarResNet(20, **arguments)
    assert [name for name, layer in layers(model) if not drawn(layer.weight, kaiming(layer), normal=True)] == []
    assert drawn(model.linear.bias, 1 / math.sqrt(3 * 64), normal=False)


def test_densenet_is_initialised_as_in_the_paper():
    torch.manual_seed(0)
    model = residual.DenseNetBC(40)
    convolutions = [layer for _, layer in layers(model) if isinstance(layer, nn.Conv2d)]
    assert all(drawn(layer.weight, kaiming(layer), normal=True) for layer in convolutions)
    assert usual(model.classifier)


def test_my_net_1_is_initialised_as_torchvisions_parts():
    """Transfer notes, section 2.2: those of vgg16_bn and resnet18, normal by fan-out, bias 0; else PyTorch's default."""
    torch.manual_seed(0)
    model = small.MyNet1()
    for name, layer in layers(model):
        if name.startswith("block"):
            assert drawn(layer.weight, math.sqrt(2 / (layer.out_channels * layer.kernel_size[0] ** 2)), normal=True)
            assert layer.bias is None or layer.bias.eq(0).all()
    assert usual(model.conv1[0])
    assert usual(model.fc)


def test_batch_norm_starts_as_the_identity():
    """Weight 1 and bias 0, except in ResBlock: no branch starts weaker or stronger than its document says."""
    for build, written, _ in WRITTEN.values():
        for module in build().modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and written is not net_res_deep:
                assert module.weight.eq(1).all()
                assert module.bias.eq(0).all()
