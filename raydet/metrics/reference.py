"""The same evaluation by pycocotools: the witness for `raydet.metrics.coco`, and what the benchmark measures against.

Legend: as there.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.coco import CocoResult, GroundTruth
from raydet.metrics.matches import MatchRecords
from raydet.metrics.names import METRIC_NAMES
from raydet.metrics.sizes import COCO_BINS, SizeBins

Columns = tuple[NDArray[Any], ...]


def evaluate_with_pycocotools(
    truth: GroundTruth,
    rows: NDArray[np.float64],
    classes: tuple[str, ...],
    *,
    size_bins: SizeBins = COCO_BINS,
    image_ids: Sequence[str] | None = None,
    group_ids: Sequence[str] | None = None,
) -> tuple[CocoResult, MatchRecords]:
    """As `evaluate_with_records`."""
    from pycocotools.cocoeval import COCOeval

    order = np.argsort(rows[:, 0], kind="stable")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        reference = _coco_truth(truth, classes, size_bins)
        detections = _coco_detections(reference, rows[order], truth, size_bins)
        evaluation = COCOeval(reference, detections, iouType="bbox")
        evaluation.params.areaRng = size_bins.ranges().tolist()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = dict(zip(METRIC_NAMES, (_or_none(value) for value in evaluation.stats), strict=True))
    result = CocoResult(metrics=metrics, per_class_ap=_per_class_ap(evaluation.eval["precision"], classes))
    names = np.array(
        [str(index) for index in range(truth.num_images)] if image_ids is None else image_ids, str
    )
    groups = names if group_ids is None else np.array(group_ids, str)
    return result, _match_records(evaluation, image_ids=names, group_ids=groups)


def _coco_truth(truth: GroundTruth, classes: tuple[str, ...], size_bins: SizeBins) -> Any:
    from pycocotools.coco import COCO

    areas = truth.boxes_xywh[:, 2:].prod(axis=1) if truth.areas is None else truth.areas
    areas = size_bins.in_units(areas, truth.image_index, truth.sizes_hw)
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


def _coco_detections(
    reference: Any, rows: NDArray[np.float64], truth: GroundTruth, size_bins: SizeBins
) -> Any:
    from pycocotools.coco import COCO

    if len(rows):
        found = reference.loadRes(rows)
        areas = size_bins.in_units(rows[:, 3] * rows[:, 4], rows[:, 0].astype(int), truth.sizes_hw)
        for annotation, area in zip(found.dataset["annotations"], areas.tolist(), strict=True):
            annotation["area"] = area
        return found
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


def _match_records(
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
            # By class, area and image; the first area is "all".
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


def _sorted_by_score(found: list[Columns], label: int) -> list[Columns]:
    if not found:
        return []
    index, scores, right, wrong = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(-scores, kind="mergesort")  # stable, as pycocotools sorts
    return [(index[order], np.full(len(order), label), scores[order], right[order], wrong[order])]


def _nothing() -> list[NDArray[Any]]:
    flags = np.zeros((0, 10), dtype=bool)
    return [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), flags, flags]
