"""Streamed moments against NumPy on all pixels at once, at several numbers of workers."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raydet.errors import DataError
from raydet.ops.class_moments import RIDGE, ClassMoments, FeatureMoments
from raydet.structures import IGNORE

CLASSES = 5


def values_and_classes(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values with a mean of their own for each class, and classes of which the last has no pixels."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(CLASSES - 1, size=shape)
    classes[generator.random(shape) < 0.1] = IGNORE
    values = generator.normal(10 * classes, 0.1 + classes)
    return torch.from_numpy(values), torch.from_numpy(classes)


@given(st.integers(0, 10**6))
def test_streamed_moments_equal_numpy(seed: int) -> None:
    values, classes = values_and_classes(seed, 8, 6, 7)
    states = [ClassMoments.of(v, c, num_classes=CLASSES) for v, c in zip(values, classes, strict=True)]
    found = reduce(ClassMoments.merge, states, ClassMoments.empty(CLASSES))
    for label in range(CLASSES - 1):
        mine = values[classes == label].numpy()
        assert found.count_K[label] == len(mine)
        assert found.mean_K[label] == pytest.approx(mine.mean(), rel=1e-12)
        assert found.std[label] == pytest.approx(mine.std(), rel=1e-12)
    assert (found.count_K[-1], found.mean_K[-1], found.std[-1]) == (0, 0, 1)


@pytest.mark.parametrize("num_workers", [2, 4])
def test_moments_are_the_same_at_any_number_of_workers(num_workers: int) -> None:
    """fp32 logits, 1,000 standard deviations from 0: sums of squares would keep ten digits."""
    values, classes = values_and_classes(3, 40, 50, 60)
    values = (values * 0.001 + 5).float()
    states = [ClassMoments.of(v, c, num_classes=CLASSES) for v, c in zip(values, classes, strict=True)]
    alone = reduce(ClassMoments.merge, states)
    shares = [reduce(ClassMoments.merge, states[rank::num_workers]) for rank in range(num_workers)]
    merged = reduce(ClassMoments.merge, shares)
    np.testing.assert_array_equal(merged.count_K, alone.count_K)
    np.testing.assert_allclose(merged.mean_K, alone.mean_K, rtol=1e-12)
    np.testing.assert_allclose(merged.std, alone.std, rtol=1e-12)


def test_equal_values_have_no_deviation() -> None:
    values, classes = torch.full((1000,), 0.1), torch.zeros(1000, dtype=torch.int64)
    first = ClassMoments.of(values, classes, num_classes=1)
    assert first.merge(first).std[0] < 1e-15


def test_values_that_are_not_finite_are_refused() -> None:
    zeros = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(DataError, match="expected finite logits and features"):
        ClassMoments.of(torch.tensor([0.0, np.inf, 1.0]), zeros, num_classes=2)
    with pytest.raises(DataError, match="expected finite logits and features"):
        FeatureMoments.of(torch.full((1, 2, 1, 3), np.nan), zeros.view(1, 1, 3), num_classes=2)


def features_and_classes() -> tuple[torch.Tensor, torch.Tensor]:
    values, classes = values_and_classes(1, 12, 5, 6)
    noise = torch.from_numpy(np.random.default_rng(2).normal(0, 1, (12, 4, 5, 6)))
    return noise + values[:, None], classes


def test_feature_moments_equal_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    features, classes = features_and_classes()
    table, labels = features.movedim(1, 3).reshape(-1, 4).numpy(), classes.flatten().numpy()
    table, labels = table[labels != IGNORE], labels[labels != IGNORE]
    means = np.array([table[labels == k].mean(axis=0) for k in range(CLASSES - 1)])
    centred = table - means[labels]
    covariance = centred.T @ centred / (len(table) - 1) + RIDGE * np.eye(4)
    monkeypatch.setattr("raydet.ops.class_moments.CHUNK_NUMBERS", 4 * 7)
    found = FeatureMoments.of(features, classes, num_classes=CLASSES)
    np.testing.assert_allclose(found.mean_KC[:-1], means, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.inv(found.precision()), covariance, rtol=1e-10)
    assert found.is_known.tolist() == [True] * (CLASSES - 1) + [False]


@pytest.mark.parametrize("num_workers", [2, 4])
def test_feature_moments_are_the_same_at_any_number_of_workers(num_workers: int) -> None:
    features, classes = features_and_classes()
    alone = FeatureMoments.of(features, classes, num_classes=CLASSES)
    shares = [
        FeatureMoments.of(features[rank::num_workers], classes[rank::num_workers], num_classes=CLASSES)
        for rank in range(num_workers)
    ]
    merged = reduce(FeatureMoments.merge, shares, FeatureMoments.empty(CLASSES, 4))
    np.testing.assert_array_equal(merged.count_K, alone.count_K)
    np.testing.assert_allclose(merged.mean_KC, alone.mean_KC, rtol=1e-12)
    np.testing.assert_allclose(
        merged.scatter_CC, alone.scatter_CC, rtol=0, atol=1e-12 * alone.scatter_CC.max()
    )


def test_a_covariance_needs_two_pixels() -> None:
    with pytest.raises(DataError, match="expected two labelled pixels at least for a covariance, got 0"):
        FeatureMoments.empty(2, 3).precision()


def test_states_come_back_from_their_arrays() -> None:
    features, classes = features_and_classes()
    moments = ClassMoments.of(features[:, 0], classes, num_classes=CLASSES)
    shared = FeatureMoments.of(features, classes, num_classes=CLASSES)
    for state, again in (
        (moments, ClassMoments.from_arrays(moments.arrays())),
        (shared, FeatureMoments.from_arrays(shared.arrays())),
    ):
        for name, array in state.arrays().items():
            np.testing.assert_array_equal(array, again.arrays()[name])
