"""Drawn images with any number of channels, and COCO results."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydet.export.coco_results import coco_results
from raydet.export.drawing import as_colours, draw_boxes
from raydet.structures import Boxes, Sample

ROWS = np.array([[0, 4, 5, 20, 10, 0.9, 1], [0, 0, 0, 3, 3, 0.6, 0]], dtype=float)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:0]], ids=["two-boxes", "no-box"])
def test_all_modalities_are_side_by_side(rows: np.ndarray) -> None:
    sample = Sample(
        image_id="a",
        group_id="",
        modalities={
            "rgb": torch.full((3, 40, 50), 10, dtype=torch.uint8),
            "thermal": torch.full((1, 40, 50), 0.2),
            "event": torch.full((4, 40, 50), 30, dtype=torch.uint8),
        },
        target=Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
        source_hw=(40, 50),
        valid_hw=(40, 50),
    )
    image = draw_boxes(sample, rows, ("a", "b"))
    assert image.shape == (3, 40, 150)
    assert image.dtype == torch.uint8
    assert image[:, 39, [49, 99, 149]].tolist() == [[10, 51, 30]] * 3
    is_marked = (image[1] > 200).any(dim=0).view(3, 50).any(dim=1)
    assert is_marked.tolist() == [len(rows) > 0] * 3


@pytest.mark.parametrize("channels", [1, 2, 4, 20])
def test_other_numbers_of_channels_are_shown_as_their_mean(channels: int) -> None:
    x_CHW = torch.arange(channels, dtype=torch.float32)[:, None, None].expand(-1, 2, 2) / 100
    expected = round(255 * (channels - 1) / 200)
    assert as_colours(x_CHW).unique().tolist() == [expected]
    assert as_colours(x_CHW).shape == (3, 2, 2)


def test_three_channels_keep_their_colours() -> None:
    x_CHW = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None].expand(-1, 2, 2)
    assert torch.equal(as_colours(x_CHW), x_CHW)


def test_ids_match_the_source() -> None:
    numbered = coco_results(ROWS, image_ids=["12", "13"], category_ids=[4, 9])
    assert [(row["image_id"], row["category_id"]) for row in numbered] == [(12, 9), (12, 4)]
    named = coco_results(ROWS, image_ids=["12", "013"], category_ids=[4, 9])
    assert named[0]["image_id"] == "12"
