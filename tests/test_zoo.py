"""torchvision's nets: published parameter counts, other channels and classes, published weights, image sizes."""

import re
from pathlib import Path

import pytest
import torch
from torchvision import models

from launch.weights import load
from nets.zoo import MINIMUM, check_size, minimum_size, names, published_scale, weights_url, zoo

PUBLISHED = {  # transfer notes; RGB, 1000 classes
    "alexnet": 61_100_840, "vgg16": 138_357_544, "vgg16_bn": 138_365_992, "vgg19": 143_667_240, "googlenet": 6_624_904,
    "inception_v3": 23_834_568, "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
    "resnet152": 60_192_808, "densenet121": 7_978_856, "wide_resnet50_2": 68_883_240, "wide_resnet101_2": 126_886_696,
    "efficientnet_b0": 5_288_548,
}  # fmt: skip
CHANGED = [
    ("resnet18", {"in_channels": 1}, 11_175_370),
    ("vgg16", {"in_channels": 1}, 134_300_362),
    ("vgg16_bn", {"in_channels": 1}, 134_308_810),
    ("resnet18", {"in_channels": 1, "stem": "small"}, 11_172_810),
    ("resnet18", {"stem": "small"}, 11_173_962),
]
# RegNets compute their widths with tensors and cannot be built on the meta device: two small ones stand for all.
CHEAP = [name for name in names() if not name.startswith("regnet") or "400mf" in name]


def parameters(net) -> int:
    return sum(p.numel() for p in net.parameters())


def on_meta(name, **arguments):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return zoo(name, **arguments).to("meta")


def image(n, channels, size):
    return torch.empty(n, channels, size, size, device="meta")


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_published_counts(name, count):
    assert parameters(on_meta(name, num_classes=1000)) == count


@pytest.mark.parametrize(("name", "arguments", "count"), CHANGED)
def test_counts_after_changes(name, arguments, count):
    assert parameters(on_meta(name, **arguments)) == count


@pytest.mark.parametrize("name", CHEAP)
def test_every_net_takes_grey_images_of_its_minimum_and_none_smaller(name):
    least = minimum_size(name)
    net = on_meta(name, in_channels=1, num_classes=7, size=least).train()
    assert net(image(2, 1, least)).shape == (2, 7)
    check_size(name, least)
    if name.startswith("maxvit"):  # made for 224; that slightly smaller images also run is not promised by torchvision
        return
    if least > 1:
        with pytest.raises((RuntimeError, AssertionError)):
            net(image(2, 1, least - 1))
        with pytest.raises(ValueError, match=f"{name} .*{least}×{least}.*resize"):
            check_size(name, least - 1)


def test_the_documents_families_and_their_minimum():
    named = {
        "alexnet": 63, "vgg16": 32, "googlenet": 15, "inception_v3": 75, "densenet121": 29, "squeezenet1_0": 21, "resnet18": 1,
        "mobilenet_v2": 1, "efficientnet_b0": 1, "mobilenet_v3_small": 1, "resnext50_32x4d": 1, "shufflenet_v2_x1_0": 1,
        "mnasnet1_0": 1, "regnet_y_400mf": 1, "convnext_tiny": 32, "vgg19_bn": 32, "wide_resnet50_2": 1,
    }  # fmt: skip
    assert {name: minimum_size(name) for name in named} == named
    assert named.keys() <= set(names())
    assert all(any(name.startswith(start) for name in names()) for start in MINIMUM)


def test_fixed_size():
    with pytest.raises(ValueError, match="multiples of 16, such as 240×240 and 256×256, not 250×250"):
        check_size("vit_b_16", 250)
    assert on_meta("vit_b_16", size=256)(image(2, 3, 256)).shape == (2, 10)
    with pytest.raises(AssertionError):  # as it is made without a size
        on_meta("vit_b_16")(image(2, 3, 256))


def test_auxiliary_heads_are_left_out():
    assert on_meta("googlenet").train()(image(2, 3, 64)).shape == (2, 10)
    assert on_meta("inception_v3").train()(image(2, 3, 96)).shape == (2, 10)


def test_setting_in_channels_changes_what_is_printed_and_nothing_else():
    """The transfer notes' mistake; `zoo` replaces the layer instead."""
    net = models.resnet18()
    net.conv1.in_channels = 1
    assert "Conv2d(1, 64" in repr(net)
    assert net.conv1.weight.shape == (64, 3, 7, 7)
    with pytest.raises(RuntimeError, match="channels"):
        net(torch.randn(2, 1, 32, 32))
    assert zoo("resnet18", in_channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 10)


def test_small_stem_keeps_the_size_for_the_first_stage():
    sizes = []
    net = on_meta("resnet18", stem="small")
    net.layer1.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    net(image(2, 3, 32))
    assert sizes == [32]
    with pytest.raises(ValueError, match="not vgg16"):
        zoo("vgg16", stem="small")


# ------------------------------------------------------------------------------------------------------- published weights


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return models.resnet18().eval()


def test_all_is_kept_where_nothing_changed(resnet18):
    net = zoo("resnet18", num_classes=1000, state=resnet18.state_dict()).eval()
    x = torch.randn(2, 3, 64, 64)
    assert net(x).equal(resnet18(x))


