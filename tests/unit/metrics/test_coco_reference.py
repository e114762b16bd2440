"""Metrics and match records equal those of pycocotools to the last bit."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from raydet.bench.evaluation import SetSize, random_set
from raydet.metrics import matching
from raydet.metrics.coco import CocoResult, GroundTruth, evaluate_coco
from raydet.metrics.matches import MatchRecords
from raydet.metrics.reference import evaluate_with_pycocotools
from raydet.metrics.sizes import SizeBins

Case = tuple[GroundTruth, NDArray[np.float64], tuple[str, ...]]
FRACTIONS = SizeBins((0.2, 0.5), "fraction")


def hard_set(seed: int) -> Case:
    """Few images, some of them empty; crowds; sides that make areas on the edges of the bins; more than 100
    detections; equal scores; classes without objects.

    With an odd seed all boxes lie on whole pixels, so that many overlaps are equal, or exactly a threshold.
    """
    generator = np.random.default_rng(seed)
    num_images, num_classes, num_objects = (int(generator.integers(1, most)) for most in (15, 5, 60))
    sides = generator.choice([8.0, 16.0, 31.9, 32.0, 40.0, 64.0, 96.0, 100.0], (num_objects, 2))
    boxes = np.concatenate([generator.uniform(0, 60, (num_objects, 2)), sides], axis=1)
    images = generator.integers(0, num_images, num_objects)
    labels = generator.integers(0, max(1, num_classes - 1), num_objects)
    num_rows = int(generator.integers(0, 900))
    hit = generator.integers(0, num_objects, num_rows)
    found = boxes[hit] + generator.normal(0, generator.choice([0.0, 3.0, 8.0]), (num_rows, 4))
    if seed % 2:
        boxes, found = boxes.round(), found.round()
    scores = generator.integers(1, 8 if seed % 3 else 10**6, num_rows) / 10**6
    is_other = generator.random(num_rows) < 0.2
    row_labels = np.where(is_other, generator.integers(0, num_classes, num_rows), labels[hit])
    truth = GroundTruth(
        num_images,
        images,
        boxes,
        labels,
        areas=None if seed % 4 else generator.choice([100.0, 1024.0, 9216.0, 20000.0], num_objects),
        is_crowd=generator.random(num_objects) < 0.15,
        sizes_hw=generator.integers(50, 300, (num_images, 2)),
    )
    rows = np.column_stack([images[hit], found, scores, row_labels])
    return truth, rows, tuple(f"class_{label}" for label in range(num_classes))


def assert_same(ours: tuple[CocoResult, MatchRecords], reference: tuple[CocoResult, MatchRecords]) -> None:
    assert ours[0] == reference[0]
    for column in fields(MatchRecords):
        mine, other = getattr(ours[1], column.name), getattr(reference[1], column.name)
        assert mine.dtype == other.dtype, column.name
        np.testing.assert_array_equal(mine, other, err_msg=column.name)


@pytest.mark.parametrize("bins", [SizeBins(), SizeBins((16.0, 64.0)), FRACTIONS], ids=str)
def test_hard_sets(bins: SizeBins) -> None:
    for seed in range(16):
        case = hard_set(seed)
        assert_same(evaluate_coco(*case, size_bins=bins), evaluate_with_pycocotools(*case, size_bins=bins))


def test_the_hard_sets_contain_the_hard_cases() -> None:
    cases = [hard_set(seed) for seed in range(16)]
    most = max(
        np.unique(rows[:, [0, 6]], axis=0, return_counts=True)[1].max() for _, rows, _ in cases if len(rows)
    )
    assert most > 100
    assert any(len(set(truth.image_index)) < truth.num_images for truth, _, _ in cases)
    assert any(set(rows[:, 6]) > set(truth.labels) for truth, rows, _ in cases)
    assert any(set(truth.areas) & {1024.0, 9216.0} for truth, _, _ in cases if truth.areas is not None)


def test_a_realistic_set() -> None:
    case = random_set(SetSize(images=60, detections=100, classes=6))
    ours = evaluate_coco(*case)
    assert_same(ours, evaluate_with_pycocotools(*case))
    assert all(value is not None and 0.02 < value < 0.98 for value in ours[0].metrics.values())


def test_no_detections_and_no_objects() -> None:
    truth, rows, classes = hard_set(0)
    none = GroundTruth(3, np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64))
    for case in (
        (truth, rows[:0], classes),
        (none, rows[rows[:, 0] < 3], classes),
        (none, rows[:0], classes),
    ):
        assert_same(evaluate_coco(*case), evaluate_with_pycocotools(*case))


def test_the_size_of_a_block_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_set(SetSize(images=10, detections=50, classes=2))
    whole = evaluate_coco(*case)
    monkeypatch.setattr(matching, "BLOCK_PAIRS", 7)
    assert_same(evaluate_coco(*case), whole)


def test_ids_are_kept() -> None:
    truth, rows, classes = hard_set(1)
    names = [f"image_{index}" for index in range(truth.num_images)]
    named = {"image_ids": names, "group_ids": [name[-1] for name in names]}
    assert_same(
        evaluate_coco(truth, rows, classes, **named),
        evaluate_with_pycocotools(truth, rows, classes, **named),
    )


@pytest.mark.parametrize(("column", "value"), [(0, 99), (0, -1), (6, 99)])
def test_a_detection_of_an_unknown_image_or_label_raises(column: int, value: float) -> None:
    truth, rows, classes = hard_set(1)
    assert len(rows) > 0
    rows[0, column] = value
    with pytest.raises(ValueError, match="images and labels of detections must be below"):
        evaluate_coco(truth, rows, classes)[0]


def test_fractions_do_not_depend_on_the_resolution() -> None:
    """The same images four times as large, and every second one half as large."""
    truth, rows, classes = hard_set(3)
    truth = replace(truth, areas=None)
    small = evaluate_coco(truth, rows, classes, size_bins=FRACTIONS)[0]
    for scale in (np.full(truth.num_images, 4.0), np.where(np.arange(truth.num_images) % 2, 0.5, 1.0)):
        assert truth.sizes_hw is not None
        larger = replace(
            truth,
            boxes_xywh=truth.boxes_xywh * scale[truth.image_index, None],
            sizes_hw=truth.sizes_hw * scale[:, None],
        )
        rows_of_it = rows.copy()
        rows_of_it[:, 1:5] *= scale[rows[:, 0].astype(int), None]
        assert evaluate_coco(larger, rows_of_it, classes, size_bins=FRACTIONS)[0] == small
        assert evaluate_coco(larger, rows_of_it, classes)[0] != small


def test_fractions_equal_pixels_if_all_images_have_one_size() -> None:
    truth, rows, classes = hard_set(3)
    truth = replace(truth, sizes_hw=np.tile([160, 160], (truth.num_images, 1)))
    pixels = evaluate_coco(truth, rows, classes, size_bins=SizeBins((40.0, 80.0)))[0]
    assert evaluate_coco(truth, rows, classes, size_bins=SizeBins((0.25, 0.5), "fraction"))[0] == pixels
    with pytest.raises(ValueError, match="the images' sizes"):
        evaluate_coco(replace(truth, sizes_hw=None), rows, classes, size_bins=FRACTIONS)[0]
