"""Report of a finished run: predictions.json, four plots and report.html in its folder.

They come from one pass over the test images in eval mode, with the weights that are used by default (`runs.used`), and so does
W&B's last row. A new plot is a function in plots.py and its call in `show`.

    predictions.parquet  a row for each test image: its label, the predicted class, the probability of each class
    predictions.json  classes; counts, a row for each true class; scores; temperature; mistakes with their files, the worst as PNG
    curves.png        loss and accuracy by epoch
    confusion.png     counts and the accuracy of each class
    mistakes.png      the mistakes with the highest loss
    labels.png        of images with several labels each, in place of these two: average precision and F1 of each label
    kernels.png       the first layer's, if it is a convolution over grey or RGB images
"""

import base64
import io
import json

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data.disk_feed import DiskSplit
from ..data.feed import Feed
from ..data.images import Images
from ..errors import printable
from . import calibration, page, plots, predictions, several
from .run_log import Running
from .runs import read_metrics, tested
from .scores import confusion, scores

MISTAKES = 24  # images that are shown, those with the highest loss
MOST_WRONG = 500  # images that are listed
THUMBNAIL = 96  # pixels, the longer side at most


def show(
    run: Running,
    net: nn.Module,
    feed: Feed,
    images: Images,
    result: dict,
    validation: Feed | None = None,
    whole: nn.Module | None = None,
    logits: Tensor | None = None,
) -> None:
    """Write the files listed above into the run folder, of `net` as it is; `feed` is that of the test images.

    Feed `validation`, of those images, says by what temperature the net's probabilities are corrected; without it, they are not.
    `whole` is the net that `net` is the last layer of, if it is one. `logits` are those of the test images, if they are known.

    Called on the main process only: nothing here is collective. Raises OSError, and whatever the net or a font raises.
    """
    logits = predictions.logits_of(run, net, feed) if logits is None else logits
    plots.history(run.folder / "curves.png", read_metrics(run.folder / "metrics.jsonl"))
    if images.multi_label:
        shown = _several(run, logits, images, tested(result)["threshold"])
    else:
        shown = _one(run, net, logits, images, validation)
    (run.folder / "predictions.json").write_text(json.dumps(shown))
    layers = [(name, module) for name, module in (whole or net).named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    name, first = layers[0] if layers else ("", None)
    if isinstance(first, nn.Conv2d) and first.weight.shape[1] in (1, 3):
        plots.kernels(run.folder / "kernels.png", first.weight.detach().cpu(), name)  # host-device sync
    page.write(run.folder, result)


def _one(run: Running, net: nn.Module, logits: Tensor, images: Images, validation: Feed | None) -> dict:
    """Write and draw what is known of images with one label each; returns the content of predictions.json."""
    temperature = 1.0
    if validation is not None:
        validated = predictions.logits_of(run, net, validation)
        temperature = calibration.temperature(validated, validation.labels.cpu())  # host-device sync
    shown = summary(logits, images, temperature)
    predictions.write(run.folder, logits, images)
    plots.confusion(run.folder / "confusion.png", torch.tensor(shown["counts"]), images.classes)
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(wrong["png"]))) for wrong in shown["mistakes"]]
    captions = [
        (images.classes[wrong["true"]], images.classes[wrong["predicted"]], wrong["probability"]) for wrong in shown["mistakes"]
    ]
    plots.mistakes(run.folder / "mistakes.png", thumbnails, captions)
    return shown


def _several(run: Running, logits: Tensor, images: Images, threshold: float) -> dict:
    """The same of images with several labels each."""
    shown = several.summary(logits, images, threshold, MOST_WRONG)
    predictions.write(run.folder, logits, images, threshold)
    plots.labels(run.folder / "labels.png", shown["labels"], images.classes, threshold)
    worst = shown["wrong"][:MISTAKES]
    return shown | {"mistakes": [mistake | {"png": _png_of(images, mistake["id"])} for mistake in worst]}


def summary(logits: Tensor, images: Images, temperature: float = 1.0) -> dict:
    """The content of predictions.json, from logits float (N, classes) of the test images in order. Raises ValueError.

    Probabilities and scores are those of the logits as they are, what is sure enough those at `temperature`.
    """
    labels = images.test.labels
    if logits.shape[1] != len(images.classes):
        raise ValueError(f"the net has {logits.shape[1]} outputs for {len(images.classes)} classes")
    probabilities, predicted = logits.softmax(1).max(1)
    wrong = predicted != labels
    losses = F.cross_entropy(logits, labels, reduction="none").where(wrong, -1.0)
    worst = losses.argsort(descending=True, stable=True)[: min(MOST_WRONG, int(wrong.sum()))].tolist()
    files = [image.name for image in images.test.images] if isinstance(images.test, DiskSplit) else None

    def mistake(index: int) -> dict:
        return {
            "id": index,
            "true": labels[index].item(),
            "predicted": predicted[index].item(),
            "probability": probabilities[index].item(),
            "loss": losses[index].item(),
        } | ({"path": printable(files[index])} if files else {})

    return {
        "classes": images.classes,
        "counts": confusion(labels, predicted, len(images.classes)).tolist(),
        "scores": scores(logits, labels),
        "calibration": {
            "temperature": temperature,
            "calibration_error": scores(logits / temperature, labels)["calibration_error"],
            "thresholds": calibration.coverage(logits / temperature, labels),
        },
        "mistakes": [mistake(index) | {"png": _png_of(images, index)} for index in worst[:MISTAKES]],
        "wrong": [mistake(index) for index in worst],
        "source": printable(images.source),
    }


def _png_of(images: Images, index: int) -> str:
    """Encode a test image as a base64 PNG of at most THUMBNAIL × THUMBNAIL pixels."""
    image = plots.plot(images.test.some(torch.tensor([index])).pixels[0])
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "png")
    return base64.b64encode(file.getvalue()).decode()
