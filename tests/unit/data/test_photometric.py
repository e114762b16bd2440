"""Values change as asked, nothing moves, and types and ranges stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from raydet.config import EventPhotometric, RgbPhotometric, ThermalPhotometric
from raydet.data.photometric import LUMA, colour_matrix, recalibrated, recoloured, with_other_events

STRONG_RGB = RgbPhotometric(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)
STRONG_THERMAL = ThermalPhotometric(gain=0.5, offset=0.3, noise=0.2)
STRONG_EVENT = EventPhotometric(dropped=0.5, spurious=0.2)
CHANGES = {
    "rgb": lambda x, key: recoloured(x, STRONG_RGB, key),
    "thermal": lambda x, key: recalibrated(x, STRONG_THERMAL, key),
    "event": lambda x, key: with_other_events(x, STRONG_EVENT, key),
}


def noise(channels: int, *, is_whole: bool, size_hw: tuple[int, int] = (24, 32)) -> torch.Tensor:
    values = torch.rand(channels, *size_hw, generator=torch.Generator().manual_seed(channels))
    return (values * 255).round().to(torch.uint8) if is_whole else values


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(CHANGES)),
    channels=st.sampled_from([1, 2, 3, 5]),
    is_whole=st.booleans(),
    number=st.integers(0, 99),
)
def test_type_shape_range_and_input_stay(kind: str, channels: int, is_whole: bool, number: int) -> None:
    image = noise(channels, is_whole=is_whole)
    before = image.clone()
    changed = CHANGES[kind](image, (number,))
    assert (changed.dtype, changed.shape) == (image.dtype, image.shape)
    assert changed.min() >= 0
    assert changed.max() <= (255 if is_whole else 1)
    assert torch.equal(image, before)
    assert torch.equal(changed, CHANGES[kind](image, (number,)))
    assert not torch.equal(changed, image)


@pytest.mark.parametrize("kind", CHANGES)
def test_bytes_and_floats_are_changed_alike(kind: str) -> None:
    whole = noise(3, is_whole=True)
    for number in range(5):
        a, b = CHANGES[kind](whole, (number,)), CHANGES[kind](whole.float() / 255, (number,))
        torch.testing.assert_close(a.float() / 255, b, atol=0.6 / 255, rtol=0)


def test_brightness_and_contrast_are_torchvisions() -> None:
    image = 0.3 + 0.4 * noise(3, is_whole=False)  # nothing is cut off
    change = RgbPhotometric(brightness=0.3, contrast=0.3)
    for number in range(5):
        changed = recoloured(image, change, (number,))
        gain = (changed[0, 0, 0] - changed[0, 0, 1]) / (image[0, 0, 0] - image[0, 0, 1])
        grey = float(functional.rgb_to_grayscale(image).mean())
        # gain = brightness x contrast; the mean grey is multiplied by the brightness alone.
        brightness = float(functional.rgb_to_grayscale(changed).mean()) / grey
        expected = functional.adjust_contrast(
            functional.adjust_brightness(image, brightness), float(gain) / brightness
        )
        torch.testing.assert_close(changed, expected, atol=2e-3, rtol=0)
        assert 0.7 <= brightness <= 1.3
        assert 0.69 <= float(gain) / brightness <= 1.31


def test_saturation_is_torchvisions() -> None:
    image = 0.3 + 0.4 * noise(3, is_whole=False)
    for saturation in (0.0, 0.6, 1.0, 1.4):
        changed = (colour_matrix(saturation, 0.0) @ image.flatten(1)).view_as(image)
        torch.testing.assert_close(
            changed, functional.adjust_saturation(image, saturation), atol=2e-3, rtol=0
        )


@given(saturation=st.floats(0, 2), turn=st.floats(-0.5, 0.5))
def test_grey_and_the_luma_of_colours_stay(saturation: float, turn: float) -> None:
    matrix, luma = colour_matrix(saturation, turn), torch.tensor(LUMA)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(luma @ matrix, luma, atol=1e-5, rtol=0)


def test_a_third_of_a_turn_carries_red_to_green_or_blue() -> None:
    red = torch.tensor([1.0, 0.0, 0.0])
    ends = {int((colour_matrix(1.0, sign / 3) @ red).argmax()) for sign in (-1, 1)}
    assert ends == {1, 2}


def test_thermal_noise_is_normal_as_asked() -> None:
    image = torch.full((1, 200, 200), 0.5)
    deviations = []
    for number in range(40):
        error = recalibrated(image, ThermalPhotometric(noise=0.1), (number,)) - image
        assert abs(float(error.mean())) < 4 * 0.1 / 200
        deviations.append(float(error.std()))
        inside = (error.abs() < error.std()).float().mean()
        assert float(inside) == pytest.approx(0.683, abs=0.02)
    assert max(deviations) <= 0.101
    assert sum(deviations) / 40 == pytest.approx(0.05, abs=0.02)  # uniform in 0..0.1


@pytest.mark.parametrize("is_whole", [True, False])
def test_events_are_lost_and_appear_as_often_as_asked(is_whole: bool) -> None:
    full = torch.full((2, 100, 100), 255, dtype=torch.uint8) if is_whole else torch.ones(2, 100, 100)
    lost = [
        float((with_other_events(full, EventPhotometric(dropped=0.5), (number,)) == 0).float().mean())
        for number in range(60)
    ]
    appeared = [
        float((with_other_events(0 * full, EventPhotometric(spurious=0.1), (number,)) > 0).float().mean())
        for number in range(60)
    ]
    assert max(lost) < 0.52
    assert sum(lost) / 60 == pytest.approx(0.25, abs=0.06)
    assert max(appeared) < 0.11
    assert sum(appeared) / 60 == pytest.approx(0.05, abs=0.012)
    only_lost = with_other_events(full, EventPhotometric(dropped=0.5), (0,))
    assert set(only_lost.unique().tolist()) == {0, float(full.max())}


def test_each_sensor_has_draws_of_its_own() -> None:
    """What one sensor drew tells nothing of what another drew from the same key."""
    half, full = torch.full((1, 4, 4), 0.5), torch.ones(1, 60, 60)
    drawn = [
        (
            float(recoloured(half, RgbPhotometric(brightness=0.5), (number,)).mean()),
            float(recalibrated(half, ThermalPhotometric(gain=0.5), (number,)).mean()),
            float(with_other_events(full, EventPhotometric(dropped=1.0), (number,)).mean()),
        )
        for number in range(100)
    ]
    correlations = np.corrcoef(np.array(drawn).T)
    # Three deviations of that of 100 independent pairs; one and the same draw would give 1 or -1.
    assert np.abs(correlations[np.triu_indices(3, k=1)]).max() < 0.3


def test_an_offset_leaves_the_gain_as_it_was_drawn() -> None:
    image = noise(1, is_whole=False)
    gain_only = recalibrated(image, ThermalPhotometric(gain=0.5), ("a",))
    with_tiny_offset = recalibrated(image, ThermalPhotometric(gain=0.5, offset=1e-6), ("a",))
    torch.testing.assert_close(gain_only, with_tiny_offset, atol=1e-5, rtol=0)
