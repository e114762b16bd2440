"""The sign-flip test against all assignments one by one, SciPy, and its own distribution."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from raydet.metrics.coco import GroundTruth, evaluate_coco
from raydet.metrics.matches import MatchRecords
from raydet.metrics.records import MeanRecords
from raydet.stats.sign_flip import MAX_EXACT, sequence_differences, sign_flip


@pytest.mark.parametrize("num_sequences", [1, 2, 5, 10])
def test_p_equals_a_count_of_all_assignments(num_sequences: int) -> None:
    for seed in range(5):
        values = np.random.default_rng(seed).normal(0.3, 1, num_sequences)
        means = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=num_sequences)]
        expected = np.mean(np.array(means) >= abs(values.sum()) - 1e-9)
        found = sign_flip(values)
        assert found.p_value == pytest.approx(expected, abs=1e-15)
        assert found.smallest_p == 2.0 ** (1 - num_sequences)
        assert found.p_value >= found.smallest_p


def test_p_equals_that_of_scipy() -> None:
    values = np.random.default_rng(1).normal(0.4, 1, 11)
    reference = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip(values).p_value == pytest.approx(reference.pvalue, abs=1e-12)


def test_the_smallest_p_is_reached_and_told() -> None:
    found = sign_flip([0.1, 0.3, 0.02, 0.1, 0.1, 0.5, 0.1, 0.2])
    assert found.p_value == found.smallest_p == 1 / 128
    assert "8 sequences: A higher in 8" in str(found)
    assert "with 8 sequences p cannot fall below .0078" in str(found)
    assert "1 sequence: " in str(sign_flip([0.1]))


def test_equal_sums_count_whatever_the_rounding() -> None:
    """.1 + .2 is not .3 in floating point, but a difference of 0 is the least that any assignment has."""
    assert sign_flip([0.1, 0.2, -0.3]).p_value == 1.0
    assert sign_flip([0.0] * 5).p_value == 1.0
    assert sign_flip([1.0, 1.0, -1.0]).p_value == 1.0


def test_many_sequences_are_drawn_and_agree_with_the_normal_limit() -> None:
    values = np.random.default_rng(2).normal(0.25, 1, 80)
    found = sign_flip(values)
    limit = 2 * stats.norm.sf(abs(values.sum()) / np.sqrt((values**2).sum()))
    assert found.p_value == pytest.approx(limit, abs=0.004)
    assert sign_flip(values) == found
    assert sign_flip(values, seed=1).p_value != found.p_value
    far = sign_flip(np.ones(60))
    assert far.p_value == far.smallest_p == pytest.approx(1e-5, rel=1e-4)


def test_drawing_agrees_with_counting() -> None:
    """Sequences without a difference change nothing, but move the test from counting to drawing."""
    values = np.random.default_rng(3).normal(0.5, 1, 12)
    drawn = sign_flip(np.append(values, np.zeros(MAX_EXACT)))
    assert drawn.p_value == pytest.approx(sign_flip(values).p_value, abs=0.005)


def test_equal_arms_are_called_different_as_often_as_the_level_says() -> None:
    generator = np.random.default_rng(4)
    p_values = np.array([sign_flip(generator.standard_t(3, 9)).p_value for _ in range(2000)])
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.015)


def matches(seed: int, images: NDArray[np.int64] | None = None) -> MatchRecords:
    generator = np.random.default_rng(seed)
    index = np.repeat(np.arange(8), 6)
    xywh = np.random.default_rng(0).uniform(20, 60, (48, 4))
    rows = np.column_stack(
        [index, xywh + generator.normal(0, 4, (48, 4)), generator.random(48), np.zeros(48)]
    )
    mine = np.isin(index, np.arange(6) if images is None else images)  # the last sequence has no objects
    truth = GroundTruth(8, index[mine], xywh[mine], np.zeros(mine.sum(), np.int64))
    rows = rows if images is None else rows[mine]
    return evaluate_coco(truth, rows, ("a",), group_ids=["d", "d", "b", "b", "c", "c", "x", "x"])[1]


def test_differences_are_those_of_each_sequence_alone() -> None:
    a, b = [matches(1), matches(2)], [matches(3)]
    found = sequence_differences(a, b, "mAP")
    expected = []
    for images in ([2, 3], [4, 5], [0, 1]):  # in the order of the names
        alone = [
            float(matches(seed, np.array(images)).scores("mAP", np.ones((1, 8)))[0]) for seed in (1, 2, 3)
        ]
        expected.append((alone[0] + alone[1]) / 2 - alone[2])
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_sequences_without_the_metric_are_left_out() -> None:
    ids, groups = np.array(list("pqrs")), np.array(list("uuvw"))
    a, b = (
        MeanRecords(ids, groups, {"accuracy": np.array(values)})
        for values in ([0.5, 0.7, np.nan, 0.9], [0.4, 0.4, np.nan, 1.0])
    )
    assert sequence_differences([a], [b], "accuracy").tolist() == pytest.approx([0.2, -0.1])
