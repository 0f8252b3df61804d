"""Weights as the Hugging Face hub keeps them: a folder with config.json beside one file of weights, or several and their index.

hf://owner/name[@revision] is downloaded by `huggingface_hub` into its own cache, once. timm's and transformers' folders say how
images have to be preprocessed, and perhaps what the classes are.
"""

import json
import re
from pathlib import Path
from typing import Any

from ..errors import Refused, first_line

ADDRESS = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
WHOLE = "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"  # the best first
INDEX = ".index.json"
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<suffix>safetensors|bin)")
PROBE_SECONDS = 10
ABOUT = "config.json", "preprocessor_config.json"
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which transformers writes


def offline_if_unreachable() -> None:
    """Have `huggingface_hub` use its cache alone if the hub does not answer, as with HF_HUB_OFFLINE=1: it tries for a minute."""
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # whatever the network does
        huggingface_hub.constants.HF_HUB_OFFLINE = True


def download(source: str) -> Path:
    """The folder of hf://owner/name[@revision], from the hub's cache where it has it. Raises Refused: 1, or 2 for the address."""
    found = ADDRESS.fullmatch(source)
    if not found:
        raise Refused(f"{source} is not hf://owner/name or hf://owner/name@revision", 2)
    import huggingface_hub

    name, revision = found["name"], found["revision"]
    offline_if_unreachable()
    try:
        there = huggingface_hub.HfApi().list_repo_files(name, revision=revision)
        wanted = [*_chosen(there), *(file for file in there if file in ABOUT)]
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        endpoint = huggingface_hub.constants.ENDPOINT
        raise Refused(f"{endpoint} has no model {name!r}, or it is private; HF_TOKEN opens what is private") from error
    except huggingface_hub.errors.RevisionNotFoundError as error:
        raise Refused(f"{name} has no revision {revision!r} on the hub") from error
    except Exception as error:  # whatever the network does: what is cached will do
        try:
            return Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
        except Exception:
            raise Refused(
                f"cannot download {source}: {first_line(error)}; HF_ENDPOINT=URL selects a mirror, or name a local folder"
            ) from error
    if not _chosen(there):
        raise Refused(f"{source} has no weights that are read ({', '.join(WHOLE[:2])}, or shards and their index)", 4)
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise Refused(f"cannot download {source}: {first_line(error)}; run the same command to try again") from error


def _chosen(names: list[str]) -> list[str]:
    """Of the names of files, those that hold the weights: one kind of them."""
    for name in WHOLE:
        if name in names:
            return [name]
        if f"{name}{INDEX}" in names:
            parts = filter(None, map(SHARD.fullmatch, names))
            return [f"{name}{INDEX}", *(part[0] for part in parts if f"{part['stem']}.{part['suffix']}" == name)]
    return []


def files(folder: Path) -> list[Path]:
    """The files of weights in `folder`; none if it is not of this form. Raises Refused (4) where one is missing."""
    names = _chosen(sorted(path.name for path in folder.iterdir()))
    if not names or not names[0].endswith(INDEX):
        return [folder / name for name in names]
    index = folder / names[0]
    try:
        shards = sorted({*json.loads(index.read_bytes()).get("weight_map", {}).values()})
        outside = [name for name in shards if Path(name).name != name]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise Refused(f"{index} is damaged: {first_line(error)}", 4) from error
    if outside:
        raise Refused(f"{index} names a file that is not beside it: {outside[0]}", 4)
    if not shards:  # an index that names none: all that their own names promise
        parts = [part for name in names[1:] if (part := SHARD.fullmatch(name))]
        count = int(parts[0]["count"]) if parts else 0
        shards = [f"{parts[0]['stem']}-{number + 1:05}-of-{count:05}.{parts[0]['suffix']}" for number in range(count)]
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing or not shards:
        raise Refused(f"{folder} lacks {', '.join(missing[:4]) or 'the files'} of its {index.name}", 4)
    return [folder / name for name in shards]


def about(folder: Path) -> dict[str, Any]:
    """What config.json and preprocessor_config.json say of classes and preprocessing, by the names that `train` writes."""
    config, processor = (_read(folder / name) for name in ABOUT)
    known_to_timm = config.get("pretrained_cfg")
    timm: dict[str, Any] = known_to_timm if isinstance(known_to_timm, dict) else {}
    size, crop = _side(processor.get("size")), _side(processor.get("crop_size"))
    known = {
        "mean": timm.get("mean", processor.get("image_mean")),
        "std": timm.get("std", processor.get("image_std")),
        "interpolation": timm.get("interpolation", RESAMPLE.get(processor.get("resample", 0))),
        "crop": timm.get("crop_pct", crop / size if crop and size and processor.get("do_center_crop", True) else None),
        "classes": config.get("label_names", timm.get("label_names")),
    }
    if isinstance(labels := config.get("id2label"), dict) and not known["classes"]:
        names = [labels.get(str(number)) for number in range(len(labels))]
        generic = all(name == f"LABEL_{number}" for number, name in enumerate(names))  # what transformers writes for none
        known["classes"] = None if generic else names
    return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items() if value}


def _side(size: Any) -> int:
    """The side in pixels of a size as transformers writes it; 0 if there is none."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        content = {}
    return content if isinstance(content, dict) else {}
