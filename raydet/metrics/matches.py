"""Which detection of which image was right: all that is needed to know AP on any weighing of the images.

With every image counted once, AP is COCO's own. Counted as often as a bootstrap has drawn it, AP of a resampled
set follows without matching, let alone detecting, again.

Legend: N detections, H right ones, I images, K classes, T IoU thresholds, R recall levels, B weighings.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError

RECALLS_R = np.linspace(0.0, 1.0, 101)
"""COCO's levels of recall."""
TINY = np.spacing(1)
"""As pycocotools adds to the number of detections."""


@dataclass(frozen=True, slots=True)
class MatchRecords:
    """What one evaluation has matched: objects of all sizes, at most 100 detections per image and class."""

    image_ids: NDArray[np.str_]
    """[I]."""
    group_ids: NDArray[np.str_]
    """[I]: images of one sequence share a group."""
    objects_IK: NDArray[np.int64]
    """How many objects there are to find."""
    image_index_N: NDArray[np.int64]
    """0..I-1."""
    labels_N: NDArray[np.int64]
    """0..K-1."""
    scores_N: NDArray[np.float64]
    """In 0..1; within a class descending, equal ones in pycocotools' order."""
    is_right_NT: NDArray[np.bool_]
    """Matched with an object, at each IoU threshold."""
    is_wrong_NT: NDArray[np.bool_]
    """Matched with nothing; neither right nor wrong is what lies in a crowd."""

    def save(self, path: Path) -> None:
        """Write an npz file, whole or not at all."""
        draft = path.with_name(f".{path.name}")
        with draft.open("wb") as file:
            np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in fields(self)})
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file cannot be read as such.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path} holds no match records: {error}") from error


def average_precisions(
    records: MatchRecords, weights_BI: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """AP by weighing, IoU threshold and class: [B, T, K], NaN for a class without objects.

    Args:
        weights_BI: how often each image counts, one weighing per row; None: one, each image once.
    """
    weights_BI = np.ones((1, len(records.image_ids))) if weights_BI is None else weights_BI
    objects_BK = weights_BI @ records.objects_IK
    num_weighings, num_classes = objects_BK.shape
    result = np.full((num_weighings, records.is_right_NT.shape[1], num_classes), np.nan)
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
    """COCO's mAP of every weighing: [B]; NaN where there are no objects at all."""
    precisions = average_precisions(records, weights_BI).reshape(len(weights_BI), -1)
    known = ~np.isnan(precisions)
    counts = known.sum(axis=1)
    sums = np.where(known, precisions, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def mean_average_precision(records: MatchRecords) -> float:
    """COCO's mAP, each image counted once; NaN where there are no objects at all."""
    return float(mean_average_precisions(records, np.ones((1, len(records.image_ids))))[0])


def precision_at_recalls(
    right_N: NDArray[np.bool_],
    wrong_N: NDArray[np.bool_],
    num_objects_B: NDArray[np.float64],
    weights_BN: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Largest precision at COCO's levels of recall and beyond: [B, R], 0 beyond the largest recall.

    Args:
        right_N, wrong_N: of one class, descending by score.
        num_objects_B: above 0.
        weights_BN: how often each detection counts, one weighing per row.
    """
    hits = np.flatnonzero(right_N)  # between them precision only falls
    right_BH = np.cumsum(weights_BN[:, hits], axis=1)
    wrong_BH = np.cumsum(weights_BN * wrong_N, axis=1)[:, hits]
    precision_BH = right_BH / (right_BH + wrong_BH + TINY)
    envelope_BH = np.maximum.accumulate(precision_BH[:, ::-1], axis=1)[:, ::-1]
    recall_BH = right_BH / num_objects_B[:, None]
    first_BR = np.empty((len(recall_BH), len(RECALLS_R)), np.intp)
    for row, recall_H in enumerate(recall_BH):
        first_BR[row] = np.searchsorted(recall_H, RECALLS_R, side="left")
    return np.take_along_axis(np.pad(envelope_BH, ((0, 0), (0, 1))), first_BR, axis=1)
