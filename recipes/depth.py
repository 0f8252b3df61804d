"""Deeper is not always better: plain nets of 20 and 56 layers, and the same nets with shortcuts.

Source  Inception notes, "卷积的深度及其效果" and "残差网络"; He et al. (arXiv:1512.03385), figures 1 and 6
Data    CIFAR-10: 50,000 training and 10,000 test images, (3, 32, 32)
Expect  depth.png, the training losses. In the paper the deeper net has the higher one without shortcuts, the lower one with them.
        Not yet trained here for all 30 epochs
Run     accelerate launch --config_file launch/gpus.yaml recipes/depth.py
        accelerate launch recipes/depth.py --epochs 3 --limit 5000

The schedule is shorter than the paper's: 30 epochs, with the learning rate divided by 10 halfway.
"""

from launch import Run, cli, sources, train
from launch.data import crop_and_flip
from launch.report.compare import train_loss
from launch.report.plots import curves
from launch.report.runs import read_metrics, tested
from nets.residual import CifarResNet

import torch


def main(run: Run, epochs: int = 30, batch: int = 128, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 1e-4):
    images = sources.cifar10(run.data, limit=run.limit)
    results, losses = {}, {}
    for kind, shortcut in (("plain", False), ("residual", True)):
        for depth in (20, 56):
            name = f"{kind}-{depth}"
            torch.manual_seed(run.seed)
            model = CifarResNet(depth, shortcut=shortcut)
            optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
            results[name] = train(
                run,
                model,
                images,
                optimizer,
                epochs=epochs,
                batch=batch,
                schedule=lambda epoch: 1.0 if epoch < epochs / 2 else 0.1,
                augment=crop_and_flip,
                stage=name,
            )
            losses[name] = [[*train_loss(read_metrics(run.folder / name / "metrics.jsonl")).values()]]
    if run.rank == 0:
        curves(run.folder / "depth.png", losses, "training loss")
    accuracies = ", ".join(f"{name} {tested(result)['accuracy']:.4f}" for name, result in results.items())
    run.finish(f"test accuracy: {accuracies}", stages=results)


if __name__ == "__main__":
    cli(main)
