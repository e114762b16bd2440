"""Images of the worst cases: modalities side by side with boxes, and checkerboards of misaligned pairs.

There is no text in them: what they show is said beside them, where it is escaped and can be read by machines.

Legend: C channels, H W image.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from raydet.check.alignment import Alignment
from raydet.check.findings import KINDS, Finding
from raydet.check.gather import Gathered
from raydet.check.summary import worst_first
from raydet.data.sources.base import Source
from raydet.errors import DataError
from raydet.ops.colours import as_colours
from raydet.structures import Sample

PANEL_PX = 320
"""Longer side of a panel."""
GAP_PX = 4
TILES = 8
"""Squares along the longer side of a checkerboard."""
GOOD, BAD = (0, 230, 118), (255, 61, 61)
PER_KIND = 4
WITH_IMAGES = (
    "misaligned",
    "leak",
    "near_leak",
    "shared_file",
    "duplicate",
    "box_empty",
    "box_outside",
    "unknown_class",
    "box_two_classes",
    "box_twice",
    "saturated",
    "constant",
    "not_finite",
    "odd_shape",
    "cannot_tell",
)
JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Case:
    """A finding with what it looks like."""

    finding: Finding
    caption: str
    uri: str
    """`data:`."""


def worst_cases(found: Gathered, source: Source) -> Iterator[Case]:
    """The worst `PER_KIND` images of each kind that can be seen, read again."""
    estimates: dict[int, list[Alignment]] = {}
    for index, _, estimate in found.alignments:
        if estimate.verdict == "misaligned":
            estimates.setdefault(index, []).append(estimate)
    groups = found.by_kind()
    for kind in sorted(WITH_IMAGES, key=list(KINDS).index):
        chosen = [each for each in worst_first(groups.get(kind, [])) if each.index is not None]
        for finding in islice(chosen, PER_KIND):
            try:
                yield _case(finding, source, estimates)
            except DataError:
                continue  # it has changed since it was checked, or its twin cannot be read


def _case(finding: Finding, source: Source, estimates: dict[int, list[Alignment]]) -> Case:
    assert finding.index is not None, "only findings about an image are drawn"
    sample = source.read(finding.index)
    if finding.kind == "misaligned":
        estimate = next(
            each for each in estimates[finding.index] if f"{each.first}-{each.second}:" in finding.detail
        )
        panels = misalignment_panels(sample, estimate)
        caption = (
            f"{estimate.first}, {estimate.second}, a checkerboard of both as they are, and one with "
            f"{estimate.second} moved back by the estimate; brightness stretched"
        )
        return Case(finding, caption, as_uri(side_by_side(panels)))
    panels = modality_panels(sample, bad=finding.boxes)
    caption = ", ".join(sample.modalities)
    if finding.other_index is not None:
        panels += modality_panels(source.read(finding.other_index))
        caption = f"{caption} of this image, then of the other"
    return Case(finding, caption, as_uri(side_by_side(panels)))


def modality_panels(sample: Sample, *, bad: Sequence[int] = ()) -> list[Image.Image]:
    """Each modality with its boxes, the bad ones in red."""
    return [_with_boxes(x, sample, bad) for x in sample.modalities.values()]


def misalignment_panels(sample: Sample, estimate: Alignment) -> list[Image.Image]:
    """Both modalities, a checkerboard as they are, and one with the second moved back."""
    first, second = (_stretched(sample.modalities[name]) for name in (estimate.first, estimate.second))
    panels = [first, second, checkerboard(first, second), checkerboard(first, moved_back(second, estimate))]
    return [_reduced(panel) for panel in panels]


def checkerboard(first: Image.Image, second: Image.Image) -> Image.Image:
    """Squares of both by turns: outlines run on where the two are aligned."""
    side = max(1, round(max(first.size) / TILES))
    rows, columns = np.arange(first.height) // side, np.arange(first.width) // side
    mask = ((rows[:, None] + columns[None, :]) % 2 * 255).astype(np.uint8)
    return Image.composite(second, first, Image.fromarray(mask))


def moved_back(image: Image.Image, estimate: Alignment) -> Image.Image:
    """The second modality where the first has it."""
    turn, grow = np.radians(estimate.rotation_deg), estimate.scale
    middle = np.array([image.width / 2, image.height / 2])
    # A point p of the first lies at grow * p turned, plus the shift, in the second, all from the middle.
    matrix = np.array([[grow, -turn], [turn, grow]])
    offset = middle + np.array(estimate.shift_xy) - matrix @ middle
    data = (*matrix[0].tolist(), float(offset[0]), *matrix[1].tolist(), float(offset[1]))
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """On white, two and two where there are more than three."""
    columns = len(panels) if len(panels) <= 3 else 2
    width = max(panel.width for panel in panels) + GAP_PX
    height = max(panel.height for panel in panels) + GAP_PX
    rows = -(-len(panels) // columns)
    page = Image.new("RGB", (columns * width - GAP_PX, rows * height - GAP_PX), "white")
    for place, panel in enumerate(panels):
        page.paste(panel, (place % columns * width, place // columns * height))
    return page


def as_uri(image: Image.Image) -> str:
    """A JPEG in a `data:` address."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _with_boxes(x_CHW: Tensor, sample: Sample, bad: Sequence[int]) -> Image.Image:
    full = Image.fromarray(np.ascontiguousarray(as_colours(x_CHW)))
    panel = _reduced(full)
    factor = panel.width / full.width
    draw = ImageDraw.Draw(panel)
    boxes_N4 = sample.boxes_xyxy.double().numpy()
    wrong = frozenset(bad)
    for place in sorted(range(len(boxes_N4)), key=wrong.__contains__):  # bad ones on top
        corners = _drawable(boxes_N4[place], full.size, factor)
        draw.rectangle(corners, outline=BAD if place in wrong else GOOD, width=2 if place in wrong else 1)
    return panel


def _drawable(
    xyxy: NDArray[np.float64], size: tuple[int, int], factor: float
) -> tuple[float, float, float, float]:
    """The box in panel pixels, cut at the image's edge, of one pixel at least."""
    (x1, x2), (y1, y2) = (
        np.sort(np.nan_to_num(xyxy[axis::2], nan=0.0).clip(0, size[axis])) * factor for axis in (0, 1)
    )
    return float(x1), float(y1), float(max(x2 - 1, x1)), float(max(y2 - 1, y1))


def _reduced(image: Image.Image) -> Image.Image:
    factor = PANEL_PX / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)


def _stretched(x_CHW: Tensor) -> Image.Image:
    """Between the 1st and the 99th percentile, so that outlines can be followed at night, too."""
    colours = as_colours(x_CHW).astype(np.float32)
    low, high = np.percentile(colours, (1, 99))
    stretched = (colours - low) / max(float(high - low), 1.0) * 255
    return Image.fromarray(stretched.clip(0, 255).astype(np.uint8))
