"""Anomalies at the end of a run are the same at any number of workers, copied or sharded."""

from __future__ import annotations

import pytest

from raydet.config import apply_overrides
from raydet.metrics.names import ANOMALY_METRICS
from raydet.recipes import recipe
from tests.numerics.conftest import Launch

SETTINGS = {
    "data.source.num_train": 8,
    "data.source.num_val": 2,
    "data.source.num_calibration": 5,  # in batches of two: one worker has more than the other
    "data.source.num_test": 7,
    "train.epochs": 1,
    "train.eval_batch": 2,
    "train.sync_batch_norm": True,
    "task.anomaly": {"score": "heat"},  # takes both passes of the calibration
}


def test_workers_share_the_images(train: Launch) -> None:
    """The weights follow those of one worker up to rounding, and so do the metrics."""
    experiment = apply_overrides(recipe("anomaly_demo"), SETTINGS)
    alone = train(experiment, workers=1, name="alone")["final"]
    for strategy in ("ddp", "fsdp"):
        shared = train(apply_overrides(experiment, {"train.strategy": strategy}), workers=2, name=strategy)[
            "final"
        ]
        for metric in ANOMALY_METRICS:
            assert shared[metric.name] == pytest.approx(alone[metric.name], abs=2e-3), (strategy, metric.name)
