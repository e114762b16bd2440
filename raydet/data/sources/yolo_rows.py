"""YOLO label files: rows `class xc yc w h`, the box relative to the image's size."""

from __future__ import annotations

from pathlib import Path

from raydet.data.sources.boxes import Box, check_count, checked_box
from raydet.data.sources.files import Root, one_line, read_names, read_text
from raydet.errors import DataError

SLACK = 1e-3
"""How far a box may leave the image, relative to its size: labels are written with few digits."""


def read_rows(path: Path, *, num_classes: int, size_hw: tuple[int, int]) -> tuple[list[Box], list[int]]:
    """Boxes in pixels, and labels; none for an empty file.

    Raises:
        DataError: a row is malformed, or there are too many.
    """
    rows = read_text(path, expected="rows `class xc yc w h`").splitlines()
    check_count(sum(bool(row.strip()) for row in rows), str(path))
    boxes: list[Box] = []
    labels: list[int] = []
    for number, row in enumerate(rows, start=1):
        if row.strip():
            where = f"{path}, row {number}"
            label, relative = _parsed(row, num_classes, where)
            boxes.append(_absolute(relative, size_hw, where))
            labels.append(label)
    return boxes, labels


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """The lines of `classes.txt`; None: there is no such file.

    Raises:
        DataError: the file is empty, names a class twice, or is a link out of the root.
    """
    path = Root(root).inside("classes.txt", str(root))
    return read_names(path, expected="one class name per line") if path.is_file() else None


def _parsed(row: str, num_classes: int, where: str) -> tuple[int, tuple[float, ...]]:
    tokens = row.split()
    shown = one_line(row.strip())
    try:
        class_id, *relative = map(float, tokens)
    except ValueError:
        raise DataError(
            f"{where}: expected five numbers `class xc yc w h`, got {shown!r}; correct the row"
        ) from None
    if len(relative) != 4:
        raise DataError(
            f"{where}: expected five numbers `class xc yc w h`, got {len(tokens)}: {shown!r}; correct the row"
        )
    if not class_id.is_integer() or not 0 <= class_id < num_classes:
        raise DataError(
            f"{where}: expected a class id in 0..{num_classes - 1}, got {one_line(tokens[0])}; correct the row, or "
            "name all classes in data.classes"
        )
    return int(class_id), tuple(relative)


def _absolute(relative: tuple[float, ...], size_hw: tuple[int, int], where: str) -> Box:
    xc, yc, w, h = relative
    height, width = size_hw
    return checked_box(
        ((xc - w / 2) * width, (yc - h / 2) * height, (xc + w / 2) * width, (yc + h / 2) * height),
        image_hw=size_hw,
        slack_hw=(SLACK * height, SLACK * width),
        where=where,
    )
