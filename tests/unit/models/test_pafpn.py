"""The neck of YOLOX: golden values of the published code, parameters, odd maps."""

from __future__ import annotations

import pytest
import torch

from raydet.models.necks.pafpn import PAFPN
from tests.unit.models.golden import sin_filled, sin_input

PARAMETERS = {
    ((64, 128, 256, 512), 3, 0.67): 3_860_992,
    ((48, 96, 192, 384), 3, 0.33): 1_596_096,
    ((32, 64, 128, 256), 3, 0.33): 710_784,
    ((64, 128, 256, 512), 4, 0.67): 4_055_296,
    ((16, 32, 64), 3, 0.33): 45_216,
}


@pytest.mark.parametrize(("channels", "levels", "depth"), PARAMETERS)
def test_parameters_are_as_published(channels: tuple[int, ...], levels: int, depth: float) -> None:
    with torch.device("meta"):
        neck = PAFPN(in_channels=channels, num_levels=levels, depth=depth)
    assert sum(p.numel() for p in neck.parameters()) == PARAMETERS[channels, levels, depth]


def test_maps_are_as_published() -> None:
    neck = sin_filled(PAFPN(in_channels=(16, 32, 64), num_levels=3, depth=0.33))
    maps = neck([sin_input(1, channels, side, side) for channels, side in ((16, 8), (32, 4), (64, 2))])
    sums = [x.sum().item() for x in maps.values()]
    assert sums == pytest.approx([0.167465971, 0.054683091, 0.023109128], abs=1e-9)


@pytest.mark.parametrize("levels", [3, 4])
def test_maps_of_odd_sizes_fit(levels: int) -> None:
    neck = PAFPN(in_channels=(4, 8, 16, 32), num_levels=levels, depth=0.33)
    sizes = [(25, 40), (13, 20), (7, 10), (4, 5)]
    maps = [torch.randn(2, 4 * 2**level, *hw) for level, hw in enumerate(sizes)]
    pyramid = neck(maps)
    assert {name: tuple(x.shape[-2:]) for name, x in pyramid.items()} == {
        str(level + 1): sizes[level] for level in range(4 - levels, 4)
    }
    assert tuple(x.shape[1] for x in pyramid.values()) == neck.channels
