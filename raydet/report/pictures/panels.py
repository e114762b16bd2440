"""Pictures of any number of channels as panels that a browser can show, with text that cannot break them.

A modality with one channel is shown in grey, one with three in colour. Any other number is projected: the channels are
spread evenly from red through green to blue, in their order, so that in a picture of 20 event windows what fired
early is red and what fired late is blue; the brightest value is made full. Nothing else is stretched: a night is
black.

Legend: C channels, H W picture.
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
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
LONG_SIDE_PX = (384, 640)
"""Longer side of a panel: smaller pictures are enlarged by whole numbers towards the first, larger ones reduced to the
second."""
LONG_SIDE_STACKED_PX = (768, 1024)
MIN_PANEL_PX = 160
"""So wide that headings and labels can be read."""
MARGIN_PX = 8
LINE_PX = 20


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture with a heading."""

    heading: str
    image: Image.Image


def as_colours(x_CHW: Tensor) -> NDArray[np.uint8]:
    """What a modality looks like: uint8 [H, W, 3]; see the head of this file.

    Args:
        x_CHW: uint8 in 0..255 or float in 0..1; what is not finite is shown black.

    >>> as_colours(torch.tensor([[[255]], [[0]], [[0]]], dtype=torch.uint8)).tolist()
    [[[255, 0, 0]]]
    >>> as_colours(torch.tensor([0.0, 0.0, 0.0, 0.5])[:, None, None]).tolist()  # the last of four channels
    [[[0, 0, 255]]]
    """
    scale = 255 if x_CHW.dtype == torch.uint8 else 1
    values_CHW = (x_CHW.float() / scale).nan_to_num(0.0, posinf=0.0, neginf=0.0).clamp(min=0).numpy()
    if len(values_CHW) not in (1, 3):
        values_CHW = np.einsum("ic,chw->ihw", _projection(len(values_CHW)), values_CHW)
        values_CHW = values_CHW / max(float(values_CHW.max()), np.finfo(np.float32).tiny)
    bytes_HWC = np.rint(values_CHW.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.broadcast_to(bytes_HWC, (*bytes_HWC.shape[:2], 3))


def _projection(num_channels: int) -> NDArray[np.float64]:
    """Share of each channel in red, green and blue: [3, C], tents around the first, the middle, the last channel."""
    at_C = np.linspace(0, 2, num_channels)
    return np.clip(1 - np.abs(np.arange(3)[:, None] - at_C), 0, None)


def is_stacked(size_hw: tuple[int, int]) -> bool:
    """Whether panels of pictures this wide stand one above the other."""
    return size_hw[1] > 2 * size_hw[0]


def panel_factor(size_hw: tuple[int, int]) -> float:
    """Panel pixels per picture pixel.

    >>> panel_factor((96, 128)), panel_factor((512, 640)), panel_factor((1024, 1280))
    (3, 1, 0.5)
    """
    wanted, most = LONG_SIDE_STACKED_PX if is_stacked(size_hw) else LONG_SIDE_PX
    longer = max(size_hw)
    return most / longer if longer > most else max(1, round(wanted / longer))


def enlarged(colours_HW3: NDArray[np.uint8], factor: float) -> Image.Image:
    """A picture in the size of its panel, pixels as squares or averaged; a narrow one has paper at its right."""
    height, width = colours_HW3.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    panel = Image.new("RGB", (max(size[0], MIN_PANEL_PX), size[1]), PAPER)
    panel.paste(Image.fromarray(np.ascontiguousarray(colours_HW3)).resize(size, how))
    return panel


def arranged(panels: Sequence[Panel], *, title: str, legend: Image.Image, stacked: bool) -> Image.Image:
    """Panels side by side or stacked, under a strip with the title and the legend."""
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
    """A figure under a title."""
    page = Image.new("RGB", (figure.width, figure.height + MARGIN_PX + LINE_PX), PAPER)
    ImageDraw.Draw(page).text(
        (MARGIN_PX, MARGIN_PX), fitting(title, figure.width - 2 * MARGIN_PX, font(15)), INK, font(15)
    )
    page.paste(figure, (0, MARGIN_PX + LINE_PX))
    return page


@functools.cache
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries: the same glyphs on every machine."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)


def printable(text: str) -> str:
    """On one line, without what a font cannot draw or what turns the direction of writing.

    >>> printable("a\\nb\\u202ec")
    'a?b?c'
    """
    return "".join(char if char.isprintable() else "?" for char in text)


def fitting(text: str, width_px: float, face: ImageFont.FreeTypeFont) -> str:
    """The text, cut where it would be wider."""
    text = printable(text[:1000])
    if face.getlength(text) <= width_px:
        return text
    lengths = range(1, len(text))
    fits = bisect.bisect_right(lengths, width_px, key=lambda length: face.getlength(f"{text[:length]}…"))
    return f"{text[:fits]}…"


def as_png(image: Image.Image) -> bytes:
    """A compact file, of 256 colours fitted to the picture: a reader sees no difference, and it is a third the size."""
    file = io.BytesIO()
    fitted = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE, kmeans=1)
    fitted.save(file, "PNG", optimize=True)
    return file.getvalue()
