"""Which detection of which picture was right: all that is needed to know AP on any weighing of the pictures.

With every picture counted once, AP is COCO's own. Counted as often as a bootstrap has drawn it, AP of a resampled
set follows without matching, let alone detecting, again.

Legend: N detections, I images, K classes, T IoU thresholds, R recall levels.
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
    """What one evaluation has matched: objects of all sizes, at most 100 detections per picture and class."""

    image_ids: NDArray[np.str_]
    """[I]."""
    group_ids: NDArray[np.str_]
    """[I]: pictures of one sequence share a group."""
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
    records: MatchRecords, weights_I: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """AP by IoU threshold and class: [T, K], NaN for a class without objects.

    Args:
        weights_I: how often each picture counts; None: once.
    """
    weights = np.ones(len(records.image_ids)) if weights_I is None else weights_I
    weights_N, objects_K = weights[records.image_index_N], weights @ records.objects_IK
    result = np.full((records.is_right_NT.shape[1], len(objects_K)), np.nan)
    for label in np.flatnonzero(objects_K):
        mine = records.labels_N == label
        for threshold in range(len(result)):
            right_N, wrong_N = records.is_right_NT[mine, threshold], records.is_wrong_NT[mine, threshold]
            levels_R = precision_at_recalls(right_N, wrong_N, objects_K[label], weights_N[mine])
            result[threshold, label] = levels_R.sum() / len(RECALLS_R)
    return result


def mean_average_precision(records: MatchRecords, weights_I: NDArray[np.float64] | None = None) -> float:
    """COCO's mAP; NaN where there are no objects at all."""
    precisions = average_precisions(records, weights_I)
    return float(np.nanmean(precisions)) if not np.isnan(precisions).all() else float("nan")


def precision_at_recalls(
    right_N: NDArray[np.bool_],
    wrong_N: NDArray[np.bool_],
    num_objects: float,
    weights_N: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Largest precision at COCO's levels of recall and beyond: [R], 0 beyond the largest recall.

    Args:
        right_N, wrong_N: of one class, descending by score.
        num_objects: above 0.
        weights_N: how often each detection counts; None: once.
    """
    hits = np.flatnonzero(right_N)  # between them precision only falls
    weights_N = np.ones(len(right_N)) if weights_N is None else weights_N
    right, wrong = np.cumsum(weights_N[hits]), np.cumsum(weights_N * wrong_N)[hits]
    envelope = np.maximum.accumulate((right / (right + wrong + TINY))[::-1])[::-1]
    first_R = np.searchsorted(right / num_objects, RECALLS_R, side="left")
    return np.append(envelope, 0.0)[first_R]
