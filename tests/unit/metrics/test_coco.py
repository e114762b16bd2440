"""COCO metrics against published figures and hand-made cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raydet.metrics.coco import GroundTruth, evaluate_coco
from raydet.metrics.names import METRIC_NAMES


def truth_of(boxes: list[list[float]], labels: list[int], images: list[int], count: int) -> GroundTruth:
    return GroundTruth(
        num_images=count,
        image_index=np.array(images, dtype=np.int64),
        boxes_xywh=np.array(boxes, dtype=float).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
    )


def test_perfect_detections_score_one() -> None:
    boxes = [[0.0, 0.0, 20.0, 20.0], [10.0, 10.0, 70.0, 60.0], [5.0, 5.0, 145.0, 125.0]]
    truth = truth_of(boxes, [0, 1, 1], [0, 0, 1], 2)
    rows = np.array([[0, *boxes[0], 0.9, 0], [0, *boxes[1], 0.8, 1], [1, *boxes[2], 0.7, 1]])
    result = evaluate_coco(truth, rows, ("a", "b"))[0]
    assert result.metrics["mAP"] == pytest.approx(1.0)
    assert result.metrics["AR_small"] == pytest.approx(1.0)
    assert result.per_class_ap == {"a": pytest.approx(1.0), "b": pytest.approx(1.0)}


def test_no_detections_score_zero_and_an_empty_bin_scores_none() -> None:
    truth = truth_of([[0.0, 0.0, 20.0, 20.0]], [0], [0], 1)
    result = evaluate_coco(truth, np.zeros((0, 7)), ("a", "b"))[0]
    assert result.metrics["mAP"] == 0.0
    assert result.metrics["mAP_large"] is None
    assert result.per_class_ap == {"a": 0.0, "b": None}


def test_a_set_without_boxes_has_no_numbers() -> None:
    result = evaluate_coco(truth_of([], [], [], 3), np.array([[0, 0, 0, 5, 5, 0.9, 0]]), ("a",))[0]
    assert set(result.metrics.values()) == {None}


def test_the_order_of_images_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corners, generator.uniform(15, 60, (40, 2))], axis=1)
    images = generator.integers(0, 8, 40)
    labels = generator.integers(0, 3, 40)
    truth = truth_of(boxes.tolist(), labels.tolist(), images.tolist(), 8)
    rows = np.column_stack(
        [images, boxes + generator.normal(0, 3, boxes.shape), generator.random(40), labels]
    )
    by_image = rows[np.argsort(-images, kind="stable")]
    assert (
        evaluate_coco(truth, by_image, ("a", "b", "c"))[0] == evaluate_coco(truth, rows, ("a", "b", "c"))[0]
    )


def published(folder: Path) -> tuple[GroundTruth, NDArray[np.float64], tuple[str, ...], dict[str, Any]]:
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    found = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    # pycocotools breaks ties between images by their ids
    images = {name: row for row, name in enumerate(sorted(image["id"] for image in truth["images"]))}
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    labels = {category["id"]: row for row, category in enumerate(categories)}

    annotations = truth["annotations"]
    ground = GroundTruth(
        num_images=len(images),
        image_index=np.array([images[a["image_id"]] for a in annotations]),
        boxes_xywh=np.array([a["bbox"] for a in annotations]),
        labels=np.array([labels[a["category_id"]] for a in annotations]),
        areas=np.array([a["area"] for a in annotations]),
        is_crowd=np.array([bool(a["iscrowd"]) for a in annotations]),
    )
    rows = np.array(
        [[images[d["image_id"]], *d["bbox"], d["score"], labels[d["category_id"]]] for d in found]
    )
    expected = json.loads((folder / "expected.json").read_text())
    return ground, rows, tuple(category["name"] for category in categories), expected


def test_published_coco_results(shared_data: Path) -> None:
    truth, rows, classes, expected = published(shared_data / "coco_eval_fixture")
    result = evaluate_coco(truth, rows, classes)[0]
    assert [result.metrics[name] for name in METRIC_NAMES] == pytest.approx(
        expected["published"]["stats"], abs=1e-12
    )
    for name, values in expected["per_category"].items():
        wanted = values["AP"]
        assert result.per_class_ap[name] == (wanted and pytest.approx(wanted, abs=1e-12)), name
