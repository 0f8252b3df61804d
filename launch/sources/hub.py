"""The Hugging Face hub: asked within seconds whether it has a data set, which `datasets` then downloads. Loads no torch."""

import contextlib
import sys
from typing import TYPE_CHECKING, NamedTuple

from ..errors import Refused, first_line

if TYPE_CHECKING:
    import datasets

PROBE_SECONDS = 10  # `load_dataset` alone would retry for minutes when the hub hangs


class Answer(NamedTuple):
    """What the hub says of a data set: the commit that is current there, or the error if it cannot be reached."""

    revision: str | None
    offline: Exception | None = None


def ask(name: str) -> Answer:
    """Ask the hub, within seconds, for the data set `name` ("owner/name").

    If it cannot be reached, this process is offline from then on, as with HF_HUB_OFFLINE=1, and `datasets` uses what it has
    cached itself. Raises Refused (1) if the hub does not have the data set.
    """
    import datasets
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().dataset_info(name, timeout=PROBE_SECONDS)
        with contextlib.suppress(huggingface_hub.errors.EntryNotFoundError):  # files may be on another server, so ask for one
            file = huggingface_hub.hf_hub_url(name, "README.md", repo_type="dataset")
            huggingface_hub.get_hf_file_metadata(file, timeout=PROBE_SECONDS)
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        endpoint = huggingface_hub.constants.ENDPOINT
        raise Refused(f"{endpoint} has no data set {name!r}, or it is private; HF_ENDPOINT=URL selects a mirror") from error
    except Exception as error:  # whatever the network does, the way out is the same
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        return Answer(None, error)
    return Answer(found.sha)


def download(name: str, answer: Answer, ways_out: str, config: str | None = None) -> "datasets.DatasetDict":
    """All splits of the data set `name`, of the revision of `answer`, from `datasets`' own cache if it has them.

    Raises Refused: 1 if that fails, with other `ways_out` than a mirror and that cache; 2 if it has several configurations and
    `config` is none of them.
    """
    try:
        return load(name, config, answer.revision)
    except Exception as error:  # network, hub or disk: the ways out are the same
        configs = _configs(name, answer.revision)
        if len(configs) > 1 and config not in configs:
            which = f"has no configuration {config!r}" if config else "has several configurations"
            raise Refused(f"{name} {which}: choose one of {', '.join(configs)}, as {name}:{configs[0]}", 2) from error
        reason = first_line(answer.offline or error).rstrip(".")
        raise Refused(
            f"cannot download the data set {name!r}: {reason}. Try HF_ENDPOINT=URL for a mirror, HF_HUB_OFFLINE=1 if `datasets` "
            f"has it cached, {ways_out}"
        ) from error


def load(name: str, config: str | None = None, revision: str | None = None) -> "datasets.DatasetDict":
    """All splits of the data set `name`, on the hub or in a folder. Raises whatever `datasets` does."""
    import datasets  # takes 1 s, and is not needed once the images are cached

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets.load_dataset(name, config, revision=revision)


def _configs(name: str, revision: str | None) -> list[str]:
    """What configurations the data set `name` has; none if nobody can say."""
    import datasets

    with contextlib.suppress(Exception):
        return datasets.get_dataset_config_names(name, revision=revision)
    return []
