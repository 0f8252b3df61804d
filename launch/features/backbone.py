"""A net without its last layer, in eval mode: what it computes of an image, and what this depends on besides the image.

The features of an image must be the same in any batch, on any number of processes and threads. So a CPU computes batches of one
size, each on one thread, and it is tried whether an image has the same bits first and last in a batch; if not, each image is a
batch of its own. What is tried is a drawing. Its features are part of the name under which features are kept, so that none are
used that other weights, code, versions, another precision or another kind of processor have computed.
"""

import copy
import hashlib
import io
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import PIL
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ..data import decode
from ..data.disk_feed import DiskFeed, DiskSplit
from ..data.feed import Augmented
from ..data.images import Images
from ..data.resize import ResizeRule, reduced_size
from ..data.store import Store, image_of
from ..weights.tensors import weights, weights_sha256

BATCH, BATCH_GPU = 8, 64  # images
DRAWING = (480, 640)  # height and width, in pixels
NEAR = 1e-2  # of the logits' size: what the last layer may differ by from the whole net, in bf16


class Backbone:
    """The features that `net` passes to its layer `head`: a context manager, outside of which the net is as it was.

    `net` is on the accelerator's device. `about` is what its features depend on besides the image, as JSON takes it; `shape` is
    that of an image's features. Raises whatever the net raises.
    """

    def __init__(self, net: nn.Module, head: str, images: Images, accelerator: Accelerator):
        self.net, self.head, self.accelerator, self.images = net, head, accelerator, images
        self.device = accelerator.device
        self.batch = BATCH if self.device.type == "cpu" else BATCH_GPU  # images

    def __enter__(self) -> "Backbone":
        self.modes = [(module, module.training) for module in self.net.modules()]
        self.layer = self.net.get_submodule(self.head)
        self.net.set_submodule(self.head, nn.Identity())
        self.net.eval()
        # On a CPU a thread computes a batch by itself: then their number does not matter to a sum's rounding.
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(threads, "features", torch.set_num_threads, (1,))
        try:
            self._try()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.net.set_submodule(self.head, self.layer)
        for module, mode in self.modes:
            module.training = mode

    def _try(self) -> None:
        self.shape: tuple[int, ...] = ()
        assert isinstance(self.images.train, DiskSplit)  # as all that launch.sources.custom returns
        self.rule = self.images.train.rule
        first, last = self.tried()
        if not torch.equal(first, last):
            self.batch = 1
            first, _ = self.tried()
        self.width = first.numel()
        body = {name: tensor for name, tensor in weights(self.net).items() if not name.startswith(f"{self.head}.")}
        self.about = {
            "weights": weights_sha256(body),  # host-device sync
            "head": self.head,
            "shape": self.shape,
            "size": self.rule,
            "normalised": [self.images.mean, self.images.std],
            "versions": [decode.VERSION, PIL.__version__, torch.__version__],
            "precision": self.accelerator.mixed_precision,
            "batch": self.batch,
            "tried": _sha256(first),
        }

    def feed(self, split: DiskSplit) -> DiskFeed:
        """Batches of images as the net takes them."""
        return DiskFeed(split, self.images.mean, self.images.std, self.device)

    def submit(self, pixels: Tensor) -> Future:
        """Begin to compute the features of images float (batch, 3, H, W): float32 (batch, width), on the CPU."""
        return self.pool.submit(self._compute, pixels)

    @torch.no_grad()
    def _compute(self, pixels: Tensor) -> Tensor:
        with self.accelerator.autocast():
            features = self.net(pixels)
        self.shape = tuple(features.shape[1:])
        return features.float().flatten(1).cpu()  # host-device sync

    def tried(self, augments: Sequence[Augmented] = ()) -> tuple[Tensor, Tensor]:
        """The features, float32 (width,), of a drawing that comes first in a batch, and last."""
        feed, found = self.feed(drawings(self.rule)), []
        for place in (0, self.batch - 1):
            ids = torch.ones(self.batch, dtype=torch.int64)
            ids[place] = 0
            found.append(self.submit(feed.batch(ids, augments)[0]).result()[place])
        return found[0], found[1]

    def tried_view(self, augments: Sequence[Augmented]) -> str:
        """sha256 of the drawing's features in an augmented view."""
        return _sha256(self.tried(augments)[0])

    def images_per_second(self) -> float:
        """That are computed on all threads, as measured on one batch of drawings."""
        ids, threads = torch.ones(self.batch, dtype=torch.int64), torch.get_num_threads() if self.device.type == "cpu" else 1
        pixels, _ = self.feed(drawings(self.rule)).batch(ids)
        began = time.perf_counter()
        self.submit(pixels).result()
        return threads * self.batch / (time.perf_counter() - began)

    @torch.no_grad()
    def ends_with_head(self) -> bool:
        """Whether the last layer makes of a drawing's features the logits that the whole net gives. Host-device sync.

        It is tried with other weights: those that it has may be zeros.
        """
        layer = copy.deepcopy(self.layer)
        for parameter in layer.parameters():
            numbers = torch.arange(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
            parameter.copy_(numbers.sin().view_as(parameter))
        pixels, _ = self.feed(drawings(self.rule)).batch(torch.zeros(1, dtype=torch.int64))
        try:
            with self.accelerator.autocast():
                logits = layer(self.net(pixels))
                self.net.set_submodule(self.head, layer)
                whole = self.net(pixels)
        except (RuntimeError, ValueError, TypeError):  # of a layer that gets another shape than in the net
            return False
        finally:
            self.net.set_submodule(self.head, nn.Identity())
        return logits.shape == whole.shape and torch.allclose(logits, whole, atol=NEAR * float(whole.abs().max()))


def drawings(rule: ResizeRule) -> DiskSplit:
    """Two images of coloured noise, the same on every machine, as files that are read like any other."""
    height, width = DRAWING
    size, images = reduced_size(width, height, rule), []
    for number in range(2):
        noise = np.random.Philox(key=np.array([number, 0], dtype=np.uint64)).random_raw(height * width // 8 * 3)
        coarse = Image.fromarray(noise.view(np.uint8).reshape(height, width, 3))
        file = io.BytesIO()
        coarse.save(file, "png", compress_level=0)
        images.append(image_of(file.getvalue(), *size, f"drawing {number}"))
    return DiskSplit(torch.zeros(2, dtype=torch.int64), images, Store(rule), rule)


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy().data).hexdigest()