@pytest.mark.parametrize(("arguments", "fresh"), [
    ({}, {"fc.weight", "fc.bias"}),
    ({"in_channels": 1}, {"conv1.weight", "fc.weight", "fc.bias"}),
    ({"in_channels": 1, "grey": "sum"}, {"fc.weight", "fc.bias"}),
    ({"num_classes": 1000, "stem": "small"}, {"conv1.weight"}),
])  # fmt: skip
def test_only_changed_layers_are_fresh(resnet18, arguments, fresh):
    state = resnet18.state_dict()
    own = zoo("resnet18", state=state, **arguments).state_dict()
    expected = dict(state, **{"conv1.weight": state["conv1.weight"].sum(1, keepdim=True)}) if "grey" in arguments else state
    assert {name for name in own if not own[name].equal(expected[name])} == fresh
    assert own["conv1.weight"].equal(state["conv1.weight"].sum(1, keepdim=True)) == ("grey" in arguments)


def test_summed_stem_answers_grey_as_the_original_answers_rgb(resnet18):
    x = torch.randn(2, 1, 32, 32)
    net = zoo("resnet18", in_channels=1, grey="sum", state=resnet18.state_dict())
    torch.testing.assert_close(net.conv1(x), resnet18.conv1(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_a_replaced_convolution_takes_no_bias_from_the_old_one():
    state = {name: torch.full_like(tensor, 7) for name, tensor in models.squeezenet1_1().state_dict().items()}
    net = zoo("squeezenet1_1", in_channels=1, state=state)
    assert not (net.features[0].bias == 7).any()
    assert not (net.classifier[1].bias == 7).any()
    assert (net.features[3].squeeze.bias == 7).all()


def test_inception_family_takes_weights_with_heads_and_maps_rgb_itself():
    torch.manual_seed(0)
    with pytest.warns(FutureWarning, match="init_weights"):
        published = models.googlenet(transform_input=True)  # as torchvision builds it for its weights
    net = zoo("googlenet", num_classes=1000, state=published.state_dict())
    for each in (net, published):
        each.aux_logits = False
        each.dropout.p = 0.0  # in train mode: with running statistics the random weights let nothing of the image through
    x = torch.randn(4, 3, 32, 32)
    assert net(x).equal(published(x))
    published.transform_input = False
    assert not net(x).equal(published(x))


def test_densenets_older_names():
    state = models.densenet121(num_classes=3).state_dict()
    old = {re.sub(r"(denselayer\d+\.(norm|conv))([12])\.", r"\1.\3.", name): tensor for name, tensor in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    own = zoo("densenet121", num_classes=3, state=old).state_dict()
    assert all(own[name].equal(state[name]) for name in state)


def test_weights_without_batch_norms_counters(resnet18):
    state = {name: tensor for name, tensor in resnet18.state_dict().items() if "num_batches" not in name}
    assert zoo("resnet18", state=state).bn1.num_batches_tracked == 0


def test_weights_of_another_net_are_refused(resnet18):
    state = resnet18.state_dict()
    with pytest.raises(ValueError, match="not the weights of resnet34"):
        zoo("resnet34", state=state)
    with pytest.raises(ValueError, match=r"not the weights of resnet18: layer1\.0\.bn1\.bias differ"):
        zoo("resnet18", state=dict(state, **{"layer1.0.bn1.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"extra differ"):
        zoo("resnet18", state=dict(state, extra=torch.zeros(3)))


def test_published_first_kernel():
    """Transfer notes, section 2.3: the 49 numbers of resnet18's conv1.weight[0][0], if torchvision's file is here."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / "resnet18-f37072fd.pth"
    if not path.exists():
        pytest.skip(f"needs torchvision's weights, {path}")
    published = [
        -0.0104, -0.0061, -0.0018, 0.0748, 0.0566, 0.0171, -0.0127, 0.0111, 0.0095, -0.1099, -0.2805, -0.2712, -0.1291, 0.0037,
        -0.0069, 0.0591, 0.2955, 0.5872, 0.5197, 0.2563, 0.0636, 0.0305, -0.0670, -0.2984, -0.4387, -0.2709, -0.0006, 0.0576,
        -0.0275, 0.0160, 0.0726, -0.0541, -0.3328, -0.4206, -0.2578, 0.0306, 0.0410, 0.0628, 0.2390, 0.4138, 0.3936, 0.1661,
        -0.0137, -0.0037, -0.0241, -0.0659, -0.1507, -0.0822, -0.0058,
    ]  # fmt: skip
    kernel = zoo("resnet18", num_classes=1000, state=load(path)).conv1.weight[0, 0]
    torch.testing.assert_close(kernel.flatten(), torch.tensor(published), rtol=0, atol=5.1e-5)


def test_addresses():
    assert weights_url("resnet18") == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert weights_url("resnet50") == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"  # the better of two
    assert all(re.search(r"-[0-9a-f]{8,}\.pth$", weights_url(name)) for name in names())


def test_images_for_published_weights_are_scaled_as_torchvision_says():
    for name in ("resnet18", "googlenet", "vgg16_bn"):
        expected = models.get_model_weights(name).DEFAULT.transforms()
        assert published_scale(3) == {"mean": tuple(expected.mean), "std": tuple(expected.std)}
    assert published_scale(1)["mean"] == pytest.approx((0.449,))


def test_unknown_names():
    with pytest.raises(ValueError, match="similar: resnet101, resnet152, resnet18"):
        zoo("ResNet18")
    with pytest.raises(ValueError, match="unknown architecture 'fcn_resnet50'"):
        zoo("fcn_resnet50")  # torchvision has it, for segmentation
    with pytest.raises(ValueError, match="stem must be imagenet or small"):
        zoo("resnet18", stem="tiny")
