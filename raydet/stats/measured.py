"""Metrics of one evaluation with the noise of its images. Nothing is trained again, so there is no noise of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raydet.config import Metric
from raydet.metrics.names import bounds_of
from raydet.metrics.records import Records, score
from raydet.stats.bootstrap import resampled_scores
from raydet.stats.comparison import Spread, interval

RESAMPLES = 200
NO_SEEDS = Spread(0.0, 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric; NaN where it is undefined."""

    value: float
    interval: tuple[float, float] | None
    """At 95 %; None: unknown, because there are too few groups of images."""


def measured(records: Records, metrics: Sequence[Metric]) -> dict[str, Measured]:
    """Metrics by name, with intervals from `RESAMPLES` resampled sets of images.

    Raises:
        ValueError: the records do not contain a metric.
    """
    num_groups = len(set(records.group_ids.tolist()))
    found = {}
    for metric in metrics:
        value, ends = score(records, metric.name), None
        if num_groups > 1 and not math.isnan(value):
            resampled = resampled_scores(records, metric.name, count=RESAMPLES)
            known = resampled[~np.isnan(resampled)]
            if len(known) > 1:
                ends = interval(
                    [[value]], known, num_groups=num_groups, spread=NO_SEEDS, bounds=bounds_of(metric)
                )
        found[metric.name] = Measured(value, ends)
    return found
