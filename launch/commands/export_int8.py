"""int8 for `oneloop export --int8`: calibrated on training images, measured on test images, and refused if it costs too much.

Which kind is fastest, and whether it is faster than float32 at all, depends on the machine: AVX2 without VNNI adds pairs of 8-bit
products in 16 bits, so that unsigned activations saturate and signed ones are slow. So each kind is made and measured.
"""

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import Refused, first_line
from ..trained import Trained

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

CALIBRATING, MEASURING, BATCH = 256, 2000, 32  # images
KINDS: dict[str, dict[str, Any]] = {  # of activations; weights are int8 for each channel
    "int8": {"activation_type": "QInt8"},
    "uint8": {"activation_type": "QUInt8"},
    "uint8, weights of 7 bits": {"activation_type": "QUInt8", "reduce_range": True},
}


class Measured(NamedTuple):
    """A graph's accuracy and agreement with float32, from 0 to 1, on the test images; its bytes and its speed on one thread."""

    kind: str
    accuracy: float
    agreement: float
    bytes: int
    images_per_cpu_second: float


class Quantised(NamedTuple):
    content: bytes  # of the fastest kind that is good enough
    chosen: Measured
    rows: list[Measured]  # float32 first
    images: int  # that were measured


def quantised(trained: Trained, float32: bytes, most_points: float) -> Quantised:
    """The graph `float32`, an ONNX file, in int8. Raises Refused (4) if no kind loses at most `most_points` of accuracy."""
    inputs = _inputs(trained, "train", CALIBRATING)
    graphs = {"float32": float32} | {kind: _static(float32, inputs, options) for kind, options in KINDS.items()}
    pixels, labels = _inputs(trained, "test", MEASURING), _labels(trained)
    rows = _measured(graphs, pixels, labels)
    least = rows[0].accuracy - most_points / 100
    if not (good := [row for row in rows[1:] if row.accuracy >= least]):
        best = max(rows[1:], key=lambda row: row.accuracy)
        raise Refused(
            f"int8 loses {100 * (rows[0].accuracy - best.accuracy):.2f} points of accuracy on {len(labels):,} test images "
            f"({rows[0].accuracy:.4f} to {best.accuracy:.4f}), --max-drop is {most_points:g}; nothing was written",
            4,
        )
    fastest = max(good, key=lambda row: row.images_per_cpu_second)
    return Quantised(graphs[fastest.kind], fastest, rows, len(labels))


def table(rows: list[Measured]) -> str:
    """The rows for people."""
    lines = [f"{'activations':25} accuracy  agreement        bytes  images per CPU second"]
    for row in rows:
        speed = f"{row.images_per_cpu_second:22,.0f}"
        lines.append(f"{row.kind:25} {row.accuracy:8.4f} {row.agreement:10.4f} {row.bytes:12,} {speed}")
    return "\n".join(lines)


def as_json(result: Quantised) -> bytes:
    """The rows for programs, with the kind that was chosen."""
    known: Mapping[str, Any] = {
        "chosen": result.chosen.kind, "images": result.images, "kinds": [row._asdict() for row in result.rows]
    }  # fmt: skip
    return json.dumps(known, indent=1).encode()


def _measured(graphs: Mapping[str, bytes], pixels: "np.ndarray", labels: "np.ndarray") -> list[Measured]:
    """The graphs in turn on each batch, so that what else the machine does falls on all of them."""
    import numpy as np

    sessions = {kind: _session(content) for kind, content in graphs.items()}
    seconds, answers = dict.fromkeys(graphs, 0.0), {kind: list[Any]() for kind in graphs}
    for session in sessions.values():
        session.run(["logits"], {"images": pixels[:BATCH]})  # the first run makes plans
    for first in range(0, len(pixels), BATCH):
        for kind, session in sessions.items():
            began = time.process_time()
            (logits,) = session.run(["logits"], {"images": pixels[first : first + BATCH]})
            seconds[kind] += time.process_time() - began
            answers[kind].append(logits.argmax(1))
    found = {kind: np.concatenate(parts) for kind, parts in answers.items()}
    return [
        Measured(
            kind,
            float((found[kind] == labels).mean()),
            float((found[kind] == found["float32"]).mean()),
            len(content),
            len(labels) / max(seconds[kind], 1e-9),
        )
        for kind, content in graphs.items()
    ]


def _session(content: bytes) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # so that CPU seconds are those of the work
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _static(float32: bytes, inputs: "np.ndarray", options: Mapping[str, Any]) -> bytes:
    """Static quantisation by onnxruntime, for each channel, calibrated on `inputs`. Raises Refused (4)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = iter(range(0, len(inputs), BATCH))

        def get_next(self) -> dict[str, Any] | None:
            first = next(self.parts, None)
            return None if first is None else {"images": inputs[first : first + BATCH]}

    with tempfile.TemporaryDirectory() as place, _quiet():
        given, prepared, made = (Path(place, f"{name}.onnx") for name in ("given", "prepared", "made"))
        given.write_bytes(float32)
        activation = getattr(QuantType, options["activation_type"])
        more = {name: value for name, value in options.items() if name != "activation_type"}
        try:
            quant_pre_process(given, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared, made, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=activation, **more
            )
        except Exception as error:  # of any kind, of a library that knows not every graph
            raise Refused(f"onnxruntime cannot quantise this net: {first_line(error)}", 4) from error
        return made.read_bytes()


def _ids(count: int, most: int) -> Any:
    import torch

    return torch.linspace(0, count - 1, min(most, count)).round().long()


def _inputs(trained: Trained, split: str, most: int) -> "np.ndarray":
    """`most` images of a split, evenly spread over it, as the graph takes them: float32 (N, C, H, W) from 0 to 1."""
    images = getattr(trained.images, split)
    inputs: np.ndarray = (images.some(_ids(len(images), most)).pixels.float() / 255).contiguous().numpy()
    return inputs


def _labels(trained: Trained) -> "np.ndarray":
    test = trained.images.test
    labels: np.ndarray = test.labels[_ids(len(test), MEASURING)].numpy()
    return labels


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's advice goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
