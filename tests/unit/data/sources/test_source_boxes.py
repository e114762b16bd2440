from __future__ import annotations

import math

import pytest
import torch

from raydet.data.sources.boxes import Box, box_target, checked_box
from raydet.errors import DataError


def check(*xyxy: float) -> Box:
    assert len(xyxy) == 4
    return checked_box(xyxy, image_hw=(10, 20), slack_hw=(0.5, 0.5), where="a.txt, row 2")


def test_a_good_box_stays() -> None:
    assert check(0, 0, 20, 10) == (0, 0, 20, 10)


def test_rounding_beyond_the_edge_is_clipped() -> None:
    assert check(-0.5, -0.1, 20.5, 10.3) == (0, 0, 20, 10)


@pytest.mark.parametrize("xyxy", [(-0.6, 0, 5, 5), (0, -0.6, 5, 5), (0, 0, 20.6, 5), (0, 0, 5, 10.6)])
def test_a_box_outside_is_refused(xyxy: Box) -> None:
    with pytest.raises(DataError, match=r"a\.txt, row 2: the box leaves the image: .* 0\.\.20 .* 0\.\.10"):
        check(*xyxy)


def test_a_box_within_the_slack_only_is_refused() -> None:
    with pytest.raises(DataError, match="leaves the image"):
        check(-0.4, 0, -0.1, 5)


@pytest.mark.parametrize("xyxy", [(3, 3, 3, 5), (3, 3, 5, 2)])
def test_an_empty_box_is_refused(xyxy: Box) -> None:
    with pytest.raises(DataError, match="width and a height above 0"):
        check(*xyxy)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_must_be_finite(value: float) -> None:
    with pytest.raises(DataError, match="four finite numbers"):
        check(0, 0, value, 5)


def test_no_box_has_a_shape() -> None:
    target = box_target([], [])
    assert target.boxes_xyxy.shape == (0, 4)
    assert (target.boxes_xyxy.dtype, target.labels.dtype) == (torch.float32, torch.int64)
