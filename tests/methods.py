"""The tiny recipe with the training methods, each alone and all together: for processes of its own, and for tests in this one.

Source  none; images and net are tests/tiny.py's
"""

import os

import torch
from tiny import Tiny, tiny_images
from torch import Tensor, nn

from launch import Run, cli, train
from launch.data.augment import alternating_flip, crop_and_flip, mirror, random_erasing, translate
from launch.data.augment_ops import rand_augment, trivial_augment  # fmt: skip
from launch.data.mix import cutmix, either, mixup
from launch.training.optimizers import Muon, groups
from launch.training.schedules import cosine, linear, one_cycle, step, warm_up


def by_rank(images: Tensor, others: Tensor, rng) -> tuple[Tensor, Tensor]:
    """A fault: shares drawn by each process for itself."""
    generator = torch.Generator().manual_seed(int(os.environ.get("RANK", 0)))
    share = torch.rand(len(images), generator=generator)
    return torch.lerp(others, images, share[:, None, None, None]), share


METHODS: dict[str, dict] = {
    "warm-up": {"schedule": warm_up(1.5, cosine(1.5))},
    "one-cycle": {"schedule": one_cycle(3)},
    "linear": {"schedule": linear(3)},
    "step": {"schedule": step(0.5, 0.5)},
    "mixup": {"mix": mixup(0.4)},
    "cutmix": {"mix": cutmix()},
    "either": {"mix": either(mixup(), cutmix())},
    "mirror": {"augment": mirror},
    "translate": {"augment": translate},
    "alternating flip": {"augment": alternating_flip},
    "erasing": {"augment": [random_erasing]},
    "trivial": {"augment": [trivial_augment]},
    "rand": {"augment": [rand_augment()]},
    "clip": {"clip": 0.5},
    "ema": {"ema": 0.9},
    "patience": {"patience": 1},
    "muon": {},
    "no decay": {},
    "all": {
        "schedule": warm_up(0.5, cosine(2.5)), "mix": either(mixup(), cutmix()), "clip": 1.0, "ema": 0.9, "patience": 2,
        "augment": [crop_and_flip, trivial_augment, random_erasing],
    },
    "by rank": {"mix": by_rank},
}  # fmt: skip


def optimizer_of(model: nn.Module, method: str) -> torch.optim.Optimizer:
    if method == "no decay":
        return torch.optim.AdamW(groups(model, 0.05, 0.1), fused=True)
    if method in ("muon", "all"):
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        return Muon([{"params": matrices, "muon": True}, {"params": vectors, "lr": 0.1}], momentum=0.9, nesterov=True, fused=True)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)


def main(run: Run, method: str = "all", epochs: int = 3):
    model = Tiny()
    optimizer = optimizer_of(model, method)
    train(run, model, tiny_images(run.limit), optimizer, epochs=epochs, batch=8, **METHODS[method])


if __name__ == "__main__":
    cli(main)
