"""Silent ages and AP against silence, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from raydet.config import DetectionTask, EventProtocol
from raydet.metrics.coco import GroundTruth
from raydet.metrics.event_evaluation import measure_events
from raydet.metrics.event_filter import FrameTimes
from raydet.metrics.names import silence_metrics
from raydet.metrics.protocol_card import ProtocolCard
from raydet.metrics.silence import bins_of, silent_ages

CARD = ProtocolCard(0.0, 0.0, 0.0, 0.0, ("a", "b"), "mean over classes", "any", 0.0, 0.5, None)
EVERYTHING = EventProtocol(
    skip_ms=0, min_diagonal_px=0, min_side_px=0, tolerance_ms=0, silence_bins=(0, 1, 3, 9)
)


def test_silent_ages_equal_a_search_back_in_time() -> None:
    generator = np.random.default_rng(0)
    histograms = (generator.random((30, 4, 24, 32)) < 0.0004).astype(np.uint8)
    corners = generator.uniform(-4, 30, (200, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(0.5, 9, (200, 2))], axis=1)
    frames = generator.integers(0, 30, 200)
    expected = []
    for box, frame in zip(boxes, frames, strict=True):
        pixels = [
            (x, y)
            for x in range(32)
            for y in range(24)
            if box[0] < x + 1 and x < box[2] and box[1] < y + 1 and y < box[3]
        ]
        age = 0
        while age <= frame and not any(histograms[frame - age, :, y, x].any() for x, y in pixels):
            age += 1
        expected.append(age)
    found = silent_ages(histograms, boxes, frames)
    assert found.tolist() == expected
    assert {0, 1, 5} < set(expected)
    assert any(age == frame + 1 for age, frame in zip(expected, frames, strict=True))  # never an event


def test_a_sequence_without_boxes_has_no_ages() -> None:
    assert silent_ages(np.ones((2, 1, 4, 4)), np.zeros((0, 4)), np.zeros(0, np.int64)).tolist() == []


def plain_ap50(
    truth: GroundTruth, rows: NDArray[np.float64], is_mine: NDArray[np.bool_], label: int
) -> float | None:
    """AP50 of one class by its definition: the truths that are not mine may be met, and do not count."""
    num_objects = int((is_mine & (truth.labels == label)).sum())
    if not num_objects:
        return None
    outcomes = []
    for image in range(truth.num_images):
        objects = [
            m for m in range(len(truth.labels)) if truth.image_index[m] == image and truth.labels[m] == label
        ]
        taken: set[int] = set()
        found = [row for row in rows if row[0] == image and row[6] == label]
        for row in sorted(found, key=lambda row: -row[5]):
            overlaps = {m: iou(row[1:5], truth.boxes_xywh[m]) for m in objects if m not in taken}
            near = {m: value for m, value in overlaps.items() if value >= 0.5}
            best = max(near, key=lambda m: (bool(is_mine[m]), near[m]), default=None)
            if best is None:
                outcomes.append((row[5], False))
                continue
            taken.add(best)
            if is_mine[best]:
                outcomes.append((row[5], True))
    outcomes.sort(key=lambda outcome: -outcome[0])
    points = []
    for count in range(1, len(outcomes) + 1):
        right = sum(is_right for _, is_right in outcomes[:count])
        points.append((right / num_objects, right / count))
    levels = [max((p for r, p in points if r >= level), default=0.0) for level in np.linspace(0, 1, 101)]
    return float(np.mean(levels))


def iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return float(shared / (a[2] * a[3] + b[2] * b[3] - shared))


@pytest.mark.parametrize("seed", range(4))
def test_ap_of_each_silence_equals_its_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    images, labels = generator.integers(0, 8, 90), generator.integers(0, 2, 90)
    xywh = np.concatenate([generator.uniform(0, 90, (90, 2)), generator.uniform(15, 40, (90, 2))], axis=1)
    hit = generator.integers(0, 90, 150)
    found = xywh[hit] + generator.normal(0, 3, (150, 4))
    rows = np.column_stack([images[hit], found, generator.permutation(150) / 150, labels[hit]])
    truth = GroundTruth(8, images, xywh, labels)
    ages = generator.choice([0, 1, 2, 3, 8, 9, 40], 90)
    frames = FrameTimes(np.zeros(8, np.int64), np.arange(1, 9))
    result, _ = measure_events(
        DetectionTask(), EVERYTHING, truth, rows, ("a", "b"), frames=frames, card=CARD, ages_M=ages
    )
    for edge, end in ((0, 1), (1, 3), (3, 9), (9, 1000)):
        is_mine = (ages >= edge) & (ages < end)
        known = [x for label in (0, 1) if (x := plain_ap50(truth, rows, is_mine, label)) is not None]
        assert result.metrics[f"mAP_50_silent_{edge}"] == pytest.approx(np.mean(known), abs=1e-12)


def test_one_bin_of_everything_is_ap50_and_unknown_ages_give_nothing() -> None:
    generator = np.random.default_rng(0)
    images, labels = np.repeat(np.arange(6), 4), np.arange(24) % 2
    xywh = np.concatenate([generator.uniform(0, 90, (24, 2)), generator.uniform(15, 40, (24, 2))], axis=1)
    rows = np.column_stack([images, xywh + generator.normal(0, 4, (24, 4)), generator.random(24), labels])
    truth = GroundTruth(6, images, xywh, labels, is_crowd=np.arange(24) % 5 == 0)
    frames = FrameTimes(np.zeros(6, np.int64), np.arange(1, 7))
    protocol = EVERYTHING.model_copy(update={"silence_bins": (0,)})
    for ages in (np.arange(24), None):
        result, records = measure_events(
            DetectionTask(), protocol, truth, rows, ("a", "b"), frames=frames, card=CARD, ages_M=ages
        )
        expected = result.metrics["mAP_50"] if ages is not None else None
        assert result.metrics["mAP_50_silent_0"] == (
            None if expected is None else pytest.approx(expected, abs=1e-12)
        )
        assert np.isnan(records.scores("mAP_50_silent_0", np.ones((2, 6)))).all() == (ages is None)


def test_every_age_has_the_bin_that_its_metric_says() -> None:
    labels = [metric.label.removeprefix("AP50 silent ") for metric in silence_metrics(EventProtocol())]
    assert labels == ["0", "1-2", "3-4", "5-8", "9+"]
    by_bin = [labels[number] for number in bins_of(np.arange(12), EventProtocol().silence_bins)]
    assert by_bin == ["0", *["1-2"] * 2, *["3-4"] * 2, *["5-8"] * 4, *["9+"] * 3]
