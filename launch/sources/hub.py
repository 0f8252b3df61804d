"""The Hugging Face hub: asked within seconds whether it has a data set, which `datasets` then downloads. Loads no torch.

What is kept of a data set is where the Arrow files of `datasets` lie, and the revision (commit) that they are of; after that the
hub is not asked again.
"""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cache import cache_folder, deleted, locked, slug, unwritable
from ..errors import Refused, first_line
from ..files import write_atomically
from . import image_table
from .image_table import Part
from .listing import HUB_NAME, SPLITS, Listing
from .several import AS_FOUND, Rules

if TYPE_CHECKING:
    import datasets
    from rich.progress import Progress

PROBE_SECONDS = 10  # `load_dataset` alone would retry for minutes when the hub hangs
WAYS_OUT = "or name a folder or a table"


class Answer(NamedTuple):
    """What the hub says of a data set: the commit that is current there, or the error if it cannot be reached."""

    revision: str | None
    offline: Exception | None = None


def read(source: Path, wanted: Mapping[str, str], bar: "Progress", rules: Rules = AS_FOUND) -> Listing:
    """The images of the data set `source`; `wanted` and `rules` as in image_table. `bar` gives way to those of `datasets`.

    Raises Refused: 1 if the hub does not have it or it cannot be downloaded, 2 and 4 as image_table.read, 2 if it has several
    configurations.
    """
    record = _read(source)
    if not record:
        with giving_way(bar):
            record = _download(source)
    return _rows(source, record, wanted, rules)


def rows(source: Path, tables: "datasets.DatasetDict") -> Listing:
    """The images of tables that `datasets` has loaded. Raises Refused as image_table.read."""
    return _rows(source, {"revision": "", "splits": _arrow_files(tables)}, {})


def clear(source: Path) -> Path | None:
    """Forget the revision, so that the hub is asked again. Returns the deleted file, or None. Raises Refused (1)."""
    return deleted(_path(source))


def ask(name: str) -> Answer:
    """Ask the hub, within seconds, for the data set `name` ("owner/name").

    If it cannot be reached, this process is offline from then on, as with HF_HUB_OFFLINE=1, and `datasets` uses what it has
    cached itself. Raises Refused (1) if the hub does not have the data set.
    """
    import datasets
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().dataset_info(name, timeout=PROBE_SECONDS)
        with contextlib.suppress(huggingface_hub.errors.EntryNotFoundError):  # files may be on another server, so ask for one
            file = huggingface_hub.hf_hub_url(name, "README.md", repo_type="dataset")
            huggingface_hub.get_hf_file_metadata(file, timeout=PROBE_SECONDS)
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        endpoint = huggingface_hub.constants.ENDPOINT
        raise Refused(f"{endpoint} has no data set {name!r}, or it is private; HF_ENDPOINT=URL selects a mirror") from error
    except Exception as error:  # whatever the network does, the way out is the same
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        return Answer(None, error)
    return Answer(info.sha)


def download(name: str, answer: Answer, ways_out: str, config: str | None = None) -> "datasets.DatasetDict":
    """All splits of the data set `name`, of the revision of `answer`, from `datasets`' own cache if it has them.

    Raises Refused: 1 if that fails, with other `ways_out` than a mirror and that cache; 2 if it has several configurations and
    `config` is none of them.
    """
    try:
        return load(name, name=config, revision=answer.revision)
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


def load(path: str, **options: Any) -> "datasets.DatasetDict":
    """All splits of a data set of the hub, of a folder, or of files of a kind such as "parquet". Raises what `datasets` does."""
    import datasets  # takes 1 s, and is not needed once the images are cached

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets.load_dataset(path, **options)


@contextlib.contextmanager
def giving_way(bar: "Progress") -> Iterator[None]:
    """Context manager: hide `bar`, where `datasets` shows its own."""
    live = bar.live.is_started
    if live:
        bar.stop()
    yield
    if live:
        bar.start()


def _rows(source: Path, record: dict, wanted: Mapping[str, str], rules: Rules = AS_FOUND) -> Listing:
    """The images of a data set of which `record` says the revision, and the Arrow files of each split."""
    splits = _splits(source, [*record["splits"]])
    parts = []
    ignored: Counter[str] = Counter()
    for name, files in record["splits"].items():
        paths = [*map(Path, files)]
        if name in splits:
            parts.append(Part(name, splits[name], max(path.stat().st_mtime_ns for path in paths), paths))
        else:
            ignored[f"split {name}"] += 1
    listing = image_table.read(source, source, parts, wanted, record["revision"], rules)
    listing.ignored.update(ignored)
    return listing


def _splits(source: Path, names: list[str]) -> dict[str, str]:
    """name -> split of those that are used: a single one is to be split. Raises Refused (4) if none is one to train on."""
    known = {name: SPLITS[name.casefold()] for name in names if name.casefold() in SPLITS}
    if len(names) == 1 or {*known.values()} == {"train"}:
        return dict.fromkeys(known or names, "")
    if not known:
        raise Refused(f"{source}: its splits are {', '.join(names)}; none is called train, validation or test", 4)
    return known


def _download(source: Path) -> dict:
    match = HUB_NAME.fullmatch(str(source))
    assert match, source
    try:
        answer = ask(match["name"])  # before the lock, so that processes do not wait for each other's timeouts
        with locked(_path(source).stem):
            if record := _read(source):
                return record
            splits = _arrow_files(download(match["name"], answer, WAYS_OUT, match["config"]))
            revision = Path(next(iter(splits.values()))[0]).parent.name  # as `datasets` calls the folder, also when offline
            record = {"revision": answer.revision or revision, "splits": splits}
            try:
                write_atomically(_path(source), json.dumps(record).encode())
            except OSError as error:
                raise unwritable(_path(source).parent, error) from error
            return record
    except Refused as error:
        if error.code != 1:
            raise
        raise Refused(f"no folder or table {source} here; {error}") from error


def _arrow_files(tables: "datasets.DatasetDict") -> dict[str, list[str]]:
    """The files of each split that `datasets` has written."""
    return {name: [file["filename"] for file in table.cache_files] for name, table in tables.items()}


def _configs(name: str, revision: str | None) -> list[str]:
    """What configurations the data set `name` has; none if nobody can say."""
    import datasets

    with contextlib.suppress(Exception):
        return datasets.get_dataset_config_names(name, revision=revision)
    return []


def _read(source: Path) -> dict | None:
    """What is known of the data set, if its files are still there."""
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
        record = json.loads(_path(source).read_bytes())
        if all(Path(file).exists() for files in record["splits"].values() for file in files):
            return record
    return None


def _path(source: Path) -> Path:
    return cache_folder() / f"{slug('hub', source)}.json"
