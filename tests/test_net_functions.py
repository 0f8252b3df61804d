"""Each net computes what its document describes: it agrees with its layers written out in written_nets.py."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from written_nets import WRITTEN, stirred

from nets.transfer import MyNetPretrained, unlock


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", WRITTEN)
def test_net_computes_what_its_document_describes(name, training):
    build, written, shape = WRITTEN[name]
    torch.manual_seed(0)
    model = stirred(build()).train(training)
    x = torch.randn(4, *shape)
    with torch.no_grad():
        torch.manual_seed(1)  # dropout: the same random numbers drop the same channels and units
        expected = written(model, x)
        torch.manual_seed(1)
        found = model(x)
    torch.testing.assert_close(found, expected)
    assert expected.std(0).max() > 1e-4  # equal outputs for all images would prove nothing


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
    """Transfer notes, section 2.3: the two halves in sequence are the net; in training the locked one stays in eval mode."""
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
