"""The classics as torchvision has them, for images of any number of channels, any number of classes, and small images.

Source  document 001, sections 2.1 (architectures, one grey channel, 10 classes, size limits) and 2.3 (pretrained weights);
        the architectures and their published weights: torchvision.models
Shapes  images float (N, in_channels, H, W) -> logits float (N, num_classes); H and W at least `minimum_size(name)`

Parameters for RGB and 1000 classes: alexnet 61,100,840; vgg16 138,357,544, vgg16_bn 138,365,992, vgg19 143,667,240; googlenet
6,624,904 and inception_v3 23,834,568, without their auxiliary heads; resnet18 11,689,512, 34 21,797,672,
50 25,557,032, 101 44,549,160, 152 60,192,808; wide_resnet50_2 68,883,240, 101_2 126,886,696; densenet121 7,978,856;
efficientnet_b0 5,288,548. For grey and 10 classes: resnet18 11,175,370, vgg16 134,300,362, vgg16_bn 134,308,810.
"""

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import ResNet

AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}  # the heads that help a deep net to train
# Height and width below which a stage has no pixel left, by the beginning of the name; found by trying, as the test does.
MINIMUM = {
    "alexnet": 63, "convnext": 32, "densenet": 29, "googlenet": 15, "inception_v3": 75, "maxvit": 224, "squeezenet1_0": 21,
    "squeezenet1_1": 17, "swin": 4, "vgg": 32, "vit": 224,
}  # fmt: skip
FIXED = ("maxvit", "vit")  # these are made for one size: their minimum


def names() -> list[str]:
    """The architectures that `zoo` builds, by torchvision's names of their builders: "resnet18" builds the class ResNet."""
    return models.list_models(module=models)


def zoo(
    name: str,
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    stem: str = "imagenet",
    grey: str = "fresh",
    state: dict[str, Tensor] | None = None,
) -> nn.Module:
    """The architecture `name` with a first convolution for `in_channels` and a last layer for `num_classes`.

    `stem`: "small" gives a ResNet a first convolution of 3×3 with stride 1 and no max pool, for images of about 32×32 (resnet18:
    11,173,962 parameters with RGB, 11,172,810 with grey). googlenet and inception_v3 come without their auxiliary heads: every
    net returns logits, in training, too.

    `state`: published weights (`weights_url`) as a dictionary of tensors. All values are kept but those of the first convolution
    and the last layers where their shapes differ: these stay fresh. With `grey="sum"` and one channel the first convolution is
    the sum of the published kernel over R, G and B: it answers a grey image as the original answers that image in RGB.

    Published weights want images of `published_scale`; googlenet and inception_v3 map these to -1..1 themselves.

    Raises ValueError for an unknown name or choice, and for a `state` of another architecture.
    """
    _known(name)
    if stem not in ("imagenet", "small") or grey not in ("fresh", "sum"):
        raise ValueError(f"stem is imagenet or small, grey is fresh or sum; they are {stem!r} and {grey!r}")
    # init_weights is said because torchvision warns that its default will change.
    more = {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3} if name in AUXILIARY else {}
    net = models.get_model(name, weights=None, num_classes=num_classes, **more)
    # Setting conv.in_channels would change what is printed and not the kernel: a layer for other channels is another layer.
    first, conv = next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if stem == "small":
        if not isinstance(net, ResNet):
            raise ValueError(f"stem='small' is for resnet, resnext and wide_resnet, not {name}")
        net.set_submodule(first, nn.Conv2d(in_channels, conv.out_channels, kernel_size=3, stride=1, padding=1, bias=False))
        net.maxpool = nn.Identity()
    elif in_channels != conv.in_channels:
        bias = conv.bias is not None
        other = nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=bias)
        net.set_submodule(first, other)
    if state is not None:
        _keep(net, state, first, num_classes, grey, AUXILIARY.get(name, ()), name)
    return net


def weights_url(name: str) -> str:
    """Where torchvision publishes the best weights of `name`. The file's name ends in its sha256's first digits."""
    _known(name)
    return models.get_model_weights(name).DEFAULT.url


def published_scale(channels: int) -> dict[str, tuple[float, ...]]:
    """ImageNet's mean and std of pixels in 0..1: how images for published weights are normalised; grey: the means over RGB."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return {"mean": mean, "std": std} if channels == 3 else {"mean": (sum(mean) / 3,), "std": (sum(std) / 3,)}


def minimum_size(name: str) -> int:
    """The smallest height and width in pixels that `name` takes."""
    _known(name)
    return next((size for start, size in MINIMUM.items() if name.startswith(start)), 1)


def check_size(name: str, size: int) -> None:
    """Raise ValueError, with the way out, if `name` cannot take images of `size`×`size` pixels."""
    least = minimum_size(name)
    if name.startswith(FIXED) and size != least:
        raise ValueError(f"{name} takes images of {least}×{least} only, not {size}×{size}: resize them")
    if size < least:
        small = ", or take a net for small images: resnet18 with a small stem"
        raise ValueError(f"{name} needs images of at least {least}×{least}, these are {size}×{size}: resize them{small}")


def _known(name: str) -> None:
    if name not in names():
        near = [other for other in names() if other[:3] == name[:3].lower()]
        raise ValueError(f"no architecture {name!r}; {'near it: ' if near else ''}{', '.join(near or names())}")


def _keep(net: nn.Module, state: dict[str, Tensor], first: str, classes: int, grey: str, unused: tuple[str, ...], name: str):
    """Copy `state` into the net, in place; what only the first convolution or the number of classes changed stays fresh."""
    given = {_present(key): tensor for key, tensor in state.items() if not key.startswith(unused)}
    own = net.state_dict()
    kernel = f"{first}.weight"
    if grey == "sum" and kernel in given and given[kernel].shape[1] == 3 and own[kernel].shape[1] == 1:
        given[kernel] = given[kernel].sum(dim=1, keepdim=True)
    # Weights saved before torch 0.4.1 lack batch norm's counter, which nothing here uses.
    wrong = [key for key in own.keys() ^ given.keys() if not key.endswith("num_batches_tracked")]
    fresh = set()
    for key in own.keys() & given.keys():
        mine, theirs = own[key].shape, given[key].shape
        if mine != theirs:
            new_head = mine[:1] == (classes,) and mine[1:] == theirs[1:]
            (fresh.add if key == kernel or new_head else wrong.append)(key)
    if wrong:
        raise ValueError(f"these are not the weights of {name}: {', '.join(sorted(wrong)[:4])} differ")
    if kernel in fresh:  # a bias belongs to its kernel
        fresh.add(f"{first}.bias")
    # `own` carries the versions of the net's modules; without them some, such as mnasnet's, refuse to load.
    own.update((key, given[key]) for key in (own.keys() & given.keys()) - fresh)
    net.load_state_dict(own)


def _present(key: str) -> str:
    """densenet's published names are older than its modules': denselayer1.norm.1.weight is denselayer1.norm1.weight now."""
    if "denselayer" in key:
        for old in ("norm.1.", "norm.2.", "conv.1.", "conv.2."):
            key = key.replace(f".{old}", f".{old[:4]}{old[5:]}")
    return key
