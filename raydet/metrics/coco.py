"""COCO detection metrics: the 12 numbers, AP per class, and which detections were right (true positives).

Metrics and records equal those of pycocotools to the last bit (tested against `raydet.metrics.reference`), in a small
part of its time. The detections of a set are one array of rows, gathered from any number of workers and sorted here:
the numbers do not depend on how images were distributed.

Legend: N detections, M ground-truth boxes, I images, K classes, T IoU thresholds, R recall levels, A size ranges
(all, small, medium, large), L limits of the number of detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.matches import RECALLS_R, MatchRecords, precision_at_recalls
from raydet.metrics.matching import RIGHT, UNMATCHED, Boxes, match
from raydet.metrics.names import METRIC_NAMES
from raydet.metrics.sizes import COCO_BINS, SizeBins

ROW_WIDTH = 7
"""Columns of a detection row: image index, x, y, width, height, score, label."""
THRESHOLDS_T = np.linspace(0.5, 0.95, 10)
LIMITS_L = (1, 10, 100)
"""Detections per image and class that count."""


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The ground-truth boxes of an evaluation set."""

    num_images: int
    image_index: NDArray[np.int64]
    """[M], 0..num_images-1: the image of each box."""
    boxes_xywh: NDArray[np.float64]
    """[M, 4], source pixels. Not xyxy: x + width - x is not always width, which could move an overlap across a
    threshold."""
    labels: NDArray[np.int64]
    """[M], 0..K-1."""
    areas: NDArray[np.float64] | None = None
    """[M], px^2, for the size bins; default: width times height."""
    is_crowd: NDArray[np.bool_] | None = None
    """[M]: regions in which unmatched detections are not counted as wrong; default: none."""
    sizes_hw: NDArray[np.int64] | NDArray[np.float64] | None = None
    """[num_images, 2], source pixels; for size bins that are fractions of the image."""


@dataclass(frozen=True, slots=True)
class CocoResult:
    """Metrics of one evaluation; None stands for "no objects in this bin" (pycocotools' -1)."""

    metrics: dict[str, float | None]
    """By `METRIC_NAMES`, each in 0..1; `raydet.metrics.measure` may add LAMR."""
    per_class_ap: dict[str, float | None]
    """AP at IoU .5:.95 by class name."""


def evaluate_coco(
    truth: GroundTruth,
    rows: NDArray[np.float64],
    classes: tuple[str, ...],
    *,
    size_bins: SizeBins = COCO_BINS,
    image_ids: Sequence[str] | None = None,
    group_ids: Sequence[str] | None = None,
) -> tuple[CocoResult, MatchRecords]:
    """COCO metrics of detections, and match records.

    Args:
        rows: [N, 7] detections (see `ROW_WIDTH`), boxes in source pixels, in any order; within one image, equal
            scores are ranked in row order.
        classes: names in label order.
        image_ids, group_ids: for the records; default: numbers, and every image a group of its own.

    Raises:
        ValueError: a detection has an image or a label that the set does not have (a bug: readers check).
    """
    indices, ends = rows[:, [0, 6]], (truth.num_images, len(classes))
    if ((indices < 0) | (indices >= ends)).any():
        raise ValueError(f"images and labels of detections must be below {ends}, got {indices.max(axis=0)}")
    found = _matched(truth, rows, len(classes), size_bins)
    names = np.array(range(truth.num_images) if image_ids is None else image_ids, str)
    records = MatchRecords(
        image_ids=names,
        group_ids=names if group_ids is None else np.array(group_ids, str),
        objects_IK=found.objects_IKA[:, :, 0],
        image_index_N=found.image_index_N,
        labels_N=found.labels_N,
        scores_N=found.scores_N,
        is_right_NT=np.ascontiguousarray(found.is_right_ATN[0].T),  # not a view that keeps all sizes
        is_wrong_NT=np.ascontiguousarray(found.is_wrong_ATN[0].T),
    )
    return _summary(*_curves(found), classes), records


@dataclass(frozen=True, slots=True)
class _Matched:
    """Detections by label and descending score, with the number of objects to find."""

    objects_IKA: NDArray[np.int64]
    image_index_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]
    scores_N: NDArray[np.float64]
    ranks_N: NDArray[np.int64]
    """Rank within image and class, 0 for the highest score."""
    is_right_ATN: NDArray[np.bool_]
    is_wrong_ATN: NDArray[np.bool_]


