"""The cost of stacked histograms, compared with a plain restatement of how RVT builds them.

Both alternate, and the ratio is the median over the rounds, so that load on the machine affects both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from raydet.files.events.recording import Events
from raydet.ops.event_histogram import stacked_histogram

Engine = Literal["raydet", "plain"]
SIZE_HW = (720, 1280)
WINDOW_US = 50_000
BINS, CLIP = 10, 10


@dataclass(frozen=True, slots=True)
class EventsReport:
    """Median times from the events of one window to its histogram."""

    events: int
    halving: bool
    repeats: int
    seconds: dict[Engine, float]
    ratio: float
    """Median ratio of the plain time to ours, with its range."""
    ratio_low: float
    ratio_high: float
    cells_that_differ: int
    """Events at the edges of bins, which the plain one tells apart in float32."""

    @property
    def events_per_s(self) -> dict[Engine, float]:
        return {engine: self.events / seconds for engine, seconds in self.seconds.items()}


def bench_events(*, num_events: int, halving: bool, repeats: int, seed: int = 0) -> EventsReport:
    """Build the histogram of random events on 720 x 1280 pixels in both ways alternately, on one thread each."""
    events = random_events(num_events, seed=seed)
    engines: dict[Engine, Callable[[Events, bool], NDArray[np.uint8]]] = {
        "raydet": _ours,
        "plain": plain_histogram,
    }
    seconds: dict[Engine, list[float]] = {engine: [] for engine in engines}
    found: dict[Engine, NDArray[np.uint8]] = {}
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(repeats):
            for engine, build in engines.items():
                started = time.perf_counter()
                found[engine] = build(events, halving)
                seconds[engine].append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(num_threads)
    ratios = [plain / ours for ours, plain in zip(*seconds.values(), strict=True)]
    return EventsReport(
        events=num_events,
        halving=halving,
        repeats=repeats,
        seconds={engine: statistics.median(times) for engine, times in seconds.items()},
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        cells_that_differ=int((found["raydet"] != found["plain"]).sum()),
    )


def random_events(count: int, *, seed: int) -> Events:
    """Events of one window, spread evenly."""
    generator = np.random.default_rng(seed)
    return Events(
        t_us=np.sort(generator.integers(0, WINDOW_US, count)),
        x=generator.integers(0, SIZE_HW[1], count, np.uint16),
        y=generator.integers(0, SIZE_HW[0], count, np.uint16),
        p=generator.integers(0, 2, count, np.uint8),
    )


def _ours(events: Events, halving: bool) -> NDArray[np.uint8]:
    return stacked_histogram(*events, size_hw=SIZE_HW, bins=BINS, clip=CLIP, halving=halving)


def plain_histogram(events: Events, halving: bool) -> NDArray[np.uint8]:
    """One pass over all cells in uint8, and then the resizing: what RVT's fast mode does."""
    height, width = SIZE_HW
    t, x, y, p = (torch.from_numpy(column.astype(np.int64)) for column in events)
    bins = ((t - t[0]) / max(int(t[-1] - t[0]), 1) * BINS).floor().clamp(max=BINS - 1).long()
    counts = torch.zeros(2 * BINS * height * width, dtype=torch.uint8)
    ones = torch.ones(len(t), dtype=torch.uint8)
    counts.put_(((p * BINS + bins) * height + y) * width + x, ones, accumulate=True)
    counts_CHW = counts.clamp(max=CLIP).reshape(2 * BINS, height, width)
    if halving:
        counts_CHW = functional.interpolate(counts_CHW[None], scale_factor=0.5, mode="nearest-exact")[0]
    return counts_CHW.numpy()
