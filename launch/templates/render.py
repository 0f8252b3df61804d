"""Pages: a jinja2 template filled in, in the style of style.css. Loads no torch."""

from pathlib import Path
from typing import Any

import jinja2


def render(template: str, content: dict[str, Any]) -> bytes:
    """The page that opens from disk and loads nothing from elsewhere; text in `content` is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**content).encode(errors="backslashreplace")
