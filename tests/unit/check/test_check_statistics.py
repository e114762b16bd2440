"""Sums over pixels against numpy's own figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydet.check.statistics import channel_sums


@pytest.mark.parametrize("is_float", [False, True])
def test_sums_of_images_are_those_of_all_pixels(is_float: bool) -> None:
    images = [torch.randint(256, (3, 5 + i, 7), dtype=torch.uint8) for i in range(4)]
    images[2][1] = 255
    sums = [channel_sums(x.double() / 255 if is_float else x) for x in images]
    total = sums[0]
    for other in sums[1:]:
        total.add(other)
    pixels = np.concatenate([x.flatten(1).numpy() for x in images], axis=1) / 255
    for channel, row in enumerate(total.rows()):
        values = pixels[channel]
        assert row["mean"] == pytest.approx(values.mean(), abs=1e-5)
        assert row["std"] == pytest.approx(values.std(), abs=1e-5)
        assert (row["min"], row["max"]) == pytest.approx((values.min(), values.max()), abs=1e-5)
        assert row["share_zero"] == pytest.approx((values == 0).mean(), abs=1e-5)
        assert row["share_full"] == pytest.approx((values == 1).mean(), abs=1e-5)
    assert total.constant_C.tolist() == [0, 1, 0]
    assert total.images == 4


def test_what_is_not_finite_is_left_out() -> None:
    x = torch.tensor([[[0.25, float("nan"), float("inf"), 0.75]]])
    (row,) = channel_sums(x).rows()
    assert (row["mean"], row["min"], row["max"]) == (0.5, 0.25, 0.75)
    (row,) = channel_sums(x * float("nan")).rows()
    assert row["min"] is None
