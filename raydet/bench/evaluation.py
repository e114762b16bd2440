"""The cost of evaluating a data set, compared with pycocotools.

Both alternate, and the ratio is the median over the rounds, so that load on the machine affects both. Memory is
measured in separate processes, because a process only knows its peak since its start.
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
from raydet.metrics.coco import GroundTruth, evaluate_coco
from raydet.metrics.matches import MatchRecords
from raydet.metrics.reference import evaluate_with_pycocotools

Engine = Literal["raydet", "pycocotools"]
ENGINES = {"raydet": evaluate_coco, "pycocotools": evaluate_with_pycocotools}
OBJECTS_PER_IMAGE = 7  # as in COCO
SIZE_HW = (480, 640)


@dataclass(frozen=True, slots=True)
class SetSize:
    """Size of a random evaluation set; detections are per image."""

    images: int
    detections: int
    classes: int


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Median times from arrays to metrics and match records, and memory."""

    size: SetSize
    repeats: int
    seconds: dict[Engine, float]
    ratio: float
    """Median ratio of pycocotools' time to ours, with its range."""
    ratio_low: float
    ratio_high: float
    set_bytes: int
    """Memory of a process before it evaluates: Python, the libraries and the set."""
    peak_bytes: dict[Engine, int]
    is_equal: bool
    """Both engines give bit-identical numbers and records."""


def bench_evaluation(size: SetSize, *, repeats: int, seed: int = 0) -> EvaluationReport:
    """Evaluate a random set with both engines alternately."""
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
    peaks = {}
    for engine in seconds:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[engine] = pool.apply(_memory, (engine, size, seed))
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
    """True if all columns are bit-identical."""
    return all(np.array_equal(getattr(a, column.name), getattr(b, column.name)) for column in fields(a))


def random_set(size: SetSize, *, seed: int = 0) -> tuple[GroundTruth, NDArray[np.float64], tuple[str, ...]]:
    """Random truth, detections (a few shifted boxes per object, and background) and class names for `evaluate_coco`."""
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


def _memory(engine: Engine, size: SetSize, seed: int) -> tuple[int, int]:
    """Bytes of this process before the evaluation, and its peak after it."""
    truth, rows, classes = random_set(size, seed=seed)
    before = psutil.Process().memory_info().rss
    ENGINES[engine](truth, rows, classes)
    return before, peak_process_bytes()
