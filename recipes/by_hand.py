"""DLwPT ch. 8's training loop in the open: plain PyTorch, one process.

Source  DLwPT ch. 8 (Deep Learning with PyTorch), sections 4 and 4.1: training_loop and validate
Data    CIFAR-10, classes airplane and bird: 10,000 training and 2,000 test images, (3, 32, 32)
Expect  the weights of `python recipes/cifar2.py`, bit for bit, on a CPU with the same number of threads (tests/test_by_hand.py):
        test accuracy 0.888 after 100 epochs (n = 1); DLwPT has 0.89
Run     python recipes/by_hand.py --data synthetic --epochs 10

Normalising, batches, loss, update and validation are all in this file. launch parses the flags, reads the images, draws their
order and writes the weights. launch/training/loop.py adds to this loop: several processes, mixed precision, checkpoints and a
record. The run folder of this recipe has no record, so `oneloop compare`, predict and evaluate cannot use it.
"""

from launch import Run, cli, sources
from launch.data import Images, Split
from launch.data.order import order
from launch.errors import Refused
from launch.weights.tensors import weights_sha256, write_tensors
from nets.cifar2 import Net

import torch
import torch.nn.functional as F
from torch import Tensor


def normalised(split: Split, images: Images) -> Tensor:
    """A split's images, float32 (N, 3, 32, 32), with mean 0 and deviation 1 over the training images of CIFAR-10."""
    mean, std = (torch.tensor(channels).view(3, 1, 1) for channels in (images.mean, images.std))
    return (split.pixels * (1 / (255 * std)) - mean / std).contiguous(memory_format=torch.channels_last)


def main(run: Run, epochs: int = 100, batch: int = 64, lr: float = 1e-2):
    if run.micro_batches > 1 or run.compile or run.accelerator.mixed_precision != "no":
        raise Refused("by_hand.py runs whole batches on one process, in fp32, not compiled; use recipes/cifar2.py instead", 2)
    if run.validation:
        raise Refused("by_hand.py has no best weights to choose; leave out --validation, or use recipes/cifar2.py", 2)
    if epochs < 1 or batch < 1:
        raise Refused(f"--epochs and --batch must be at least 1, they are {epochs} and {batch}", 2)
    images = sources.cifar10(run.data, keep=("airplane", "bird"), limit=run.limit)
    run.open(images, {})
    training, validation = ((normalised(split, images), split.labels) for split in (images.train, images.test))
    model = Net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=True)

    for epoch in range(1, epochs + 1):
        model.train()
        loss_train = 0.0
        for ids in order(len(images.train), run.seed, epoch - 1).split(batch):
            imgs, labels = (tensor[ids] for tensor in training)
            outputs = model(imgs)
            loss = F.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_train += loss.item() * len(ids)  # a sum over images: the last batch is shorter
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise Refused(f"weights are not finite after epoch {epoch}: nothing was saved; try a smaller --lr", 3)
        if epoch == 1 or epoch % 10 == 0:
            print(f"Epoch {epoch}, Training loss {loss_train / len(images.train):.4f}")

    accuracy = {}
    for name, split in (("train", training), ("val", validation)):
        model.eval()
        correct = 0
        with torch.no_grad():
            for imgs, labels in zip(*(tensor.split(500) for tensor in split), strict=True):
                correct += int((model(imgs).argmax(dim=1) == labels).sum())
        accuracy[name] = correct / len(split[1])
        print(f"Accuracy {name}: {accuracy[name]:.4f}")

    write_tensors(run.folder / "model.safetensors", model.state_dict(), {})
    digest = weights_sha256(model.state_dict())
    run.finish(f"weights_sha256 {digest}", weights_sha256=digest, accuracy=accuracy)
    print(run.folder / "model.safetensors")


if __name__ == "__main__":
    cli(main)
