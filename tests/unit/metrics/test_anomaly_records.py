"""Counted scores of images: both protocols, and weights as repeated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from raydet.metrics.anomaly import ScoreHistogram, image_metrics
from raydet.metrics.anomaly_records import IMAGE_METRICS, POOLED, AnomalyRecords, image_rows
from raydet.metrics.names import AP, AUROC, FPR95, PER_IMAGE_AP, PER_IMAGE_AUROC, PER_IMAGE_FPR95
from raydet.metrics.records import RECORDS, read_records, score, write_records
from raydet.stats.bootstrap import resampled_scores

Image = tuple[NDArray[np.float32], NDArray[np.bool_]]

METRICS = (*POOLED, *IMAGE_METRICS)


def random_images(seed: int, count: int = 6) -> list[Image]:
    """The last image has no anomalous pixel, the one before it no other; all have a level of their own."""
    generator = np.random.default_rng(seed)
    images = []
    for number in range(count):
        truth = generator.random((5, 8)) < {count - 1: 0.0, count - 2: 1.0}.get(number, 0.3)
        truth[0, 0] |= number < count - 2
        scores = generator.normal(truth + generator.normal(0, 3), 1).round(1)
        images.append((scores.astype(np.float32), truth))
    return images


def records_of(images: list[Image]) -> AnomalyRecords:
    rows = [image_rows(position, *image) for position, image in enumerate(images)]
    names = np.array([f"image{number}" for number in range(len(images))])
    groups = np.array([f"town{number // 2}" for number in range(len(images))])
    order = np.random.default_rng(0).permutation(sum(map(len, rows)))
    return AnomalyRecords.of_rows(np.concatenate(rows)[order], image_ids=names, group_ids=groups)


def pooled(images: list[Image]) -> ScoreHistogram:
    scores, truth = (np.concatenate([image[side].ravel() for image in images]) for side in (0, 1))
    return ScoreHistogram.of(scores, truth)


def test_both_protocols_equal_scikit_learn() -> None:
    images = random_images(0)
    records = records_of(images)
    scores = np.concatenate([scores.ravel() for scores, _ in images]).astype(np.float16).astype(float)
    truth = np.concatenate([truth.ravel() for _, truth in images])
    assert score(records, AUROC) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert score(records, AP) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    both = [(scores.ravel(), truth.ravel()) for scores, truth in images[:-2]]
    aurocs = [roc_auc_score(truth, scores) for scores, truth in both]
    precisions = [average_precision_score(truth, scores) for scores, truth in both]
    assert score(records, PER_IMAGE_AUROC) == pytest.approx(np.mean(aurocs), abs=1e-12)
    assert score(records, PER_IMAGE_AP) == pytest.approx(np.mean(precisions), abs=1e-12)
    fprs = [image_metrics(*image).fpr95 for image in images[:-2]]
    assert score(records, PER_IMAGE_FPR95) == pytest.approx(np.mean(fprs), abs=1e-12)


def test_the_protocols_differ() -> None:
    """Each image by itself is perfect, but the normal pixels of one are above the anomalous ones of the other."""
    truth = np.array([False, False, True])
    scores = np.array([0.0, 1, 2], np.float32)
    records = records_of([(scores, truth), (scores + 10, truth)])
    assert score(records, PER_IMAGE_AUROC) == 1
    assert score(records, AUROC) == 0.75
    assert (score(records, PER_IMAGE_FPR95), score(records, FPR95)) == (0, 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_repeated_images(seed: int) -> None:
    images = random_images(seed)
    records = records_of(images)
    weights_BI = np.random.default_rng(seed).integers(0, 4, (5, len(images)))
    weights_BI[0, :-2] = 0  # no image with pixels of both kinds
    weights_BI[1] = 0
    repeated = [
        [image for image, times in zip(images, weights_I, strict=True) for _ in range(times)]
        for weights_I in weights_BI
    ]
    others = [records_of(chosen) if chosen else None for chosen in repeated]
    for metric in METRICS:
        expected = [np.nan if other is None else score(other, metric) for other in others]
        found_B = records.scores(metric, weights_BI.astype(float))
        assert found_B == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_the_histogram_is_that_of_all_pixels() -> None:
    images = random_images(3)
    found, expected = records_of(images).histogram(), pooled(images)
    np.testing.assert_array_equal(found.normal_V, expected.normal_V)
    np.testing.assert_array_equal(found.anomalous_V, expected.anomalous_V)


def test_groups_are_resampled() -> None:
    records = records_of(random_images(4))
    for metric in METRICS:
        values = resampled_scores(records, metric, count=60, seed=1)
        assert values.shape == (60,)
        assert np.nanstd(values) > 0


def test_records_come_back_from_a_file(tmp_path: Path) -> None:
    records = records_of(random_images(5))
    write_records(tmp_path / RECORDS, records)
    again = read_records(tmp_path)
    assert isinstance(again, AnomalyRecords)
    for name, array in records.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])
        assert array.dtype == again.arrays()[name].dtype


def test_records_of_parts_are_those_of_all_images() -> None:
    images = random_images(8)
    whole = records_of(images).arrays()
    parts = [
        AnomalyRecords.of_rows(
            image_rows(0, *image), image_ids=np.array([f"image{i}"]), group_ids=np.array([f"town{i // 2}"])
        )
        for i, image in enumerate(images)
    ]
    for name, array in AnomalyRecords.of_parts(parts).arrays().items():
        np.testing.assert_array_equal(array, whole[name])
        assert array.dtype == whole[name].dtype


def test_records_of_the_same_truth_are_comparable() -> None:
    images = random_images(6)
    records = records_of(images)
    assert records.is_comparable(records_of([(-scores, truth) for scores, truth in images]))
    scores, truth = images[0]
    assert not records.is_comparable(records_of([(scores, ~truth), *images[1:]]))
    assert not records.is_comparable(records_of(images[:-1]))


def test_images_without_rows_and_sets_without_pixels() -> None:
    names = np.array(["a", "b"])
    rows = image_rows(1, *random_images(0)[0])
    records = AnomalyRecords.of_rows(rows, image_ids=names, group_ids=names)
    assert 0 <= score(records, AUROC) == score(records, PER_IMAGE_AUROC) <= 1
    nothing = AnomalyRecords.of_rows(rows[:0], image_ids=names, group_ids=names)
    assert np.isnan([score(nothing, metric) for metric in METRICS]).all()


def test_other_metrics_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"anomaly records contain AUROC, AP, FPR95, per_image_AUROC, .*, not mIoU"
    ):
        score(records_of(random_images(0)), "mIoU")
