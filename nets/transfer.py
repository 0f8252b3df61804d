"""Transfer learning: lock parts of a net while the rest trains, and unlock them later; the transfer notes' pretrained net.

Source  transfer notes, section 2.3 (pretrained weights, locked parts, MyNet_pretrained, unlocking the last block)
Shapes  MyNetPretrained: images float (N, 3, 224, 224) -> logits float (N, 10)

Nothing in a locked part changes during training: parameters get no gradient, batch norm uses its running statistics and does
not update them, dropout is off. The notes only set requires_grad = False, which lets the running statistics drift.
"""

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from .zoo import zoo


def lock(net: nn.Module, *names: str) -> None:
    """Lock the submodules `names`, as in `named_modules` ("layer1", "layer2.0"); without names, the whole net.

    The lock survives `net.train()`, `copy.deepcopy` and DistributedDataParallel. Modules added to the part later, for instance
    by `convert_sync_batchnorm`, are not locked. Raises ValueError for an unknown name and lists the names there are.
    """
    for part in _parts(net, names):
        for module in part.modules():
            if not _is_locked(module):
                module.register_forward_pre_hook(_stay_in_eval, prepend=True)
            module.training = False
        for parameter in part.parameters():
            parameter.requires_grad = False
            parameter.grad = None  # optimizers skip parameters without one; a stale one would still be applied


def unlock(net: nn.Module, *names: str) -> None:
    """Make the submodules `names` trainable again, also inside a locked part; without names, the whole net.

    Call `add_trainable` for an optimizer that lacks their parameters. Unlock before `launch.train` wraps the net for several
    processes, not while it trains. Raises ValueError for an unknown name and lists the names there are.
    """
    for part in _parts(net, names):
        for module in part.modules():
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _stay_in_eval]:
                del module._forward_pre_hooks[key]
        part.train(net.training)
        part.requires_grad_(True)


def locked(net: nn.Module) -> list[str]:
    """The outermost submodules in which everything is locked. The whole net is [""], its name in `named_modules`."""
    whole = [name for name, module in net.named_modules() if all(map(_is_locked, module.modules()))]
    return [name for name in whole if name == "" or name.rpartition(".")[0] not in whole]


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """The parameters to give to an optimizer: those with requires_grad."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def add_trainable(optimizer: torch.optim.Optimizer, net: nn.Module, lr: float) -> int:
    """Add the trainable parameters that the optimizer lacks as a new group with `lr`; the others keep their state.

    The group's other options are the optimizer's defaults. Returns the number of elements added.
    """
    has = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    new = [parameter for parameter in trainable(net) if id(parameter) not in has]
    if new:
        optimizer.add_param_group({"params": new, "lr": lr})
    return sum(parameter.numel() for parameter in new)


def _stay_in_eval(module: nn.Module, _inputs: tuple[object, ...]) -> None:
    """Forward pre-hook of locked modules. A plain function, so that deepcopy keeps it."""
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
            raise ValueError(f"{type(net).__name__} has no submodule {name!r}; {above or 'it'} has {', '.join(there) or 'none'}")
    return [modules[name] for name in names or ("",)]


class MyNetPretrained(nn.Module):
    """The notes' MyNet_pretrained: resnet18 with conv1 … layer2 locked, layer3, layer4 and the linear layer new.

    11,181,642 parameters: 683,072 locked and 10,498,570 trainable; 387,648 and 10,793,994 after `unlock(net, "pretrained.5.1")`,
    the notes' `net.pretrained[5][1]`. `state` holds resnet18's weights, used for the locked half; without it that half is
    random. With one input channel the first kernel is summed over R, G and B.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, state: dict[str, Tensor] | None = None):
        super().__init__()
        body = zoo("resnet18", in_channels=in_channels, num_classes=num_classes, grey="sum", state=state)
        fresh = resnet18(num_classes=num_classes)
        locked_half = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2")
        self.pretrained = nn.Sequential(*(body.get_submodule(name) for name in locked_half))
        self.train_ = nn.Sequential(fresh.layer3, fresh.layer4, fresh.avgpool)
        self.fc = fresh.fc
        lock(self, "pretrained")

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 224, 224)
        x = self.pretrained(x)  # (N, 128, 28, 28)
        x = self.train_(x)  # (N, 512, 1, 1)
        return self.fc(x.flatten(1))  # (N, 10)
