"""Component metrics against the paper's definitions, written with sets of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raydet.metrics.components import OVERLAPS_T, component_metrics, component_overlaps

Bools = NDArray[np.bool_]
Pixels = set[tuple[int, int]]


def slow_components(mask: Bools) -> list[Pixels]:
    """Connected over edges and corners, found by flooding."""
    rest = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    components = []
    while rest:
        component, frontier = set(), {min(rest)}
        while frontier:
            component |= frontier
            rest -= frontier
            frontier = {(v, u) for v, u in rest if any(max(abs(v - y), abs(u - x)) == 1 for y, x in frontier)}
        components.append(component)
    return components


def random_masks(seed: int) -> tuple[Bools, Bools, Bools]:
    generator = np.random.default_rng(seed)
    truth, predicted = generator.random((2, 9, 11)) < generator.choice([0.05, 0.2, 0.4], (2, 1, 1))
    return truth, predicted, generator.random((9, 11)) < 0.1


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_overlaps_equal_the_papers_definitions(seed: int, min_px: int) -> None:
    truth, predicted, ignored = random_masks(seed)
    found = component_overlaps(truth, predicted, is_ignored_HW=ignored, min_predicted_px=min_px)
    true = slow_components(truth & ~ignored)
    called = [k for k in slow_components(predicted & ~ignored) if len(k) >= min_px]
    all_true = set().union(*true)
    sious = []
    for k in true:
        covering = set().union(*(other for other in called if other & k))
        sious.append(len(k & covering) / len((k | covering) - (all_true - k)))
    assert sorted(found.siou_G) == pytest.approx(sorted(sious))
    assert sorted(found.ppv_P) == pytest.approx(sorted(len(k & all_true) / len(k) for k in called))


def test_a_prediction_over_two_objects_is_right_about_both() -> None:
    truth = np.array([[1, 1, 0, 1, 1]], bool)
    found = component_overlaps(truth, np.ones((1, 5), bool))
    assert found.siou_G.tolist() == pytest.approx([2 / 3, 2 / 3])
    assert found.ppv_P.tolist() == [0.8]


def test_f1_counts_components_of_all_images() -> None:
    truth = np.zeros((4, 12), bool)
    truth[:, :2], truth[:, 6:10] = True, True
    predicted = np.zeros((4, 12), bool)
    predicted[:, :2], predicted[:, 6:8], predicted[0, 11] = True, True, True
    images = [component_overlaps(truth, predicted), component_overlaps(truth, np.zeros_like(truth))]
    found = component_metrics(images)
    assert found.mean_siou == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert found.mean_ppv == pytest.approx((1 + 1 + 0) / 3)
    # Two of four objects are found below an overlap of 0.5, one from there on; one prediction is wrong.
    expected = [2 * 2 / (4 + 2 + 1) if overlap < 0.5 else 2 * 1 / (2 + 3 + 1) for overlap in OVERLAPS_T]
    assert found.f1_T.tolist() == pytest.approx(expected)
    assert found.mean_f1 == pytest.approx(np.mean(expected))


def test_an_overlap_at_the_threshold_is_a_miss() -> None:
    truth = np.zeros((1, 10), bool)
    truth[0, :10] = True
    predicted = np.zeros((1, 10), bool)
    predicted[0, :3] = True
    found = component_metrics([component_overlaps(truth, predicted)])
    assert found.f1_T[:2].tolist() == [1, 0]  # at 0.25 and 0.30


def test_nothing_to_find_and_nothing_found_are_undefined() -> None:
    nothing = np.zeros((3, 3), bool)
    found = component_metrics([component_overlaps(nothing, nothing)])
    assert np.isnan([found.mean_siou, found.mean_ppv, found.mean_f1]).all()
