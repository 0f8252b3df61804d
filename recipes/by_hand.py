"""The chapter's training loop with nothing between you and it: plain PyTorch, one process.

Source  Deep Learning with PyTorch, chapter 8, as noted in document 000, sections 4 and 4.1: training_loop and validate
Data    CIFAR-10, classes airplane and bird: 10,000 training and 2,000 test images, (3, 32, 32)
Expect  the weights of `python recipes/cifar2.py`, bit for bit, on a CPU with as many threads (tests/test_by_hand.py)
Run     python recipes/by_hand.py --data synthetic --epochs 10

What launch/loop.py adds to this file: several processes, precision, checkpoints, the record, and their price measured. The
run folder of this one holds its weights and no record, so that `oneloop compare`, predict and evaluate have nothing to read.
"""

import torch
import torch.nn.functional as F

from launch import Run, cli, sources
from launch.checkpoint import weights, weights_sha256, write_tensors
from launch.data import Feed, order
from launch.errors import Refused
from nets.cifar2 import Net


def main(run: Run, epochs: int = 100, batch: int = 64, lr: float = 1e-2):
    if run.shards > 1 or run.compile or run.accelerator.mixed_precision != "no":
        raise Refused("by_hand.py is a loop of whole batches on one process, fp32, not compiled; recipes/cifar2.py has it all", 2)
    if epochs < 1 or batch < 1:
        raise Refused(f"--epochs and --batch must be at least 1, they are {epochs} and {batch}", 2)
    images = sources.cifar10(run.data, keep=("airplane", "bird"), limit=run.limit)
    run.open(images, {})
    training, validation = (Feed(split, images, torch.device("cpu")) for split in (images.train, images.test))
    model = Net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=True)

    for epoch in range(1, epochs + 1):
        model.train()
        loss_train = 0.0
        for ids in order(len(images.train), run.seed, epoch - 1).split(batch):
            imgs, labels = training.batch(ids)
            outputs = model(imgs)
            loss = F.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_train += loss.item() * len(ids)  # by images: the last batch is shorter
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise Refused(f"the weights are not finite after epoch {epoch}: nothing was saved; a smaller --lr may help", 3)
        if epoch == 1 or epoch % 10 == 0:
            print(f"Epoch {epoch}, Training loss {loss_train / len(images.train):.4f}")

    accuracy = {}
    for name, split, feed in (("train", images.train, training), ("val", images.test, validation)):
        model.eval()
        correct = 0
        with torch.no_grad():
            for ids in torch.arange(len(split)).split(500):
                imgs, labels = feed.batch(ids)
                correct += int((model(imgs).argmax(dim=1) == labels).sum())
        accuracy[name] = correct / len(split)
        print(f"Accuracy {name}: {accuracy[name]:.4f}")

    write_tensors(run.folder / "model.safetensors", weights(model), {})
    digest = weights_sha256(weights(model))
    run.finish({"summary": f"accuracy {accuracy}, weights_sha256 {digest}", "weights_sha256": digest})
    print(f"weights_sha256 {digest}\n{run.folder / 'model.safetensors'}")


if __name__ == "__main__":
    cli(main)
