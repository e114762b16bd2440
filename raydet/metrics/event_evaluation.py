"""Detections in recordings of an event camera, measured by a stated protocol: both means of AP, and AP against silence.

Figures of event detectors are published as the mean of AP over the classes, and as class-agnostic AP (pycocotools with
`useCats = 0`: all boxes are of one class, and at most 100 detections of an image count), which is dominated by the
frequent classes and blind to wrong labels. Both are given, by names that cannot be mistaken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raydet.config import DetectionTask, EventProtocol
from raydet.metrics.coco import CocoResult, GroundTruth, evaluate_coco
from raydet.metrics.event_filter import BoxFilter, FrameTimes, evaluated_boxes, only
from raydet.metrics.event_records import EventRecords
from raydet.metrics.measure import measure
from raydet.metrics.names import AGNOSTIC, AGNOSTIC_METRICS, SILENT
from raydet.metrics.protocol_card import ProtocolCard
from raydet.metrics.records import score
from raydet.metrics.silence import SilenceMatches, bins_of, match_by_silence
from raydet.metrics.sizes import SizeBins


def measure_events(
    config: DetectionTask,
    protocol: EventProtocol,
    truth: GroundTruth,
    rows: NDArray[np.float64],
    classes: tuple[str, ...],
    *,
    frames: FrameTimes,
    card: ProtocolCard,
    ages_M: NDArray[np.int64] | None = None,
    image_ids: Sequence[str] | None = None,
    group_ids: Sequence[str] | None = None,
) -> tuple[CocoResult, EventRecords]:
    """Metrics of the boxes that the protocol leaves, and records.

    Args:
        truth, rows: all of them, see `evaluate_coco`.
        frames: of the images of `truth`.
        ages_M: the silent age of each truth; None: unknown.
    """
    is_kept_M, rows = evaluated_boxes(
        truth,
        rows,
        frames,
        box_filter=BoxFilter.of(protocol),
        tolerance_us=round(1000 * protocol.tolerance_ms),
    )
    truth = only(truth, is_kept_M)
    result, by_class = measure(config, truth, rows, classes, image_ids=image_ids, group_ids=group_ids)
    agnostic, any_class = evaluate_coco(
        *as_one_class(truth, rows),
        ("object",),
        size_bins=SizeBins.of(config),
        image_ids=image_ids,
        group_ids=group_ids,
    )
    edges = protocol.silence_bins if ages_M is not None else ()
    if ages_M is not None and edges:
        silence = match_by_silence(
            truth,
            rows,
            bins_of(ages_M[is_kept_M], edges),
            num_bins=len(edges),
            num_classes=len(classes),
        )
    else:
        no_flags = np.zeros((len(by_class.scores_N), 0), bool)
        silence = SilenceMatches(np.zeros((0, *by_class.objects_IK.shape), np.int64), no_flags, no_flags)
    records = EventRecords(card, by_class, any_class, np.array(edges, np.int64), silence)
    found = result.metrics | {
        metric.name: agnostic.metrics[metric.name.removeprefix(AGNOSTIC)] for metric in AGNOSTIC_METRICS
    }
    for edge in protocol.silence_bins:
        value = score(records, f"{SILENT}{edge}")
        found[f"{SILENT}{edge}"] = None if np.isnan(value) else value
    return replace(result, metrics=found), records


def as_one_class(truth: GroundTruth, rows: NDArray[np.float64]) -> tuple[GroundTruth, NDArray[np.float64]]:
    """The same boxes with all classes taken for one. Of equal scores and equal overlaps, pycocotools ranks by class."""
    order_M, order_N = np.argsort(truth.labels, kind="stable"), np.argsort(rows[:, 6], kind="stable")
    truth = replace(
        truth,
        image_index=truth.image_index[order_M],
        boxes_xywh=truth.boxes_xywh[order_M],
        labels=np.zeros_like(truth.labels),
        areas=None if truth.areas is None else truth.areas[order_M],
        is_crowd=None if truth.is_crowd is None else truth.is_crowd[order_M],
    )
    rows = rows[order_N]
    rows[:, 6] = 0.0
    return truth, rows
