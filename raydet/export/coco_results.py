"""Detections in COCO's results format, which pycocotools and most viewers read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from raydet.data.sources.base import Source
from raydet.data.sources.coco import CocoSet


class CocoResult(TypedDict):
    """One detection."""

    image_id: int | str
    category_id: int | str
    bbox: list[float]
    """x, y, width, height."""
    score: float


def coco_results(
    rows: NDArray[np.float64], *, image_ids: Sequence[str], category_ids: Sequence[int | str]
) -> list[CocoResult]:
    """One JSON object per detection.

    Args:
        rows: [N, 7] detections, see `raydet.metrics.coco`.
        image_ids: by image index; written as numbers if all of them are integers, as COCO's own are.
        category_ids: by label.

    >>> coco_results(np.array([[0, 1, 2, 3, 4, 0.5, 1]]), image_ids=["7"], category_ids=[1, 18])
    [{'image_id': 7, 'category_id': 18, 'bbox': [1.0, 2.0, 3.0, 4.0], 'score': 0.5}]
    """
    are_numbers = all(name.isdecimal() and str(int(name)) == name for name in image_ids)
    names: Sequence[int | str] = [int(name) for name in image_ids] if are_numbers else image_ids
    return [
        {
            "image_id": names[int(row[0])],
            "category_id": category_ids[int(row[6])],
            "bbox": row[1:5].tolist(),
            "score": float(row[5]),
        }
        for row in rows
    ]


def category_ids_of(source: Source) -> Sequence[int | str]:
    """Category ids by label: those of a COCO source's JSON, else the labels themselves."""
    return source.category_ids if isinstance(source, CocoSet) else range(len(source.classes))
