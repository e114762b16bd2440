"""The cost of anomaly metrics, compared with scikit-learn's functions.

Both alternate, and the ratio is the median over the rounds, so that load on the machine affects both. Memory is
measured in separate processes, because a process only knows its peak since its start.
"""

from __future__ import annotations

import importlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from raydet.bench.machine import peak_process_bytes
from raydet.errors import ConfigError
from raydet.metrics.anomaly import ScoreHistogram, image_metrics

Engine = Literal["raydet", "scikit-learn"]
Protocol = Literal["pooled", "per image"]
ANOMALOUS_SHARE = 0.01
IMAGE_PIXELS = 720 * 1280

Pixels = tuple[NDArray[np.floating], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class AnomalyReport:
    """Median times from scores to AUROC, AP and FPR95, and memory."""

    protocol: Protocol
    pixels: int
    repeats: int
    seconds: dict[Engine, float]
    ratio: float
    """Median ratio of scikit-learn's time to ours, with its range."""
    ratio_low: float
    ratio_high: float
    added_bytes: dict[Engine, int]
    """Peak memory less that of the process before, with its pixels."""
    difference: float
    """The largest of the metrics."""


def bench_anomaly(protocol: Protocol, *, pixels: int, repeats: int, seed: int = 0) -> AnomalyReport:
    """Measure random pixels with both engines alternately: float16 for the pooled protocol, else float32.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    engines = _engines(protocol)
    found = random_pixels(protocol, pixels, seed=seed)
    seconds: dict[Engine, list[float]] = {engine: [] for engine in engines}
    outcomes: dict[Engine, tuple[float, float, float]] = {}
    for _ in range(repeats):
        for engine, measure in engines.items():
            started = time.perf_counter()
            outcomes[engine] = measure(*found)
            seconds[engine].append(time.perf_counter() - started)
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    added: dict[Engine, int] = {}
    for engine in engines:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            added[engine] = pool.apply(_memory, (engine, protocol, pixels, seed))
    return AnomalyReport(
        protocol=protocol,
        pixels=pixels,
        repeats=repeats,
        seconds={engine: statistics.median(times) for engine, times in seconds.items()},
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        added_bytes=added,
        difference=max(abs(a - b) for a, b in zip(*outcomes.values(), strict=True)),
    )


def random_pixels(protocol: Protocol, count: int, *, seed: int) -> Pixels:
    """Scores, higher for the anomalous ones, and which they are."""
    generator = np.random.default_rng(seed)
    is_anomalous_N = generator.random(count) < ANOMALOUS_SHARE
    scores_N = generator.normal(-8, 2.5, count) + 3 * is_anomalous_N
    return scores_N.astype(np.float16 if protocol == "pooled" else np.float32), is_anomalous_N


def _engines(protocol: Protocol) -> dict[Engine, Callable[..., tuple[float, float, float]]]:
    try:
        metrics = importlib.import_module("sklearn.metrics")
    except ImportError as error:
        raise ConfigError(
            "the comparison needs scikit-learn, it is not installed: pip install scikit-learn"
        ) from error

    def theirs(
        scores_N: NDArray[np.floating], is_anomalous_N: NDArray[np.bool_]
    ) -> tuple[float, float, float]:
        false_P, true_P, _ = metrics.roc_curve(is_anomalous_N, scores_N, drop_intermediate=False)
        fpr95 = false_P[(true_P >= 0.95).argmax()]
        auroc = metrics.roc_auc_score(is_anomalous_N, scores_N)
        return float(auroc), float(metrics.average_precision_score(is_anomalous_N, scores_N)), float(fpr95)

    def pooled(
        scores_N: NDArray[np.floating], is_anomalous_N: NDArray[np.bool_]
    ) -> tuple[float, float, float]:
        histogram = ScoreHistogram.of(scores_N, is_anomalous_N)
        return histogram.auroc(), histogram.average_precision(), histogram.fpr95()

    def per_image(
        scores_N: NDArray[np.floating], is_anomalous_N: NDArray[np.bool_]
    ) -> tuple[float, float, float]:
        found = image_metrics(scores_N, is_anomalous_N)
        return found.auroc, found.average_precision, found.fpr95

    return {"raydet": pooled if protocol == "pooled" else per_image, "scikit-learn": theirs}


def _memory(engine: Engine, protocol: Protocol, pixels: int, seed: int) -> int:
    """Bytes that the metrics add to this process at their peak."""
    measure = _engines(protocol)[engine]
    found = random_pixels(protocol, pixels, seed=seed)
    measure(*(x[:1000] for x in found))  # imports and tables
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of making the pixels
    before = psutil.Process().memory_info().rss
    measure(*found)
    return max(0, peak_process_bytes() - before)
