"""The same evaluation by pycocotools: the reference for `raydet.metrics.coco` in tests and in the benchmark."""

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


def evaluate_with_pycocotools(
    truth: GroundTruth,
    rows: NDArray[np.float64],
    classes: tuple[str, ...],
    *,
    size_bins: SizeBins = COCO_BINS,
    image_ids: Sequence[str] | None = None,
    group_ids: Sequence[str] | None = None,
) -> tuple[CocoResult, MatchRecords]:
    """Same arguments and results as `evaluate_coco`."""
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
    metrics = dict(zip(METRIC_NAMES, map(_or_none, evaluation.stats), strict=True))
    per_class_ap = {}
    for label, name in enumerate(classes):
        values = evaluation.eval["precision"][:, :, label, 0, -1]  # of objects of all sizes, 100 detections
        per_class_ap[name] = _or_none(values[values > -1].mean() if (values > -1).any() else -1.0)
    names = np.array(range(truth.num_images) if image_ids is None else image_ids, str)
    groups = names if group_ids is None else np.array(group_ids, str)
    return CocoResult(metrics, per_class_ap), _match_records(evaluation, image_ids=names, group_ids=groups)


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


def _or_none(value: float) -> float | None:
    return float(value) if value > -1 else None


def _match_records(
    evaluation: Any, *, image_ids: NDArray[np.str_], group_ids: NDArray[np.str_]
) -> MatchRecords:
    """Match records from a COCOeval after `evaluate()`; ids are [I]."""
    params = evaluation.params
    num_images, num_classes, num_areas = len(params.imgIds), len(params.catIds), len(params.areaRng)
    objects = np.zeros((num_images, num_classes), dtype=np.int64)
    no_flags = np.zeros((0, 10), dtype=bool)
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), no_flags, no_flags)
    parts: list[tuple[NDArray[Any], ...]] = [nothing]
    for label in range(num_classes):
        found = [nothing]
        for image in range(num_images):
            # By class, area and image; the first area is "all".
            entry = evaluation.evalImgs[(label * num_areas) * num_images + image]
            if entry is None:
                continue
            objects[image, label] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
            is_match, is_ignored = np.asarray(entry["dtMatches"]) > 0, np.asarray(entry["dtIgnore"]) > 0
            scores = np.asarray(entry["dtScores"], dtype=float)
            right, wrong = (is_match & ~is_ignored).T, (~is_match & ~is_ignored).T
            index, labels = np.full(len(scores), image), np.full(len(scores), label)
            found.append((index, labels, scores, right, wrong))
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        order = np.argsort(-columns[2], kind="mergesort")  # stable, as pycocotools sorts
        parts.append(tuple(column[order] for column in columns))
    return MatchRecords(
        image_ids, group_ids, objects, *(np.concatenate(column) for column in zip(*parts, strict=True))
    )
