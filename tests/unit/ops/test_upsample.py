"""Stripes of logits against torch's interpolation of the whole map."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from raydet.ops import upsample
from raydet.ops.upsample import source_stripes

CASES = [
    ((16, 24), (64, 96), (64, 96), (64, 96)),
    ((16, 24), (64, 96), (37, 96), (37, 96)),
    ((38, 38), (150, 150), (97, 150), (161, 249)),
    ((5, 7), (33, 49), (33, 20), (17, 11)),
    ((4, 4), (16, 16), (1, 16), (1, 64)),
]
"""Sizes of map, canvas, valid part and source."""


@pytest.mark.parametrize(("map_hw", "canvas_hw", "valid_hw", "source_hw"), CASES)
@pytest.mark.parametrize("numbers", [1, 4000, 1 << 24])
def test_stripes_make_up_the_whole_image(
    map_hw: tuple[int, int],
    canvas_hw: tuple[int, int],
    valid_hw: tuple[int, int],
    source_hw: tuple[int, int],
    numbers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upsample, "STRIPE_NUMBERS", numbers)
    logits = torch.randn(3, *map_hw, generator=torch.Generator().manual_seed(0))
    canvas = interpolate(logits[None], size=canvas_hw, mode="bilinear", align_corners=False)
    valid = canvas[..., : valid_hw[0], : valid_hw[1]]
    expected = interpolate(valid, size=source_hw, mode="bilinear", align_corners=False)
    stripes = list(source_stripes(logits, canvas_hw=canvas_hw, valid_hw=valid_hw, source_hw=source_hw))
    assert max(x.numel() for x in stripes) <= max(numbers, 3 * source_hw[1])
    torch.testing.assert_close(torch.cat(stripes, dim=2), expected, atol=1e-5, rtol=0)
