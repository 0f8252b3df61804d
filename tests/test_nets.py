"""Each net: its published or computed parameter count, its output shape, a gradient for every parameter."""

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
    (cifar2.NetResDeep, {"n_blocks": 10, "shared": True}, (3, 32, 32), 2, 75_810),
    (cifar2.net_sequential, {}, (3, 32, 32), 2, 18_090),
    (lambda: cifar2.fully_connected(512), {}, (3, 32, 32), 2, 1_574_402),
    (lambda: cifar2.fully_connected(1024, 512, 128), {}, (3, 32, 32), 2, 3_737_474),
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
    """The book's list: the number of elements in each of Net's parameters."""
    assert [p.numel() for p in cifar2.Net().parameters()] == [432, 16, 1152, 8, 16384, 32, 64, 2]


def test_blocks_of_res_deep_are_independent():
    blocks = cifar2.NetResDeep(n_blocks=3).resblocks
    assert len({id(p) for p in blocks.parameters()}) == 9


def test_sequential_form_equals_the_module():
    net, sequential = cifar2.Net(), cifar2.net_sequential()
    for own, other in zip(sequential.parameters(), net.parameters(), strict=True):
        own.data.copy_(other.data)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(sequential(x), net(x))


def test_shared_block_is_one_block():
    shared = cifar2.NetResDeep(n_blocks=100, shared=True)
    assert len(shared.state_dict()) == 606  # a state dict repeats the shared block: 1,001,030 elements for 75,810 parameters
    assert sum(t.numel() for t in shared.state_dict().values()) == 1_001_030


def test_nin_stages():
    """NiN notes: 55, 27, 27, 13, 13, 6, 6, and the average of AvgPool2d(6)."""
    net, x, sizes = nin.NinNet().eval(), torch.randn(1, 1, 224, 224), []
    for layer in net.conv:
        x = layer(x)
        sizes.append(x.shape[-1])
    assert sizes == [55, 27, 27, 13, 13, 6, 6]
    torch.testing.assert_close(torch.nn.AvgPool2d(6)(x).flatten(1), x.mean((2, 3)))


def test_one_by_one_convolution_is_a_linear_layer_on_each_pixel():
    """NiN notes: pixels [0, 0] and [0, 1] never mix."""
    conv, x = torch.nn.Conv2d(6, 4, 1), torch.randn(2, 6, 5, 5)
    linear = torch.nn.functional.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(conv(x), linear.permute(0, 3, 1, 2))


def test_inception_keeps_height_and_width_and_has_88_channels():
    assert mnist.InceptionA(10)(torch.randn(1, 10, 12, 9)).shape == (1, 88, 12, 9)


def test_two_small_nets_share_nothing():
    """The document's parts are module-level objects: a second net would continue training the first one's weights."""
    first, second = small.MyNet1(), small.MyNet1()
    assert not {p.data_ptr() for p in first.parameters()} & {p.data_ptr() for p in second.parameters()}


def test_log_softmax_and_cross_entropy_are_the_documents_loss():
    net = small.MyNet2(log_softmax=True).eval()
    logits, labels = net(torch.randn(4, 1, 28, 28)), torch.tensor([1, 2, 3, 4])
    cross_entropy, nll = torch.nn.functional.cross_entropy(logits, labels), torch.nn.functional.nll_loss(logits, labels)
    torch.testing.assert_close(cross_entropy, nll)


def test_depth_must_fit():
    with pytest.raises(ValueError, match=r"6 n \+ 2"):
        residual.CifarResNet(21)


def test_small_demonstrations_of_the_documents():
    """Shapes and values of DLwPT ch. 8 and the Inception notes."""
    image = torch.randn(1, 3, 32, 32)
    conv = torch.nn.Conv2d(3, 16, kernel_size=3)
    assert (conv.weight.shape, conv.bias.shape) == ((16, 3, 3, 3), (16,))
    assert conv(image).shape == (1, 16, 30, 30)
    assert torch.nn.Conv2d(3, 1, kernel_size=3, padding=1)(image).shape == (1, 1, 32, 32)
    for half in (torch.nn.MaxPool2d(2), torch.nn.AvgPool2d(2), torch.nn.Conv2d(3, 3, 2, stride=2)):
        assert half(image).shape == (1, 3, 16, 16)
    assert torch.nn.Conv2d(5, 10, kernel_size=3)(torch.randn(1, 5, 100, 100)).shape == (1, 10, 98, 98)
    values = torch.tensor([3.0, 4, 6, 5, 2, 4, 6, 8, 1, 6, 7, 8, 9, 7, 4, 6]).view(1, 1, 4, 4)
    assert torch.nn.MaxPool2d(2)(values).flatten().tolist() == [4, 8, 9, 8]
    kernel = torch.nn.Conv2d(1, 1, 3, bias=False)
    kernel.weight.data = torch.arange(1.0, 10).view(1, 1, 3, 3)
    corner = (torch.arange(1.0, 10).view(3, 3) * values[0, 0, :3, :3]).sum()
    assert kernel(values)[0, 0, 0, 0] == corner  # cross-correlation: the kernel is not flipped


def test_sgd_by_hand():
    """MNIST notes: weight = weight - learning_rate * gradient (its section 2 has the wrong sign)."""
    net = torch.nn.Linear(3, 2)
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.randn(5, 3)).square().sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    for p, start in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.01 * p.grad)
