"""Parquet files that hold images, rewritten once as Arrow files, of which a row can be read alone.

Parquet compresses many rows together: to read one, all of its page is decompressed. The Arrow files lie in the cache folder,
take the room of the parquet files once more, and hold until the size or the time of change of the parquet file is another.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import cache_folder, deleted, digest, locked, slug, unwritable
from ..errors import Refused, first_line
from . import image_table
from .image_table import Columns, Part
from .listing import SPLITS, Listing

if TYPE_CHECKING:
    import pyarrow
    from rich.progress import Progress, TaskID

MEMORY = 2**25  # bytes of rows that are decompressed at a time, more or less


def holds_images(table: Path, column: str) -> bool:
    """Whether a parquet file holds images: in `column`, or if that is empty in any column. Raises Refused (1)."""
    schema = _schema(table)[0]
    found = image_table.images(schema)
    return column in found if column in schema.names else bool(found)


def read(source: Path, files: Sequence[Path], wanted: Mapping[str, str], bar: "Progress") -> Listing:
    """The images in the parquet `files` of the folder `source`, or in `source` itself; `wanted` as in image_table.choose.

    What a file or its folder is called says its split: train-00000-of-00002.parquet, val/0.parquet. Raises Refused: 1 if a file
    cannot be read or the cache not written, 2 and 4 as image_table.read, 4 for files that do not belong together.
    """
    root = source if source.is_dir() else source.parent
    splits = _splits(source, [file.relative_to(root) for file in files]) if root == source else [""]  # one file is not split
    schemas = [_schema(file) for file in files]
    columns = image_table.choose(source, schemas[0][0], wanted, any(splits))
    used = [*dict.fromkeys(filter(None, columns))]
    for file, (schema, _) in zip(files, schemas, strict=True):
        if missing := [name for name in used if name not in schema.names]:
            raise Refused(f"{file} has no column {missing[0]!r}, which {files[0]} has; name a folder of one data set", 4)
    times = [file.stat().st_mtime_ns for file in files]
    names = [str(file.relative_to(root)) for file in files]

    def read_rows() -> Listing:
        arrow = _rewritten(source, files, used, sum(count for _, count in schemas), bar)
        parts = [Part(*each) for each in zip(names, splits, times, ([file] for file in arrow), strict=True)]
        return image_table.read(source, root, parts, Columns(*columns)._asdict())

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


def _rewritten(source: Path, files: Sequence[Path], columns: Sequence[str], rows: int, bar: "Progress") -> list[Path]:
    """The Arrow file of each parquet file: those that are missing are written, those of files that have changed deleted."""
    folder = _folder(source)
    current = [digest(repr((str(file), (status := file.stat()).st_size, status.st_mtime_ns))) for file in files]
    targets = [folder / f"{each}-{digest(repr(columns))}.arrow" for each in current]
    if all(target.exists() for target in targets):
        return targets
    with locked(folder.name):
        try:
            folder.mkdir(exist_ok=True)
            for other in folder.iterdir():
                if other.suffix == ".tmp" or other.name.partition("-")[0] not in current:
                    other.unlink()
            task = bar.add_task("reading tables", total=rows)
            for file, target in zip(files, targets, strict=True):
                if not target.exists():
                    _write(target, _batches(file, columns), bar, task)
        except OSError as error:
            raise unwritable(folder.parent, error) from error
    return targets


def _write(target: Path, batches: Iterator["pyarrow.RecordBatch"], bar: "Progress", task: "TaskID") -> None:
    """An Arrow stream of `batches`, whole or not at all. Raises OSError."""
    import pyarrow.ipc

    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        first = next(batches)
        with open(temporary, "wb") as file, pyarrow.ipc.new_stream(file, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
                bar.advance(task, batch.num_rows)
        temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _batches(file: Path, columns: Sequence[str]) -> Iterator["pyarrow.RecordBatch"]:
    """The `columns` of some rows at a time, after an empty batch. Raises Refused (1)."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:  # not all row groups at a time
            fields = [table.schema_arrow.field(name) for name in columns]
            schema = pyarrow.schema([(each.name, image_table.plain(each.type)) for each in fields], table.schema_arrow.metadata)
            yield pyarrow.RecordBatch.from_pylist([], schema)
            size = sum(table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups))
            rows = min(1 + MEMORY * table.metadata.num_rows // (size + 1), 4096)
            for batch in table.iter_batches(rows, columns=columns, use_threads=False):
                arrays = [batch.column(name).cast(schema.field(name).type) for name in columns]
                yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from error


def _schema(file: Path) -> tuple["pyarrow.Schema", int]:
    """The columns of a parquet file, and the number of its rows. Raises Refused (1)."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            return table.schema_arrow, table.metadata.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> Refused:
    return Refused(f"{file} cannot be read as a table: {getattr(error, 'strerror', None) or first_line(error)}")


def _splits(source: Path, files: Sequence[Path]) -> list[str]:
    """The split of each file, by a word in its name or else in the name of its nearest folder; all empty if that is only train.

    Raises Refused (4) if only some of the files have one.
    """
    found = [next(filter(None, map(_split, (file.stem, *file.parts[-2::-1]))), "") for file in files]
    if {*found} <= {"train", ""}:
        return [""] * len(files)
    if "" in found:
        unnamed = files[found.index("")]
        raise Refused(f"{source}: {unnamed} has no split in its name, others do; call it train-…, test-… or move it", 4)
    return found


def _split(name: str) -> str:
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", name.casefold()) if word in SPLITS), "")
