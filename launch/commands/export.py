"""`oneloop export`: a trained net as one file, compared with the net before it is written."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Refused, first_line, printable
from ..trained import WORDS, Trained, feed, find_run, rebuild
from . import export_int8
from .arguments import add_trained_net, command_parser, refuse_own_file

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-4  # between the file's logits and the net's, relative to the largest
SUFFIXES = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "export",
        usage="RUN --format safetensors | torch-export | onnx [--int8 [--max-drop 1.0]] [--out FILE]",
        description="Write a trained net as one file. The file's outputs are compared with the net's before it is written.\n\n"
        "  onnx, torch-export  the graph, for any batch size: images float32 (N, C, H, W), pixels from 0 to 1, of the run's\n"
        "                      image size -> logits (N, classes). Normalisation and resizing are part of the graph\n"
        "  safetensors         the weights alone; the metadata say what input they expect\n\n"
        "Class names and preprocessing are stored as JSON: `oneloop` in the metadata (ONNX: metadata_props), or the extra file\n"
        "oneloop.json (torch.export).",
        example="runs/cifar2/Net-0a1b2c3d --format onnx --out birds.onnx",
    )
    add_trained_net(parser)
    parser.add_argument("--format", choices=SUFFIXES, required=True, help="onnx needs the extra `export`")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: exported.onnx, .pt2 or .safetensors in RUN")
    small = "static int8, calibrated on training images; what it costs is measured on test images, printed and written beside it"
    parser.add_argument("--int8", action="store_true", help=small)
    most = "with --int8: points of accuracy that it may lose, else nothing is written; default 1.0"
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help=most)
    chosen = parser.parse_args(args)
    if chosen.int8 and chosen.format != "onnx":
        raise Refused("--int8 is for --format onnx", 2)
    if chosen.max_drop is not None and not (chosen.int8 and 0 <= chosen.max_drop <= 100):
        raise Refused("--max-drop is for --int8, and takes 0 to 100 points", 2)
    if chosen.format == "onnx":
        _needs_onnx()
    out = chosen.out or chosen.run / f"exported{'-int8' * chosen.int8}{SUFFIXES[chosen.format]}"
    refuse_own_file(out, [f"*{suffix}" for suffix in SUFFIXES.values()])

    from ..files import write_atomically

    record, stage = find_run(chosen.run)
    own = record.options["data"] if chosen.int8 else ""  # on which int8 is measured; else any images will do
    trained = rebuild(record, stage, weights=chosen.weights, recipe=chosen.recipe, data=own)
    if chosen.int8 and trained.about["threshold"] is not None:
        raise Refused("--int8 is chosen by its accuracy, which images with several labels do not have", 2)
    make = {"safetensors": as_safetensors, "torch-export": as_torch_export, "onnx": as_onnx}[chosen.format]
    content, exported = make(trained)
    images, greatest = check(trained, exported)
    reduced = None
    if chosen.int8:
        if trained.images.fingerprint != record.config["data"]["fingerprint"]:
            raise Refused(f"--int8 measures on the run's own images, and {record.config['data']['source']} is not here", 4)
        reduced = export_int8.quantised(trained, content, 1.0 if chosen.max_drop is None else chosen.max_drop)
        content = reduced.content
    try:
        write_atomically(out, content)
        if reduced:
            write_atomically(out.with_name(f"{out.name}.json"), export_int8.as_json(reduced))
    except OSError as error:
        raise Refused(f"cannot write {out}: {error.strerror or error}") from error
    if reduced:
        print(export_int8.table(reduced.rows))
        fastest = f"activations {reduced.chosen.kind}, the fastest here of those that are good enough"
        measured = f"measured on {reduced.images:,} test images with the {WORDS[trained.weights]}"
        print(f"{printable(str(out))}: {len(content):,} bytes; {fastest}, {measured}")
        if reduced.chosen.images_per_cpu_second < reduced.rows[0].images_per_cpu_second:
            print("it is slower than float32 on this machine: only smaller")
        return
    match = f"logits of {images} images match the net's within {greatest:.1e}"
    print(f"{printable(str(out))}: {len(content):,} bytes; {match}, with the {WORDS[trained.weights]}")


# Pixels float32 (N, C, H, W), from 0 to 1 -> logits float32 (N, classes), as the exported bytes compute them.
Exported = Callable[["Tensor"], "Tensor"]


def as_safetensors(trained: Trained) -> tuple[bytes, Exported]:
    """The weights by name, read back into a copy of the net that was zeroed first."""
    import copy

    import safetensors.torch
    import torch

    from ..weights.tensors import load_weights, weights

    channels, size = trained.shape[0], trained.images.size
    height, width = (size, size) if size else trained.shape[1:]
    takes = f"float32 (N, {channels}, {height}, {width}): (pixels from 0 to 1 - mean) / std"
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights(trained.net).items()}
    content = safetensors.torch.save(tensors, {"oneloop": json.dumps(_about(trained, takes))})
    empty = copy.deepcopy(trained.net)
    with torch.no_grad():
        for tensor in weights(empty).values():
            tensor.zero_()
    load_weights(empty, safetensors.torch.load(content))
    return content, _with_preprocessing(trained, empty)


def as_torch_export(trained: Trained) -> tuple[bytes, Exported]:
    """A torch.export program, read back by torch.export.load."""
    import torch

    example, batch, file = torch.zeros(2, *trained.shape), torch.export.Dim("batch"), io.BytesIO()
    try:
        program = torch.export.export(_with_preprocessing(trained, trained.net), (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # a net's forward may raise any kind
        raise Refused(f"torch.export cannot export {trained.about['net']}: {first_line(error)}", 4) from error
    torch.export.save(program, file, extra_files={"oneloop.json": json.dumps(_about(trained, _pixels(trained)))})
    content = file.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


def as_onnx(trained: Trained) -> tuple[bytes, Exported]:
    """An ONNX model, read back by onnxruntime."""
    import onnxruntime
    import torch

    try:
        made = torch.onnx.export(
            _with_preprocessing(trained, trained.net),
            (torch.zeros(2, *trained.shape),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise Refused(f"torch.onnx cannot export {trained.about['net']}: {first_line(error)}", 4) from error
    assert made is not None  # dynamo=True makes one
    made.model.metadata_props["oneloop"] = json.dumps(_about(trained, _pixels(trained)))
    content = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def check(trained: Trained, exported: Exported) -> tuple[int, float]:
    """Compare the export with the net on random pixels and on test images, in batches of several sizes, one of them 1.

    Returns the number of images and the largest difference. Raises Refused (4) if it exceeds TOLERANCE.
    """
    import torch

    random = torch.randint(0, 256, (9, *trained.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    greatest, images = 0.0, 0
    for pixels in (random[:1], random[1:], trained.images.test.some(torch.arange(min(7, len(trained.images.test)))).pixels):
        with torch.no_grad():
            expected = trained.net(feed(trained, pixels).batch(torch.arange(len(pixels)))[0]) / trained.about["temperature"]
            found = exported(pixels.float() / 255)
        difference = (found - expected).abs().max().item() if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE * expected.abs().max().item() + 1e-6:  # also for NaN
            raise Refused(f"the export does not match the net: its logits differ by {difference:.1e}; nothing was written", 4)
        greatest, images = max(greatest, difference), images + len(pixels)
    return images, greatest


def _with_preprocessing(trained: Trained, net: "nn.Module") -> "nn.Module":
    """The net behind the preprocessing of `launch.data.MemoryFeed`, except the division by 255."""
    import torch
    from torch import nn

    from ..data.feed import resized

    class Whole(nn.Module):
        mean: "Tensor"
        std: "Tensor"

        def __init__(self) -> None:
            super().__init__()
            self.net, self.size, self.temperature = net, trained.images.size, trained.about["temperature"]
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(getattr(trained.images, name)).view(-1, 1, 1))

        def forward(self, images: "Tensor") -> "Tensor":  # (N, C, H, W)
            logits = self.net(resized((images - self.mean) / self.std, self.size))  # (N, classes)
            return logits if self.temperature == 1 else logits / self.temperature

    return Whole().eval()


def _pixels(trained: Trained) -> str:
    shape = ", ".join(map(str, trained.shape))
    return f"float32 (N, {shape}): pixels from 0 to 1, normalised by the graph, which divides logits by the temperature"


def _about(trained: Trained, takes: str) -> dict:
    """The metadata, as JSON takes them."""
    channels = "RGB" if trained.shape[0] == 3 else "grey"
    gives = f"float32 (N, {len(trained.images.classes)}): logits, in the order of classes"
    if (threshold := trained.about["threshold"]) is not None:
        gives += f"; of several labels an image: its labels are those whose sigmoid is at least {threshold:g}"
    return trained.about | {"input": takes, "channels": channels, "output": gives}


def _needs_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Refused(f"--format onnx needs {error.name}: pip install onnxscript onnxruntime", 2) from error
