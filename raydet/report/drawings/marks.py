"""Boxes on an image, with labels that hide neither a box nor one another where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from raydet.report.drawings.panels import INK, Colour, fitting, font

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in panel pixels; right and bottom lie within it."""
DASHES: Colour = (255, 255, 255)
LINE_WIDTH_PX = 3
SMALL_PX = 30
"""Boxes with a shorter side have lines one pixel thinner, so that something is left to see."""
DASH_PX = 4
LABEL_FONT_PX = 12
LABEL_PX = 15
"""Height of a label."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A box, and what stands beside it."""

    box: Box
    colour: Colour
    label: str
    """Empty: none."""


def draw_marks(image: Image.Image, *, solid: Sequence[Mark], dashed: Sequence[Mark]) -> None:
    """Draw both kinds, the first of each on top; dashed lines lie on solid ones, labels on all lines."""
    draw = ImageDraw.Draw(image)
    for mark in reversed(solid):
        is_small = min(mark.box[2] - mark.box[0], mark.box[3] - mark.box[1]) < SMALL_PX
        draw.rectangle(mark.box, outline=mark.colour, width=LINE_WIDTH_PX - is_small)
    for mark in dashed:
        dashed_rectangle(image, mark.box)
    marks = [*solid, *dashed]
    places: list[Box] = []
    labelled = [mark for mark in marks if mark.label]
    for mark in labelled:
        places.append(_label_place(mark, image.size, places, [other.box for other in marks]))
    for mark, place in zip(labelled, places, strict=True):
        at, nearest = mark.box[0] + 1, mark.box[1] if place[3] < mark.box[1] else mark.box[3]
        if place[3] < mark.box[1] or place[1] > mark.box[3]:
            draw.line((at, place[1], at, nearest), mark.colour)
    for mark, place in zip(labelled, places, strict=True):
        draw.rectangle(place, fill=mark.colour)
        draw.text((place[0] + 2, place[1]), _label(mark, image.size), INK, font(LABEL_FONT_PX))


def dashed_rectangle(image: Image.Image, box: Box) -> None:
    """One pixel wide, white dashes with black gaps: seen on every ground."""
    left, top, right, bottom = box
    across = [(x, y) for y in (top, bottom) for x in range(left, right + 1)]
    down = [(x, y) for x in (left, right) for y in range(top, bottom + 1)]
    for x, y in across + down:
        if 0 <= x < image.width and 0 <= y < image.height:
            image.putpixel((x, y), DASHES if (x + y) // DASH_PX % 2 == 0 else INK)


def _label_place(mark: Mark, size_wh: tuple[int, int], labels: Sequence[Box], boxes: Sequence[Box]) -> Box:
    """As near above or below its box as it hides neither a label nor a box; failing that, a box only."""
    width = round(font(LABEL_FONT_PX).getlength(_label(mark, size_wh))) + 4
    left = max(0, min(mark.box[0], size_wh[0] - width))
    steps = range(0, size_wh[1], LABEL_PX + 1)
    tops = [top for step in steps for top in (mark.box[1] - LABEL_PX - step, mark.box[3] + 1 + step)]
    tops += range(mark.box[1] + LINE_WIDTH_PX, mark.box[3] - LABEL_PX, LABEL_PX + 1)  # within
    places = [
        (left, top, left + width - 1, top + LABEL_PX - 1) for top in tops if 0 <= top <= size_wh[1] - LABEL_PX
    ]
    clear = [place for place in places if not any(_overlap(place, other) for other in labels)]
    free = [place for place in clear if not any(_overlap(place, other) for other in boxes)]
    return next(iter(free or clear or places), (left, 0, left + width - 1, LABEL_PX - 1))


def _label(mark: Mark, size_wh: tuple[int, int]) -> str:
    return fitting(mark.label, size_wh[0] - 4, font(LABEL_FONT_PX))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
