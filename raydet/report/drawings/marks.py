"""Boxes with labels on an image; labels hide neither a box nor another label if there is space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from raydet.report.drawings.panels import INK, Colour, fitting, font

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in panel pixels, all inclusive."""
DASHES: Colour = (255, 255, 255)
LINE_WIDTH_PX = 3
SMALL_PX = 30
"""Boxes with a shorter side have lines one pixel thinner, which hide less."""
DASH_PX = 4
LABEL_FONT_PX = 12
LABEL_PX = 15
"""Height of a label."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A box with a label, which may be empty."""

    box: Box
    colour: Colour
    label: str


def draw_marks(image: Image.Image, *, solid: Sequence[Mark], dashed: Sequence[Mark]) -> None:
    """Draw both kinds, the first of each on top; dashed lines over solid ones, labels over all lines."""
    draw = ImageDraw.Draw(image)
    for mark in reversed(solid):
        is_small = min(mark.box[2] - mark.box[0], mark.box[3] - mark.box[1]) < SMALL_PX
        draw.rectangle(mark.box, outline=mark.colour, width=LINE_WIDTH_PX - is_small)
    for mark in dashed:
        dashed_rectangle(image, mark.box)
    marks = [*solid, *dashed]
    labels: list[Box] = []
    labelled = [mark for mark in marks if mark.label]
    for mark in labelled:
        labels.append(_label_box(mark, image.size, labels, [other.box for other in marks]))
    for mark, label in zip(labelled, labels, strict=True):
        x, nearest = mark.box[0] + 1, mark.box[1] if label[3] < mark.box[1] else mark.box[3]
        if label[3] < mark.box[1] or label[1] > mark.box[3]:
            draw.line((x, label[1], x, nearest), mark.colour)
    for mark, label in zip(labelled, labels, strict=True):
        draw.rectangle(label, fill=mark.colour)
        draw.text((label[0] + 2, label[1]), _text(mark, image.size), INK, font(LABEL_FONT_PX))


def dashed_rectangle(image: Image.Image, box: Box) -> None:
    """Draw a line of one pixel, white dashes with black gaps, which is visible on any background."""
    left, top, right, bottom = box
    across = [(x, y) for y in (top, bottom) for x in range(left, right + 1)]
    down = [(x, y) for x in (left, right) for y in range(top, bottom + 1)]
    for x, y in across + down:
        if 0 <= x < image.width and 0 <= y < image.height:
            image.putpixel((x, y), DASHES if (x + y) // DASH_PX % 2 == 0 else INK)


def _label_box(mark: Mark, size_wh: tuple[int, int], labels: Sequence[Box], boxes: Sequence[Box]) -> Box:
    """The position nearest to the mark that hides neither labels nor boxes; if there is none, it may hide boxes."""
    width = round(font(LABEL_FONT_PX).getlength(_text(mark, size_wh))) + 4
    left = max(0, min(mark.box[0], size_wh[0] - width))
    steps = range(0, size_wh[1], LABEL_PX + 1)
    tops = [top for step in steps for top in (mark.box[1] - LABEL_PX - step, mark.box[3] + 1 + step)]
    tops += range(mark.box[1] + LINE_WIDTH_PX, mark.box[3] - LABEL_PX, LABEL_PX + 1)  # inside the box
    candidates = [
        (left, top, left + width - 1, top + LABEL_PX - 1) for top in tops if 0 <= top <= size_wh[1] - LABEL_PX
    ]
    clear = [label for label in candidates if not any(_overlap(label, other) for other in labels)]
    free = [label for label in clear if not any(_overlap(label, other) for other in boxes)]
    return next(iter(free or clear or candidates), (left, 0, left + width - 1, LABEL_PX - 1))


def _text(mark: Mark, size_wh: tuple[int, int]) -> str:
    return fitting(mark.label, size_wh[0] - 4, font(LABEL_FONT_PX))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
