"""The folder that `oneloop publish` makes: complete and checked beside its place, then moved there."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import Refused, first_line
from ..report.runs import Record, read_json, read_result
from ..trained import Trained
from .card import card
from .loaded import Checked, check

PLOTS = ("curves.png", "confusion.png", "kernels.png")  # not mistakes.png: its images may not be ours to publish
OF_OTHERS = ("license", "origin_url", "tag", "paper_ids", "paper_name", "notes")  # of the weights that timm publishes
NAME = "oneloop"  # the key of config.json, and of the weights' metadata, with what `oneloop.load` needs


class Published(NamedTuple):
    folder: Path
    checked: Checked | None  # None: a net that neither timm nor transformers has


@contextlib.contextmanager
def made(record: Record, stage: str, trained: Trained, licence: str, beside: Path) -> Iterator[Published]:
    """A complete and checked folder, beside `beside`, that is gone afterwards unless it was moved.

    Raises Refused: 1 if it cannot be written, 4 if it is not the net, or the training has not ended.
    """
    result = read_result(record.folder / stage)
    if result is None:
        raise Refused(f"{record.folder / stage} is not finished; publish it at its end", 4)
    place = beside.with_name(f".tmp-{beside.name}-{os.getpid()}")
    try:
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(_weights(trained))
        timm = architecture(trained)
        (place / "config.json").write_text(json.dumps(_config(trained, timm, place), indent=2))
        for name in PLOTS:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(record.folder / stage / name, place / name)
        real = record.config["data"]["fingerprint"] == trained.images.fingerprint
        checked = check(place, trained, real) if timm else None
        shown = read_json(record.folder / stage / "predictions.json")
        (place / "README.md").write_text(card(record, trained.about, result, shown, licence, checked), "utf-8")
        yield Published(place, checked)
    except OSError as error:
        raise Refused(f"cannot write {error.filename or place}: {error.strerror or first_line(error)}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def architecture(trained: Trained) -> str:
    """What timm calls the net; "" if it is not one of timm's."""
    known = getattr(trained.net, "pretrained_cfg", None) or {}
    return str(known.get("architecture") or "")


def _weights(trained: Trained) -> bytes:
    import safetensors.torch

    from ..weights.tensors import weights, weights_sha256

    tensors = {name: tensor.detach().contiguous() for name, tensor in weights(trained.net).items()}
    about = trained.about | {"weights_sha256": weights_sha256(tensors)}
    return safetensors.torch.save(tensors, {"format": "pt", NAME: json.dumps(about)})


def _config(trained: Trained, timm: str, place: Path) -> dict:
    """config.json, for timm's nets as timm writes it. transformers reads `label_names` at the top level only."""
    about, size = {NAME: trained.about | {"format": 1}}, trained.images.size or trained.shape[1]
    if not timm:
        return about
    from timm.models._hub import save_config_for_hf

    seen = {"input_size": (3, size, size), "crop_mode": "center"}
    seen |= {"interpolation": trained.about["interpolation"], "crop_pct": trained.about["crop"]}
    seen |= {"mean": trained.images.mean, "std": trained.images.std}
    names = {"label_names": [*trained.images.classes], "num_classes": len(trained.images.classes)}
    save_config_for_hf(trained.net, str(place / "config.json"), model_config=names, data_config=seen)
    config: dict = json.loads((place / "config.json").read_text())
    config.get("model_args", {}).pop("num_classes", None)  # else transformers passes it twice: findings/timm_num_classes_twice.sh
    config["pretrained_cfg"] = {key: value for key, value in config["pretrained_cfg"].items() if key not in OF_OTHERS}
    return config | about
