"""Anomaly scores against the golden values of the facts and slow restatements with NumPy and SciPy."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch.nn.functional import avg_pool2d, interpolate

from raydet.errors import DataError
from raydet.ops.anomaly_scores import (
    BOUNDARY_WIDTHS_PX,
    SeedHeat,
    energy,
    entropy,
    heat,
    mahalanobis,
    max_logit,
    max_softmax,
    smooth,
    spatial_kl,
    standardised_max_logit,
    suppress_boundaries,
)

Floats = NDArray[np.float64]

ROWS = torch.tensor([[2.0, 1, 0, -1], [0, 0, 0, 0], [5, -5, 0, 1]]).T[None, :, None]
"""Three pixels with four classes: [1, 4, 1, 3]."""


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Random fp64 numbers."""
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape))


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (max_softmax, [-0.643914, -0.25, -0.975516]),
        (max_logit, [-2, 0, -5]),
        (energy, [-2.440190, -1.386294, -5.024789]),
        (lambda x: energy(x, temperature=2.0), [-3.574677, -2.772589, -5.404507]),
        (entropy, [0.947537, 1.386294, 0.129566]),
        (
            lambda x: standardised_max_logit(x, torch.tensor([3.0, 1, 1, 1]), torch.tensor([2.0, 1, 1, 0.5])),
            [0.5, 1.5, -1],
        ),
    ],
)
def test_golden_scores(score, expected) -> None:  # type: ignore[no-untyped-def]
    for dtype, kept in (
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
    ):
        found = score(ROWS.to(dtype))
        assert found.shape == (1, 1, 3)
        assert found.dtype == kept
        assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 10**6), st.floats(0.5, 4), st.floats(-50, 50))
def test_energy_is_bounded_by_the_largest_logit(seed: int, temperature: float, shift: float) -> None:
    logits = normal(1, 13, 3, 4, seed=seed, scale=5)
    gap = max_logit(logits) - energy(logits, temperature=temperature)
    assert gap.min() > -1e-12
    assert gap.max() <= temperature * math.log(13) + 1e-12
    for score, moved in ((max_softmax, 0.0), (max_logit, shift), (energy, shift)):
        torch.testing.assert_close(score(logits + shift), score(logits) - moved, rtol=1e-9, atol=1e-9)


def slow_suppression(scores: Floats, classes: NDArray[np.int64], widths: tuple[int, ...]) -> Floats:
    """The paper's definition, pixel by pixel."""
    height, width_px = scores.shape
    pixels = list(product(range(height), range(width_px)))
    for width in widths:
        is_inner = {
            (y, x): all(classes[y, x] == classes[v, u] for v, u in pixels if abs(y - v) + abs(x - u) <= width)
            for y, x in pixels
        }
        updated = scores.copy()
        for y, x in pixels:
            near = [scores[v, u] for v, u in pixels if max(abs(y - v), abs(x - u)) <= 1 and is_inner[v, u]]
            if not is_inner[y, x] and near:
                updated[y, x] = np.mean(near)
        scores = updated
    return scores


