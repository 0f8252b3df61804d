"""Each net computes what its document writes: its layers once more, as functions of the net's own tensors. And how it begins."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from nets import cifar2, mnist, nin, residual, small
from nets.transfer import MyNetPretrained, unlock

relu, tanh = torch.relu, torch.tanh


def conv(layer, x, padding=0, stride=1):
    return F.conv2d(x, layer.weight, layer.bias, stride=stride, padding=padding)


def linear(layer, x):
    return F.linear(x, layer.weight, layer.bias)


def norm(layer, x):
    """By the batch's own statistics in train mode, by the running ones in eval mode; moves none."""
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    return F.batch_norm(x, mean, var, layer.weight, layer.bias, layer.training, momentum=0.1, eps=1e-5)


def halved(x):
    return F.max_pool2d(x, 2)


# -------------------------------------------------------------------------------- document 000: the chapter, and its notebook


def net(n, x):  # conv, tanh, pool, twice; linear, tanh, linear: also with other numbers of channels
    x = halved(tanh(conv(n.conv1, x, padding=1)))
    x = halved(tanh(conv(n.conv2, x, padding=1)))
    return linear(n.fc2, tanh(linear(n.fc1, x.flatten(1))))


def net_sequential(n, x):
    x = halved(tanh(conv(n[0], x, padding=1)))
    x = halved(tanh(conv(n[3], x, padding=1)))
    return linear(n[9], tanh(linear(n[7], x.flatten(1))))


def net_dropout(n, x):  # whole channels, p = 0.4, after each pool
    x = F.dropout2d(halved(tanh(conv(n.conv1, x, padding=1))), 0.4, n.training)
    x = F.dropout2d(halved(tanh(conv(n.conv2, x, padding=1))), 0.4, n.training)
    return linear(n.fc2, tanh(linear(n.fc1, x.flatten(1))))


def net_batch_norm(n, x):  # before tanh
    x = halved(tanh(norm(n.conv1_batchnorm, conv(n.conv1, x, padding=1))))
    x = halved(tanh(norm(n.conv2_batchnorm, conv(n.conv2, x, padding=1))))
    return linear(n.fc2, tanh(linear(n.fc1, x.flatten(1))))


def net_depth(n, x, identity=0):  # relu; NetRes adds the input of the third convolution before the last pool
    x = halved(relu(conv(n.conv1, x, padding=1)))
    x = halved(relu(conv(n.conv2, x, padding=1)))
    x = halved(relu(conv(n.conv3, x, padding=1)) + identity * x)
    return linear(n.fc2, relu(linear(n.fc1, x.flatten(1))))


def net_res(n, x):
    return net_depth(n, x, identity=1)


def net_res_deep(n, x):
    x = halved(relu(conv(n.conv1, x, padding=1)))
    for block in n.resblocks:
        x = relu(norm(block.batch_norm, conv(block.conv, x, padding=1))) + x
    return linear(n.fc2, relu(linear(n.fc1, halved(x).flatten(1))))


def fully_connected(n, x):  # tanh after each layer but the last
    x = x.flatten(1)
    for layer in n[1:-1:2]:
        x = tanh(linear(layer, x))
    return linear(n[-1], x)


# ---------------------------------------------------------------------------------------------- documents 002, 003 and 004


def mnist_net(n, x):  # dropout of channels before the second pool, of units after the first linear layer, both 0.5
    x = relu(halved(conv(n.conv1, x)))
    x = relu(halved(F.dropout2d(conv(n.conv2, x), 0.5, n.training)))
    x = F.dropout(relu(linear(n.fc1, x.flatten(1))), 0.5, n.training)
    return linear(n.fc2, x)


def lecture_net(n, x):
    x = relu(halved(conv(n.conv1, x)))
    x = relu(halved(conv(n.conv2, x)))
    return linear(n.fc, x.flatten(1))


def inception(n, x):
    five, three = n.branch5x5, n.branch3x3
    return torch.cat([
        conv(n.branch1x1, x),
        conv(five[1], conv(five[0], x), padding=2),
        conv(three[2], conv(three[1], conv(three[0], x), padding=1), padding=1),
        conv(n.branch_pool[1], F.avg_pool2d(x, 3, stride=1, padding=1)),
    ], dim=1)  # fmt: skip


def inception_net(n, x):
    x = inception(n.incep1, relu(halved(conv(n.conv1, x))))
    x = inception(n.incep2, relu(halved(conv(n.conv2, x))))
    return linear(n.fc, x.flatten(1))


