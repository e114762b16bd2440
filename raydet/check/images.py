"""Draw the worst cases: modalities side by side with boxes, and checkerboards of misaligned pairs.

The images contain no text: captions are in the page, where they are escaped and machine-readable.

Legend: C channels, H W image.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from raydet.check.alignment import Alignment
from raydet.check.findings import KINDS, Finding
from raydet.check.gather import Gathered
from raydet.check.summary import worst_first
from raydet.data.build import colours_of
from raydet.data.geometry import object_boxes
from raydet.data.shards.target import kind_of
from raydet.data.sources.base import Source
from raydet.errors import DataError
from raydet.ops.colours import as_colours
from raydet.structures import ANOMALY, IGNORE, Sample, mask_of

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
    "mask_speckled",
    "odd_shape",
    "cannot_tell",
)
JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Case:
    """A finding with an image of it."""

    finding: Finding
    caption: str
    uri: str
    """The image as a `data:` URI."""


def worst_cases(found: Gathered, source: Source) -> Iterator[Case]:
    """The worst `PER_KIND` images of each kind in `WITH_IMAGES`; they are read again."""
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
                continue  # it has changed since it was checked, or the other image cannot be read


def _case(finding: Finding, source: Source, estimates: dict[int, list[Alignment]]) -> Case:
    assert finding.index is not None, "only findings about an image are drawn"
    sample = source.read(finding.index)
    if finding.kind == "misaligned":
        estimate = next(
            each for each in estimates[finding.index] if f"{each.first}-{each.second}:" in finding.detail
        )
        panels = misalignment_panels(sample, estimate)
        caption = (
            f"{estimate.first}, {estimate.second}, a checkerboard of both, and one with {estimate.second} moved back "
            "by the estimate; contrast stretched"
        )
        return Case(finding, caption, as_uri(side_by_side(panels)))
    panels = modality_panels(sample, bad=finding.boxes)
    caption = ", ".join(sample.modalities)
    if kind_of(sample.target) == "masks":
        panels.append(mask_panel(sample, colours_of(source)))
        caption += ", mask (no label: black)"
    if finding.other_index is not None:
        panels += modality_panels(source.read(finding.other_index))
        caption = f"{caption} of this image, then of the other"
    return Case(finding, caption, as_uri(side_by_side(panels)))


def modality_panels(sample: Sample, *, bad: Sequence[int] = ()) -> list[Image.Image]:
    """Each modality with its boxes, the bad ones in red."""
    return [_with_boxes(x, sample, bad) for x in sample.modalities.values()]


def mask_panel(sample: Sample, colours: Sequence[tuple[int, int, int] | None]) -> Image.Image:
    """The mask in the set's colours; classes without one get one of their number."""
    ids_HW = mask_of(sample.target, sample.image_id).ids_HW.numpy()
    number = np.arange(IGNORE + 1)
    table = np.stack([number * factor % 192 + 64 for factor in (67, 131, 197)], axis=1)
    for label, colour in enumerate(colours):
        if colour is not None:
            table[label] = colour
    table[IGNORE], table[ANOMALY] = 0, 255
    return _reduced(Image.fromarray(table.astype(np.uint8)[ids_HW]), Image.Resampling.NEAREST)


def misalignment_panels(sample: Sample, estimate: Alignment) -> list[Image.Image]:
    """Both modalities, a checkerboard of them, and one with the second moved back."""
    first, second = (_stretched(sample.modalities[name]) for name in (estimate.first, estimate.second))
    panels = [first, second, checkerboard(first, second), checkerboard(first, moved_back(second, estimate))]
    return [_reduced(panel) for panel in panels]


def checkerboard(first: Image.Image, second: Image.Image) -> Image.Image:
    """Alternating squares of both: outlines are continuous if the two are aligned."""
    side = max(1, round(max(first.size) / TILES))
    rows, columns = np.arange(first.height) // side, np.arange(first.width) // side
    mask = ((rows[:, None] + columns[None, :]) % 2 * 255).astype(np.uint8)
    return Image.composite(second, first, Image.fromarray(mask))


def moved_back(image: Image.Image, estimate: Alignment) -> Image.Image:
    """The second modality, warped to be aligned with the first."""
    angle, scale = np.radians(estimate.rotation_deg), estimate.scale
    centre = np.array([image.width / 2, image.height / 2])
    # Relative to the centre, a point of the first, scaled, rotated and shifted, gives its position in the second.
    matrix = np.array([[scale, -angle], [angle, scale]])
    offset = centre + np.array(estimate.shift_xy) - matrix @ centre
    data = (*matrix[0].tolist(), float(offset[0]), *matrix[1].tolist(), float(offset[1]))
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """The panels on white: in one row, or if there are more than three, in two columns."""
    columns = len(panels) if len(panels) <= 3 else 2
    width = max(panel.width for panel in panels) + GAP_PX
    height = max(panel.height for panel in panels) + GAP_PX
    rows = -(-len(panels) // columns)
    page = Image.new("RGB", (columns * width - GAP_PX, rows * height - GAP_PX), "white")
    for place, panel in enumerate(panels):
        page.paste(panel, (place % columns * width, place // columns * height))
    return page


def as_uri(image: Image.Image) -> str:
    """The image as a JPEG in a `data:` URI."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _with_boxes(x_CHW: Tensor, sample: Sample, bad: Sequence[int]) -> Image.Image:
    full = Image.fromarray(np.ascontiguousarray(as_colours(x_CHW)))
    panel = _reduced(full)
    factor = panel.width / full.width
    draw = ImageDraw.Draw(panel)
    boxes_N4 = object_boxes(sample).double().numpy()
    wrong = frozenset(bad)
    for i in sorted(range(len(boxes_N4)), key=wrong.__contains__):  # bad ones on top
        (x1, x2), (y1, y2) = (  # clipped to the image, in panel pixels
            np.sort(np.nan_to_num(boxes_N4[i, axis::2], nan=0.0).clip(0, full.size[axis])) * factor
            for axis in (0, 1)
        )
        corners = float(x1), float(y1), float(max(x2 - 1, x1)), float(max(y2 - 1, y1))
        draw.rectangle(corners, outline=BAD if i in wrong else GOOD, width=2 if i in wrong else 1)
    return panel


def _reduced(image: Image.Image, how: Image.Resampling = Image.Resampling.BOX) -> Image.Image:
    factor = PANEL_PX / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, how if factor < 1 else Image.Resampling.NEAREST)


def _stretched(x_CHW: Tensor) -> Image.Image:
    """Stretch contrast from the 1st to the 99th percentile, so that outlines are visible at night."""
    colours = as_colours(x_CHW).astype(np.float32)
    low, high = np.percentile(colours, (1, 99))
    stretched = (colours - low) / max(float(high - low), 1.0) * 255
    return Image.fromarray(stretched.clip(0, 255).astype(np.uint8))
