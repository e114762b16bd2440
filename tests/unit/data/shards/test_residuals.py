"""Pixels as differences of neighbours: nothing may be lost, and real images must become smaller."""

import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raydet.data.shards.residuals import BAND_ROWS, residuals, restore


def random_pixels(channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


@given(st.integers(1, 4), st.integers(1, 3 * BAND_ROWS + 1), st.integers(1, 5))
def test_every_size_comes_back(channels: int, height: int, width: int) -> None:
    pixels = random_pixels(channels, height, width)
    given_before = pixels.clone()
    stored = residuals(pixels)
    restore(stored)
    assert torch.equal(stored, pixels)
    assert torch.equal(pixels, given_before)


def test_what_is_stored() -> None:
    pixels = torch.zeros(3, 2, 1, dtype=torch.uint8)
    pixels[:, 0, 0] = torch.tensor([7, 5, 4])
    pixels[:, 1, 0] = torch.tensor([8, 9, 1])
    assert residuals(pixels).tolist() == [[[2], [253]], [[5], [4]], [[255], [249]]]


def test_floats_stay_as_they_are() -> None:
    pixels = torch.rand(3, 20, 4)
    stored = residuals(pixels)
    restore(stored)
    assert stored is pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_smooth_images_pack_better(channels: int) -> None:
    ramp = torch.arange(64)[:, None] * 2 + torch.arange(64)
    noise = random_pixels(channels, 64, 64) % 4
    pixels = (ramp + noise).to(torch.uint8)
    packed, packed_residuals = (len(zlib.compress(x.numpy().tobytes())) for x in (pixels, residuals(pixels)))
    assert packed_residuals < 0.75 * packed
