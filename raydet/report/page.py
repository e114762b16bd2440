"""The report as one HTML page: nothing outside of it is needed, nothing in it runs, everything is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from raydet.report.tables import Table


@dataclass(frozen=True, slots=True)
class Image:
    """An image within the page."""

    title: str
    caption: str
    uri: str
    """`data:`."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands under it."""

    anchor: str
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    images: Sequence[Image] = ()

    @property
    def is_empty(self) -> bool:
        """Nothing to show."""
        return not (self.sentences or self.tables or self.images)


@dataclass(frozen=True, slots=True)
class Page:
    """What the template shows."""

    title: str
    facts: Sequence[tuple[str, str]]
    conclusions: Sequence[str]
    limits: Sequence[str]
    sections: Sequence[Section]
    footer: str


def image(title: str, caption: str, content: bytes, *, kind: str) -> Image:
    """An image with its bytes.

    Args:
        kind: `svg+xml` or `png`.
    """
    return Image(title, caption, f"data:image/{kind};base64,{base64.b64encode(content).decode()}")


def render(page: Page) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=PackageLoader("raydet.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(page=page)
