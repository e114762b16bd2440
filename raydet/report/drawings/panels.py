"""Panels with headings, arranged on a page; any text is safe to draw.

`raydet.ops.colours` turns a modality with any number of channels into colours.
"""

from __future__ import annotations

import bisect
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
LONG_SIDE_PX = (384, 640)
"""Longer side of a panel: small images are enlarged by an integer towards the first value, large ones reduced to the
second."""
LONG_SIDE_STACKED_PX = (768, 1024)
MIN_PANEL_PX = 160
"""Minimum width, for readable headings and labels."""
LONGEST_NAME = 20
"""Characters of a class name in a label."""
MARGIN_PX = 8
LINE_PX = 20


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn image as PNG, with its title and caption."""

    name: str
    """`best-1`, ..., `worst-1`, ..., `attention`: safe for file names and anchors."""
    title: str
    """Plain text with the image's id; must be escaped in HTML, like the caption."""
    caption: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Panel:
    heading: str
    image: Image.Image


def is_stacked(size_hw: tuple[int, int]) -> bool:
    """Whether panels of such wide images are stacked instead of side by side."""
    return size_hw[1] > 2 * size_hw[0]


def panel_factor(size_hw: tuple[int, int]) -> float:
    """Panel pixels per image pixel.

    >>> panel_factor((96, 128)), panel_factor((512, 640)), panel_factor((1024, 1280))
    (3, 1, 0.5)
    """
    target, limit = LONG_SIDE_STACKED_PX if is_stacked(size_hw) else LONG_SIDE_PX
    longer = max(size_hw)
    return limit / longer if longer > limit else max(1, round(target / longer))


def enlarged(colours_HW3: NDArray[np.uint8], factor: float) -> Image.Image:
    """Resize an image for its panel, by nearest neighbours or averaging; a narrow one is padded at the right."""
    height, width = colours_HW3.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    panel = Image.new("RGB", (max(size[0], MIN_PANEL_PX), size[1]), PAPER)
    panel.paste(Image.fromarray(np.ascontiguousarray(colours_HW3)).resize(size, how))
    return panel


def arranged(panels: Sequence[Panel], *, title: str, legend: Image.Image, stacked: bool) -> Image.Image:
    """Arrange panels side by side or stacked, below the title and the legend."""
    widths = [panel.image.width for panel in panels]
    heights = [panel.image.height + LINE_PX for panel in panels]
    gaps = MARGIN_PX * (len(panels) - 1)
    inner_w = max(max(widths) if stacked else sum(widths) + gaps, legend.width)
    inner_h = sum(heights) + gaps if stacked else max(heights)
    top = 2 * MARGIN_PX + LINE_PX + legend.height
    page = Image.new("RGB", (inner_w + 2 * MARGIN_PX, top + inner_h + MARGIN_PX), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN_PX, MARGIN_PX), fitting(title, inner_w, font(15)), INK, font(15))
    page.paste(legend, (MARGIN_PX, MARGIN_PX + LINE_PX))
    left = MARGIN_PX
    for panel, width, height in zip(panels, widths, heights, strict=True):
        draw.text((left, top), fitting(panel.heading, width, font(13)), FAINT, font(13))
        page.paste(panel.image, (left, top + LINE_PX))
        left, top = (left, top + height + MARGIN_PX) if stacked else (left + width + MARGIN_PX, top)
    return page


def titled(figure: Image.Image, title: str) -> Image.Image:
    """Put a title above a figure."""
    page = Image.new("RGB", (figure.width, figure.height + MARGIN_PX + LINE_PX), PAPER)
    ImageDraw.Draw(page).text(
        (MARGIN_PX, MARGIN_PX), fitting(title, figure.width - 2 * MARGIN_PX, font(15)), INK, font(15)
    )
    page.paste(figure, (0, MARGIN_PX + LINE_PX))
    return page


@functools.cache
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as bundled with matplotlib: the same glyphs on every machine."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)


def printable(text: str) -> str:
    """Replace line breaks, control characters and marks of writing direction.

    >>> printable("a\\nb\\u202ec")
    'a?b?c'
    """
    return "".join(char if char.isprintable() else "?" for char in text)


def shortened(name: str) -> str:
    """A class name for a label."""
    name = printable(name[: LONGEST_NAME + 1])
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def fitting(text: str, width_px: float, face: ImageFont.FreeTypeFont) -> str:
    """Truncate a text to a width."""
    text = printable(text[:1000])
    if face.getlength(text) <= width_px:
        return text
    lengths = range(1, len(text))
    fits = bisect.bisect_right(lengths, width_px, key=lambda length: face.getlength(f"{text[:length]}…"))
    return f"{text[:fits]}…"


def as_png(image: Image.Image) -> bytes:
    """Encode as PNG with a palette of 256 colours: no visible difference at a third of the size."""
    file = io.BytesIO()
    fitted = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE, kmeans=1)
    fitted.save(file, "PNG", optimize=True)
    return file.getvalue()