def _matched(truth: GroundTruth, rows: NDArray[np.float64], num_classes: int, bins: SizeBins) -> _Matched:
    truth_order = np.lexsort((truth.labels, truth.image_index))
    images_M, labels_M = truth.image_index[truth_order], truth.labels[truth_order]
    boxes_M = truth.boxes_xywh[truth_order]
    areas_M = boxes_M[:, 2:].prod(axis=1) if truth.areas is None else truth.areas[truth_order]
    is_crowd_M = np.zeros(len(boxes_M), bool) if truth.is_crowd is None else truth.is_crowd[truth_order]
    objects = Boxes(images_M * num_classes + labels_M, boxes_M)
    ignored_MA = is_crowd_M[:, None] | _is_outside(areas_M, images_M, truth, bins)
    objects_IKA = np.stack(
        [np.bincount(objects.groups, ~ignored, truth.num_images * num_classes) for ignored in ignored_MA.T],
        axis=1,
    )

    rows, ranks_N = best_rows(rows, LIMITS_L[-1])
    images_N, labels_N = (rows[:, column].astype(np.int64) for column in (0, 6))
    outcome_NTA = match(
        Boxes(images_N * num_classes + labels_N, rows[:, 1:5]), objects, ignored_MA, is_crowd_M, THRESHOLDS_T
    )
    is_outside_NA = _is_outside(rows[:, 3] * rows[:, 4], images_N, truth, bins)
    order = np.lexsort((-rows[:, 5], labels_N))
    outcome_ATN = np.ascontiguousarray(outcome_NTA[order].transpose(2, 1, 0))
    return _Matched(
        objects_IKA=objects_IKA.astype(np.int64).reshape(truth.num_images, num_classes, -1),
        image_index_N=images_N[order],
        labels_N=labels_N[order],
        scores_N=rows[order, 5],
        ranks_N=ranks_N[order],
        is_right_ATN=outcome_ATN == RIGHT,
        is_wrong_ATN=(outcome_ATN == UNMATCHED) & ~is_outside_NA[order].T[:, None],
    )


def best_rows(
    rows: NDArray[np.float64], limit: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Detections by image, label and descending score, and their ranks within image and class.

    Args:
        limit: detections to keep per image and class; None: all.
    """
    rows = rows[np.lexsort((-rows[:, 5], rows[:, 6], rows[:, 0]))]
    is_new = (np.diff(rows[:, [0, 6]], axis=0, prepend=-1) != 0).any(axis=1)
    start_N = np.flatnonzero(is_new)[np.cumsum(is_new) - 1]
    ranks_N = np.arange(len(rows)) - start_N
    kept = ranks_N < (len(rows) if limit is None else limit)
    return rows[kept], ranks_N[kept]


def _is_outside(
    areas_N: NDArray[np.float64], images_N: NDArray[np.int64], truth: GroundTruth, bins: SizeBins
) -> NDArray[np.bool_]:
    """Whether an area is outside a size range: [N, A]."""
    areas_N1 = bins.in_units(areas_N, images_N, truth.sizes_hw)[:, None]
    low_A, high_A = bins.ranges().T
    return (areas_N1 < low_A) | (areas_N1 > high_A)


def _curves(found: _Matched) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision [T, R, K, A] and recall [T, K, A, L] as in pycocotools: -1 where there are no objects."""
    objects_KA = found.objects_IKA.sum(axis=0)
    num_classes, num_ranges = objects_KA.shape
    precision_TRKA = np.full((len(THRESHOLDS_T), len(RECALLS_R), num_classes, num_ranges), -1.0)
    recall_TKAL = np.full((len(THRESHOLDS_T), num_classes, num_ranges, len(LIMITS_L)), -1.0)
    ends_K = np.searchsorted(found.labels_N, np.arange(num_classes + 1))
    for label, size in zip(*np.nonzero(objects_KA), strict=True):
        mine, num_objects = slice(ends_K[label], ends_K[label + 1]), objects_KA[label, size]
        num_objects_1, once_1N = np.array([num_objects]), np.ones((1, len(found.labels_N[mine])))
        right_TN, wrong_TN = found.is_right_ATN[size, :, mine], found.is_wrong_ATN[size, :, mine]
        for threshold in range(len(THRESHOLDS_T)):
            levels_1R = precision_at_recalls(right_TN[threshold], wrong_TN[threshold], num_objects_1, once_1N)
            precision_TRKA[threshold, :, label, size] = levels_1R[0]
        for index, limit in enumerate(LIMITS_L):
            kept_TN = right_TN & (found.ranks_N[mine] < limit)
            recall_TKAL[:, label, size, index] = np.count_nonzero(kept_TN, axis=1) / num_objects
    return precision_TRKA, recall_TKAL


def _summary(
    precision_TRKA: NDArray[np.float64], recall_TKAL: NDArray[np.float64], classes: tuple[str, ...]
) -> CocoResult:
    at_50, at_75 = precision_TRKA[:1], precision_TRKA[5:6]
    parts = [precision_TRKA[..., 0], at_50[..., 0], at_75[..., 0]]
    parts += [precision_TRKA[..., size] for size in (1, 2, 3)]
    parts += [recall_TKAL[:, :, 0, limit] for limit in (0, 1, 2)]
    parts += [recall_TKAL[:, :, size, -1] for size in (1, 2, 3)]
    per_class = {name: _mean(precision_TRKA[:, :, label, 0]) for label, name in enumerate(classes)}
    return CocoResult(dict(zip(METRIC_NAMES, map(_mean, parts), strict=True)), per_class)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean of the entries that have objects (not -1)."""
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else None