@pytest.mark.parametrize("widths", [(1,), (3, 1), (4, 3, 2, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_equals_a_slow_restatement(seed: int, widths: tuple[int, ...]) -> None:
    scores = normal(2, 14, 11, seed=seed)
    classes = torch.zeros(2, 14, 11, dtype=torch.int64)
    classes[0, 9:, 3:], classes[0, :2, :3], classes[1, :, 8] = 4, 2, 1
    found = suppress_boundaries(scores, classes, widths)
    for image in range(2):
        expected = slow_suppression(scores[image].numpy(), classes[image].numpy(), widths)
        np.testing.assert_allclose(found[image].numpy(), expected, rtol=1e-12)


def test_suppression_takes_the_inside_for_a_boundary() -> None:
    """Two halves with anomalous pixels on the boundary only: with all widths, nothing of them is left."""
    classes = torch.arange(40).expand(1, 12, 40) // 20
    scores = torch.where((torch.arange(40) - 19.5).abs() < 2, 10.0, 0.0).expand(1, 12, 40)
    assert suppress_boundaries(scores, classes, tuple(range(8, 0, -1))).abs().max() == 0
    # The paper's steps of two release every second ring with the scores it has.
    assert 0 < suppress_boundaries(scores, classes, BOUNDARY_WIDTHS_PX).max() <= 10
    same = torch.zeros(1, 12, 40, dtype=torch.int64)
    assert torch.equal(suppress_boundaries(scores, same), scores)


def test_smoothing_is_a_dilated_gaussian() -> None:
    impulse = torch.zeros(1, 50, 60, dtype=torch.float64)
    impulse[0, 25, 31] = 1
    found = smooth(impulse)[0]
    taps = impulse[0, 25 % 6 :: 6, 31 % 6 :: 6].numpy()
    expected = gaussian_filter(taps, 1.0, radius=3, mode="constant")
    np.testing.assert_allclose(found[25 % 6 :: 6, 31 % 6 :: 6].numpy(), expected, atol=1e-15)
    assert int((found > 0).sum()) == 49
    constant = torch.full((2, 5, 3), 7.0)
    torch.testing.assert_close(smooth(constant), constant)


def test_the_options_of_the_standardised_max_logit_come_in_the_papers_order() -> None:
    logits = normal(1, 5, 30, 26, scale=3)
    mean, std = torch.full((5,), 4.0), torch.full((5,), 2.0)
    plain = standardised_max_logit(logits, mean, std)
    suppressed = suppress_boundaries(plain, logits.argmax(dim=1), (2, 1))
    found = standardised_max_logit(logits, mean, std, boundary_widths_px=(2, 1), smoothing=True)
    torch.testing.assert_close(found, smooth(suppressed))


def test_mahalanobis_equals_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    features, means = normal(2, 6, 5, 7), normal(4, 6, seed=1, scale=2)
    root = normal(6, 6, seed=2)
    precision = root @ root.T + 0.1 * torch.eye(6)
    difference = features[:, None] - means[None, :, :, None, None]
    squares = torch.einsum("bkchw,cd,bkdhw->bkhw", difference, precision, difference)
    expected = (squares + 1e-8).sqrt()
    found = mahalanobis(features, means, precision)
    torch.testing.assert_close(found, expected.amin(dim=1), rtol=1e-12, atol=1e-12)
    # The last class is not the one that is left out, as it was where classes were counted to len(means).
    is_known = torch.tensor([True, False, True, True])
    found = mahalanobis(features, means, precision, is_known_K=is_known)
    torch.testing.assert_close(found, expected[:, is_known].amin(dim=1), rtol=1e-12, atol=1e-12)
    monkeypatch.setattr("raydet.ops.anomaly_scores.CHUNK_NUMBERS", 6 * 4)
    chunked = mahalanobis(features.contiguous(memory_format=torch.channels_last), means, precision)
    torch.testing.assert_close(chunked, expected.amin(dim=1), rtol=1e-12, atol=1e-12)
    single = mahalanobis(features.half(), means, precision)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected.amin(dim=1), rtol=1e-2, atol=1e-2)


def test_mahalanobis_refuses_what_it_cannot_use() -> None:
    features, means = normal(1, 3, 2, 2), normal(2, 3)
    with pytest.raises(DataError, match="expected the mean features of one class at least, got none"):
        mahalanobis(features, means, torch.eye(3), is_known_K=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(DataError, match="expected a positive definite precision matrix"):
        mahalanobis(features, means, -torch.eye(3))


def test_equal_neighbours_have_no_divergence() -> None:
    constant = normal(1, 5, 1, 1).softmax(dim=1).expand(2, 5, 6, 7)
    assert spatial_kl(constant).abs().max() < 1e-12
    padded = spatial_kl(constant, count_include_pad=True)
    assert padded[:, 1:-1, 1:-1].abs().max() < 1e-12
    inside = torch.zeros(6, 7, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    assert padded[:, ~inside].min() > 0.3  # log(9 / 6) and log(9 / 4): zeros outside make the edge anomalous


def slow_heat(logits: torch.Tensor, distances: torch.Tensor, *, padded: bool) -> torch.Tensor:
    """The formulas of the facts."""
    p = logits.softmax(dim=1)
    q = avg_pool2d(p, 3, 1, 1, count_include_pad=padded)
    kl = (p * ((p + 1e-8) / (q + 1e-8)).log()).sum(dim=1)
    spread = avg_pool2d((p - p.mean(dim=1, keepdim=True)) ** 2, 3, 1, 1, count_include_pad=padded)
    weights = torch.stack(
        [1 / (-(p * p.log()).sum(dim=1) + 1e-6), torch.ones_like(kl), 1 / (spread.sum(dim=1) + 1e-6)]
    )
    size = list(logits.shape[2:])
    resized = interpolate(distances[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    terms = torch.stack([-logits.logsumexp(dim=1), resized, kl])
    return (weights / weights.sum(dim=0) * terms).sum(dim=0)


def test_heat_is_its_formula_and_a_function_of_the_image() -> None:
    logits, distances = normal(3, 5, 8, 12, scale=2), normal(3, 4, 6).abs() * 5
    found = heat(logits, distances, mean=2.0, std=0.5)
    expected = (slow_heat(logits, distances, padded=False) - 2) / 0.5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    alone = torch.cat(
        [heat(x[None], d[None], mean=2.0, std=0.5) for x, d in zip(logits, distances, strict=True)]
    )
    torch.testing.assert_close(alone, found, rtol=1e-12, atol=1e-12)


def test_seed_heat_is_its_formula_and_depends_on_the_order_and_size_of_batches() -> None:
    logits, distances = normal(3, 5, 8, 12, scale=2), normal(3, 4, 6).abs() * 5
    logits[2] *= 3
    expected, mean, std = [], None, None
    for x, d in zip(logits, distances, strict=True):
        score = slow_heat(x[None], d[None], padded=True)
        mean = score.mean() if mean is None else 0.9 * mean + 0.1 * score.mean()
        std = score.std() if std is None else 0.9 * std + 0.1 * score.std()
        expected.append((score - mean) / (std + 1e-6))
    seed_heat = SeedHeat()
    found = [seed_heat(x[None], d[None]) for x, d in zip(logits, distances, strict=True)]
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-9, atol=1e-9)
    backwards = SeedHeat()
    other = [backwards(x[None], d[None]) for x, d in zip(logits.flip(0), distances.flip(0), strict=True)]
    assert (other[2] - found[0]).abs().max() > 0.1
    assert (SeedHeat()(logits, distances)[:1] - found[0]).abs().max() > 0.1
