"""Parquet files that hold images, which `datasets` rewrites once as Arrow files, of which a row can be read alone.

Parquet compresses many rows together: to read one, all of its page is decompressed. The Arrow files lie in the cache folder,
take the room of the parquet files once more, and hold until the size or the time of change of the parquet file is another.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import cache_folder, deleted, digest, locked, slug, unwritable
from ..errors import Refused, first_line
from . import image_table
from .hub import giving_way, load
from .image_table import Columns, Part
from .listing import SPLITS, Listing
from .several import AS_FOUND, Rules

if TYPE_CHECKING:
    import pyarrow
    from rich.progress import Progress

MEMORY = 2**25  # bytes of rows that are decompressed at a time, more or less


def holds_images(table: Path, column: str) -> bool:
    """Whether a parquet file holds images: in `column`, or if that is empty in any column. Raises Refused (1)."""
    schema = _schema(table)
    columns = image_table.images(schema)
    return column in columns if column in schema.names else bool(columns)


def read(source: Path, files: Sequence[Path], wanted: Mapping[str, str], bar: "Progress", rules: Rules = AS_FOUND) -> Listing:
    """The images in the parquet `files` of the folder `source`, or in `source` itself; `wanted` as in image_table.choose.

    What a file or its folder is called says its split: train-00000-of-00002.parquet, val/0.parquet. Raises Refused: 1 if a file
    cannot be read or the cache not written, 2 and 4 as image_table.read, 4 for files that do not belong together.
    """
    root = source if source.is_dir() else source.parent
    splits = splits_of(source, [file.relative_to(root) for file in files]) if root == source else [""]  # one file is not split
    schemas = [_schema(file) for file in files]
    columns = image_table.choose(source, schemas[0], wanted, any(splits))
    used = [*dict.fromkeys(filter(None, columns))]
    for file, schema in zip(files, schemas, strict=True):
        if missing := [name for name in used if name not in schema.names]:
            raise Refused(f"{file} has no column {missing[0]!r}, which {files[0]} has; name a folder of one data set", 4)
    times = [file.stat().st_mtime_ns for file in files]
    names = [str(file.relative_to(root)) for file in files]

    def read_rows() -> Listing:
        parts = [Part(*part) for part in zip(names, splits, times, _arrow_files(source, files, used, bar), strict=True)]
        return image_table.read(source, root, parts, Columns(*columns)._asdict(), rules=rules)

    try:
        return read_rows()
    except image_table.Damaged:  # made anew, once
        clear(source)
        return read_rows()


def clear(source: Path) -> Path | None:
    """Delete the Arrow files of `source`. Returns their folder, or None if there was none. Raises Refused (1)."""
    return deleted(_folder(source))


def _folder(source: Path) -> Path:
    return cache_folder() / slug("rows", source)


def _arrow_files(source: Path, files: Sequence[Path], columns: Sequence[str], bar: "Progress") -> list[list[Path]]:
    """The Arrow files of each parquet file: those that are missing are written, those of files that have changed deleted."""
    folder = _folder(source)
    current = [digest(repr((str(file), (status := file.stat()).st_size, status.st_mtime_ns))) for file in files]
    targets = [folder / f"{state}-{digest(repr(columns))}" for state in current]
    if not all(target.exists() for target in targets):
        with locked(folder.name), giving_way(bar):
            try:
                folder.mkdir(exist_ok=True)
                for other in folder.iterdir():
                    if other.suffix == ".tmp" or other.name.partition("-")[0] not in current:
                        shutil.rmtree(other) if other.is_dir() else other.unlink()
                for file, target in zip(files, targets, strict=True):
                    if not target.exists():
                        _write(target, file, columns)
            except OSError as error:
                raise unwritable(folder.parent, error) from error
    return [sorted(target.iterdir()) for target in targets]


def _write(target: Path, file: Path, columns: Sequence[str]) -> None:
    """The folder `target` with the Arrow files of the `columns`, whole or not at all. Raises OSError, and Refused (1)."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    with pyarrow.parquet.ParquetFile(file) as table:
        fields = [table.schema_arrow.field(name) for name in columns]
        schema = pyarrow.schema([(field.name, image_table.plain(field.type)) for field in fields], table.schema_arrow.metadata)
        size = sum(table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups))
        rows = min(1 + MEMORY * table.metadata.num_rows // (size + 1), 4096)
    features = datasets.Features.from_arrow_schema(schema)
    try:
        with tempfile.TemporaryDirectory(prefix="oneloop-") as place:
            link = Path(place, "table.parquet")  # what `datasets` does not take for a pattern
            link.symlink_to(file)
            options = {"columns": [*columns], "features": features, "batch_size": rows, "cache_dir": f"{temporary}/made"}
            tables = load("parquet", data_files=str(link), verification_mode="no_checks", **options)
        for number, arrow in enumerate(tables["train"].cache_files):
            Path(arrow["filename"]).rename(temporary / f"{number:05}.arrow")
        shutil.rmtree(temporary / "made")
        temporary.replace(target)
    except Exception as error:  # `datasets` wraps what went wrong
        causes: list[BaseException] = [error]
        while cause := causes[-1].__cause__ or causes[-1].__context__:
            causes.append(cause)
        if full := next((cause for cause in causes if isinstance(cause, OSError) and cause.errno), None):
            raise full from error
        raise _unreadable(file, causes[-1]) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _schema(file: Path) -> "pyarrow.Schema":
    """The columns of a parquet file. Raises Refused (1)."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            return table.schema_arrow
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: BaseException) -> Refused:
    return Refused(f"{file} cannot be read as a table: {getattr(error, 'strerror', None) or first_line(error)}")


def splits_of(source: Path, files: Sequence[Path]) -> list[str]:
    """The split of each file, by a word in its name or else in the name of its nearest folder; all empty if that is only train.

    Raises Refused (4) if only some of the files have one.
    """
    splits = [next(filter(None, map(_split, (file.stem, *file.parts[-2::-1]))), "") for file in files]
    if {*splits} <= {"train", ""}:
        return [""] * len(files)
    if "" in splits:
        unnamed = files[splits.index("")]
        raise Refused(f"{source}: {unnamed} has no split in its name, others do; call it train-…, test-… or move it", 4)
    return splits


def _split(name: str) -> str:
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", name.casefold()) if word in SPLITS), "")
