"""Stacked histograms: the events of a window, counted by polarity, time bin and pixel.

The representation of RVT (Recurrent Vision Transformers for Object Detection with Event Cameras, Gehrig and Scaramuzza
2023, arXiv 2212.05598): channel = polarity x bins + bin. The bins divide the time from the first to the last event of
the window evenly; counts end at `clip`.

Departures:

1. Counts are clipped after they were added, so they never wrap; RVT's fast mode adds in uint8.
2. Bins follow from integers. RVT divides in float32, which puts an event at the edge of a bin into either of two.
3. Halving keeps the pixels of odd rows and columns before counting: nearest-exact resizing takes these, and throws the
   counts of the others away.

Events are in the order of time, so a bin is a stretch of them. Most cells of a window stay empty: sorting the cells of
the events and counting equal ones reads a fraction of the memory that one pass over all cells would.

Legend: N events, C channels, H W sensor, h w map: H W, or half of them, rounded down.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MAX_CLIP = 255


def map_size(size_hw: tuple[int, int], *, halving: bool) -> tuple[int, int]:
    """Height and width of the histogram of a sensor.

    >>> map_size((721, 1280), halving=True)
    (360, 640)
    """
    return (size_hw[0] // 2, size_hw[1] // 2) if halving else size_hw


def stacked_histogram(
    t_us: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
    *,
    size_hw: tuple[int, int],
    bins: int = 10,
    clip: int = 10,
    halving: bool = False,
) -> NDArray[np.uint8]:
    """Counts, uint8 [2 * bins, h, w].

    Args:
        t_us: int64 [N], never decreasing.
        x, y: uint16 [N], pixels of the sensor.
        p: uint8 [N], 0 or 1.
        clip: largest count, 1..255.
        halving: half the height and the width, see above.

    >>> t_us, p = np.array([7, 107]), np.array([0, 1], np.uint8)
    >>> x, y = np.array([2, 3], np.uint16), np.array([0, 1], np.uint16)
    >>> np.argwhere(stacked_histogram(t_us, x, y, p, size_hw=(2, 4))).tolist()  # bins 0 and 9
    [[0, 0, 2], [19, 1, 3]]
    """
    height, width = map_size(size_hw, halving=halving)
    pixels = height * width
    counts = np.zeros((2, bins, pixels), np.uint8)
    if not len(t_us) or not counts.size:
        return counts.reshape(2 * bins, height, width)
    first_us, length_us = int(t_us[0]), max(int(t_us[-1]) - int(t_us[0]), 1)
    # Bin k begins at the first event with (t - t0) * bins >= k * length. One bin at a time stays in the cache.
    starts_us = [first_us - (-bin_ * length_us // bins) for bin_ in range(1, bins)]
    edges = [0, *np.searchsorted(t_us, starts_us, side="left").tolist(), len(t_us)]
    for bin_, (start, end) in enumerate(pairwise(edges)):
        cells_N = _cells(x[start:end], y[start:end], p[start:end], (height, width), halving=halving)
        cells_N.sort()
        is_new_N = np.ones(len(cells_N), bool)
        np.not_equal(cells_N[1:], cells_N[:-1], out=is_new_N[1:])
        (first_K,) = np.nonzero(is_new_N)
        cells_K = cells_N[first_K]
        counts_K = np.minimum(np.diff(first_K, append=len(cells_N)), clip)
        num_off = int(np.searchsorted(cells_K, pixels))
        counts[0, bin_, cells_K[:num_off]] = counts_K[:num_off]
        counts[1, bin_, cells_K[num_off:] - np.uint32(pixels)] = counts_K[num_off:]
    return counts.reshape(2 * bins, height, width)


def _cells(
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
    size_hw: tuple[int, int],
    *,
    halving: bool,
) -> NDArray[np.uint32]:
    """(polarity * h + row) * w + column of each event on a map of this size; with halving, of those that count."""
    if halving:
        (kept_K,) = np.nonzero((x & y & 1).astype(bool))
        one = np.uint16(1)
        x, y, p = x[kept_K] >> one, y[kept_K] >> one, p[kept_K]
    height, width = size_hw
    cells_N = p.astype(np.uint32)
    cells_N *= np.uint32(height)
    cells_N += y
    cells_N *= np.uint32(width)
    cells_N += x
    return cells_N
