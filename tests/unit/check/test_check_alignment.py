"""Known displacements of scenes whose outlines are the same in both modalities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from raydet.check.alignment import Alignment, compared, outline_field
from raydet.check.findings import DEFAULT_TOLERANCE
from raydet.check.images import moved_back
from tests.unit.check.planted import clean_samples


def estimate(first: Tensor, second: Tensor) -> Alignment:
    (a, factor), (b, _) = outline_field(first), outline_field(second)
    return compared("rgb", "thermal", (a, b), factor, tolerance=DEFAULT_TOLERANCE)


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (8, -6), (-14, 5), (0, 13)])
def test_shifts(shift: tuple[int, int]) -> None:
    for sample in clean_samples(11):
        rgb, thermal = sample.modalities.values()
        found = estimate(rgb, thermal.roll(shift[::-1], (1, 2)))
        assert found.verdict == ("aligned" if math.hypot(*shift) <= 4 else "misaligned")
        assert found.shift_xy == pytest.approx(shift, abs=0.75)
        assert found.displacement_px == pytest.approx(math.hypot(*shift), abs=0.75)


@pytest.mark.parametrize(("angle", "scale"), [(6.0, 1.0), (-6.0, 1.0), (0.0, 1.1)])
def test_rotation_and_scale(angle: float, scale: float) -> None:
    for sample in clean_samples(12):
        rgb, thermal = sample.modalities.values()
        moved = functional.affine(
            thermal, angle=angle, translate=[0, 0], scale=scale, shear=[0.0, 0.0],
            interpolation=functional.InterpolationMode.BILINEAR,
        )  # fmt: skip
        found = estimate(rgb, moved)
        assert found.rotation_deg == pytest.approx(angle, abs=2.0)
        assert found.scale == pytest.approx(scale, abs=0.045)  # a step and a half
        back = moved_back(Image.fromarray(moved[0].numpy()), found)
        inner = np.s_[30:90, 40:120]
        errors = [
            np.abs(np.asarray(x, float)[inner] - thermal[0].numpy()[inner]).mean() for x in (back, moved[0])
        ]
        assert errors[0] < 0.75 * errors[1]


def test_larger_images_are_reduced_and_told_in_their_own_pixels() -> None:
    rgb, thermal = clean_samples(13)[0].modalities.values()
    large = [functional.resize(x, [480, 640]) for x in (rgb, thermal)]
    found = estimate(large[0], large[1].roll(24, 2))
    assert found.verdict == "misaligned"
    assert found.shift_xy == pytest.approx((24, 0), abs=1.5)


def test_nothing_is_said_of_flat_or_unrelated_images() -> None:
    first, second = clean_samples(14)[:2]
    assert estimate(first.modalities["rgb"], second.modalities["thermal"]).verdict == "cannot_tell"
    flat = torch.zeros(1, 120, 160, dtype=torch.uint8)
    assert estimate(first.modalities["rgb"], flat).verdict == "cannot_tell"
    assert estimate(first.modalities["rgb"][:, :9, :9], flat[:, :9, :9]).verdict == "cannot_tell"


def test_bytes_and_floats_are_the_same() -> None:
    rgb, thermal = clean_samples(15)[0].modalities.values()
    assert estimate(rgb.float() / 255, thermal.float() / 255) == estimate(rgb, thermal)