def residual_net(n, x):
    for first, block in ((n.conv1, n.rblock1), (n.conv2, n.rblock2)):
        x = halved(relu(conv(first, x)))
        x = relu(x + conv(block.conv2, relu(conv(block.conv1, x, padding=1)), padding=1))
    return linear(n.fc, x.flatten(1))


def lenet5(n, x):
    x = F.avg_pool2d(tanh(conv(n.conv1, x, padding=2)), 2)
    x = F.avg_pool2d(tanh(conv(n.conv2, x)), 2)
    return linear(n.fc3, tanh(linear(n.fc2, tanh(linear(n.fc1, x.flatten(1))))))


def nin_net(n, x, final_relu=True):
    sizes = [(2, 4), (2, 1), (1, 1), (1, 1)]  # padding and stride of each stage's first convolution
    for number, (padding, stride) in enumerate(sizes):
        stage = n.conv[2 * number]
        x = relu(conv(stage[0], x, padding, stride))
        x = conv(stage[4], relu(conv(stage[2], x)))
        x = relu(x) if number < 3 or final_relu else x
        x = F.max_pool2d(x, 3, stride=2) if number < 3 else x
    return x.mean((2, 3))


def nin_net_of_logits(n, x):
    return nin_net(n, x, final_relu=False)


# ------------------------------------------------------------------------------------------------- document 001, the papers


def my_net_1(n, x):
    x = relu(norm(n.conv1[1], conv(n.conv1[0], x, padding=1)))
    x = relu(norm(n.block2[1], conv(n.block2[0], x, padding=1)))
    x = halved(relu(norm(n.block2[4], conv(n.block2[3], x, padding=1))))
    for block, stride in zip(n.block3, (2, 1), strict=True):
        out = relu(norm(block.bn1, conv(block.conv1, x, padding=1, stride=stride)))
        out = norm(block.bn2, conv(block.conv2, out, padding=1))
        x = relu(out + (norm(block.downsample[1], conv(block.downsample[0], x, stride=2)) if stride == 2 else x))
    return linear(n.fc, x.mean((2, 3)))


def my_net_2(n, x):
    for block, padding in ((n.block1, 2), (n.block2, 1)):
        for basic in block[:-2]:
            x = relu(norm(basic.conv[1], conv(basic.conv[0], x, padding=padding)))
        x = F.dropout2d(halved(x), 0.25, n.training)
    hidden, batch_norm, _, last = n.classifier_[:4]
    return linear(last, relu(norm(batch_norm, linear(hidden, x.flatten(1)))))


def my_net_2_log_softmax(n, x):
    return my_net_2(n, x).log_softmax(1)


def shortcut(x, channels):
    """Option A: the identity; where the shape changes every second pixel, and zeros on both sides of the channels."""
    if x.shape[1] == channels:
        return x
    x, more = x[:, :, ::2, ::2], (channels - x.shape[1]) // 2
    zeros = torch.zeros(len(x), more, *x.shape[2:])
    return torch.cat((zeros, x, zeros), dim=1)


def stages(n):
    """The blocks with their stride and channels."""
    for number, (stage, channels) in enumerate(zip((n.layer1, n.layer2, n.layer3), (16, 32, 64), strict=True)):
        for place, block in enumerate(stage):
            yield block, 2 if number and not place else 1, channels


def cifar_resnet(n, x, plain=False):
    x = relu(norm(n.bn1, conv(n.conv1, x, padding=1)))
    for block, stride, channels in stages(n):
        out = relu(norm(block.bn1, conv(block.conv1, x, padding=1, stride=stride)))
        out = norm(block.bn2, conv(block.conv2, out, padding=1))
        x = relu(out if plain else out + shortcut(x, channels))
    return linear(n.linear, x.mean((2, 3)))


def plain_net(n, x):
    return cifar_resnet(n, x, plain=True)


def preactivation_resnet(n, x):
    x = conv(n.conv1, x, padding=1)
    for number, (block, stride, channels) in enumerate(stages(n)):
        out = relu(norm(block.bn1, x))
        x = out if number == 0 else x
        out = conv(block.conv1, out, padding=1, stride=stride)
        x = shortcut(x, channels) + conv(block.conv2, relu(norm(block.bn2, out)), padding=1)
    return linear(n.linear, relu(norm(n.bn1, x)).mean((2, 3)))


