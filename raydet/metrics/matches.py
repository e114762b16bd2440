"""Which detections were right (true positives): enough to compute AP for any weights of the images.

With every image weighted 1, AP is COCO's own. Weighted by how often a bootstrap has drawn each image, it is AP of the
resampled set, without matching, let alone detecting, again.

Legend: N detections, H right ones, I images, K classes, T IoU thresholds, R recall levels, B weightings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

RECALLS_R = np.linspace(0.0, 1.0, 101)
"""COCO's recall levels."""
THRESHOLDS = {"mAP": slice(None), "mAP_50": slice(0, 1), "mAP_75": slice(5, 6)}
"""The IoU thresholds over which each metric is a mean."""
EPSILON = np.spacing(1)
"""Added to the number of detections, as in pycocotools."""


@dataclass(frozen=True, slots=True)
class MatchRecords:
    """Matches of one evaluation: objects of all sizes, at most 100 detections per image and class."""

    image_ids: NDArray[np.str_]
    """[I]."""
    group_ids: NDArray[np.str_]
    """[I]: images of one sequence share a group."""
    objects_IK: NDArray[np.int64]
    """Number of objects."""
    image_index_N: NDArray[np.int64]
    """0..I-1."""
    labels_N: NDArray[np.int64]
    """0..K-1."""
    scores_N: NDArray[np.float64]
    """In 0..1; descending within a class, equal scores in pycocotools' order."""
    is_right_NT: NDArray[np.bool_]
    """Matched with an object, at each IoU threshold."""
    is_wrong_NT: NDArray[np.bool_]
    """Matched with nothing. Detections in a crowd are neither right nor wrong."""

    def scores(self, metric: str, weights_BI: NDArray[np.float64]) -> NDArray[np.float64]:
        """mAP, mAP_50 or mAP_75 for each weighting: [B], NaN where there are no objects.

        Raises:
            ValueError: the records do not contain this metric.
        """
        if metric not in THRESHOLDS:
            raise ValueError(f"match records contain {', '.join(THRESHOLDS)}, not {metric}")
        chosen = THRESHOLDS[metric]
        records = replace(
            self, is_right_NT=self.is_right_NT[:, chosen], is_wrong_NT=self.is_wrong_NT[:, chosen]
        )
        return mean_average_precisions(records, weights_BI)

    def is_comparable(self, other: object) -> bool:
        """Whether both are of the same images with as many objects, in the same order."""
        return (
            isinstance(other, MatchRecords)
            and np.array_equal(self.image_ids, other.image_ids)
            and np.array_equal(self.group_ids, other.group_ids)
            and np.array_equal(self.objects_IK, other.objects_IK)
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Read what `arrays` gave."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})  # type: ignore[arg-type]


def average_precisions(
    records: MatchRecords, weights_BI: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """AP by weighting, IoU threshold and class: [B, T, K], NaN for a class without objects.

    Args:
        weights_BI: how often each image counts; None: one weighting, each image once.
    """
    weights_BI = np.ones((1, len(records.image_ids))) if weights_BI is None else weights_BI
    objects_BK = weights_BI @ records.objects_IK
    num_weightings, num_classes = objects_BK.shape
    result = np.full((num_weightings, records.is_right_NT.shape[1], num_classes), np.nan)
    for label in range(num_classes):
        mine, has_objects_B = records.labels_N == label, objects_BK[:, label] > 0
        weights_BN = weights_BI[has_objects_B][:, records.image_index_N[mine]]
        for threshold in range(result.shape[1]):
            levels_BR = precision_at_recalls(
                records.is_right_NT[mine, threshold],
                records.is_wrong_NT[mine, threshold],
                objects_BK[has_objects_B, label],
                weights_BN,
            )
            result[has_objects_B, threshold, label] = levels_BR.sum(axis=1) / len(RECALLS_R)
    return result


def mean_average_precisions(records: MatchRecords, weights_BI: NDArray[np.float64]) -> NDArray[np.float64]:
    """COCO's mAP for every weighting: [B], NaN where there are no objects."""
    precisions = average_precisions(records, weights_BI).reshape(len(weights_BI), -1)
    known = ~np.isnan(precisions)
    counts = known.sum(axis=1)
    sums = np.where(known, precisions, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def mean_average_precision(records: MatchRecords) -> float:
    """COCO's mAP, each image counted once; NaN where there are no objects."""
    return float(mean_average_precisions(records, np.ones((1, len(records.image_ids))))[0])


def precision_at_recalls(
    right_N: NDArray[np.bool_],
    wrong_N: NDArray[np.bool_],
    num_objects_B: NDArray[np.float64],
    weights_BN: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Largest precision at each of COCO's recall levels or above: [B, R], 0 above the largest recall.

    Args:
        right_N, wrong_N: detections of one class, descending by score.
        num_objects_B: above 0.
        weights_BN: how often each detection counts.
    """
    hits = np.flatnonzero(right_N)  # precision only falls between them
    right_BH = np.cumsum(weights_BN[:, hits], axis=1)
    wrong_BH = np.cumsum(weights_BN * wrong_N, axis=1)[:, hits]
    precision_BH = right_BH / (right_BH + wrong_BH + EPSILON)
    envelope_BH = np.maximum.accumulate(precision_BH[:, ::-1], axis=1)[:, ::-1]
    recall_BH = right_BH / num_objects_B[:, None]
    first_BR = np.empty((len(recall_BH), len(RECALLS_R)), np.intp)
    for row, recall_H in enumerate(recall_BH):
        first_BR[row] = np.searchsorted(recall_H, RECALLS_R, side="left")
    return np.take_along_axis(np.pad(envelope_BH, ((0, 0), (0, 1))), first_BR, axis=1)
