"""Boxes of an image that cannot be right."""

from __future__ import annotations

import numpy as np
import torch

from raydet.check.boxes import MANY_BOXES, box_findings, same_objects
from raydet.check.findings import Finding
from raydet.structures import Boxes, Sample


def sample_of(boxes: list[tuple[float, ...]], labels: list[int]) -> Sample:
    return Sample(
        image_id="a", group_id="", modalities={"rgb": torch.zeros(3, 50, 100, dtype=torch.uint8)},
        target=Boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels)),
        source_hw=(50, 100), valid_hw=(50, 100),
    )  # fmt: skip


def found(boxes: list[tuple[float, ...]], labels: list[int] | None = None) -> list[Finding]:
    sample = sample_of(boxes, labels or [0] * len(boxes))
    return list(box_findings(sample, 3, classes=("person", "car"), min_box_px=2.0))


def test_boxes_on_the_edge_are_good() -> None:
    assert found([(0, 0, 100, 50), (10, 10, 12, 12), (99, 0, 101 - 1, 50)]) == [
        Finding("box_tiny", "a", "box 2 (99, 0, 100, 50); image 100 x 50", 3, boxes=(2,), badness=1.0)
    ]


def test_each_box_is_bad_in_one_way() -> None:
    nan, inf = float("nan"), float("inf")
    boxes = [(nan, 0, 5, 5), (0, 0, inf, 5), (9, 9, 4, 20), (9, 9, 9, 20), (-1, 0, 5, 5), (90, 40, 100, 50.5)]
    places = {finding.kind: finding.boxes for finding in found(boxes)}
    assert places == {"box_not_finite": (0, 1), "box_empty": (2, 3), "box_outside": (4, 5)}


def test_labels_beyond_the_classes() -> None:
    (finding,) = found([(0, 0, 9, 9), (20, 0, 29, 9), (40, 0, 49, 9)], [-1, 1, 2])
    assert (finding.kind, finding.boxes) == ("unknown_class", (0, 2))
    assert finding.detail == "box 0 has label -1; box 2 has label 2; the largest label is 1"


def test_one_object_with_several_boxes() -> None:
    boxes = [(0, 0, 40, 40), (0, 0, 40, 39.5), (0, 0, 40, 30), (0, 0, 40, 40)]
    kinds = {finding.kind: finding.boxes for finding in found(boxes, [0, 0, 0, 1])}
    assert kinds == {"box_twice": (0, 1), "box_two_classes": (0, 3)}


def test_a_million_comparisons_are_not_made() -> None:
    boxes = np.tile(np.array([[0.0, 0.0, 10.0, 10.0]]), (MANY_BOXES + 1, 1))
    boxes[:, ::2] += np.arange(MANY_BOXES + 1)[:, None] * 20
    boxes[-1] = boxes[7]
    assert same_objects(boxes, np.ones(len(boxes), bool)) == [(7, MANY_BOXES)]


def test_long_lists_are_cut() -> None:
    (finding,) = found([(i, 0, i, 5) for i in range(9)])
    assert finding.detail.count("box") == 5
    assert "and 4 more" in finding.detail
    assert finding.boxes == tuple(range(9))
