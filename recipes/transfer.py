"""Transfer learning: reuse what a net learned on one task for another task with few images.

Source  transfer notes, section 2.3: (1) pretrained weights as initialisation; (2) locked weights as a feature extractor, then
        unlocking from the output side with a small learning rate. Learning rates and epochs are not the notes'
Data    CIFAR-10. Task A: the eight classes other than airplane and bird. Task B: airplane and bird, --few training images
Net     ResNet-20 with a new last layer for task B; or the notes' MyNetPretrained with new layer3, layer4 and last layer
Expect  test accuracy with --source-epochs 3 (n = 1): scratch 0.833, frozen 0.851, gradual 0.852, finetune 0.865
Run     accelerate launch recipes/transfer.py --mode scratch
        accelerate launch recipes/transfer.py --mode frozen
        accelerate launch recipes/transfer.py --mode gradual --source runs/transfer/ResNet20-…/source
        accelerate launch --config_file launch/gpus.yaml recipes/transfer.py --net MyNetPretrained --mode gradual

scratch trains from random weights. finetune starts from the source's weights and trains all of them. frozen locks all of them and
trains the new layers. gradual does the same for half of the epochs, then unlocks the last locked block.

Without --source, ResNet-20 is first trained on task A, in the subfolder `source` of the run, and MyNetPretrained starts from
torchvision's resnet18 for ImageNet. Images are normalised with ImageNet's mean and std for MyNetPretrained, otherwise CIFAR-10's.
"""

from dataclasses import replace
from typing import Literal

from launch import Run, cli, sources, train
from launch.console import say
from launch.data import Images, crop_and_flip
from launch.errors import Refused
from launch.report.runs import tested
from launch.weights import Source, for_classes, load_into
from launch.weights.tensors import weights, weights_sha256
from nets.residual import CifarResNet
from nets.transfer import MyNetPretrained, add_trainable, lock, trainable, unlock
from nets.zoo import published_scale, weights_url

import torch

TASK_B = ("airplane", "bird")
TASK_A = tuple(name for name in sources.CIFAR10_CLASSES if name not in TASK_B)
# What `frozen` locks, and the last block of it, which `gradual` unlocks.
BODY = {"ResNet20": ("conv1", "bn1", "layer1", "layer2", "layer3"), "MyNetPretrained": ("pretrained",)}
LAST = {"ResNet20": "layer3.2", "MyNetPretrained": "pretrained.5.1"}


def main(
    run: Run,
    net: Literal[tuple(BODY)] = "ResNet20",
    mode: Literal["scratch", "finetune", "frozen", "gradual"] = "frozen",
    source: str = "",
    sha256: str = "",
    source_epochs: int = 10,
    few: int = 500,
    epochs: int = 20,
    batch: int = 50,
    lr: float = 0.05,
    unlocked_lr: float = 0.005,
    size: int = 0,
):
    """Train on task B, on task A before it if there is no source.

    Args:
        net: The network.
        mode: What is trained on task B.
        source: Weights to start from: a .safetensors file, a state dict saved by torch, a URL or a run folder.
        sha256: Expected sha256 of a source at a URL.
        source_epochs: Epochs on task A.
        few: Training images of task B.
        epochs: Epochs on task B.
        unlocked_lr: Learning rate of the block that gradual unlocks.
        size: Resize images to this height and width in pixels; 0: 32 for ResNet20, 224 for MyNetPretrained.
    """
    if epochs < (2 if mode == "gradual" else 1):
        raise Refused("--epochs must be at least 1, and at least 2 for --mode gradual, which trains twice", 2)
    images = sources.cifar10(run.data, keep=TASK_B, limit=few)
    if net == "MyNetPretrained":
        images = replace(images, size=224, **published_scale(channels=3))
    images = replace(images, size=size or images.size)
    published = source or (weights_url("resnet18") if net == "MyNetPretrained" else "")
    trained = run.load(published, sha256) if published and mode != "scratch" else None
    torch.manual_seed(run.seed)
    if net == "MyNetPretrained":
        model = MyNetPretrained(num_classes=2, state=trained.tensors if trained else None)
        unlock(model)
    else:
        model = CifarResNet(20, num_classes=2)
        if trained:
            begin_with(run, model, trained)
    run.open(images, {"mode": mode})
    if net == "ResNet20" and mode != "scratch" and not source:
        begin_with(run, model, Source(task_a(run, source_epochs), TASK_A))
    if mode in ("frozen", "gradual"):
        lock(model, *BODY[net])
    before = locked_digest(model)
    optimizer = torch.optim.SGD(trainable(model), lr=lr, momentum=0.9, weight_decay=1e-4, fused=True)
    options = {"batch": batch, "augment": crop_and_flip}
    if mode == "gradual":
        results = [train(run, model, images, optimizer, epochs=epochs // 2, stage="frozen", **options)]
        unlock(model, LAST[net])
        before = locked_digest(model)
        add_trainable(optimizer, model, unlocked_lr)
        results.append(train(run, model, images, optimizer, epochs=epochs - epochs // 2, stage="unlocked", **options))
    else:
        results = [train(run, model, images, optimizer, epochs=epochs, stage=mode, **options)]
    assert locked_digest(model) == before, "a locked tensor changed"
    test, learning = tested(results[-1]), results[-1]["trainable"]
    summary = f"{mode}: test accuracy {test['accuracy']:.4f} from {len(images.train)} images, {learning:,} trainable parameters"
    run.finish(summary, mode=mode, locked_sha256=before, test=test, stages=results)
    if run.rank == 0 and mode in ("frozen", "gradual"):
        say(f"locked tensors unchanged, sha256 {before[:16]}")


def begin_with(run: Run, model: CifarResNet, source: Source) -> None:
    """Copy the source into the model, the last layer if it knows the classes. Raises Refused (4) for another net's weights."""
    tensors, last_layer = for_classes(source, model, ("linear",), TASK_B)
    report = load_into(model, tensors, partial=True)
    if missing := [name for name in report.new if not name.startswith("linear.")]:
        raise Refused(f"--source is not a ResNet-20: it lacks {', '.join(missing[:4])}", 4)
    if run.rank == 0:
        say("\n".join(filter(None, [str(report), last_layer])))


def task_a(run: Run, epochs: int) -> dict[str, torch.Tensor]:
    """The weights of a ResNet-20 trained on task A."""
    images: Images = sources.cifar10(run.data, keep=TASK_A, limit=run.limit)
    model = CifarResNet(20, num_classes=len(TASK_A))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    train(
        run,
        model,
        images,
        optimizer,
        epochs=epochs,
        batch=128,
        augment=crop_and_flip,
        schedule=lambda epoch: 1 - epoch / epochs,
        stage="source",
    )
    return {name: tensor.detach().cpu() for name, tensor in weights(model).items()}


def locked_digest(model: torch.nn.Module) -> str:
    """sha256 of everything locked: parameters that require no gradient and the batch norm statistics beside them."""
    locked = {name.rpartition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    return weights_sha256({name: tensor for name, tensor in weights(model).items() if name.rpartition(".")[0] in locked})


if __name__ == "__main__":
    cli(main)
