"""Find invalid and suspicious boxes of one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from raydet.check.findings import Finding
from raydet.structures import Sample

SLACK_PX = 0.01
"""How far rounding to float32 may push an edge out of the image."""
SAME_OBJECT_IOU = 0.95
"""Smallest IoU of two boxes of the same object; chosen, not measured."""
NUM_SHOWN = 5
MANY_BOXES = 2000
"""In images with more boxes, only boxes that are equal after rounding to pixels count as the same object."""


def box_findings(
    sample: Sample, index: int, *, classes: Sequence[str], min_box_px: float
) -> Iterator[Finding]:
    """One finding per kind, with the indices of all boxes concerned.

    Args:
        min_box_px: boxes with a shorter side below are `box_tiny`.
    """
    boxes_N4 = sample.boxes_xyxy.double().numpy()
    labels_N = sample.labels.numpy()
    height, width = sample.source_hw
    is_finite = np.isfinite(boxes_N4).all(axis=1)
    known_N4 = np.where(is_finite[:, None], boxes_N4, 0.0)
    sides_N2 = known_N4[:, 2:] - known_N4[:, :2]
    is_empty = is_finite & (sides_N2 <= 0).any(axis=1)
    is_inside = (known_N4 >= -SLACK_PX).all(axis=1) & (
        known_N4 <= np.array([width, height] * 2) + SLACK_PX
    ).all(axis=1)
    is_good = is_finite & ~is_empty & is_inside

    def finding(kind: str, indices: Sequence[int], detail: str) -> Finding:
        boxes, badness = tuple(indices), float(len(indices))
        return Finding(kind, sample.image_id, detail, index, boxes=boxes, badness=badness)

    masks = {
        "box_not_finite": ~is_finite,
        "box_empty": is_empty,
        "box_outside": is_finite & ~is_empty & ~is_inside,
        "box_tiny": is_good & (sides_N2 < min_box_px).any(axis=1),
    }
    for kind, mask in masks.items():
        if mask.any():
            indices = np.flatnonzero(mask).tolist()
            shown = [f"box {i} {_shown(boxes_N4[i])}" for i in indices]
            yield finding(kind, indices, f"{_listed(shown)}; image {width} x {height}")
    indices = np.flatnonzero((labels_N < 0) | (labels_N >= len(classes))).tolist()
    if indices:
        shown = [f"box {i} has label {labels_N[i]}" for i in indices]
        yield finding("unknown_class", indices, f"{_listed(shown)}; the largest label is {len(classes) - 1}")
    pairs = same_objects(known_N4, is_good)
    for kind, same_class in (("box_twice", True), ("box_two_classes", False)):
        chosen = [(i, j) for i, j in pairs if (labels_N[i] == labels_N[j]) == same_class]
        if chosen:
            shown = [f"boxes {i} and {j} {_shown(boxes_N4[i])}" for i, j in chosen]
            yield finding(kind, sorted({i for pair in chosen for i in pair}), _listed(shown))


def same_objects(boxes_N4: NDArray[np.float64], is_good_N: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pairs (i, j) of good boxes of the same object: for each box j, the first such box i < j.

    >>> boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10.1]])
    >>> same_objects(boxes, np.ones(3, bool))
    [(0, 2)]
    """
    good = np.flatnonzero(is_good_N).tolist()
    if len(boxes_N4) > MANY_BOXES:
        first: dict[bytes, int] = {}
        candidates = [(first.setdefault(np.rint(boxes_N4[j]).tobytes(), j), j) for j in good]
        return [(i, j) for i, j in candidates if i != j]
    areas_N = np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1)
    pairs = []
    for j in good:
        low = np.maximum(boxes_N4[:j, :2], boxes_N4[j, :2])
        high = np.minimum(boxes_N4[:j, 2:], boxes_N4[j, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        is_same = is_good_N[:j] & (shared >= SAME_OBJECT_IOU * (areas_N[:j] + areas_N[j] - shared))
        if is_same.any():
            pairs.append((int(is_same.argmax()), j))
    return pairs


def _shown(xyxy: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in xyxy.tolist()) + ")"


def _listed(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - NUM_SHOWN} more" if len(parts) > NUM_SHOWN else ""
    return "; ".join(parts[:NUM_SHOWN]) + more
