"""compare.html: a comparison's table, sentences and plots on one page, with links to the reports of its runs."""

import base64
from collections.abc import Sequence
from pathlib import Path

from ..files import write_atomically
from ..templates.render import render
from .compare import Comparison, text_of
from .paired import Pair


def write(folder: Path, comparison: Comparison, paired: Sequence[Pair], plots: Sequence[Path]) -> Path:
    """Write the page beside its `plots`, and return its path. Raises OSError."""
    head, rows = comparison.table()
    content = {
        "title": "Comparison",
        "head": head,
        "rows": [
            (row, [(training.folder.name, uri) for training in group.trainings if (uri := report_of(training.folder))])
            for row, group in zip(rows, comparison.groups, strict=True)
        ],
        "sentences": [f"{pair.sentence()}." for pair in paired],
        "same": {key: text_of(value) for key, value in comparison.same.items()},
        "plots": [(path.stem, base64.b64encode(path.read_bytes()).decode()) for path in plots if path.suffix == ".png"],
    }
    write_atomically(path := folder / "compare.html", render("compare.html", content))
    return path


def report_of(folder: Path) -> str | None:
    """The address of a run's report, if it has one."""
    page = folder.absolute() / "report.html"
    return page.as_uri() if page.is_file() else None
