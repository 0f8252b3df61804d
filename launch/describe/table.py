"""A net's table: its layers, the shapes that they give, their parameters, and what a pass costs.

Source  transfer notes, sections 2.2 and 2.3: torchinfo's table, with the same lines
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .forward import Call, zeros
from .shapes import calls

INDENT, NAME, COLUMN = 5, 40, 25  # characters: of a level, of the first column at least, of each other one


def summary(net: nn.Module, shape: Sequence[int], depth: int = 3) -> str:
    """Table as in the notes: layers down to `depth`, output shapes, parameters (frozen ones in parentheses), mult-adds, sizes.

    Each parameter is counted once, by the innermost module in the table that has it. Mult-adds are those of convolutions, matrix
    products and biases; a norm's parameters count once an image. The size of a pass is that of the outputs of layers with
    parameters, twice for the gradients. Both are for the whole batch (one image if `shape` is (C, H, W)); 1 MB is 10⁶ bytes.
    Raises Refused (4) as `shape_walk`.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # others are fused, and not counted on CPUs
        ran = calls(net, shape)
    mult_adds = counter.get_total_flops() // 2 + sum(map(_beside_products, ran))
    unit, name = next(((unit, name) for unit, name in ((1e12, "T"), (1e9, "G")) if mult_adds >= unit), (1e6, "M"))
    parameters = [*net.parameters()]
    total, trainable = (sum(p.numel() for p in some) for some in (parameters, [p for p in parameters if p.requires_grad]))
    sizes = {
        "Input size": zeros(net, shape).nbytes,
        "Forward/backward pass size": 2 * sum(call.size for call in ran if call.is_layer and [*call.module.parameters()]),
        "Params size": sum(p.nbytes for p in parameters),
    }
    sizes["Estimated Total Size"] = sum(sizes.values())
    rows = [("Layer (type:depth-idx)", "Output Shape", "Param #"), *_rows(net, ran, depth)]
    width = max(NAME, *(-(-(len(title) + 4) // INDENT) * INDENT for title, _, _ in rows))
    head, *body = (f"{title:{width}} {gives:{COLUMN}} {count}".rstrip() for title, gives, count in rows)
    counts = [
        f"Total params: {total:,}",
        f"Trainable params: {trainable:,}",
        f"Non-trainable params: {total - trainable:,}",
        f"Total mult-adds ({name}): {mult_adds / unit:,.2f}",
    ]
    line = "=" * (width + 2 * COLUMN)
    costs = (f"{what} (MB): {size / 1e6:.2f}" for what, size in sizes.items())
    return "\n".join((line, head, line, *body, line, *counts, line, *costs, line))


def _beside_products(call: Call) -> int:
    """A layer's mult-adds that are no product of matrices: its bias; what a norm has, which the notes count once an image."""
    own = dict(call.module.named_parameters(recurse=False)) if call.is_layer else {}
    if any(p.ndim > 1 for p in own.values()):
        return math.prod(call.gives) if "bias" in own else 0
    return call.gives[0] * sum(p.numel() for p in own.values()) if call.gives else 0


def _rows(net: nn.Module, ran: Sequence[Call], depth: int) -> Iterator[tuple[str, str, str]]:
    """The cells of each module down to `depth`, as they ran, below the modules that contain them."""
    paths = {module: name.split(".") if name else [] for name, module in net.named_modules()}
    rows, within = list[tuple[int, nn.Module, tuple[int, ...]]](), list[nn.Module]()
    for call in ran:
        path = paths[call.module]
        for level in range(len(path)):
            container = net.get_submodule(".".join(path[:level]))
            if within[level : level + 1] != [container]:  # such as nn.ModuleList, which does not run itself
                within[level:] = [container]
                rows.append((level, container, ()))
        within[len(path) :] = [call.module]
        rows.append((len(path), call.module, call.gives))
    counted_by: dict[nn.Parameter, int] = {}  # a parameter -> its row
    for place in sorted(range(len(rows)), key=lambda place: (rows[place][0], -place)):  # the innermost and first one last
        level, module, _ = rows[place]
        counted_by |= dict.fromkeys(module.parameters(), place) if level <= depth else {}
    counted: list[list[nn.Parameter]] = [[] for _ in rows]
    for parameter, place in counted_by.items():
        counted[place].append(parameter)
    numbers, seen = Counter[int](), set[nn.Module]()
    for (level, module, gives), own in zip(rows, counted, strict=True):
        numbers[level] += 1
        if level <= depth:
            indent = f"{'│    ' * (level - 1)}{'├─' if level == 1 else '└─'}" if level else ""
            title = f"{indent}{type(module).__name__}" + (f": {level}-{numbers[level]}" if level else "")
            count = f"{sum(p.numel() for p in own):,}"
            count = count if any(p.requires_grad for p in own) else f"({count})"
            again = "(recursive)" if module in seen and [*module.parameters()] else "--"
            yield title, str([*gives]) if gives else "--", count if own else again
        seen.add(module)
