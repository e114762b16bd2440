"""Panels of images with any number of channels, and text of any content."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from raydet.ops.colours import as_colours
from raydet.report.drawings.panels import as_png, enlarged, fitting, font, panel_factor


def test_three_channels_are_red_green_and_blue() -> None:
    x_CHW = torch.randint(256, (3, 4, 5), dtype=torch.uint8)
    np.testing.assert_array_equal(as_colours(x_CHW), x_CHW.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(as_colours(x_CHW.float() / 255), as_colours(x_CHW))


def test_one_channel_is_grey_and_not_stretched() -> None:
    colours = as_colours(torch.tensor([[[0, 10, 20]]], dtype=torch.uint8))
    assert colours.tolist() == [[[0] * 3, [10] * 3, [20] * 3]]


@pytest.mark.parametrize("num_channels", [2, 4, 20])
def test_other_numbers_of_channels_range_from_red_to_blue(num_channels: int) -> None:
    for channel, colour in ((0, [255, 0, 0]), (num_channels - 1, [0, 0, 255])):
        x_CHW = torch.zeros(num_channels, 1, 2)
        x_CHW[channel, 0, 1] = 0.01
        assert as_colours(x_CHW).tolist() == [[[0, 0, 0], colour]]


def test_all_of_twenty_channels_are_visible_and_the_middle_is_green() -> None:
    brightest = [as_colours(torch.eye(20)[channel][:, None, None])[0, 0].argmax() for channel in range(20)]
    assert brightest == [0] * 5 + [1] * 10 + [2] * 5
    assert as_colours(torch.zeros(20, 2, 2, dtype=torch.uint8)).max() == 0


def test_values_that_are_not_finite_are_black() -> None:
    x_CHW = torch.tensor([[[float("nan"), float("inf"), -1.0, 2.0]]])
    assert as_colours(x_CHW)[0, :, 0].tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize(
    "size_hw", [(96, 128), (120, 160), (512, 640), (1024, 1280), (32, 2048), (2048, 32), (1, 1)]
)
def test_panels_have_a_readable_size(size_hw: tuple[int, int]) -> None:
    image = enlarged(as_colours(torch.zeros(1, *size_hw)), panel_factor(size_hw))
    assert 256 <= max(image.size) <= 1024
    assert image.width >= 160


def test_text_is_truncated_to_its_width() -> None:
    face = font(12)
    assert fitting("short", 100, face) == "short"
    cut = fitting("W" * 5000, 100, face)
    assert cut.endswith("…")
    assert 80 < face.getlength(cut) <= 100


def test_a_png_is_compact_with_nearly_unchanged_colours() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    colours[:, :64] = (60, 220, 110)
    image = enlarged(colours, 3)
    png = as_png(image)
    assert png == as_png(image)
    read = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert len(png) < 50_000
    assert np.abs(read[:, :190] - (60, 220, 110)).max() <= 8
