"""Each net: its parameter count as published or computed, its output shape, gradients for every parameter."""

import pytest
import torch

from nets import cifar2, mnist, nin, residual, small

NETS = [
    # net, its arguments, input shape, classes, parameters
    (cifar2.Net, {}, (3, 32, 32), 2, 18_090),
    (cifar2.NetWidth, {}, (3, 32, 32), 2, 38_386),
    (cifar2.NetWidth, {"n_chans1": 16}, (3, 32, 32), 2, 18_090),
    (cifar2.NetDropout, {}, (3, 32, 32), 2, 38_386),
    (cifar2.NetBatchNorm, {}, (3, 32, 32), 2, 38_482),
    (cifar2.NetDepth, {}, (3, 32, 32), 2, 16_130),
    (cifar2.NetRes, {}, (3, 32, 32), 2, 16_130),
    (cifar2.NetResDeep, {}, (3, 32, 32), 2, 994_530),
    (cifar2.NetResDeep, {"n_blocks": 10}, (3, 32, 32), 2, 159_330),
    (mnist.MnistNet, {}, (1, 28, 28), 10, 21_840),
    (mnist.MnistNet, {"hidden": 60}, (1, 28, 28), 10, 25_150),
    (mnist.MnistNet, {"chans1": 32, "chans2": 64, "hidden": 100}, (1, 28, 28), 10, 155_606),
    (mnist.LectureNet, {}, (1, 28, 28), 10, 8_490),
    (mnist.InceptionNet, {}, (1, 28, 28), 10, 97_298),
    (mnist.ResidualNet, {}, (1, 28, 28), 10, 41_514),
    (mnist.LeNet5, {}, (1, 28, 28), 10, 61_706),
    (nin.NinNet, {}, (1, 224, 224), 10, 1_992_166),
    (nin.NinNet, {"final_relu": False, "in_channels": 3}, (3, 224, 224), 10, 1_992_166 + 2 * 96 * 121),
    (small.MyNet1, {}, (1, 32, 32), 10, 2_325_002),
    (small.MyNet2, {}, (1, 28, 28), 10, 925_482),
    (residual.CifarResNet, {"depth": 20}, (3, 32, 32), 10, 269_722),
    (residual.CifarResNet, {"depth": 32}, (3, 32, 32), 10, 464_154),
    (residual.CifarResNet, {"depth": 44}, (3, 32, 32), 10, 658_586),
    (residual.CifarResNet, {"depth": 56}, (3, 32, 32), 10, 853_018),
    (residual.CifarResNet, {"depth": 110}, (3, 32, 32), 10, 1_727_962),
    (residual.CifarResNet, {"depth": 20, "shortcut": False}, (3, 32, 32), 10, 269_722),
    (residual.CifarResNet, {"depth": 20, "preact": True}, (3, 32, 32), 10, 269_722),
    (residual.DenseNetBC, {}, (3, 32, 32), 10, 769_162),
    (cifar2.Net, {"in_channels": 1, "num_classes": 10}, (1, 32, 32), 10, 18_090 - 16 * 2 * 9 + 8 * 33),
]


@pytest.mark.parametrize(("net", "arguments", "shape", "classes", "parameters"), NETS)
def test_count_shape_gradients(net, arguments, shape, classes, parameters):
    model = net(**arguments)
    assert sum(p.numel() for p in model.parameters()) == parameters
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_document_list_of_parameter_counts():
    """Document 000, section 3: the counts of Net's tensors, one after the other."""
    assert [p.numel() for p in cifar2.Net().parameters()] == [432, 16, 1152, 8, 16384, 32, 64, 2]


def test_res_adds_its_input_and_depth_does_not():
    torch.manual_seed(0)
    depth, res = cifar2.NetDepth(), cifar2.NetRes()
    res.load_state_dict(depth.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(depth(x), res(x))
    for net in (depth, res):
        torch.nn.init.zeros_(net.conv3.weight)
        torch.nn.init.zeros_(net.conv3.bias)
    assert depth(x)[0].equal(depth(x)[1])  # nothing passes a convolution of zeros
    assert not res(x)[0].equal(res(x)[1])  # the identity does


def test_blocks_of_res_deep_are_independent():
    blocks = cifar2.NetResDeep(n_blocks=3).resblocks
    assert len({id(p) for p in blocks.parameters()}) == 9
