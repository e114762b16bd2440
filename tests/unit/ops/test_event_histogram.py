"""Stacked histograms against a plain restatement, event by event."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from raydet.ops.event_histogram import map_size, stacked_histogram


def plain(
    t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, size_hw: tuple[int, int], bins: int
) -> np.ndarray:
    """Counts of every channel and pixel of the sensor, without an end."""
    counts = np.zeros((2 * bins, *size_hw), int)
    for each_t, each_x, each_y, each_p in zip(t.tolist(), x.tolist(), y.tolist(), p.tolist(), strict=True):
        length = max(int(t[-1] - t[0]), 1)
        bin_ = min((each_t - int(t[0])) * bins // length, bins - 1)
        counts[each_p * bins + bin_, each_y, each_x] += 1
    return counts


def drawn(seed: int, count: int, size_hw: tuple[int, int], length_us: int) -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(seed)
    t = np.sort(draw.integers(10**12, 10**12 + length_us, count))
    x, y = (draw.integers(0, size, count).astype(np.uint16) for size in size_hw[::-1])
    return t, x, y, draw.integers(0, 2, count).astype(np.uint8)


@settings(max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 600),
    size_hw=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    length_us=st.sampled_from((1, 2, 7, 50_000)),
    bins=st.sampled_from((1, 3, 10)),
    clip=st.sampled_from((1, 10, 255)),
    halving=st.booleans(),
)
def test_random_events(
    seed: int, count: int, size_hw: tuple[int, int], length_us: int, bins: int, clip: int, halving: bool
) -> None:
    events = drawn(seed, count, size_hw, length_us)
    found = stacked_histogram(*events, size_hw=size_hw, bins=bins, clip=clip, halving=halving)
    counts = (
        torch.from_numpy(np.minimum(plain(*events, size_hw, bins), clip))
        if count
        else torch.zeros(2 * bins, *size_hw)
    )
    assert found.dtype == np.uint8
    if halving and min(size_hw) > 1:
        counts = functional.interpolate(counts[None].double(), scale_factor=0.5, mode="nearest-exact")[0]
    elif halving:
        counts = torch.zeros(2 * bins, *map_size(size_hw, halving=True))
    np.testing.assert_array_equal(found, counts.numpy())


def histogram_of(*rows: tuple[int, int, int, int]) -> np.ndarray:
    t, x, y, p = np.array(rows, np.int64).reshape(-1, 4).T
    small = (column.astype(np.uint16) for column in (x, y))
    return stacked_histogram(t, *small, p.astype(np.uint8), size_hw=(3, 4))


def test_the_first_and_the_last_event_are_in_the_first_and_the_last_bin() -> None:
    found = histogram_of((1000, 1, 2, 0), (1100, 3, 0, 1))
    assert np.argwhere(found).tolist() == [[0, 2, 1], [19, 0, 3]]
    found = histogram_of(*((1000 + 10 * step, 0, 0, 1) for step in range(11)))
    assert found[10:, 0, 0].tolist() == [1] * 9 + [2]
    assert histogram_of((7, 0, 0, 0))[0, 0, 0] == 1


def test_bins_begin_at_their_edges() -> None:
    """Which a division in float32 does not tell."""
    length = 50_000_001
    edges = [-(-length * bin_ // 10) for bin_ in range(1, 10)]
    found = histogram_of(
        (0, 0, 0, 0), *((t, 1, 0, 0) for edge in edges for t in (edge - 1, edge)), (length, 0, 0, 0)
    )
    assert found[:10, 0, 1].tolist() == [1, *[2] * 8, 1]


def test_counts_end_at_the_clip_and_do_not_wrap() -> None:
    assert histogram_of(*[(5, 1, 1, 1)] * 11)[10, 1, 1] == 10
    assert histogram_of(*[(5, 1, 1, 1)] * 9)[10, 1, 1] == 9
    assert histogram_of(*[(5, 1, 1, 1)] * 260)[10, 1, 1] == 10  # 4 in uint8


def test_no_events_are_zeros() -> None:
    found = histogram_of()
    assert found.shape == (20, 3, 4)
    assert not found.any()


@pytest.mark.parametrize("size_hw", [(720, 1280), (260, 346), (261, 347)])
def test_sizes_of_real_sensors(size_hw: tuple[int, int]) -> None:
    events = drawn(0, 2000, size_hw, 50_000)
    counts = np.minimum(plain(*events, size_hw, 10), 10)
    np.testing.assert_array_equal(stacked_histogram(*events, size_hw=size_hw), counts)
    halved = stacked_histogram(*events, size_hw=size_hw, halving=True)
    np.testing.assert_array_equal(halved, counts[:, 1::2, 1::2])
    assert halved.shape[1:] == map_size(size_hw, halving=True)
