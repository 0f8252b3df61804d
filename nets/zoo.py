"""torchvision's classification architectures for any number of channels and classes, and ResNets for small images.

Source  transfer notes, sections 2.1 (architectures, one grey channel, 10 classes, size limits) and 2.3 (pretrained weights);
        torchvision.models for the architectures and their published weights
Shapes  images float (N, in_channels, H, W) -> logits float (N, num_classes); H and W at least `minimum_size(name)`

Parameters with RGB and 1000 classes: alexnet 61,100,840; vgg16 138,357,544, vgg16_bn 138,365,992, vgg19 143,667,240; googlenet
6,624,904 and inception_v3 23,834,568, without their auxiliary heads; resnet18 11,689,512, 34 21,797,672,
50 25,557,032, 101 44,549,160, 152 60,192,808; wide_resnet50_2 68,883,240, 101_2 126,886,696; densenet121 7,978,856;
efficientnet_b0 5,288,548. With grey and 10 classes: resnet18 11,175,370, vgg16 134,300,362, vgg16_bn 134,308,810.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import ResNet
from torchvision.models.vision_transformer import interpolate_embeddings

AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}  # heads that help a deep net to train
# The smallest height and width, in pixels, by prefix of the name; below it some stage has no pixels left. Found by trial, as the
# test does.
MINIMUM = {
    "alexnet": 63, "convnext": 32, "densenet": 29, "googlenet": 15, "inception_v3": 75, "maxvit": 224, "squeezenet1_0": 21,
    "squeezenet1_1": 17, "swin": 4, "vgg": 32, "vit_h_14": 14, "vit_b_32": 32, "vit_l_32": 32, "vit": 16,
}  # fmt: skip
# The sizes of these are multiples of a number, and they are made for one of them: its name there.
FIXED = {"maxvit": (224, "input_size"), "vit_h_14": (14, "image_size"), "vit": (16, "image_size")}
FIXED["vit_b_32"] = FIXED["vit_l_32"] = (32, "image_size")


def names() -> list[str]:
    """The architectures that `zoo` builds, by the names of torchvision's builders ("resnet18", not the class ResNet)."""
    return models.list_models(module=models)


def zoo(
    name: str,
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    stem: str = "imagenet",
    grey: str = "fresh",
    state: dict[str, Tensor] | None = None,
    size: int = 0,
) -> nn.Module:
    """The architecture `name` with `in_channels` input channels and `num_classes` outputs.

    `stem`: "small" gives a ResNet a 3×3 first convolution with stride 1 and no max pool, for images of about 32×32 (resnet18:
    11,173,962 parameters with RGB, 11,172,810 with grey). googlenet and inception_v3 are built without their auxiliary heads, so
    every net returns logits, in training as well.

    `state`: published weights (`weights_url`), by name. They replace the random weights, except where the shape of the first
    convolution or of a last layer differs. With `grey="sum"` and one channel, the first convolution is the published kernel
    summed over R, G and B: a grey image gives the output that the original gives for the same image in RGB.

    `size` is that of the images in pixels, for the nets that are made for one (0: 224); their published position embeddings are
    resampled for it.

    Published weights need images normalised by `published_scale`; googlenet and inception_v3 map these to -1..1 themselves.

    Raises ValueError for an unknown name or option, and for the `state` of another architecture.
    """
    _known(name)
    if stem not in ("imagenet", "small") or grey not in ("fresh", "sum"):
        raise ValueError(f"stem must be imagenet or small, grey fresh or sum, not {stem!r} and {grey!r}")
    # Without an explicit init_weights torchvision warns that its default will change.
    more: dict[str, Any] = {}
    if name in AUXILIARY:
        more |= {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3}
    multiple, parameter = _fixed(name)
    if size and multiple:
        more[parameter] = (size, size) if parameter == "input_size" else size
    net = models.get_model(name, weights=None, num_classes=num_classes, **more)
    if state is not None and size and parameter == "image_size":
        state = interpolate_embeddings(size, multiple, OrderedDict(state))
    # Assigning conv.in_channels would change repr(net) but not the kernel: other channels need another layer.
    first, conv = next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if stem == "small":
        if not isinstance(net, ResNet):
            raise ValueError(f"stem='small' is for resnet, resnext and wide_resnet, not {name}")
        net.set_submodule(first, nn.Conv2d(in_channels, conv.out_channels, kernel_size=3, stride=1, padding=1, bias=False))
        net.maxpool = nn.Identity()
    elif in_channels != conv.in_channels:
        bias = conv.bias is not None
        kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding  # typed as tuple[int, ...]
        other = nn.Conv2d(in_channels, conv.out_channels, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]
        net.set_submodule(first, other)
    if state is not None:
        _keep(net, state, first, num_classes, grey, AUXILIARY.get(name, ()), name)
    return net


