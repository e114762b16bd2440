"""Everything that a config asks to be measured, of one set of detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raydet.config import EvaluateConfig
from raydet.metrics.coco import CocoResult, GroundTruth, evaluate_with_records
from raydet.metrics.matches import MatchRecords
from raydet.metrics.miss_rate import mean_miss_rate
from raydet.metrics.names import MISS_RATE
from raydet.metrics.sizes import SizeBins


def measure(
    config: EvaluateConfig,
    truth: GroundTruth,
    rows: NDArray[np.float64],
    classes: tuple[str, ...],
    *,
    image_ids: Sequence[str] | None = None,
    group_ids: Sequence[str] | None = None,
) -> tuple[CocoResult, MatchRecords]:
    """As `evaluate_with_records`, with the config's size bins; LAMR among the metrics where it is asked for."""
    result, records = evaluate_with_records(
        truth, rows, classes, size_bins=SizeBins.of(config), image_ids=image_ids, group_ids=group_ids
    )
    if not config.miss_rate:
        return result, records
    rate = mean_miss_rate(truth, rows, len(classes), min_height_px=config.miss_rate_min_height_px)
    return replace(result, metrics={**result.metrics, MISS_RATE: rate}), records
