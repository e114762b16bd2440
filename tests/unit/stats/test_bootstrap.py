"""AP from match records against pycocotools, and on resampled sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.metrics.coco import GroundTruth, evaluate_coco
from raydet.metrics.matches import (
    MatchRecords,
    average_precisions,
    mean_average_precision,
    mean_average_precisions,
)
from raydet.metrics.records import RECORDS, read_records, write_records
from raydet.metrics.reference import evaluate_with_pycocotools
from raydet.stats.bootstrap import paired_differences, resample_weights

CLASSES = ("a", "b", "c", "never")


def random_set(
    seed: int, *, num_images: int = 12, noise: float = 4.0
) -> tuple[GroundTruth, NDArray[np.float64]]:
    """Boxes with detections: most boxes are detected, some twice, some detections hit nothing; scores have ties."""
    generator = np.random.default_rng(seed)
    count = 5 * num_images
    boxes = np.concatenate(
        [generator.uniform(0, 60, (count, 2)), generator.uniform(15, 60, (count, 2))], axis=1
    )
    images, labels = generator.integers(0, num_images, count), generator.integers(0, 3, count)
    crowd = generator.random(count) < 0.05
    truth = GroundTruth(num_images, images, boxes, labels, is_crowd=crowd)
    picked = generator.integers(0, count, 2 * count)
    wrong = generator.random(len(picked)) < 0.2
    rows = np.column_stack(
        [
            images[picked],
            boxes[picked] + generator.normal(0, noise, (len(picked), 4)),
            generator.integers(1, 50, len(picked)) / 50,
            np.where(wrong, (labels[picked] + 1) % 3, labels[picked]),
        ]
    )
    return truth, rows


def repeated(
    truth: GroundTruth, rows: NDArray[np.float64], times: NDArray[np.int64]
) -> tuple[GroundTruth, NDArray[np.float64]]:
    """The set with image i repeated `times[i]` times."""
    assert truth.is_crowd is not None
    boxes, images, labels, crowd, found = [], [], [], [], [np.zeros((0, 7))]
    number = 0
    for image, count in enumerate(times):
        for _ in range(count):
            mine = truth.image_index == image
            boxes.append(truth.boxes_xywh[mine])
            labels.append(truth.labels[mine])
            crowd.append(truth.is_crowd[mine])
            images.append(np.full(mine.sum(), number))
            copies = rows[rows[:, 0] == image].copy()
            copies[:, 0] = number
            found.append(copies)
            number += 1
    return (
        GroundTruth(
            number,
            np.concatenate(images),
            np.concatenate(boxes),
            np.concatenate(labels),
            is_crowd=np.concatenate(crowd),
        ),
        np.concatenate(found),
    )


@pytest.mark.parametrize("seed", range(5))
def test_unweighted_ap_equals_pycocotools(seed: int) -> None:
    _, records = evaluate_coco(*random_set(seed), CLASSES)
    result, _ = evaluate_with_pycocotools(*random_set(seed), CLASSES)
    assert mean_average_precision(records) == pytest.approx(result.metrics["mAP"], abs=1e-12)
    per_class = np.nanmean(average_precisions(records)[0, :, :3], axis=0)
    assert per_class.tolist() == pytest.approx([result.per_class_ap[name] for name in CLASSES[:3]], abs=1e-12)
    assert np.isnan(average_precisions(records)[0, :, 3]).all()
    assert average_precisions(records)[0, 0, :3].mean() == pytest.approx(result.metrics["mAP_50"], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_weight_equals_a_repetition(seed: int) -> None:
    """Against pycocotools on a set with repeated images; without ties, whose order within an image would differ."""
    truth, rows = random_set(seed)
    rows[:, 5] = np.random.default_rng(seed).permutation(len(rows)) / len(rows)
    times = np.random.default_rng(seed).integers(0, 4, truth.num_images)
    _, records = evaluate_coco(truth, rows, CLASSES)
    expected = evaluate_with_pycocotools(*repeated(truth, rows, times), CLASSES)[0].metrics["mAP"]
    other = np.random.default_rng(99).integers(0, 4, truth.num_images)  # weightings are independent
    found = mean_average_precisions(records, np.array([other, times], dtype=float))
    assert found[1] == pytest.approx(expected, abs=1e-12)


def test_no_detections_and_no_objects() -> None:
    truth, _ = random_set(0)
    _, records = evaluate_coco(truth, np.zeros((0, 7)), CLASSES)
    assert mean_average_precision(records) == 0.0
    nothing = GroundTruth(3, np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64))
    _, records = evaluate_coco(nothing, np.zeros((0, 7)), CLASSES)
    assert np.isnan(mean_average_precision(records))


def test_records_round_trip_through_a_file(tmp_path: Path) -> None:
    names = [f"image_{index}" for index in range(12)]
    _, records = evaluate_coco(
        *random_set(0), CLASSES, image_ids=names, group_ids=[name[:9] for name in names]
    )
    write_records(tmp_path / RECORDS, records)
    again = read_records(tmp_path)
    assert isinstance(again, MatchRecords)
    assert again.image_ids.tolist() == names
    assert mean_average_precision(again) == mean_average_precision(records)
    whole = (tmp_path / "records.npz").read_bytes()
    for damaged in (b"nothing", b"", whole[: len(whole) // 2]):
        (tmp_path / "records.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="is not a file of records"):
            read_records(tmp_path)


def test_groups_are_drawn_whole() -> None:
    groups = np.array(["x", "x", "y", "z", "z", "z"])
    for weights in resample_weights(groups, count=50, seed=0):
        assert weights[0] == weights[1]
        assert weights[3] == weights[4] == weights[5]
        assert weights[0] + weights[2] + weights[3] == 3


def test_a_model_equals_itself_and_differs_from_a_better_one() -> None:
    truth, worse = random_set(0, num_images=60, noise=8.0)
    _, better = random_set(0, num_images=60, noise=2.0)
    a, b = (evaluate_coco(truth, rows, CLASSES)[1] for rows in (better, worse))
    assert not paired_differences([a], [a], "mAP", count=50).any()
    differences = paired_differences([a], [b], "mAP", count=200)
    low, high = np.quantile(differences, [0.025, 0.975])
    assert 0 < low < mean_average_precision(a) - mean_average_precision(b) < high
    np.testing.assert_array_equal(paired_differences([b], [a], "mAP", count=200), -differences)


def test_records_of_different_images_cannot_be_paired() -> None:
    (_, a), (_, b) = (
        evaluate_coco(*random_set(seed, num_images=size), CLASSES) for seed, size in ((0, 12), (0, 13))
    )
    with pytest.raises(ValueError, match="same images"):
        paired_differences([a], [b], "mAP")


@pytest.mark.exhaustive
def test_the_interval_covers_the_true_difference() -> None:
    """The difference of two models on 80 images, against their difference on the whole population of 4000."""
    generator = np.random.default_rng(2)
    truth, a_rows = random_set(1, num_images=4000, noise=5.0)
    _, b_rows = random_set(1, num_images=4000, noise=5.5)
    for rows in (a_rows, b_rows):
        rows[:, 5] = generator.random(len(rows))  # without ties, as real scores are
    a, b = (evaluate_coco(truth, rows, CLASSES)[1] for rows in (a_rows, b_rows))
    population = mean_average_precision(a) - mean_average_precision(b)
    num_studies, covered = 400, 0
    for study in range(num_studies):
        chosen = np.sort(generator.choice(4000, 80, replace=False))
        resampled = paired_differences([only(a, chosen)], [only(b, chosen)], "mAP", count=200, seed=study)
        low, high = np.quantile(resampled, [0.025, 0.975])
        covered += low <= population <= high
    assert 0.93 <= covered / num_studies <= 0.97


def only(records: MatchRecords, chosen: NDArray[np.int64]) -> MatchRecords:
    """The records of some images."""
    place = np.full(len(records.image_ids), -1)
    place[chosen] = np.arange(len(chosen))
    mine = place[records.image_index_N] >= 0
    return MatchRecords(
        image_ids=records.image_ids[chosen],
        group_ids=records.group_ids[chosen],
        objects_IK=records.objects_IK[chosen],
        image_index_N=place[records.image_index_N[mine]],
        labels_N=records.labels_N[mine],
        scores_N=records.scores_N[mine],
        is_right_NT=records.is_right_NT[mine],
        is_wrong_NT=records.is_wrong_NT[mine],
    )
