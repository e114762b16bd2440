"""The report as one HTML page: self-contained, without scripts, with everything escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from raydet.report.tables import HypothesisRow, Table


@dataclass(frozen=True, slots=True)
class Image:
    """An image, embedded by a `data:` URI."""

    title: str
    caption: str
    uri: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its content."""

    anchor: str
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    images: Sequence[Image] = ()
    hypotheses: Sequence[HypothesisRow] = ()
    """Rows that unfold into their claims."""

    @property
    def is_empty(self) -> bool:
        return not (self.sentences or self.tables or self.images or self.hypotheses)


@dataclass(frozen=True, slots=True)
class Page:
    """The variables of the template."""

    title: str
    summary: Sequence[str]
    """What was compared, what is supported, what cannot be told."""
    figure: Image | None
    """Beside the summary; None: there is nothing to draw."""
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    footer: str


def embed(title: str, caption: str, content: bytes, *, kind: str) -> Image:
    """Embed a file's content; `kind` is `svg+xml` or `png`."""
    return Image(title, caption, f"data:image/{kind};base64,{base64.b64encode(content).decode()}")


def render(page: Page) -> str:
    """Render the page as HTML."""
    environment = Environment(
        loader=PackageLoader("raydet.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(page=page)
