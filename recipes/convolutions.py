"""What a convolution sees: DLwPT ch. 8's plots, drawn from a real image and a trained net.

Source  DLwPT ch. 8, sections 2 to 2.2: a random kernel, the 1/9 kernel, the vertical-edge kernel; then Net's trained kernels
Data    CIFAR-10, classes airplane and bird; the plots show the first bird among the test images
Expect  filters.png and features.png in the run folder, beside the kernels.png of every run; also in W&B
Run     accelerate launch recipes/convolutions.py --epochs 10

Over three channels the 1/9 kernel gives three times the mean, because a convolution sums over channels. The plot shows it
beside the 1/27 kernel, which gives the mean.
"""

from pathlib import Path

from launch import Run, cli, sources, train
from launch.report.plots import maps
from nets.cifar2 import Net

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(weight: float) -> Tensor:
    """A kernel (1, 3, 3, 3) whose values are all `weight`."""
    return torch.full((1, 3, 3, 3), weight)


def vertical_edge() -> Tensor:
    """The vertical-edge kernel of DLwPT ch. 8, (1, 3, 3, 3): left column -1, right column 1, for each colour."""
    return torch.tensor([-1.0, 0.0, 1.0]).expand(1, 3, 3, 3).contiguous()


def main(run: Run, epochs: int = 10, batch: int = 64, lr: float = 1e-2):
    images = sources.cifar10(run.data, keep=("airplane", "bird"), limit=run.limit)
    model = Net()
    random_kernel = model.conv1.weight[:1].detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=True)

    def plots(folder: Path) -> None:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
        pixels = images.test.pixels[images.test.labels.tolist().index(1)].float() / 255
        image = ((pixels - mean) / std)[None]
        kernels = {
            "random": random_kernel,
            "1/9: three times the mean": blur(1 / 9),
            "1/27: the mean": blur(1 / 27),
            "vertical edges": vertical_edge(),
        }
        seen = [(name, F.conv2d(image, kernel, padding=1)[0, 0]) for name, kernel in kernels.items()]
        with torch.no_grad():
            features = torch.tanh(model.conv1(image.to(model.conv1.weight.device)))[0].cpu()
        maps(folder / "filters.png", [("image", pixels), *seen], columns_per_row=5)
        maps(folder / "features.png", [("image", pixels), *((f"map {i}", m) for i, m in enumerate(features))], 6)

    train(run, model, images, optimizer, epochs=epochs, batch=batch, plots=plots)


if __name__ == "__main__":
    cli(main)
