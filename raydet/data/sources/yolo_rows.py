"""YOLO label files: rows `class xc yc w h`, the box relative to the image's size.

A row `class x1 y1 x2 y2 x3 y3 ...` is the outline of an object, as tools for segmentation write it; its box is the
smallest around the outline. A sixth number alone is a confidence: such a file has detections, not labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from raydet.data.sources.boxes import Box, check_count, checked_box
from raydet.data.sources.files import Root
from raydet.errors import DataError
from raydet.files.text import one_line, read_names, read_text

OUTLINE_POINTS = 3
"""Fewest points of an outline."""
SLACK = 1e-3
"""How far a box may leave the image, relative to its size: labels are written with few digits."""


class Rows(NamedTuple):
    """The objects of a label file."""

    boxes: list[Box]
    """In pixels."""
    labels: list[int]
    num_outlines: int
    """How many of the rows are outlines."""


def outline_notes(num_outlines: int) -> list[str]:
    """What to tell the user of a set with outlines."""
    if not num_outlines:
        return []
    return [
        f"{num_outlines} rows have more numbers than a box and are read as outlines (x y of three or more points); "
        "rows with keypoints look alike and would get wrong boxes"
    ]


def read_rows(path: Path, *, num_classes: int, size_hw: tuple[int, int]) -> Rows:
    """The objects of a label file; none for an empty file.

    Raises:
        DataError: a row is malformed, or there are too many.
    """
    rows = read_text(path, expected="rows `class xc yc w h`").splitlines()
    check_count(sum(bool(row.strip()) for row in rows), str(path))
    boxes: list[Box] = []
    labels: list[int] = []
    num_outlines = 0
    for number, row in enumerate(rows, start=1):
        if row.strip():
            where = f"{path}, row {number}"
            label, relative, is_outline = _parsed(row, num_classes, where)
            boxes.append(_absolute(relative, size_hw, where))
            labels.append(label)
            num_outlines += is_outline
    return Rows(boxes, labels, num_outlines)


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """The lines of `classes.txt`; None: there is no such file.

    Raises:
        DataError: the file is empty, names a class twice, or is a link out of the root.
    """
    path = Root(root).inside("classes.txt", str(root))
    return read_names(path, expected="one class name per line") if path.is_file() else None


def _parsed(row: str, num_classes: int, where: str) -> tuple[int, tuple[float, ...], bool]:
    tokens = row.split()
    shown = one_line(row.strip())
    try:
        class_id, *relative = map(float, tokens)
    except ValueError:
        raise DataError(
            f"{where}: expected five numbers `class xc yc w h`, got {shown!r}; correct the row"
        ) from None
    is_outline = len(relative) >= 2 * OUTLINE_POINTS and len(relative) % 2 == 0
    if is_outline:
        relative = _around(relative)
    if len(relative) != 4:
        is_detection = " (with a confidence, as detections have?)" if len(relative) == 5 else ""
        raise DataError(
            f"{where}: expected five numbers `class xc yc w h`, or a class and three or more points, got "
            f"{len(tokens)}{is_detection}: {shown!r}; correct the row"
        )
    if not class_id.is_integer() or not 0 <= class_id < num_classes:
        raise DataError(
            f"{where}: expected a class id in 0..{num_classes - 1}, got {one_line(tokens[0])}; correct the row, or "
            "name all classes in data.classes"
        )
    return int(class_id), tuple(relative), is_outline


def _around(points: Sequence[float]) -> list[float]:
    """Centre and size of the smallest box around an outline x1, y1, x2, y2, ..."""
    if not all(map(math.isfinite, points)):  # min and max may pass over NaN
        return [math.nan] * 4
    (x1, x2), (y1, y2) = ((min(each), max(each)) for each in (points[::2], points[1::2]))
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def _absolute(relative: tuple[float, ...], size_hw: tuple[int, int], where: str) -> Box:
    xc, yc, w, h = relative
    height, width = size_hw
    return checked_box(
        ((xc - w / 2) * width, (yc - h / 2) * height, (xc + w / 2) * width, (yc + h / 2) * height),
        image_hw=size_hw,
        slack_hw=(SLACK * height, SLACK * width),
        where=where,
    )
