"""The smallest recipe in which everything can go wrong: convolution, batch norm, dropout, augmentation, momentum.

Source  none; 61 training and 23 test images (1, 8, 8) of 3 classes: primes, so that no batch, micro-batch or process divides them
"""

import torch
from torch import Tensor, nn

from launch import Run, cli, train
from launch.data.augment import crop_and_flip
from launch.data.dataset import Split
from launch.data.images import Images


def tiny_images(limit: int = 0) -> Images:
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for name, count in {"train": 61, "test": 23}.items():
        labels = torch.arange(count) % 3
        noise = torch.randint(0, 200, (count, 1, 8, 8), generator=generator)
        marks = torch.zeros(count, 1, 8, 8, dtype=torch.int64)
        marks[torch.arange(count), 0, labels * 2 + 1] = 50
        splits[name] = Split((noise + marks).to(torch.uint8), labels)
    if limit:
        splits["train"] = Split(*(tensor[:limit] for tensor in splits["train"]))
    return Images(**splits, classes=("a", "b", "c"), mean=(0.25,), std=(0.2,), source="test", fingerprint="61")


class Tiny(nn.Module):
    """(N, 1, 8, 8) -> (N, 3); 243 parameters."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.fc(self.drop(out.flatten(1)))


def main(run: Run, epochs: int = 3, batch: int = 8, lr: float = 0.1):
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=True)
    train(run, model, tiny_images(run.limit), optimizer, epochs=epochs, batch=batch, augment=crop_and_flip)


if __name__ == "__main__":
    cli(main)
