"""Pages that are one file: nothing is loaded from anywhere, and nothing runs in them.

What a page is about is escaped by the template engine, and a policy in it forbids scripts.
"""

from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from macai.page.words import amount, interval, plain, scaled

FOLDER = Path(__file__).parent


class Card(NamedTuple):
    """A chart with its heading, and a line about it."""

    heading: str
    chart: Markup
    note: str = ""


def render(template: Path, **context: Any) -> str:
    """Return a page; the template extends "page.html.jinja", which stands beside this file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"amount": amount, "scaled": scaled, "plain": plain}
    style = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(template.name).render(style=style, interval=interval, **context)
