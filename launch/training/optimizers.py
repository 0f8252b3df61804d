"""Optimizers that torch.optim lacks: Muon for convolutions beside SGD for the rest, and the usual parameter groups of a net."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = 3.4445, -4.7750, 2.0315  # of Newton and Schulz' iteration, as Jordan chose them


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """`matrix` with singular values near 1, between 0.7 and 1.2: float32 (rows, columns) -> the same.

    Source: Jordan, Muon: An optimizer for hidden layers in neural networks (kellerjordan.github.io/posts/muon).
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.SGD):
    """Muon for the groups that have "muon": True, SGD for the others, in one optimizer and so in one checkpoint.

    A weight of the former groups is a matrix of (outputs, everything else). Its step is the orthogonalised Nesterov momentum,
    times sqrt(outputs / everything else) where that is more than 1; weight decay is apart from it. With "normalised": True, for
    weights that a batch norm follows, the weight is scaled before each step so that its rows have a norm of 1 on average.
    """

    def __init__(self, params: Any, lr: float = 0.02, *, muon_momentum: float = 0.95, ns_steps: int = 5, **options: Any):
        """`options` are those of SGD, for the other groups; each group may have its own."""
        super().__init__(params, lr, **options)
        self.defaults |= {"muon": False, "normalised": False, "muon_momentum": muon_momentum, "ns_steps": ns_steps}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            if group["muon"]:  # SGD adds the finished update
                group["momentum"], group["nesterov"], group["dampening"] = 0.0, False, 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        gradients = {}
        for group in self.param_groups:
            for weight in group["params"] if group["muon"] else ():
                if weight.grad is not None:
                    gradients[weight] = weight.grad
                    weight.grad = self._update(weight, weight.grad, group)
        loss = super().step(closure)
        for weight, gradient in gradients.items():  # whose norm is logged
            weight.grad = gradient
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict) -> Tensor:
        state, momentum = self.state[weight], group["muon_momentum"]
        if "average" not in state:
            state["average"] = torch.zeros_like(weight)
        average = state["average"]
        average.mul_(momentum).add_(gradient)
        if group["normalised"]:
            weight.mul_(math.sqrt(len(weight)) / weight.norm())
        rows = gradient.add(average, alpha=momentum).flatten(1)
        larger = max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5
        update = torch.empty_like(weight)  # in its memory format
        return update.copy_(orthogonalised(rows, group["ns_steps"]).mul_(larger).view(weight.shape))


def groups(
    net: nn.Module,
    lr: float,
    weight_decay: float,
    others: float = 1.0,
    last: str | Sequence[str] = "",
    layer_decay: float = 1.0,
    depths: Mapping[str, int] | None = None,
) -> list[dict]:
    """The net's parameters that learn as groups for an optimizer: norms and biases, which have one dimension, without decay.

    With `last`, the names of new layers in a trained net or the name of one, everything else gets `others` times the rate `lr`;
    with `layer_decay`, that again for each layer that lies between it and the output, as `depths` counts them by parameter.
    Sources: He et al., Bag of Tricks (arXiv:1812.01187), section 3.1; the transfer notes; layer-wise decay: Clark et al., ELECTRA
    (arXiv:2003.10555).
    """
    new_layers = tuple(f"{layer}." for layer in ((last,) if isinstance(last, str) else last))
    by_kind: dict[tuple[bool, bool, int], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            new = not last or name.startswith(new_layers)
            depth = depths[name] if depths and layer_decay != 1 and not new else 0
            by_kind.setdefault((new, parameter.ndim > 1, depth), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr if new else lr * others * layer_decay**depth,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (new, decays, depth), parameters in by_kind.items()
    ]


def make_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Make SGD's momentum, of 0: torch 2.15 leaves that of a first step that fp16's scaler skips uninitialised."""
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else []:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
