"""Anomaly metrics against scikit-learn and the published code's rules, restated."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from raydet.errors import DataError
from raydet.metrics.anomaly import (
    CODE_VALUES_V,
    FprRule,
    ScoreHistogram,
    best_f1,
    counts_by_score,
    fpr_at_tpr,
    image_metrics,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TRUTH = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 0], bool)
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.45, 0.7, 0.35, 0.6, 0.9, 0.8])


def random_pixels(seed: int, count: int = 400) -> tuple[NDArray[np.float16], Bools]:
    """Scores of few and of many digits, so with many ties and with few; both kinds are there."""
    generator = np.random.default_rng(seed)
    is_anomalous = generator.random(count) < generator.choice([0.02, 0.5, 0.97])
    is_anomalous[:2] = False, True
    scores = generator.normal(is_anomalous * generator.normal(), 2)
    return scores.round(int(generator.integers(0, 4))).astype(np.float16), is_anomalous


def first_fpr(truth: Bools, scores: Floats) -> float:
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(fpr[np.argmax(tpr >= 0.95)])


def nearest_fpr(truth: Bools, scores: Floats) -> float:
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(fpr[np.argmin(np.abs(tpr - 0.95))])


def official_fpr(truth: Bools, scores: Floats) -> float:
    """From the lowest threshold that is needed to find everything up to the highest, the first nearest one."""
    candidates = sorted(set(scores[scores >= scores[truth].min()].tolist()))
    distances = [abs((scores[truth] >= threshold).mean() - 0.95) for threshold in candidates]
    needed = [i for i, t in enumerate(candidates) if (scores[truth] >= t).all()]
    start = needed[-1]
    chosen = start + int(np.argmin(distances[start:]))
    return float((scores[~truth] >= candidates[chosen]).mean())


FPR95: dict[FprRule, Callable[[Bools, Floats], float]] = {
    "first": first_fpr,
    "nearest": nearest_fpr,
    "official": official_fpr,
}


def sklearn_best_f1(truth: Bools, scores: Floats) -> tuple[float, float]:
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best = np.flatnonzero(f1[:-1] >= f1.max() - 1e-12)[-1]
    return float(f1[best]), float(thresholds[best])


def test_golden_metrics() -> None:
    histogram = ScoreHistogram.of(SCORES, TRUTH)
    assert histogram.auroc() == pytest.approx(0.714286, abs=1e-6)
    assert histogram.average_precision() == pytest.approx(0.642857, abs=1e-6)
    for rule in FPR95:
        assert histogram.fpr95(rule) == pytest.approx(0.571429, abs=1e-6)
    assert image_metrics(SCORES, TRUTH) == pytest.approx((0.714286, 0.642857, 0.571429, 0.571429), abs=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_histograms_equal_scikit_learn(seed: int) -> None:
    scores, truth = random_pixels(seed)
    wide = scores.astype(np.float64)
    histogram = ScoreHistogram.of(scores, truth)
    assert histogram.auroc() == pytest.approx(roc_auc_score(truth, wide), abs=1e-12)
    assert histogram.average_precision() == pytest.approx(average_precision_score(truth, wide), abs=1e-12)
    for rule, expected in FPR95.items():
        assert histogram.fpr95(rule) == pytest.approx(expected(truth, wide), abs=1e-12)
    f1, threshold = sklearn_best_f1(truth, wide)
    assert histogram.best_f1() == pytest.approx((f1, threshold), abs=1e-12)
    found = histogram.at_threshold(threshold)
    assert found.f1 == pytest.approx(f1, abs=1e-12)
    assert found.precision == pytest.approx(truth[wide >= threshold].mean(), abs=1e-12)
    assert found.recall == pytest.approx((wide[truth] >= threshold).mean(), abs=1e-12)
    assert found.false_positive_rate == pytest.approx((wide[~truth] >= threshold).mean(), abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_one_image_equals_scikit_learn_in_fp32(seed: int) -> None:
    _, truth = random_pixels(seed)
    scores = np.random.default_rng(seed).normal(truth * 1.5, 1).astype(np.float32)
    scores[::3] = scores[::3].round(1)
    found = image_metrics(scores.reshape(20, 20), truth.reshape(20, 20))
    wide = scores.astype(np.float64)
    expected = (roc_auc_score(truth, scores), average_precision_score(truth, scores))
    assert found[:2] == pytest.approx(expected, abs=1e-12)
    assert found[2:] == pytest.approx((first_fpr(truth, wide), official_fpr(truth, wide)), abs=1e-12)
    normal_V, anomalous_V, values_V = counts_by_score(scores, truth)
    assert best_f1(normal_V, anomalous_V, values_V) == pytest.approx(sklearn_best_f1(truth, wide), abs=1e-12)
    nearest = fpr_at_tpr(normal_V, anomalous_V, rule="nearest")
    assert nearest == pytest.approx(nearest_fpr(truth, wide), abs=1e-12)


def test_the_rules_of_fpr95_differ() -> None:
    """Nine of ten anomalous pixels are on top, then five normal ones and the last anomalous one."""
    scores = np.concatenate([np.arange(20, 11, -1), [1.0], np.arange(2, 7), np.arange(-9, -4)])
    truth = np.arange(20) < 10
    found = {rule: ScoreHistogram.of(scores, truth).fpr95(rule) for rule in FPR95}
    assert found == {"first": 0.5, "nearest": 0.0, "official": 0.5}


def test_curves_equal_scikit_learn() -> None:
    scores, truth = random_pixels(5)
    curve = ScoreHistogram.of(scores, truth).curve()
    fpr, tpr, thresholds = roc_curve(truth, scores.astype(float), drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate_P, fpr[1:], atol=1e-12)
    np.testing.assert_allclose(curve.recall_P, tpr[1:], atol=1e-12)
    np.testing.assert_array_equal(curve.thresholds_P, thresholds[1:])
    precision, recall, thresholds = precision_recall_curve(truth, scores.astype(float))
    np.testing.assert_allclose(curve.precision_P[::-1], precision[:-1], atol=1e-12)
    np.testing.assert_allclose(curve.recall_P[::-1], recall[:-1], atol=1e-12)


def test_codes_are_the_float16_values_in_order() -> None:
    values = CODE_VALUES_V[~np.isnan(CODE_VALUES_V)]
    assert len(values) == 65536 - 2 * 1023
    assert (values[0], values[-1]) == (-np.inf, np.inf)
    steps = np.diff(values[1:-1])
    assert (steps >= 0).all()
    assert (steps == 0).sum() == 1  # -0 and 0


def test_zeros_are_equal_and_infinities_are_kept() -> None:
    scores = np.array([-0.0, 0.0, -np.inf, np.inf, 1e6, 65504], np.float32)
    truth = np.array([False, True, False, True, False, True])
    histogram = ScoreHistogram.of(scores, truth)
    curve = histogram.curve()
    assert curve.thresholds_P.tolist() == [np.inf, 65504, 0, -np.inf]  # 1e6 is infinite in float16
    ranks = np.array([1, 1, 0, 3, 3, 2])
    assert histogram.auroc() == pytest.approx(roc_auc_score(truth, ranks))
    exact = image_metrics(scores, truth)
    assert exact.auroc == pytest.approx(roc_auc_score(truth, [1, 1, 0, 4, 3, 2]))


@pytest.mark.parametrize("bad", [np.nan, -np.nan])
def test_nan_is_refused(bad: float) -> None:
    scores = SCORES.copy()
    scores[3] = bad
    for function in (ScoreHistogram.of, image_metrics):
        with pytest.raises(DataError, match="expected anomaly scores, got NaN for 1 pixels"):
            function(scores, TRUTH)


@pytest.mark.parametrize("kind", [True, False])
def test_pixels_of_one_kind_have_no_metrics(kind: bool) -> None:
    truth = np.full(10, kind)
    histogram = ScoreHistogram.of(SCORES, truth)
    found = [histogram.auroc(), histogram.average_precision(), *(histogram.fpr95(rule) for rule in FPR95)]
    assert np.isnan([*found, *image_metrics(SCORES, truth)]).all()
    assert np.isnan(histogram.best_f1().f1) == (not kind)
    empty = ScoreHistogram.empty()
    assert np.isnan([empty.auroc(), empty.fpr95(), *empty.best_f1(), *empty.at_threshold(0.0)]).all()
    assert np.isnan(image_metrics(SCORES[:0], truth[:0])).all()
    assert len(empty.curve().recall_P) == 0


def test_planted_answers() -> None:
    """The truth itself as the score, one score for all, and a random one."""
    generator = np.random.default_rng(0)
    truth = generator.random(200_000) < 0.0103
    oracle = ScoreHistogram.of(truth.astype(np.float32), truth)
    assert (oracle.auroc(), oracle.average_precision(), oracle.fpr95()) == (1, 1, 0)
    constant = ScoreHistogram.of(np.zeros(len(truth)), truth)
    assert (constant.auroc(), constant.fpr95()) == (0.5, 1)
    assert constant.average_precision() == pytest.approx(truth.mean(), rel=1e-12)
    chance = ScoreHistogram.of(generator.random(len(truth)), truth)
    assert chance.auroc() == pytest.approx(0.5, abs=0.02)
    assert chance.average_precision() == pytest.approx(0.0103, abs=0.002)
    assert chance.fpr95() == pytest.approx(0.95, abs=0.02)


@given(st.integers(0, 10**6))
def test_monotone_maps_change_nothing(seed: int) -> None:
    scores, truth = random_pixels(seed)
    wide = scores.astype(np.float64)
    expected = image_metrics(wide, truth)
    for moved in (wide * 3 - 7, np.arctan(wide), np.exp(wide)):
        assert image_metrics(moved, truth) == expected


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_counts_are_the_same_at_any_number_of_workers(
    num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, truth = random_pixels(7, 4000)
    whole = ScoreHistogram.of(scores, truth)
    monkeypatch.setattr("raydet.metrics.anomaly.CHUNK_PIXELS", 333)
    parts = [
        ScoreHistogram.of(scores[rank::num_workers], truth[rank::num_workers]) for rank in range(num_workers)
    ]
    merged = reduce(ScoreHistogram.merge, parts, ScoreHistogram.empty())
    again = ScoreHistogram.from_arrays(merged.arrays())
    for histogram in (merged, again):
        np.testing.assert_array_equal(histogram.normal_V, whole.normal_V)
        np.testing.assert_array_equal(histogram.anomalous_V, whole.anomalous_V)
