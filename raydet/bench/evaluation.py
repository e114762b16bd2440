"""What the evaluation of a set costs, against pycocotools.

Both take turns, and the ratio is the median over the turns: a busy machine slows both. Memory is measured in
processes of their own, because a process only knows the most that it has ever had.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from raydet.bench.machine import peak_process_bytes
from raydet.metrics.coco import GroundTruth, evaluate_with_records
from raydet.metrics.matches import MatchRecords
from raydet.metrics.reference import evaluate_with_pycocotools

Engine = Literal["raydet", "pycocotools"]
ENGINES = {"raydet": evaluate_with_records, "pycocotools": evaluate_with_pycocotools}
OBJECTS_PER_IMAGE = 7
"""As COCO has them."""
SIZE_HW = (480, 640)


@dataclass(frozen=True, slots=True)
class SetSize:
    """Of a random evaluation set."""

    images: int
    detections: int
    """Per image."""
    classes: int


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Times are of `evaluate_with_records` and its witness: from arrays to metrics and match records."""

    size: SetSize
    repeats: int
    seconds: dict[Engine, float]
    """Median."""
    ratio: float
    """pycocotools' time over ours: median over the turns."""
    ratio_low: float
    ratio_high: float
    set_bytes: int
    """The process before it evaluates: Python, the libraries and the set."""
    peak_bytes: dict[Engine, int]
    """The most it has had in the end."""
    is_equal: bool
    """All numbers and records of both, to the last bit."""


def bench_evaluation(size: SetSize, *, repeats: int, seed: int = 0) -> EvaluationReport:
    """Evaluate a random set by both engines, in turns."""
    truth, rows, classes = random_set(size, seed=seed)
    seconds: dict[Engine, list[float]] = {"raydet": [], "pycocotools": []}
    outcomes = {}
    for _ in range(repeats):
        for engine, times in seconds.items():
            started = time.perf_counter()
            outcomes[engine] = ENGINES[engine](truth, rows, classes)
            times.append(time.perf_counter() - started)
    ratios = [theirs / ours for ours, theirs in zip(seconds["raydet"], seconds["pycocotools"], strict=True)]
    (result, records), (other_result, other_records) = outcomes["raydet"], outcomes["pycocotools"]
    peaks = {engine: _in_own_process(engine, size, seed) for engine in seconds}
    return EvaluationReport(
        size=size,
        repeats=repeats,
        seconds={engine: statistics.median(times) for engine, times in seconds.items()},
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        set_bytes=peaks["raydet"][0],
        peak_bytes={engine: after for engine, (_, after) in peaks.items()},
        is_equal=result == other_result and is_equal(records, other_records),
    )


def is_equal(a: MatchRecords, b: MatchRecords) -> bool:
    """Every column, to the last bit."""
    return all(np.array_equal(getattr(a, column.name), getattr(b, column.name)) for column in fields(a))


def random_set(size: SetSize, *, seed: int = 0) -> tuple[GroundTruth, NDArray[np.float64], tuple[str, ...]]:
    """Objects of all sizes, and a detector's output: of each object a few boxes, more or less apart, and background.

    Returns:
        Truth, detections and class names as `evaluate_with_records` takes them.
    """
    generator = np.random.default_rng(seed)
    num_objects = size.images * OBJECTS_PER_IMAGE
    boxes = _random_boxes(generator, num_objects)
    images = np.arange(num_objects) // OBJECTS_PER_IMAGE
    labels = generator.integers(0, size.classes, num_objects)
    truth = GroundTruth(size.images, images, boxes, labels, sizes_hw=np.tile(SIZE_HW, (size.images, 1)))
    num_rows = size.images * size.detections
    row_images = np.arange(num_rows) // size.detections
    is_background = generator.random(num_rows) < 0.6
    near = row_images * OBJECTS_PER_IMAGE + generator.integers(0, OBJECTS_PER_IMAGE, num_rows)
    shift = generator.normal(0, 0.12, (num_rows, 4)) * boxes[near][:, [2, 3, 2, 3]]
    found = np.where(is_background[:, None], _random_boxes(generator, num_rows), boxes[near] + shift)
    found[:, 2:] = np.maximum(found[:, 2:], 1.0)
    scores = np.where(is_background, generator.beta(1, 12, num_rows), generator.beta(2, 3, num_rows))
    is_other = is_background | (generator.random(num_rows) < 0.1)
    row_labels = np.where(is_other, generator.integers(0, size.classes, num_rows), labels[near])
    rows = np.column_stack([row_images, found, scores.astype(np.float32), row_labels])
    return truth, rows, tuple(f"class_{label}" for label in range(size.classes))


def _random_boxes(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    height, width = SIZE_HW
    sides = np.exp(generator.uniform(np.log(12), np.log(300), (count, 2)))
    corners = generator.random((count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corners, sides], axis=1)


def _in_own_process(engine: Engine, size: SetSize, seed: int) -> tuple[int, int]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peaks, (engine, size, seed))


def _peaks(engine: Engine, size: SetSize, seed: int) -> tuple[int, int]:
    """What this process has before it evaluates, and the most that it has had after."""
    truth, rows, classes = random_set(size, seed=seed)
    before = psutil.Process().memory_info().rss
    ENGINES[engine](truth, rows, classes)
    return before, peak_process_bytes()
