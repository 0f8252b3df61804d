"""Hooks of mkdocs.yml: pages that lie at the top of the repository, the notebook as a page, links to files that the site lacks.

Every link is checked: one to a page or an anchor by mkdocs --strict, one to another file of the repository here.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "index.zh-CN.md": "README.zh-CN.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "notebook.md": "docs/custom.ipynb",
}
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()#\s]+)(#[^()\s]*)?\)")


def on_config(config: Any) -> None:
    """Anchors are those that GitHub gives headings, so that a link works here and there."""
    config.mdx_configs["toc"]["slugify"] = slug


def slug(heading: str, separator: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_files(files: Any, config: Any) -> None:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    for page, source in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=pages_of(text) if source.endswith(".ipynb") else text))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links as the site has them."""
    place = (ROOT / PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent
    return LINK.sub(lambda link: _as_here(place, link), markdown)


def pages_of(notebook: str) -> str:
    """The notebook as Markdown: its texts, and its code in blocks."""
    cells = json.loads(notebook)["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    return "\n\n".join(
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```" for cell, text in zip(cells, texts, strict=True)
    )


def _as_here(place: Path, link: re.Match) -> str:
    """A link of a file in `place`; of one to a file that is no page only the label is left, if there is such a file."""
    label, target, anchor = link[1], link[2], link[3] or ""
    path = (place / target).resolve()
    if "://" in target or not path.is_relative_to(ROOT) or not path.exists():
        return link[0]  # elsewhere, or mkdocs finds it missing
    inside = path.relative_to(ROOT).as_posix()
    page = {source: page for page, source in PAGES.items()}.get(inside) or inside.removeprefix("docs/")
    return label if page == inside and page not in PAGES else f"[{label}]({page}{anchor})"
