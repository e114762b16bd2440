"""How figures look, and how they become files."""

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
"""Okabe and Ito's palette: told apart by colour-blind readers."""
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
MOST_LABELS = 40
"""Rows that can carry a readable name each."""

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
    "text.parse_math": False,  # a name may hold a dollar sign
}


WIDER_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
)
"""For letters that matplotlib's own font lacks, where they are installed."""


@contextmanager
def drawing() -> Iterator[None]:
    """Figures are made and written in this context: matplotlib reads its settings at both times."""
    installed = {font.name for font in fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in WIDER_FONTS if name in installed)]
    with mpl.rc_context(RC | {"font.family": families}), warnings.catch_warnings():
        # A letter that no font has becomes a box; the tables and the page have it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure and its words."""

    name: str
    """Of its files."""
    title: str
    caption: str
    """What is drawn, and how to read it."""
    canvas: Canvas

    def svg(self) -> str:
        """Vector form; letters are outlines, so that it looks the same everywhere."""
        return self._drawn("svg").decode()

    def png(self) -> bytes:
        """At 150 dots per inch."""
        return self._drawn("png")

    def _drawn(self, form: str) -> bytes:
        buffer = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else None
        self.canvas.savefig(buffer, format=form, dpi=150, bbox_inches="tight", metadata=metadata)
        return buffer.getvalue()


def axes(height_in: float, *, columns: int = 1, share_y: bool = False) -> tuple[Canvas, list[Axes]]:
    """An empty figure with axes side by side."""
    canvas = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained")
    grid = canvas.subplots(1, columns, squeeze=False, sharey=share_y)
    return canvas, list(grid[0])


def row_height(count: int) -> float:
    """Inches for so many rows with names."""
    return 0.9 + 0.24 * max(2, count)


def left_out(count: int) -> str:
    """A sentence on rows for which there was no room; empty where there was."""
    return f" {count} more are in the tables." if count > 0 else ""


def name_rows(plot: Axes, names: Sequence[str]) -> None:
    """Rows from the top, at len(names), ..., 2, 1."""
    plot.set_yticks(range(len(names), 0, -1), [shortened(name) for name in names])
    plot.set_ylim(0.4, len(names) + 0.6)
    plot.xaxis.set_major_locator(MaxNLocator(nbins=6))  # more would touch one another where ranges are small


def shortened(name: str, most: int = 34) -> str:
    """A long name with its middle left out."""
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
