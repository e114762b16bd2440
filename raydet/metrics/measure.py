"""The metrics that a config asks for, of one set of detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raydet.config import DetectionTask
from raydet.metrics.coco import CocoResult, GroundTruth, evaluate_coco
from raydet.metrics.matches import MatchRecords
from raydet.metrics.miss_rate import mean_miss_rate
from raydet.metrics.names import MISS_RATE
from raydet.metrics.sizes import SizeBins


def measure(
    config: DetectionTask,
    truth: GroundTruth,
    rows: NDArray[np.float64],
    classes: tuple[str, ...],
    *,
    image_ids: Sequence[str] | None = None,
    group_ids: Sequence[str] | None = None,
) -> tuple[CocoResult, MatchRecords]:
    """Same as `evaluate_coco`, with the config's size bins, and LAMR if `task.miss_rate` is on."""
    result, records = evaluate_coco(
        truth, rows, classes, size_bins=SizeBins.of(config), image_ids=image_ids, group_ids=group_ids
    )
    if not config.miss_rate:
        return result, records
    rate = mean_miss_rate(truth, rows, len(classes), min_height_px=config.miss_rate_min_height_px)
    return replace(result, metrics={**result.metrics, MISS_RATE: rate}), records
