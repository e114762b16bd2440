"""Crops at an image's own resolution, rotation and blur: what a window shows of the image, and what has no label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.functional import conv2d, pad

from raydet.config import Augmentation, Crop, NativeCrop, Photometric, RgbPhotometric, apply_overrides
from raydet.data.geometry import rotate
from raydet.data.photometric import blurred
from raydet.data.transforms import train_transform
from raydet.errors import ConfigError
from raydet.recipes.demo import demo
from raydet.structures import IGNORE, Mask, Sample, mask_of

STREET_HW, CANVAS_HW = (720, 1280), (512, 512)
EDGE = 20
"""Pixels of the canvas at whose edges resampling repeats values."""


def coordinates(size_hw: tuple[int, int]) -> Sample:
    """An image whose values are the places of its pixels: rows in the first channel, columns in the second, 0..1."""
    height, width = size_hw
    rows_H, columns_W = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    rgb = torch.stack([rows_H[:, None].expand(size_hw), columns_W.expand(size_hw), torch.zeros(size_hw)])
    ids = torch.arange(width, dtype=torch.int16).remainder(7).expand(size_hw).to(torch.uint8)
    return Sample("a", "", {"rgb": rgb}, Mask(ids.contiguous()), size_hw, size_hw)


def augmented(
    sample: Sample, crop: NativeCrop, number: int = 0, canvas_hw: tuple[int, int] = CANVAS_HW
) -> Sample:
    augmentation = Augmentation(flip_probability=0.0, native_crop=crop)
    return train_transform(sample, augmentation=augmentation, canvas_hw=canvas_hw, key=(0, number, "a"))


def shown_px(sample: Sample, source_hw: tuple[int, int]) -> tuple[float, float]:
    """How many pixels of the source the canvas shows: height and width."""
    rgb = sample.modalities["rgb"]
    (height, width), inner = sample.canvas_hw, slice(EDGE, -EDGE)
    rows, columns = rgb[0, inner, width // 2].double(), rgb[1, height // 2, inner].double()
    return tuple(
        float(line[-1] - line[0]) / (len(line) - 1) * side * source
        for line, side, source in zip((rows, columns), (height, width), source_hw, strict=True)
    )  # type: ignore[return-value]


@settings(max_examples=12, deadline=None)
@given(scale=st.floats(0.75, 2.0), number=st.integers(0, 1000))
def test_the_published_crop_always_shows_the_same_part_of_the_image(scale: float, number: int) -> None:
    """Its scale cancels: 512 pixels of the image, whatever the factor."""
    crop = NativeCrop(scale=(scale, scale), window="scaled")
    shown = shown_px(augmented(coordinates(STREET_HW), crop, number), STREET_HW)
    assert shown == pytest.approx((512, 512), abs=2)


@settings(max_examples=12, deadline=None)
@given(scale=st.floats(0.75, 2.0), number=st.integers(0, 1000))
def test_the_other_crop_shows_less_the_larger_the_factor(scale: float, number: int) -> None:
    crop = NativeCrop(scale=(scale, scale), window="fixed")
    shown = shown_px(augmented(coordinates(STREET_HW), crop, number), STREET_HW)
    assert shown == pytest.approx((512 / scale, 512 / scale), abs=2)


@pytest.mark.parametrize("window", ["fixed", "scaled"])
def test_what_lies_beyond_the_image_has_no_label(window: str) -> None:
    """At half the size, an image 100 px high fills less than the canvas."""
    sample = augmented(
        coordinates((100, 400)), NativeCrop(scale=(0.5, 0.5), window=window), canvas_hw=(128, 128)
    )
    ids = mask_of(sample.target, "a").ids_HW
    height = 50 if window == "fixed" else 100
    assert sample.valid_hw == (height, 128)
    assert (ids[height:] == IGNORE).all()
    assert (ids[:height] < 7).all()


def test_windows_are_drawn_by_their_key() -> None:
    crop = NativeCrop()
    sample = coordinates(STREET_HW)
    first, again, other = (augmented(sample, crop, number).modalities["rgb"] for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_rotation_moves_images_and_masks_alike() -> None:
    """By a right angle, without interpolation; by others, corners open."""
    sample = coordinates((40, 40))
    turned = rotate(sample, 90.0)
    assert torch.allclose(turned.modalities["rgb"], sample.modalities["rgb"].rot90(1, (1, 2)), atol=1e-5)
    assert torch.equal(mask_of(turned.target, "a").ids_HW, mask_of(sample.target, "a").ids_HW.rot90(1))
    ids = mask_of(rotate(sample, 30.0).target, "a").ids_HW
    assert ids[0, 0] == ids[-1, -1] == IGNORE
    assert 0.1 < (ids == IGNORE).float().mean() < 0.4
    assert (mask_of(rotate(sample, 0.0).target, "a").ids_HW == mask_of(sample.target, "a").ids_HW).all()


def test_boxes_are_not_rotated() -> None:
    with pytest.raises(ConfigError, match=r"rotation_degrees turns masks; boxes would no longer fit"):
        apply_overrides(demo(), {"data.augmentation.rotation_degrees": 5.0})


def test_one_way_to_crop() -> None:
    with pytest.raises(ValidationError, match="native_crop replaces crop and mosaic"):
        Augmentation(native_crop=NativeCrop(), crop=Crop(min_fraction=0.5))


def test_blur_equals_a_plain_convolution() -> None:
    change = RgbPhotometric(blur=1.0, blur_sigma_px=(1.3, 1.3))
    x = torch.from_numpy(np.random.default_rng(0).random((3, 9, 11), np.float32))
    at = torch.arange(5.0) - 2
    kernel = torch.exp(-(at**2) / (2 * 1.3**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    expected = conv2d(pad(x[:, None], (2, 2, 2, 2), mode="reflect"), kernel[None, None])[:, 0]
    assert torch.allclose(blurred(x, change, (0,)), expected, atol=1e-6)
    assert torch.equal(blurred(x, RgbPhotometric(blur=1e-9), (0,)), x)


def test_blur_leaves_other_draws_as_they_are() -> None:
    sample = coordinates((64, 64))
    off, on = (
        train_transform(
            sample,
            augmentation=Augmentation(
                photometric=Photometric(rgb=RgbPhotometric(brightness=0.5, blur=chance))
            ),
            canvas_hw=(64, 64),
            key=(0, 0, "a"),
        )
        for chance in (0.0, 1e-9)
    )
    assert torch.equal(off.modalities["rgb"], on.modalities["rgb"])
