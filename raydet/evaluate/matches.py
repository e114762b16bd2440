"""Which detection of which picture was right: all that is needed to know AP on any weighing of the pictures.

With every picture counted once, AP is pycocotools' own. Counted as often as a bootstrap has drawn it, AP of a resampled
set follows without matching, let alone detecting, again.

Legend: N detections, I images, K classes, T IoU thresholds, R recall levels.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError

RECALLS_R = np.linspace(0.0, 1.0, 101)
"""COCO's levels of recall."""
Columns = tuple[NDArray[Any], ...]
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


def match_records(
    evaluation: Any, *, image_ids: NDArray[np.str_], group_ids: NDArray[np.str_]
) -> MatchRecords:
    """From a COCOeval that has evaluated.

    Args:
        image_ids, group_ids: [I], in the order of the set.
    """
    params = evaluation.params
    num_images, num_classes, num_areas = len(params.imgIds), len(params.catIds), len(params.areaRng)
    objects = np.zeros((num_images, num_classes), dtype=np.int64)
    parts: list[Columns] = []
    for label in range(num_classes):
        found: list[Columns] = []
        for image in range(num_images):
            # By class, area and picture; the first area is "all".
            entry = evaluation.evalImgs[(label * num_areas) * num_images + image]
            if entry is None:
                continue
            objects[image, label] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
            is_match, is_ignored = np.asarray(entry["dtMatches"]) > 0, np.asarray(entry["dtIgnore"]) > 0
            scores = np.asarray(entry["dtScores"], dtype=float)
            right, wrong = (is_match & ~is_ignored).T, (~is_match & ~is_ignored).T
            found.append((np.full(len(scores), image), scores, right, wrong))
        parts += _sorted_by_score(found, label)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else _nothing()
    index, labels, scores, right, wrong = columns
    return MatchRecords(image_ids, group_ids, objects, index, labels, scores, right, wrong)


def average_precisions(
    records: MatchRecords, weights_I: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """AP by IoU threshold and class: [T, K], NaN for a class without objects.

    Args:
        weights_I: how often each picture counts; None: once.
    """
    weights = np.ones(len(records.image_ids)) if weights_I is None else weights_I
    objects_K = weights @ records.objects_IK
    result = np.full((records.is_right_NT.shape[1], len(objects_K)), np.nan)
    for label in np.flatnonzero(objects_K):
        mine = records.labels_N == label
        weight_N1 = weights[records.image_index_N[mine], None]
        right_NT = np.cumsum(weight_N1 * records.is_right_NT[mine], axis=0)
        wrong_NT = np.cumsum(weight_N1 * records.is_wrong_NT[mine], axis=0)
        recall_NT, precision_NT = right_NT / objects_K[label], right_NT / (right_NT + wrong_NT + TINY)
        result[:, label] = _area_under(recall_NT, precision_NT)
    return result


def mean_average_precision(records: MatchRecords, weights_I: NDArray[np.float64] | None = None) -> float:
    """COCO's mAP; NaN where there are no objects at all."""
    precisions = average_precisions(records, weights_I)
    return float(np.nanmean(precisions)) if not np.isnan(precisions).all() else float("nan")


def _area_under(recall_NT: NDArray[np.float64], precision_NT: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the precision's envelope, at COCO's levels of recall."""
    envelope_NT = np.maximum.accumulate(precision_NT[::-1], axis=0)[::-1]
    areas = np.zeros(recall_NT.shape[1])
    for threshold, (recall_N, envelope_N) in enumerate(zip(recall_NT.T, envelope_NT.T, strict=True)):
        first_R = np.searchsorted(recall_N, RECALLS_R, side="left")
        areas[threshold] = envelope_N[first_R[first_R < len(recall_N)]].sum() / len(RECALLS_R)
    return areas


def _sorted_by_score(found: list[Columns], label: int) -> list[Columns]:
    if not found:
        return []
    index, scores, right, wrong = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(-scores, kind="mergesort")  # stable, as pycocotools sorts
    return [(index[order], np.full(len(order), label), scores[order], right[order], wrong[order])]


def _nothing() -> list[NDArray[Any]]:
    flags = np.zeros((0, 10), dtype=bool)
    return [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), flags, flags]