def densenet(n, x):
    first, *parts, last, _ = n.features
    x, parts = conv(first, x, padding=1), iter(parts)
    for part in parts:
        if isinstance(part, residual.DenseLayer):
            new = conv(part.conv1, relu(norm(part.bn1, x)))
            x = torch.cat((x, conv(part.conv2, relu(norm(part.bn2, new)), padding=1)), dim=1)
        else:  # a transition
            _, squeeze, _ = (next(parts) for _ in range(3))
            x = F.avg_pool2d(conv(squeeze, relu(norm(part, x))), 2)
    return linear(n.classifier, relu(norm(last, x)).mean((2, 3)))


SMALL, DIGIT = (3, 32, 32), (1, 28, 28)
WRITTEN = {  # the net, its layers written out, an image
    "Net": (cifar2.Net, net, SMALL),
    "net_sequential": (cifar2.net_sequential, net_sequential, SMALL),
    "NetWidth": (cifar2.NetWidth, net, SMALL),
    "NetDropout": (cifar2.NetDropout, net_dropout, SMALL),
    "NetBatchNorm": (cifar2.NetBatchNorm, net_batch_norm, SMALL),
    "NetDepth": (cifar2.NetDepth, net_depth, SMALL),
    "NetRes": (cifar2.NetRes, net_res, SMALL),
    "NetResDeep": (lambda: cifar2.NetResDeep(n_blocks=3), net_res_deep, SMALL),
    "NetResDeep_shared": (lambda: cifar2.NetResDeep(n_blocks=3, shared=True), net_res_deep, SMALL),
    "fully_connected_1": (lambda: cifar2.fully_connected(40), fully_connected, SMALL),
    "fully_connected_3": (lambda: cifar2.fully_connected(40, 30, 20), fully_connected, SMALL),
    "MnistNet": (mnist.MnistNet, mnist_net, DIGIT),
    "LectureNet": (mnist.LectureNet, lecture_net, DIGIT),
    "InceptionNet": (mnist.InceptionNet, inception_net, DIGIT),
    "ResidualNet": (mnist.ResidualNet, residual_net, DIGIT),
    "LeNet5": (mnist.LeNet5, lenet5, DIGIT),
    "NinNet": (nin.NinNet, nin_net, (1, 100, 100)),
    "NinNet_logits": (lambda: nin.NinNet(final_relu=False), nin_net_of_logits, (1, 100, 100)),
    "MyNet1": (small.MyNet1, my_net_1, (1, 32, 32)),
    "MyNet2": (small.MyNet2, my_net_2, DIGIT),
    "MyNet2_log_softmax": (lambda: small.MyNet2(log_softmax=True), my_net_2_log_softmax, DIGIT),
    "ResNet": (lambda: residual.CifarResNet(14), cifar_resnet, SMALL),
    "Plain": (lambda: residual.CifarResNet(14, shortcut=False), plain_net, SMALL),
    "PreActResNet": (lambda: residual.CifarResNet(14, preact=True), preactivation_resnet, SMALL),
    "DenseNetBC": (lambda: residual.DenseNetBC(16), densenet, SMALL),
}


def stirred(model):
    """With weights that let something of the image through, and batch norm that is not the identity in eval mode, as fresh."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.2, 1.2, generator=generator)
    return model


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", WRITTEN)
def test_net_is_what_its_document_writes(name, training):
    build, written, shape = WRITTEN[name]
    torch.manual_seed(0)
    model = stirred(build()).train(training)
    x = torch.randn(4, *shape)
    with torch.no_grad():
        torch.manual_seed(1)  # of dropout: the same draws in the same order drop the same channels and units
        expected = written(model, x)
        torch.manual_seed(1)
        found = model(x)
    torch.testing.assert_close(found, expected)
    assert expected.std(0).max() > 1e-4  # images that all look alike would prove nothing


@pytest.mark.parametrize("name", ["NetDropout", "MnistNet", "MyNet2"])
def test_control_dropout_is_seen(name):
    build, _, shape = WRITTEN[name]
    model, x = stirred(build()), torch.randn(4, *shape)
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(2)
    assert not model(x).equal(first)


@pytest.mark.parametrize("channels", [1, 3])
def test_pretrained_halves_are_resnet18(channels):
    """Document 001, section 2.3: the halves one after the other are the whole net; in training the locked one stays in eval."""
    torch.manual_seed(0)
    model = stirred(MyNetPretrained(in_channels=channels))
    whole = resnet18(num_classes=10)
    whole.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    whole.load_state_dict(dict(zip(whole.state_dict(), model.state_dict().values(), strict=True)))
    x = torch.randn(4, channels, 64, 64)
    whole.train()
    for part in (whole.conv1, whole.bn1, whole.layer1, whole.layer2):
        part.eval()
    torch.testing.assert_close(model.train()(x), whole(x))
    unlock(model)
    torch.testing.assert_close(model.eval()(x), whole.eval()(x))


def test_second_half_of_pretrained_is_fresh():
    state = {name: torch.full_like(tensor, 7) for name, tensor in resnet18().state_dict().items()}
    model = MyNetPretrained(state=state)
    kept = {name for name, tensor in model.state_dict().items() if tensor.eq(7).all()}
    assert kept == {name for name in model.state_dict() if name.startswith("pretrained.")}


# ------------------------------------------------------------------------------------------------------------ first weights


def drawn(tensor, std, normal):
    """Whether the tensor looks drawn with mean 0 and `std`, from a normal or a uniform distribution; n numbers tell within
    five standard errors."""
    n, tensor = tensor.numel(), tensor.detach()
    if n > 100 and abs(tensor.std().item() / std - 1) > 5 * math.sqrt(0.5 / n):
        return False
    limit = math.sqrt(3) * std  # that a uniform one keeps, and a normal one exceeds in 8 of 100 numbers
    beyond = tensor.abs().gt(limit * 1.0001).float().mean().item()
    return n <= 100 or 0.04 < beyond < 0.13 if normal else beyond == 0 and tensor.abs().max() > limit / 4


def kaiming(layer):
    """The standard deviation of He et al. before a ReLU, by fan-in: sqrt(2 / fan-in)."""
    return math.sqrt(2 / layer.weight[0].numel())


def usual(layer):
    """PyTorch's own: weights and biases uniform within ± 1 / sqrt(fan-in)."""
    std = 1 / math.sqrt(3 * layer.weight[0].numel())
    return drawn(layer.weight, std, normal=False) and (layer.bias is None or drawn(layer.bias, std, normal=False))


