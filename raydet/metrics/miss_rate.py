"""Log-average miss rate, the metric of pedestrian detection: in 0..1, and lower is better.

Pedestrian Detection: An Evaluation of the State of the Art (Dollar et al., PAMI 2012), section 3; on KAIST
(Hwang et al., CVPR 2015) with the "reasonable" set: objects at least 55 px high, at most partly occluded, and inside
the image's frame. All others are ignored: they need not be found, and detections on them are not wrong.

The logarithm of the miss rate is averaged over nine numbers of false positives per image, from 0.01 to 1.

Legend: N detections, M objects, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.coco import GroundTruth, best_rows
from raydet.metrics.matching import RIGHT, UNMATCHED, Boxes, match

FPPI = np.array([0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0])
"""False positives per image, evenly spaced in the logarithm, to the four digits of KAIST's script."""
THRESHOLD = np.array([0.5])
"""IoU; for an ignored object, the intersection over the detection's area."""
SMALLEST = 1e-10
"""Lower bound of the miss rate, so that its logarithm is finite."""


def miss_rates(truth: GroundTruth, rows: NDArray[np.float64], num_classes: int) -> NDArray[np.float64]:
    """Log-average miss rate by class: [K], NaN for a class without objects.

    Args:
        truth: `is_crowd` marks ignored objects.
        rows: [N, 7] detections, see `raydet.metrics.coco`; without a limit per image.
    """
    order = np.lexsort((truth.labels, truth.image_index))
    groups_M = (truth.image_index * num_classes + truth.labels)[order]
    ignored_M = np.zeros(len(order), bool) if truth.is_crowd is None else truth.is_crowd[order]
    num_objects_K = np.bincount(groups_M[~ignored_M] % num_classes, minlength=num_classes)
    rows, _ = best_rows(rows)
    groups_N = (rows[:, 0] * num_classes + rows[:, 6]).astype(np.int64)
    objects = Boxes(groups_M, truth.boxes_xywh[order])
    outcome_NTA = match(Boxes(groups_N, rows[:, 1:5]), objects, ignored_M[:, None], ignored_M, THRESHOLD)
    by_score = np.argsort(-rows[:, 5], kind="stable")
    labels_N, outcome_N = groups_N[by_score] % num_classes, outcome_NTA[by_score, 0, 0]
    rates = np.full(num_classes, np.nan)
    for label in np.flatnonzero(num_objects_K):
        outcome, count = outcome_N[labels_N == label], num_objects_K[label]
        right, wrong = outcome == RIGHT, outcome == UNMATCHED
        rates[label] = log_average(right, wrong, num_objects=count, num_images=truth.num_images)
    return rates


def log_average(
    right_N: NDArray[np.bool_], wrong_N: NDArray[np.bool_], *, num_objects: int, num_images: int
) -> float:
    """Log-average miss rate of detections in descending order of score.

    At points where the first detection already gives too many false positives, the miss rate is 1.

    >>> log_average(np.array([True]), np.array([False]), num_objects=2, num_images=1)
    0.5
    """
    missed = 1.0 - np.cumsum(right_N) / num_objects
    last = np.searchsorted(np.cumsum(wrong_N) / num_images, FPPI, side="right")
    rates = np.concatenate([[1.0], missed])[last]
    return float(np.exp(np.mean(np.log(np.maximum(rates, SMALLEST)))))


def mean_miss_rate(
    truth: GroundTruth, rows: NDArray[np.float64], num_classes: int, *, min_height_px: float
) -> float | None:
    """Mean log-average miss rate of the classes with objects; None: no object has that height."""
    truth = ignoring(truth, truth.boxes_xywh[:, 3] < min_height_px)
    rates = miss_rates(truth, rows, num_classes)
    known = rates[~np.isnan(rates)]
    return float(known.mean()) if len(known) else None


def ignoring(truth: GroundTruth, which_M: NDArray[np.bool_]) -> GroundTruth:
    """The same set, with more objects ignored."""
    return replace(truth, is_crowd=which_M if truth.is_crowd is None else truth.is_crowd | which_M)
