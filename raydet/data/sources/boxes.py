"""The requirements on boxes in every format: finite, not empty, inside the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raydet.errors import DataError
from raydet.structures import ANY_CLASS, Boxes

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


@dataclass(frozen=True, slots=True)
class Ignored:
    """An object that is left out by a rule: it is counted, and training takes it for background."""

    rule: str
    """Why it is left out, e.g. "iscrowd"."""
    region: Box | None = None
    """Where detections are neither right nor wrong; None: they are wrong there, as anywhere else."""
    label: int = ANY_CLASS
    """The class of these detections."""


def ignored_region(rule: str, xyxy: Box, *, image_hw: tuple[int, int], label: int = ANY_CLASS) -> Ignored:
    """An ignored object, with the part of its box that is inside the image."""
    (x1, y1, x2, y2), (height, width) = xyxy, image_hw
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    is_region = all(map(math.isfinite, inside)) and inside[2] > inside[0] and inside[3] > inside[1]
    return Ignored(rule, inside if is_region else None, label)


def box_target(boxes: Sequence[Box], labels: Sequence[int], ignored: Sequence[Ignored] = ()) -> Boxes:
    """Boxes as float32 [N, 4] and labels as int64 [N], also for N = 0; likewise the regions of ignored objects."""
    regions = [(each.region, each.label) for each in ignored if each.region is not None]
    return Boxes(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor([region for region, _ in regions], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label for _, label in regions], dtype=torch.int64),
    )


def _shown(xyxy: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in xyxy) + ")"
