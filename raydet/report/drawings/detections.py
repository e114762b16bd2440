"""Ground truth and detections drawn on all modalities of an image.

Legend: G true boxes, N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raydet.ops.colours import as_colours
from raydet.ops.matching import overlaps
from raydet.report.drawings.marks import (
    DASHES,
    LABEL_FONT_PX,
    LINE_WIDTH_PX,
    Box,
    Mark,
    dashed_rectangle,
    draw_marks,
)
from raydet.report.drawings.panels import (
    FAINT,
    INK,
    LINE_PX,
    PAPER,
    Colour,
    Panel,
    arranged,
    enlarged,
    font,
    is_stacked,
    panel_factor,
    shortened,
)
from raydet.structures import Detections, Sample

RIGHT: Colour = (60, 220, 110)
WRONG: Colour = (255, 90, 70)
NO_MATCH = -1
"""Marks a detection that is wrong (a false positive)."""
EXPLANATION = (
    "Green, with a tick: right. Red, with a cross: wrong (another class, less than half overlap, or a second box on "
    "one object). Dashed white: ground truth."
)


def matched_truths(sample: Sample, found: Detections, *, iou: float = 0.5) -> NDArray[np.int64]:
    """The index of the true box that each detection matches, or NO_MATCH: [N], by COCO's rule.

    In the order of their scores, detections take the unmatched box of their class that overlaps them most.
    """
    iou_NG = overlaps(sample.boxes_xyxy.double()[None], found.boxes_xyxy.double()[None])[0].T
    iou_NG = np.nan_to_num(iou_NG.numpy())
    is_free_NG = found.labels.numpy()[:, None] == sample.labels.numpy()
    result = np.full(len(iou_NG), NO_MATCH, dtype=np.int64)
    for row in np.argsort(-found.scores.numpy(), kind="stable"):
        candidates_G = np.where(is_free_NG[row], iou_NG[row], -1.0)
        if len(candidates_G) and candidates_G.max() >= iou:
            result[row] = np.flatnonzero(candidates_G == candidates_G.max())[-1]  # COCO's choice among equals
            is_free_NG[:, result[row]] = False
    return result


def draw_detections(
    sample: Sample,
    found: Detections,
    *,
    classes: Sequence[str],
    score_threshold: float,
    unused: Collection[str] = (),
    display_name: Callable[[str], str] = str,
) -> Image.Image:
    """Draw one panel per modality of the sample, with the image's id as the title.

    Detections are green if right at IoU 0.5, else red; true boxes are dashed.

    Args:
        found: in pixels of the sample; both on the CPU.
        classes: names in label order; any text.
        score_threshold: detections below it are not drawn.
        unused: modalities that the detector does not use; their panels say so.
        display_name: maps a modality to the name in its heading.
    """
    is_kept_N = found.scores >= score_threshold
    found = Detections(found.boxes_xyxy[is_kept_N], found.scores[is_kept_N], found.labels[is_kept_N])
    truth_of_N = matched_truths(sample, found)
    factor = panel_factor(sample.valid_hw)
    truths, detections = _marks(sample, found, truth_of_N, classes, factor)
    height, width = sample.valid_hw
    panels = []
    for name, x_CHW in sample.modalities.items():
        image = enlarged(as_colours(x_CHW[:, :height, :width]), factor)
        draw_marks(image, solid=detections, dashed=truths)
        heading = display_name(name) + (" (not used by the detector)" if name in unused else "")
        panels.append(Panel(heading, image))
    num_right = int((truth_of_N != NO_MATCH).sum())
    counts = num_right, len(truth_of_N) - num_right, len(sample.labels) - num_right
    legend = _legend(*counts, score_threshold=score_threshold)
    return arranged(
        panels, title=f"image {sample.image_id}", legend=legend, stacked=is_stacked(sample.valid_hw)
    )


def _marks(
    sample: Sample, found: Detections, truth_of_N: NDArray[np.int64], classes: Sequence[str], factor: float
) -> tuple[list[Mark], list[Mark]]:
    """True boxes, labelled if missed, and detections, best first."""
    names = [shortened(name) for name in classes]
    truths = [
        Mark(_on_panel(box, factor), DASHES, "" if truth in truth_of_N else f"missed: {names[label]}")
        for truth, (box, label) in enumerate(
            zip(sample.boxes_xyxy.tolist(), sample.labels.tolist(), strict=True)
        )
    ]
    detections = []
    for row in np.argsort(-found.scores.numpy(), kind="stable").tolist():
        is_right = truth_of_N[row] != NO_MATCH
        label = f"{'✓' if is_right else '✗'} {names[int(found.labels[row])]} {float(found.scores[row]):.2f}"
        box = _on_panel(found.boxes_xyxy[row].tolist(), factor)
        detections.append(Mark(box, RIGHT if is_right else WRONG, label))
    return truths, detections


def _on_panel(box_xyxy: Sequence[float], factor: float) -> Box:
    left, top, right, bottom = (round(value * factor) for value in box_xyxy)
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _legend(num_right: int, num_wrong: int, num_missed: int, *, score_threshold: float) -> Image.Image:
    """A strip that explains the colours, with counts."""
    entries = (
        (RIGHT, f"✓ right: {num_right}"),
        (WRONG, f"✗ wrong: {num_wrong}"),
        (DASHES, f"ground truth, {num_missed} missed"),
    )
    face = font(LABEL_FONT_PX)
    note = f"scores from {score_threshold:.2f}"
    texts = [text for _, text in entries] + [note]
    strip = Image.new("RGB", (sum(round(face.getlength(text)) + 36 for text in texts), LINE_PX), PAPER)
    draw, left = ImageDraw.Draw(strip), 0
    for colour, text in entries:
        swatch = (left, 3, left + 16, 14)
        if colour == DASHES:
            dashed_rectangle(strip, swatch)
        else:
            draw.rectangle(swatch, outline=colour, width=LINE_WIDTH_PX)
        draw.text((left + 22, 1), text, INK, face)
        left += round(face.getlength(text)) + 36
    draw.text((left, 1), note, FAINT, face)
    return strip
