"""Transfer: parts of a net locked while the rest learns, and unlocked later. With document 001's net of a pretrained half.

Source  document 001, section 2.3 (pretrained weights, locked parts, MyNet_pretrained, unlocking the last block)
Shapes  MyNetPretrained: images float (N, 3, 224, 224) -> logits float (N, 10)

Locked means that nothing of the part changes in training: its parameters get no gradient, its batch norm normalises with the
statistics that it has and keeps them, its dropout drops nothing. The document sets requires_grad only; then batch norm drifts.
"""

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from .zoo import zoo


def lock(net: nn.Module, *names: str) -> None:
    """Lock the parts `names`, as `named_modules` calls them ("layer1", "layer2.0"); without names the whole net.

    It holds through `net.train()`, `copy.deepcopy` and DistributedDataParallel. Modules put into the part later, such as those
    of `convert_sync_batchnorm`, are not locked. Raises ValueError, naming what there is, for an unknown name.
    """
    for part in _parts(net, names):
        for module in part.modules():
            if not _is_locked(module):
                module.register_forward_pre_hook(_stay_in_eval, prepend=True)
            module.training = False
        for parameter in part.parameters():
            parameter.requires_grad = False
            parameter.grad = None  # an optimizer skips what has none, and would go on with what is left of the last step


def unlock(net: nn.Module, *names: str) -> None:
    """Let the parts `names` learn again, also parts of a locked part; without names the whole net.

    An optimizer that does not have their parameters yet takes them with `add_trainable`. Unlock before `launch.train` wraps the
    net for several processes, not during. Raises ValueError, naming what there is, for an unknown name.
    """
    for part in _parts(net, names):
        for module in part.modules():
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _stay_in_eval]:
                del module._forward_pre_hooks[key]
        part.train(net.training)
        part.requires_grad_(True)


def locked(net: nn.Module) -> list[str]:
    """The names of the parts that are locked throughout, the largest ones; [""], as `named_modules` has it, is the whole net."""
    whole = [name for name, module in net.named_modules() if all(map(_is_locked, module.modules()))]
    return [name for name in whole if name == "" or name.rpartition(".")[0] not in whole]


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn: what an optimizer should be given."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def add_trainable(optimizer: torch.optim.Optimizer, net: nn.Module, lr: float) -> int:
    """Give the optimizer the trainable parameters that it lacks, as a group of its own with `lr`; the others keep their state.

    Returns how many numbers (elements of parameters) were added. A group's other options are the optimizer's defaults.
    """
    has = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    new = [parameter for parameter in trainable(net) if id(parameter) not in has]
    if new:
        optimizer.add_param_group({"params": new, "lr": lr})
    return sum(parameter.numel() for parameter in new)


def _stay_in_eval(module: nn.Module, _inputs: tuple) -> None:
    """What a locked module does before each forward; being a plain function, a deepcopy of the module keeps it."""
    if module.training:
        module.training = False


def _is_locked(module: nn.Module) -> bool:
    return _stay_in_eval in module._forward_pre_hooks.values()


def _parts(net: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    modules = dict(net.named_modules())
    for name in names:
        if name not in modules:
            above = name
            while above not in modules:
                above = above.rpartition(".")[0]
            there = [f"{above}.{child}" if above else child for child, _ in modules[above].named_children()]
            raise ValueError(f"{type(net).__name__} has no part {name!r}; {above or 'it'} has {', '.join(there) or 'no parts'}")
    return [modules[name] for name in names or ("",)]


class MyNetPretrained(nn.Module):
    """The document's MyNet_pretrained: resnet18's conv1 … layer2 locked, its layer3 and layer4 fresh, 512 -> 10.

    11,181,642 parameters: 683,072 locked, 10,498,570 trainable; 387,648 and 10,793,994 after `unlock(net, "pretrained.5.1")`,
    the document's `net.pretrained[5][1]`. `state`: resnet18's weights, of which the locked half is taken; without them that half
    is random. One channel takes the sum of their first kernel over R, G and B.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, state: dict[str, Tensor] | None = None):
        super().__init__()
        body = zoo("resnet18", in_channels=in_channels, num_classes=num_classes, grey="sum", state=state)
        fresh = resnet18(num_classes=num_classes)
        self.pretrained = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool, body.layer1, body.layer2)
        self.train_ = nn.Sequential(fresh.layer3, fresh.layer4, fresh.avgpool)
        self.fc = fresh.fc
        lock(self, "pretrained")

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 224, 224)
        x = self.pretrained(x)  # (N, 128, 28, 28)
        x = self.train_(x)  # (N, 512, 1, 1)
        return self.fc(x.flatten(1))  # (N, 10)