def layers(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


OTHERWISE = ("NetResDeep", "NetResDeep_shared", "MyNet1", "ResNet", "Plain", "PreActResNet", "DenseNetBC")


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in OTHERWISE])
def test_nets_without_a_word_on_it_begin_as_pytorch_has_it(name):
    torch.manual_seed(0)
    assert [path for path, layer in layers(WRITTEN[name][0]()) if not usual(layer)] == []


def test_res_deep_begins_as_the_book_says():
    """Document 000, section 5.2: kaiming_normal for relu, batch norm with weight 0.5 and bias 0; the rest as PyTorch has it."""
    torch.manual_seed(0)
    model = cifar2.NetResDeep(n_blocks=4)
    for block in model.resblocks:
        assert drawn(block.conv.weight, kaiming(block.conv), normal=True)
        assert block.batch_norm.weight.eq(0.5).all()
        assert block.batch_norm.bias.eq(0).all()
    assert all(map(usual, (model.conv1, model.fc1, model.fc2)))


@pytest.mark.parametrize("arguments", [{}, {"shortcut": False}, {"preact": True}])
def test_resnets_begin_as_he_et_al_say(arguments):
    """Convolutions, and the last layer as in the public repository, normal by fan-in; its bias as PyTorch has it."""
    torch.manual_seed(0)
    model = residual.CifarResNet(20, **arguments)
    assert [name for name, layer in layers(model) if not drawn(layer.weight, kaiming(layer), normal=True)] == []
    assert drawn(model.linear.bias, 1 / math.sqrt(3 * 64), normal=False)


def test_densenet_begins_as_its_paper_says():
    torch.manual_seed(0)
    model = residual.DenseNetBC(40)
    convolutions = [layer for _, layer in layers(model) if isinstance(layer, nn.Conv2d)]
    assert all(drawn(layer.weight, kaiming(layer), normal=True) for layer in convolutions)
    assert usual(model.classifier)


def test_my_net_1_begins_as_torchvision_makes_its_parts():
    """Document 001, section 2.2, takes them from vgg16_bn and resnet18: normal by fan-out, no bias; its own as PyTorch has it."""
    torch.manual_seed(0)
    model = small.MyNet1()
    for name, layer in layers(model):
        if name.startswith("block"):
            assert drawn(layer.weight, math.sqrt(2 / (layer.out_channels * layer.kernel_size[0] ** 2)), normal=True)
            assert layer.bias is None or layer.bias.eq(0).all()
    assert usual(model.conv1[0])
    assert usual(model.fc)


def test_batch_norm_begins_as_the_identity():
    """But in ResBlock: weight 1, bias 0; so no net begins with more or less of a branch than its document has."""
    for build, written, _ in WRITTEN.values():
        for module in build().modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and written is not net_res_deep:
                assert module.weight.eq(1).all()
                assert module.bias.eq(0).all()
