"""The nets written out once more, from their documents, as functions of a net's own tensors."""

import torch
import torch.nn.functional as F
from torch import nn

from nets import cifar2, mnist, nin, residual, small

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


# ----------------------------------------------------------------------------------------------- DLwPT ch. 8 and its notebook


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


# ------------------------------------------------------------------------------------------ MNIST, NiN and Inception notes


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


# ----------------------------------------------------------------------------------------------- transfer notes, the papers


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
    """The model with weights that let the image through, and with batch norm that differs from the identity in eval mode."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.2, 1.2, generator=generator)
    return model
