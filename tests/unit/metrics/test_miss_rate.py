"""Log-average miss rate against its definition, written as plain loops, and KAIST's published figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from raydet.metrics.coco import GroundTruth
from raydet.metrics.kaist import miss_rates_of, read_annotations, read_detections
from raydet.metrics.miss_rate import FPPI, log_average, mean_miss_rate, miss_rates

Row = NDArray[np.float64]


def plain_overlap(row: Row, box: Row, ignored: bool) -> float:
    width = min(row[1] + row[3], box[0] + box[2]) - max(row[1], box[0])
    height = min(row[2] + row[4], box[1] + box[3]) - max(row[2], box[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared, area = width * height, row[3] * row[4]
    return shared / (area if ignored else area + box[2] * box[3] - shared)


def plain_miss_rate(truth: GroundTruth, rows: Row, label: int) -> float:
    """The definition as plain loops over detections."""
    assert truth.is_crowd is not None
    mine = [index for index in range(len(truth.labels)) if truth.labels[index] == label]
    taken: set[int] = set()
    curve, num_right, num_wrong = [(0.0, 0.0)], 0, 0
    num_objects = sum(not truth.is_crowd[index] for index in mine)
    for row in sorted(rows[rows[:, 6] == label], key=lambda row: -row[5]):
        here = [index for index in mine if truth.image_index[index] == row[0]]
        near = {
            index: plain_overlap(row, truth.boxes_xywh[index], bool(truth.is_crowd[index])) for index in here
        }
        near = {index: overlap for index, overlap in near.items() if overlap >= 0.5}
        free = [index for index in near if not truth.is_crowd[index] and index not in taken]
        if free:
            taken.add(max(free, key=lambda index: near[index]))
            num_right += 1
        elif not any(truth.is_crowd[index] for index in near):
            num_wrong += 1
        curve.append((num_wrong / truth.num_images, num_right / num_objects))
    logarithms = [
        math.log(max(1e-10, 1 - max(recall for fppi, recall in curve if fppi <= point))) for point in FPPI
    ]
    return math.exp(sum(logarithms) / len(logarithms))


@pytest.mark.parametrize("seed", range(6))
def test_the_miss_rate_matches_its_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_images, count = 40, 150
    boxes = np.concatenate(
        [generator.uniform(0, 80, (count, 2)), generator.uniform(20, 90, (count, 2))], axis=1
    )
    images, labels = generator.integers(0, num_images, count), generator.integers(0, 2, count)
    truth = GroundTruth(num_images, images, boxes, labels, is_crowd=generator.random(count) < 0.3)
    hit = generator.integers(0, count, 400)
    found = boxes[hit] + generator.normal(0, 5, (400, 4))
    wrong = generator.random(400) < 0.25
    found[wrong, :2] += 60
    scores = generator.permutation(400) / 400 - wrong * 0.3
    rows = np.column_stack([images[hit], found, scores, labels[hit]])
    expected = [plain_miss_rate(truth, rows, label) for label in (0, 1)]
    assert all(0.05 < rate < 0.95 for rate in expected)
    rates = miss_rates(truth, rows, 3)
    assert rates[:2].tolist() == pytest.approx(expected, abs=1e-12)
    assert np.isnan(rates[2])
    assert mean_miss_rate(truth, rows, 3, min_height_px=0.0) == pytest.approx(np.mean(expected), abs=1e-12)


def test_cases_match_a_manual_computation() -> None:
    right, wrong = np.array([True, False, True, True]), np.array([False, True, False, False])
    # 1 wrong one in 10 images: four of the points lie below 0.1, where one of four objects is found.
    expected = 0.75 ** (4 / 9) * 0.25 ** (5 / 9)
    assert log_average(right, wrong, num_objects=4, num_images=10) == pytest.approx(expected)
    # A wrong one before all others: below its point nothing is found.
    assert log_average(~right, ~wrong, num_objects=1, num_images=2) == pytest.approx((1e-10) ** (2 / 9))
    none = np.zeros(0, dtype=bool)
    assert log_average(none, none, num_objects=4, num_images=10) == 1.0


def test_low_objects_are_ignored() -> None:
    boxes = np.array([[0.0, 0.0, 30.0, 60.0], [100.0, 0.0, 30.0, 54.0]])
    truth = GroundTruth(1, np.array([0, 0]), boxes, np.array([0, 0]))
    high, low = ([0.0, *box, score, 0.0] for box, score in zip(boxes, (0.8, 0.9), strict=True))
    assert mean_miss_rate(truth, np.array([low, high]), 1, min_height_px=55.0) == pytest.approx(1e-10)
    assert mean_miss_rate(truth, np.array([low]), 1, min_height_px=55.0) == 1.0
    assert mean_miss_rate(truth, np.array([high]), 1, min_height_px=20.0) == pytest.approx(0.5)
    assert mean_miss_rate(truth, np.array([high]), 1, min_height_px=99.0) is None


@pytest.mark.parametrize("method", ["INSANet", "MLPD"])
def test_published_kaist_results(method: str, shared_data: Path) -> None:
    folder = shared_data / "kaist_eval_fixture"
    if not folder.is_dir():
        pytest.skip("KAIST's annotations are not beside this clone (its licence forbids to ship them)")
    test_set = read_annotations(folder / "KAIST_annotation.json")
    rows = read_detections(folder / f"{method}_result.txt", test_set)
    figures = json.loads((folder / "expected.json").read_text())[method]
    published = figures["log_average_miss_rate_percent_published"]
    rates = miss_rates_of(test_set, rows, as_published=True)
    assert {name: 100 * (rate or 0) for name, rate in rates.items()} == pytest.approx(published, abs=0.006)
    complete = miss_rates_of(test_set, rows, as_published=False)
    assert all((complete[name] or 0) >= (rate or 0) for name, rate in rates.items())