def weights_url(name: str) -> str:
    """The address of torchvision's best weights for `name`. The file name ends in the first digits of its sha256."""
    _known(name)
    return models.get_model_weights(name).DEFAULT.url


def published_scale(channels: int) -> dict[str, tuple[float, ...]]:
    """ImageNet's mean and std for pixels in 0..1, as published weights need them; for grey, their averages over RGB."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return {"mean": mean, "std": std} if channels == 3 else {"mean": (sum(mean) / 3,), "std": (sum(std) / 3,)}


def minimum_size(name: str) -> int:
    """The smallest height and width, in pixels, that `name` accepts."""
    _known(name)
    return next((size for start, size in MINIMUM.items() if name.startswith(start)), 1)


def check_size(name: str, size: int) -> None:
    """Raise ValueError, saying what to do, if `name` cannot take images of `size`×`size` pixels."""
    least, multiple = minimum_size(name), _fixed(name)[0]
    if multiple and (size % multiple or size < multiple):
        below = max(size // multiple, 1) * multiple
        near = " and ".join(f"{fit}×{fit}" for fit in (below, below + multiple) if fit != size)
        raise ValueError(f"{name} takes multiples of {multiple}, such as {near}, not {size}×{size}: resize them")
    if size < least:
        small = ", or use a net for small images, such as resnet18 with the small stem"
        raise ValueError(f"{name} needs images of at least {least}×{least}, not {size}×{size}: resize them{small}")


def _fixed(name: str) -> tuple[int, str]:
    """The number that sizes are multiples of, and the parameter that takes them; 0 for a net of any size."""
    return next((FIXED[start] for start in sorted(FIXED, key=len, reverse=True) if name.startswith(start)), (0, ""))


def published_preprocessing(name: str) -> dict[str, Any]:
    """How torchvision preprocesses images for its best weights for `name`: mean, std, crop, interpolation, size."""
    _known(name)
    seen = models.get_model_weights(name).DEFAULT.transforms()
    (size,), (shorter,) = seen.crop_size, seen.resize_size
    return {
        "mean": tuple(seen.mean),
        "std": tuple(seen.std),
        "crop": min(size / shorter, 1.0),
        "interpolation": seen.interpolation.value,
        "size": size,
    }


def _known(name: str) -> None:
    if name not in names():
        near = [other for other in names() if other[:3] == name[:3].lower()]
        raise ValueError(f"unknown architecture {name!r}; {'similar' if near else 'known'}: {', '.join(near or names())}")


def _keep(
    net: nn.Module, state: dict[str, Tensor], first: str, classes: int, grey: str, unused: tuple[str, ...], name: str
) -> None:
    """Copy `state` into the net, in place, except where the number of channels or classes changed a shape."""
    given = {_present(key): tensor for key, tensor in state.items() if not key.startswith(unused)}
    own = net.state_dict()
    kernel = f"{first}.weight"
    if grey == "sum" and kernel in given and given[kernel].shape[1] == 3 and own[kernel].shape[1] == 1:
        given[kernel] = given[kernel].sum(dim=1, keepdim=True)
    # Weights saved before torch 0.4.1 lack num_batches_tracked, which is not used here.
    wrong = [key for key in own.keys() ^ given.keys() if not key.endswith("num_batches_tracked")]
    fresh: set[str] = set()
    for key in own.keys() & given.keys():
        mine, theirs = own[key].shape, given[key].shape
        if mine != theirs:
            new_head = mine[:1] == (classes,) and mine[1:] == theirs[1:]
            (fresh.add if key == kernel or new_head else wrong.append)(key)
    if wrong:
        raise ValueError(f"these are not the weights of {name}: {', '.join(sorted(wrong)[:4])} differ")
    if kernel in fresh:  # the bias belongs to the kernel
        fresh.add(f"{first}.bias")
    # `own` carries the versions of the net's modules; without them some, such as mnasnet's, refuse to load.
    own.update((key, given[key]) for key in (own.keys() & given.keys()) - fresh)
    net.load_state_dict(own)


def _present(key: str) -> str:
    """The key in today's torchvision: densenet's published denselayer1.norm.1.weight is denselayer1.norm1.weight now."""
    if "denselayer" in key:
        for old in ("norm.1.", "norm.2.", "conv.1.", "conv.2."):
            key = key.replace(f".{old}", f".{old[:4]}{old[5:]}")
    return key
