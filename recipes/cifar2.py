"""Birds against airplanes: one small network, and what each remedy does to it.

Source  Deep Learning with PyTorch, chapter 8, as noted in document 000, sections 3 to 5
Data    CIFAR-10, classes airplane and bird: 10,000 training and 2,000 test images, (3, 32, 32)
Run     accelerate launch recipes/cifar2.py
        accelerate launch recipes/cifar2.py --net NetDropout --epochs 20
        accelerate launch recipes/cifar2.py --l2 0.001
        accelerate launch recipes/cifar2.py --net NetResDeep --lr 0.003
        accelerate launch --config_file launch/gpus.yaml recipes/cifar2.py
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from launch import Run, cli, sources, train
from nets.cifar2 import Net, NetBatchNorm, NetDepth, NetDropout, NetRes, NetResDeep, NetWidth

NETS = {net.__name__: net for net in (Net, NetWidth, NetDropout, NetBatchNorm, NetDepth, NetRes, NetResDeep)}


def main(
    run: Run, net: Literal[tuple(NETS)] = "Net", epochs: int = 100, batch: int = 64, lr: float = 1e-2, l2: float = 0.0
):
    images = sources.cifar10(run.data, keep=("airplane", "bird"), limit=run.limit)
    model = NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=True)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy plus section 5.2's penalty on all parameters."""
        data_loss = F.cross_entropy(logits, labels)
        return data_loss + l2 * sum(p.pow(2).sum() for p in model.parameters()) if l2 else data_loss

    train(run, model, images, optimizer, loss, epochs=epochs, batch=batch)


if __name__ == "__main__":
    cli(main)
