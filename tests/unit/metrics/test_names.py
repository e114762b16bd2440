"""Metrics as data."""

from __future__ import annotations

import math

import pytest

from raydet.config import Metric
from raydet.metrics.names import MISS_RATE, bounds_of


@pytest.mark.parametrize("name", ["mAP", "AR_small", "AP/a class", MISS_RATE])
def test_fractions_have_a_range(name: str) -> None:
    assert bounds_of(Metric(name=name, label=name)) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["val_loss", "count_error"])
def test_other_metrics_have_none(name: str) -> None:
    assert bounds_of(Metric(name=name, label=name)) == (-math.inf, math.inf)
