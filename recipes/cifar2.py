"""Birds or airplanes: one small network, and what each change to its design does.

Source  DLwPT ch. 8 (Deep Learning with PyTorch), sections 3 to 5
Data    CIFAR-10, classes airplane and bird: 10,000 training and 2,000 test images, (3, 32, 32)
Expect  Net: test accuracy 0.888 after 100 epochs (n = 1), 2.5 minutes on a 2-core AMD EPYC; DLwPT has 0.89. The other designs
        are in docs/results.md
Run     accelerate launch recipes/cifar2.py
        accelerate launch recipes/cifar2.py --net NetDropout --epochs 20
        accelerate launch recipes/cifar2.py --l2 0.001
        accelerate launch recipes/cifar2.py --net NetResDeep --n-blocks 10 --lr 0.003
        accelerate launch --config_file launch/gpus.yaml recipes/cifar2.py

--book repeats what DLwPT's notebook really does: it shuffles the images for its first net only, measures accuracy in train
mode (dropout active, batch norm with batch statistics) and uses one residual block many times. Without --book every design
is shuffled and measured in eval mode, and has blocks of its own.
"""

from functools import partial
from typing import Literal

from launch import Run, cli, sources, train
from nets.cifar2 import Net, NetBatchNorm, NetDepth, NetDropout, NetRes, NetResDeep, NetWidth, fully_connected

import torch
import torch.nn.functional as F
from torch import Tensor

NETS = {net.__name__: net for net in (Net, NetWidth, NetDropout, NetBatchNorm, NetDepth, NetRes, NetResDeep)} | {
    "FullyConnected512": partial(fully_connected, 512),
    "FullyConnected1024": partial(fully_connected, 1024, 512, 128),
}


def main(
    run: Run,
    net: Literal[tuple(NETS)] = "Net",
    n_blocks: int = 100,
    epochs: int = 100,
    batch: int = 64,
    lr: float = 1e-2,
    l2: float = 0.0,
    book: bool = False,
):
    """Train one of the designs.

    Args:
        net: The design to train.
        n_blocks: Number of residual blocks in NetResDeep.
        lr: Learning rate. DLwPT uses 0.003 for NetResDeep.
        l2: Weight of the L2 penalty; 0 for none.
        book: Train and measure as DLwPT's notebook does.
    """
    images = sources.cifar10(run.data, keep=("airplane", "bird"), limit=run.limit)
    model = NetResDeep(n_blocks=n_blocks, shared=book) if net == "NetResDeep" else NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=True)
    first_net = net == "Net" and not l2

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy plus the L2 penalty of section 5.2, on all parameters."""
        data_loss = F.cross_entropy(logits, labels)
        return data_loss + l2 * sum(p.pow(2).sum() for p in model.parameters()) if l2 else data_loss

    train(
        run,
        model,
        images,
        optimizer,
        loss,
        epochs=epochs,
        batch=batch,
        shuffle=first_net if book else True,
        measured_in="train" if book else "eval",
    )


if __name__ == "__main__":
    cli(main)
