"""COCO detection metrics: the 12 numbers and AP per class, by pycocotools, the reference itself.

Detections of a whole set are one array of rows, so that they can be gathered from any number of workers and sorted
into one order: the numbers do not depend on who found what.

Legend: N detections, M ground-truth boxes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydet.evaluate.matches import MatchRecords, match_records
from raydet.evaluate.names import METRIC_NAMES

ROW_WIDTH = 7
"""Columns of a detection row: image index, x, y, width, height, score, label."""


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The boxes of an evaluation set."""

    num_images: int
    image_index: NDArray[np.int64]
    """[M], 0..num_images-1: which picture each box lies in."""
    boxes_xywh: NDArray[np.float64]
    """[M, 4], source pixels, in COCO's own form: x + width - x is not always width, and a box that overlaps by the
    threshold exactly would change sides."""
    labels: NDArray[np.int64]
    """[M], 0..K-1."""
    areas: NDArray[np.float64] | None = None
    """[M], px^2, for the size bins; default: the boxes' own."""
    is_crowd: NDArray[np.bool_] | None = None
    """[M]: regions in which detections count neither way; default: none."""


@dataclass(frozen=True, slots=True)
class CocoResult:
    """What an evaluation found. None stands for "no objects in this bin" (pycocotools' -1)."""

    metrics: dict[str, float | None]
    """By `METRIC_NAMES`, each in 0..1."""
    per_class_ap: dict[str, float | None]
    """AP at IoU .5:.95 by class name."""


def evaluate_coco(truth: GroundTruth, rows: NDArray[np.float64], classes: tuple[str, ...]) -> CocoResult:
    """Compare detections with the truth; see `evaluate_with_records`."""
    return evaluate_with_records(truth, rows, classes)[0]


def evaluate_with_records(
    truth: GroundTruth,
    rows: NDArray[np.float64],
    classes: tuple[str, ...],
    *,
    image_ids: Sequence[str] | None = None,
    group_ids: Sequence[str] | None = None,
) -> tuple[CocoResult, MatchRecords]:
    """Compare detections with the truth, and keep which were right.

    Args:
        truth: boxes of the set.
        rows: [N, 7] detections (see `ROW_WIDTH`), boxes in source pixels, in any order; within one picture, equal
            scores are taken in row order.
        classes: names in label order.
        image_ids, group_ids: for the records; default: numbers, and every picture a group of its own.
    """
    from pycocotools.cocoeval import COCOeval

    order = np.argsort(rows[:, 0], kind="stable")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        reference = _coco_truth(truth, classes)
        evaluation = COCOeval(reference, _coco_detections(reference, rows[order]), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = dict(zip(METRIC_NAMES, (_or_none(value) for value in evaluation.stats), strict=True))
    result = CocoResult(metrics=metrics, per_class_ap=_per_class_ap(evaluation.eval["precision"], classes))
    names = np.array(
        [str(index) for index in range(truth.num_images)] if image_ids is None else image_ids, str
    )
    groups = names if group_ids is None else np.array(group_ids, str)
    return result, match_records(evaluation, image_ids=names, group_ids=groups)


def _coco_truth(truth: GroundTruth, classes: tuple[str, ...]) -> Any:
    from pycocotools.coco import COCO

    areas = truth.boxes_xywh[:, 2:].prod(axis=1) if truth.areas is None else truth.areas
    crowd = np.zeros(len(areas), dtype=bool) if truth.is_crowd is None else truth.is_crowd
    coco = COCO()
    coco.dataset = {
        "images": [{"id": index} for index in range(truth.num_images)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes)],
        "annotations": [
            {
                "id": row + 1,  # pycocotools takes id 0 for "unmatched"
                "image_id": int(truth.image_index[row]),
                "category_id": int(truth.labels[row]),
                "bbox": truth.boxes_xywh[row].tolist(),
                "area": float(areas[row]),
                "iscrowd": int(crowd[row]),
            }
            for row in range(len(areas))
        ],
    }
    coco.createIndex()
    return coco


def _coco_detections(reference: Any, rows: NDArray[np.float64]) -> Any:
    from pycocotools.coco import COCO

    if len(rows):
        return reference.loadRes(rows)
    empty = COCO()  # loadRes cannot read an empty list
    empty.dataset = reference.dataset | {"annotations": []}
    empty.createIndex()
    return empty


def _per_class_ap(precision: NDArray[np.float64], classes: tuple[str, ...]) -> dict[str, float | None]:
    """From pycocotools' [IoU thresholds, recalls, classes, areas, max detections]: all areas, 100 detections."""
    result: dict[str, float | None] = {}
    for label, name in enumerate(classes):
        values = precision[:, :, label, 0, -1]
        result[name] = _or_none(values[values > -1].mean() if (values > -1).any() else -1.0)
    return result


def _or_none(value: float) -> float | None:
    return float(value) if value > -1 else None
