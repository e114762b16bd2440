"""Object detection: boxes with labels and scores, measured as COCO does, and by the log-average miss rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raydet.config import DetectionTask, Experiment, SplitName
from raydet.data.build import ignored_in
from raydet.data.sources.base import Source
from raydet.data.split import groups_of
from raydet.errors import DataError
from raydet.metrics.coco import ROW_WIDTH, CocoResult, GroundTruth
from raydet.metrics.measure import measure
from raydet.metrics.names import PER_CLASS
from raydet.metrics.records import Records
from raydet.metrics.sizes import SizeBins
from raydet.models.build_heads import build_head
from raydet.models.heads.base import Head
from raydet.structures import ANY_CLASS, Batch, Boxes, Detections, boxes_of
from raydet.tasks.base import Scores
from raydet.tasks.event_evaluation import EventEvaluation

UNLABELLED = -2
"""Label of the row that an image without labels has beside its detections."""


class Detection:
    """See `raydet.tasks.base.Task`."""

    def __init__(self, config: DetectionTask) -> None:
        self.config = config

    def build_head(self, experiment: Experiment, channels: Sequence[int]) -> Head:
        return build_head(experiment, channels)

    def check_training_images(self, source: Source, indices: Sequence[int]) -> None:
        if any(len(_boxes(source, index)[0].labels) for index in indices):
            return
        ignored = ", ".join(f"{rule} {count}" for rule, count in ignored_in(source).items())
        raise DataError(
            f"expected boxes in the training images, got {len(indices)} images without any"
            + (f"; objects left out by rule: {ignored}" if ignored else "")
            + "; check that the labels belong to the images, and data.split (raydet data check shows both)"
        )

    def cost(self, source: Source, index: int) -> int:
        """Number of boxes: overlaps and targets grow with it."""
        return len(_boxes(source, index)[0].labels)

    def scorer(self, experiment: Experiment, source: Source, indices: Sequence[int]) -> DetectionScorer:
        return DetectionScorer(self.config, experiment, source, indices)

    def final_evaluation(
        self, experiment: Experiment, source: Source, parts: Mapping[SplitName, Sequence[int]]
    ) -> None:
        """Nothing."""

    def results(self, experiment: Experiment) -> Mapping[str, Any]:
        return {"size_bins": SizeBins.of(self.config).as_json()}


class DetectionScorer:
    """See `raydet.tasks.base.Scorer`; rows are those of `raydet.metrics.coco`."""

    num_columns = ROW_WIDTH

    def __init__(
        self, config: DetectionTask, experiment: Experiment, source: Source, indices: Sequence[int]
    ) -> None:
        self.config = config
        self.classes = experiment.data.classes
        self.truth = ground_truth((_boxes(source, index) for index in indices), num_classes=len(self.classes))
        self.image_ids = [source.image_ids[index] for index in indices]
        groups = groups_of(source.group_ids, experiment.data.split)
        self.group_ids = [groups[index] for index in indices]
        self.events = None
        if config.event is not None:
            self.events = EventEvaluation(
                config, config.event, experiment, self.truth, group_ids=source.group_ids, indices=indices
            )

    def rows(
        self, predictions: Sequence[Detections], batch: Batch, positions: Sequence[int]
    ) -> NDArray[np.float64]:
        """The detections of a batch in source pixels, and which of its images have no labels; with `task.event` also
        rows of `EventEvaluation`."""
        rows = [np.zeros((0, ROW_WIDTH))]
        for row, position in enumerate(positions):
            if batch.is_labelled is not None and not batch.is_labelled[row]:
                rows.append(np.array([[position, 0, 0, 0, 0, 0, UNLABELLED]], float))
            found = predictions[row].rescaled(_hw(batch.valid_hw, row), _hw(batch.source_hw, row))
            columns = [
                np.full(len(found.scores), position),
                _xywh(found.boxes_xyxy),
                found.scores.double().cpu().numpy(),
                found.labels.cpu().numpy(),
            ]
            rows.append(np.column_stack(columns))
        if self.events is not None:
            rows.append(self.events.rows(batch, positions))
        return np.concatenate(rows)

    def finish(self, rows: NDArray[np.float64]) -> Scores:
        # Where nobody has looked for objects, no detection is wrong.
        unlabelled = rows[rows[:, 6] == UNLABELLED, 0]
        rows = rows[(rows[:, 6] < 0) | ~np.isin(rows[:, 0], unlabelled)]
        rows = rows[rows[:, 6] != UNLABELLED]
        ids = {"image_ids": self.image_ids, "group_ids": self.group_ids}
        result: CocoResult
        records: Records
        if self.events is None:
            result, records = measure(self.config, self.truth, rows, self.classes, **ids)
        else:
            result, records = self.events.finish(rows, **ids)
        per_class = {f"{PER_CLASS}{name}": value for name, value in result.per_class_ap.items()}
        return Scores(result.metrics, per_class, records)


def ground_truth(targets: Iterable[tuple[Boxes, tuple[int, int]]], *, num_classes: int) -> GroundTruth:
    """The truth of an evaluation set.

    Args:
        targets: of each image the boxes in source pixels and (height, width), see `Source.targets`.
    """
    boxes, labels, index = [np.zeros((0, 4))], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    is_ignored, sizes_hw = [np.zeros(0, bool)], []
    for position, (target, size_hw) in enumerate(targets):
        sizes_hw.append(size_hw)
        regions_xywh, region_labels = _of_each_class(target, num_classes)
        boxes += [_xywh(target.boxes_xyxy), regions_xywh]
        labels += [target.labels.numpy(), region_labels]
        is_ignored += [np.zeros(len(target.labels), bool), np.ones(len(region_labels), bool)]
        index.append(np.full(len(target.labels) + len(region_labels), position))
    return GroundTruth(
        num_images=len(sizes_hw),
        image_index=np.concatenate(index),
        boxes_xywh=np.concatenate(boxes),
        labels=np.concatenate(labels),
        is_crowd=np.concatenate(is_ignored),
        sizes_hw=np.array(sizes_hw, dtype=np.int64).reshape(-1, 2),
    )


def _of_each_class(target: Boxes, num_classes: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Ignored regions as boxes [M, 4] and labels [M]; one of any class once for every class."""
    ignored_xywh, ignored_labels = _xywh(target.ignored_xyxy), target.ignored_labels.numpy()
    of_any = ignored_labels == ANY_CLASS
    regions = [ignored_xywh[~of_any], np.repeat(ignored_xywh[of_any], num_classes, axis=0)]
    labels = [ignored_labels[~of_any], np.tile(np.arange(num_classes), int(of_any.sum()))]
    return np.concatenate(regions), np.concatenate(labels)


def _boxes(source: Source, index: int) -> tuple[Boxes, tuple[int, int]]:
    target, size_hw = source.targets(index)
    return boxes_of(target, source.image_ids[index]), size_hw


def _xywh(boxes_xyxy: Tensor) -> NDArray[np.float64]:
    boxes: NDArray[np.float64] = boxes_xyxy.double().cpu().numpy()
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _hw(sizes: Tensor, row: int) -> tuple[int, int]:
    return int(sizes[row, 0]), int(sizes[row, 1])
