"""What a finished run shows of itself: predictions.json, four pictures and report.html in its folder.

One pass over the test images, in eval mode, gives predictions.json; pictures, page and W&B's last row are made from it.

    predictions.json  classes; counts, a row for each true class; the worst mistakes with their images as base64 PNG
    curves.png        losses and accuracy by epoch
    confusion.png     counts and the accuracy of each class
    mistakes.png      the mistakes of the highest loss
    kernels.png       of the first layer, if it is a convolution of grey or colour images
"""

import base64
import io
import json
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data import Feed, Images
from . import page
from . import pictures as report
from .runs import read_metrics

if TYPE_CHECKING:
    from ..run import Run

BATCH = 500  # images
MISTAKES = 24  # images, the worst
THUMBNAIL = 96  # pixels, height and width at most


def show(run: "Run", net: nn.Module, feed: Feed, images: Images, result: dict) -> None:
    """Write what the module's docstring lists into the run folder, from the net, the test images and the result.

    For one process alone: nothing here is collective. Raises OSError, and whatever a net or a font may raise.
    """
    shown = predictions(_logits(run, net, feed), images)
    (run.folder / "predictions.json").write_text(json.dumps(shown))
    report.history(run.folder / "curves.png", read_metrics(run.folder / "metrics.jsonl"))
    report.confusion(run.folder / "confusion.png", torch.tensor(shown["counts"]), images.classes)
    pictures = [Image.open(io.BytesIO(base64.b64decode(wrong["png"]))) for wrong in shown["mistakes"]]
    captions = [
        (images.classes[wrong["true"]], images.classes[wrong["predicted"]], wrong["probability"]) for wrong in shown["mistakes"]
    ]
    report.mistakes(run.folder / "mistakes.png", pictures, captions)
    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    name, first = layers[0] if layers else ("", None)
    if isinstance(first, nn.Conv2d) and first.weight.shape[1] in (1, 3):
        report.kernels(run.folder / "kernels.png", first.weight.detach().cpu(), name)  # host-device sync
    page.write(run.folder, result)


def predictions(logits: Tensor, images: Images) -> dict:
    """What predictions.json holds, from logits float (N, classes) of the test images in their order."""
    labels = images.test.labels
    if logits.shape[1] != len(images.classes):
        raise ValueError(f"the net has {logits.shape[1]} logits for {len(images.classes)} classes")
    probabilities, predicted = logits.softmax(1).max(1)
    k, wrong = len(images.classes), predicted != labels
    losses = F.cross_entropy(logits, labels, reduction="none").where(wrong, -1.0)
    worst = losses.argsort(descending=True, stable=True)[: min(MISTAKES, int(wrong.sum()))].tolist()
    return {
        "classes": images.classes,
        "counts": torch.bincount(labels * k + predicted, minlength=k * k).view(k, k).tolist(),
        "mistakes": [
            {
                "id": index,
                "true": labels[index].item(),
                "predicted": predicted[index].item(),
                "probability": probabilities[index].item(),
                "loss": losses[index].item(),
                "png": _png(images.test.pixels[index]),
            }
            for index in worst
        ],
    }


@torch.no_grad()
def _logits(run: "Run", net: nn.Module, feed: Feed) -> Tensor:
    """Of every image of `feed`, in eval mode: float32 (N, classes), in main memory."""
    was_training = net.training
    net.eval()
    try:
        parts = []
        for ids in feed.order(torch.arange(len(feed.labels))).split(BATCH):
            pixels, _ = feed.batch(ids)
            with run.accelerator.autocast():
                parts.append(net(pixels).float())
    finally:
        net.train(was_training)
    return torch.cat(parts).cpu()  # host-device sync


def _png(pixels: Tensor) -> str:
    """uint8 (C, H, W), grey or RGB, as a PNG of THUMBNAIL pixels at most, in base64."""
    image = report.picture(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
