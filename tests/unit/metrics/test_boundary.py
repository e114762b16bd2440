"""Boundaries of masks against a slow restatement with SciPy's distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, zoom

from raydet.metrics.boundary import NONE, boundary_counts, boundary_ids
from raydet.structures import IGNORE

CLASSES = 4
OPEN = 300
"""Id of a predicted pixel whose class was left open."""


def random_mask(generator: np.random.Generator, ignored: float, other: int) -> NDArray[np.int64]:
    """Blobs of random classes, and single pixels of `other`."""
    blobs = zoom(generator.integers(CLASSES, size=(5, 6)), 5, order=0)[:23, :29]
    noise = generator.random(blobs.shape)
    ids: NDArray[np.int64] = np.where(noise < 0.03, generator.integers(CLASSES, size=blobs.shape), blobs)
    return np.where(noise > 1 - ignored, other, ids)


def slow_edges(ids: NDArray[np.int64], label: int) -> NDArray[np.bool_]:
    result = np.zeros(ids.shape, bool)
    for y, x in np.argwhere(ids == label):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < ids.shape[0] and 0 <= u < ids.shape[1] and ids[v, u] not in (label, IGNORE):
                result[y, x] = True
    return result


def near(mine: NDArray[np.bool_], other: NDArray[np.bool_], radius: int) -> int:
    if not other.any():
        return 0
    return int((mine & (distance_transform_edt(~other) <= radius)).sum())


@pytest.mark.parametrize("radius", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_counts_equal_a_slow_restatement(seed: int, radius: int) -> None:
    generator = np.random.default_rng(seed)
    truth = random_mask(generator, 0.05, IGNORE)
    predicted = random_mask(generator, 0.05, OPEN)
    found = boundary_counts(
        torch.from_numpy(truth),
        torch.from_numpy(predicted),
        num_classes=CLASSES,
        ignore=IGNORE,
        radius_px=radius,
    )
    seen = np.where(truth == IGNORE, IGNORE, predicted)
    for label in range(CLASSES):
        true_edges, other_edges = slow_edges(truth, label), slow_edges(seen, label)
        expected = [
            true_edges.sum(),
            near(true_edges, other_edges, radius),
            other_edges.sum(),
            near(other_edges, true_edges, radius),
        ]
        assert [int(counts[label]) for counts in found] == expected


def test_a_boundary_is_one_pixel_thick_on_each_side() -> None:
    ids = torch.zeros(3, 6, dtype=torch.uint8)
    ids[:, 3:] = 7
    assert boundary_ids(ids, ignore=IGNORE)[0].tolist() == [NONE, NONE, 0, 7, NONE, NONE]


def test_neither_the_images_edge_nor_ignored_pixels_make_a_boundary() -> None:
    ids = torch.zeros(3, 6, dtype=torch.uint8)
    ids[:, 2:4], ids[:, 4:] = IGNORE, 7
    assert (boundary_ids(ids, ignore=IGNORE) == NONE).all()


def test_a_shifted_boundary_matches_up_to_the_radius_and_only_with_its_own_classes() -> None:
    def of(edge: int, right: int = 1) -> torch.Tensor:
        ids = torch.zeros(4, 20, dtype=torch.int64)
        ids[:, edge:] = right
        return ids

    def matched(predicted: torch.Tensor) -> list[int]:
        found = boundary_counts(of(10), predicted, num_classes=3, ignore=IGNORE, radius_px=2)
        return found.found_truth_K.tolist()

    assert matched(of(12)) == [4, 4, 0]
    assert matched(of(13)) == [0, 0, 0]
    assert matched(of(10, right=2)) == [4, 0, 0]
