"""The requirements on boxes in every format: finite, not empty, inside the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from raydet.errors import DataError
from raydet.structures import Boxes

MAX_BOXES = 10_000
"""Limit per image; the most crowded real ones have a few hundred. Targets are padded to the maximum of a batch."""

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""


def checked_box(xyxy: Box, *, image_hw: tuple[int, int], slack_hw: tuple[float, float], where: str) -> Box:
    """The box, clipped to the image.

    Args:
        slack_hw: how far, in pixels, rounding in the annotation may have pushed an edge out of the image.
        where: names file and row in the error.

    >>> checked_box((-0.25, 1, 4, 5), image_hw=(10, 10), slack_hw=(0.5, 0.5), where="row 1")
    (0.0, 1.0, 4.0, 5.0)

    Raises:
        DataError: the box is not finite, is empty, or leaves the image.
    """
    x1, y1, x2, y2 = xyxy
    if not all(map(math.isfinite, xyxy)):
        raise DataError(
            f"{where}: a box must have four finite numbers, got {_shown(xyxy)}; correct or delete the box"
        )
    if x2 <= x1 or y2 <= y1:
        raise DataError(
            f"{where}: a box must have a width and a height above 0, got {x2 - x1:g} x {y2 - y1:g}; "
            "correct or delete the box"
        )
    (height, width), (slack_h, slack_w) = image_hw, slack_hw
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    is_inside = x1 >= -slack_w and y1 >= -slack_h and x2 <= width + slack_w and y2 <= height + slack_h
    if not is_inside or clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise DataError(
            f"{where}: the box leaves the image: expected x in 0..{width} and y in 0..{height} (pixels), "
            f"got {_shown(xyxy)}; clip the box, or check that it belongs to this image"
        )
    x1, y1, x2, y2 = map(float, clipped)
    if np.float32(x2) <= np.float32(x1) or np.float32(y2) <= np.float32(
        y1
    ):  # the precision of target tensors
        raise DataError(
            f"{where}: a box must have a width and a height above 0 in float32, got {x2 - x1:g} x {y2 - y1:g}; "
            "correct or delete the box"
        )
    return x1, y1, x2, y2


def check_count(count: int, where: str) -> None:
    """Refuse an image with more than `MAX_BOXES` boxes.

    Raises:
        DataError: there are more.
    """
    if count > MAX_BOXES:
        raise DataError(
            f"{where}: expected at most {MAX_BOXES} boxes in one image, got more; check that the labels belong to it"
        )


def box_target(boxes: Sequence[Box], labels: Sequence[int]) -> Boxes:
    """Boxes as float32 [N, 4] and labels as int64 [N], also for N = 0."""
    boxes_xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Boxes(boxes_xyxy, torch.tensor(labels, dtype=torch.int64))


def _shown(xyxy: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in xyxy) + ")"
