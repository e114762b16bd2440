"""Corruptions are what they say they are, the same every time, and worse from severity to severity."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from raydet.data.corruptions import KINDS, NUM_SEVERITIES, STRENGTHS, Kind, corrupted
from raydet.data.sources.corrupted import CorruptedSource
from raydet.data.synthetic import SyntheticSet

SEVERITIES = range(1, NUM_SEVERITIES + 1)
ALL_KINDS: tuple[Kind, ...] = get_args(Kind)


def images() -> SyntheticSet:
    return SyntheticSet(num_sequences=2, frames_per_sequence=2, size_hw=(60, 80), classes=("a", "b"), seed=3)


def image(channels: int, *, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Uniform noise."""
    x_CHW = torch.randint(0, 256, (channels, 40, 50), generator=torch.Generator().manual_seed(channels))
    return x_CHW.to(torch.uint8) if dtype == torch.uint8 else x_CHW.float() / 255


def test_every_kind_has_a_strength_for_every_severity() -> None:
    assert set(STRENGTHS) == set(ALL_KINDS)
    assert {kind for kinds in KINDS.values() for kind in kinds} | {"shift"} == set(ALL_KINDS)
    assert all(len(strengths) == NUM_SEVERITIES for strengths in STRENGTHS.values())


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_type_shape_and_range_stay(kind: Kind, channels: int, dtype: torch.dtype) -> None:
    clean = image(channels, dtype=dtype)
    before = clean.clone()
    for severity in SEVERITIES:
        spoiled = corrupted(clean, kind, severity=severity, key=(0, "a"))
        assert spoiled.dtype == dtype
        assert spoiled.shape == clean.shape
        assert 0 <= spoiled.min() <= spoiled.max() <= (255 if dtype == torch.uint8 else 1)
        assert not torch.equal(spoiled, clean)
    assert torch.equal(clean, before), "the image itself was changed"


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_severity_0_is_the_image_itself(kind: Kind) -> None:
    assert torch.equal(corrupted(image(3), kind, severity=0, key=(0,)), image(3))


@pytest.mark.parametrize("modality", KINDS)
def test_each_severity_is_worse_than_the_one_before(modality: str) -> None:
    source = images()
    for kind in (*KINDS[modality], "shift"):
        distances = np.zeros(NUM_SEVERITIES + 1)
        for index in range(len(source)):
            clean = source.read(index).modalities[modality]
            for severity in SEVERITIES:
                spoiled = corrupted(clean, kind, severity=severity, key=(0, index))
                distances[severity] += (spoiled.float() - clean.float()).abs().mean().item()
        assert (np.diff(distances) > 0).all(), (kind, distances)


@pytest.mark.parametrize("kind", ["dead_rows", "dropped_blocks", "event_loss"])
def test_what_is_lost_stays_lost_at_the_next_severity(kind: Kind) -> None:
    clean = image(1).clamp(min=1)
    lost = [corrupted(clean, kind, severity=severity, key=(0,)) == 0 for severity in SEVERITIES]
    assert all((less <= more).all() for less, more in pairwise(lost))
    shares = [mask.float().mean().item() for mask in lost]
    assert shares == pytest.approx(STRENGTHS[kind], abs=0.04)


def test_draws_belong_to_the_key_alone() -> None:
    clean = image(3)

    def spoil(*key: int | str) -> Tensor:
        return corrupted(clean, "noise", severity=3, key=key)

    first = spoil(0, "a")
    spoil(0, "b")
    assert torch.equal(spoil(0, "a"), first)
    assert not torch.equal(spoil(0, "b"), first)
    assert not torch.equal(spoil(1, "a"), first)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_shift_moves_exactly_so_many_pixels(severity: int) -> None:
    clean, pixels = image(1), int(STRENGTHS["shift"][severity - 1])
    height, width = clean.shape[1:]
    seen = set()
    for number in range(20):
        moved = corrupted(clean, "shift", severity=severity, key=(number,))
        for down, right in ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)):
            rows = slice(max(0, down), height + min(0, down)), slice(max(0, -down), height + min(0, -down))
            columns = (
                slice(max(0, right), width + min(0, right)),
                slice(max(0, -right), width + min(0, -right)),
            )
            if torch.equal(moved[:, rows[0], columns[0]], clean[:, rows[1], columns[1]]):
                seen.add((down, right))
                entered = torch.ones(height, width, dtype=torch.bool)
                entered[rows[0], columns[0]] = False
                assert (moved[:, entered] == clean.median()).all()
                break
        else:
            pytest.fail(f"key {number}: no shift by {pixels}")
    assert len(seen) == 4, "all directions"


@pytest.mark.parametrize("severity", [1, 3])
def test_blur_is_a_gaussian_filter(severity: int) -> None:
    sigma = STRENGTHS["blur"][severity - 1]
    clean = image(3, dtype=torch.float32)
    expected = ndimage.gaussian_filter(
        clean.double().numpy(), sigma, axes=(1, 2), mode="mirror", truncate=3.0
    )
    blurred = corrupted(clean, "blur", severity=severity, key=(0,))
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-6)


def test_noise_contrast_and_light_are_as_strong_as_stated() -> None:
    grey = torch.full((1, 200, 200), 0.5)
    noisy = corrupted(grey, "noise", severity=1, key=(0,))
    assert noisy.std().item() == pytest.approx(0.08, rel=0.02)
    ramp = torch.linspace(0, 1, 101).expand(1, 3, 101)
    assert corrupted(ramp, "contrast", severity=2, key=(0,))[0, 0, [0, 50, 100]].tolist() == pytest.approx(
        [0.35, 0.5, 0.65]
    )
    assert corrupted(ramp, "dark", severity=2, key=(0,))[0, 0, 100].item() == pytest.approx(0.4)
    assert corrupted(ramp, "glare", severity=2, key=(0,))[0, 0, [0, 100]].tolist() == pytest.approx([0.2, 1])


def test_a_corrupted_source_spoils_one_modality_and_nothing_else() -> None:
    source = images()
    spoiled = CorruptedSource(source, modality="thermal", kind="noise", severity=2, seed=5)
    copy = pickle.loads(pickle.dumps(spoiled))  # as loader processes get it
    for index in reversed(range(len(source))):
        clean, sample, again = source.read(index), spoiled.read(index), copy.read(index)
        assert torch.equal(sample.modalities["rgb"], clean.modalities["rgb"])
        assert torch.equal(sample.modalities["event"], clean.modalities["event"])
        assert not torch.equal(sample.modalities["thermal"], clean.modalities["thermal"])
        assert torch.equal(sample.modalities["thermal"], again.modalities["thermal"])
        assert torch.equal(sample.boxes_xyxy, clean.boxes_xyxy)
        assert torch.equal(spoiled.targets(index)[0].boxes_xyxy, source.targets(index)[0].boxes_xyxy)
    assert (len(spoiled), spoiled.image_ids, spoiled.group_ids, spoiled.classes, spoiled.modalities) == (
        len(source),
        source.image_ids,
        source.group_ids,
        source.classes,
        source.modalities,
    )
