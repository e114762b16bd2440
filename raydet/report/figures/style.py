"""The style of the figures, and rendering them to PNG and SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import fontManager
from matplotlib.ticker import MaxNLocator

WIDTH_IN = 6.6
CONTROL, ARM, BASELINE, ACCENT = "#8c8c8c", "#0072b2", "#009e73", "#d55e00"
"""Okabe and Ito's palette, which colour-blind readers can distinguish."""
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
MAX_ROWS = 40
"""Rows with readable names that fit into a figure."""

RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "raydet",  # the same study gives the same bytes
    "text.parse_math": False,  # names may contain dollar signs
}
FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
)
"""Used, where installed, for glyphs that matplotlib's own font lacks."""


@contextmanager
def figure_style() -> Iterator[None]:
    """The context in which figures must be drawn and rendered: matplotlib reads its settings at both times."""
    installed = {font.name for font in fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    with mpl.rc_context(RC | {"font.family": families}), warnings.catch_warnings():
        # A glyph that no font has becomes a box; the tables and the page still contain it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its title and caption."""

    name: str
    """Stem of its files."""
    title: str
    caption: str
    canvas: Canvas

    def svg(self) -> str:
        """Render as SVG; text becomes outlines, so that it looks the same everywhere."""
        return self._render("svg").decode()

    def png(self) -> bytes:
        """Render as PNG at 150 dots per inch."""
        return self._render("png")

    def _render(self, form: str) -> bytes:
        buffer = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else None
        self.canvas.savefig(buffer, format=form, dpi=150, bbox_inches="tight", metadata=metadata)
        return buffer.getvalue()


def axes(height_in: float, *, columns: int = 1, share_y: bool = False) -> tuple[Canvas, list[Axes]]:
    """An empty figure with axes side by side."""
    canvas = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained")
    grid = canvas.subplots(1, columns, squeeze=False, sharey=share_y)
    return canvas, list(grid[0])


def rows_figure(labels: Sequence[str]) -> tuple[Canvas, Axes, Sequence[int]]:
    """An empty figure with one labelled row per entry, and the y positions of the rows, from the top."""
    canvas, (plot,) = axes(0.9 + 0.24 * max(2, len(labels)))
    positions = range(len(labels), 0, -1)
    plot.set_yticks(positions, labels)
    return canvas, plot, positions


def cell_rows(names: Sequence[str]) -> tuple[Canvas, Axes, Sequence[int]]:
    """An empty figure with one row per cell; see `rows_figure`."""
    canvas, plot, positions = rows_figure([shorten(name) for name in names])
    plot.set_ylim(0.4, len(names) + 0.6)
    plot.xaxis.set_major_locator(MaxNLocator(nbins=6))  # more labels would overlap where ranges are small
    return canvas, plot, positions


def omitted(count: int) -> str:
    """A sentence about rows that did not fit; empty if there are none."""
    return f" {count} more are in the tables." if count > 0 else ""


def shorten(name: str, length: int = 34) -> str:
    """A name with its middle cut out if it is longer than `length`."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
