from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch

from raydet.data.synthetic import MODALITIES, SyntheticSet

CLASSES = ("circle", "square", "triangle")
CLEARLY = 25.0
BARELY = 15.0  # as much as the ground differs from itself


def demo_set(seed: int = 0, classes: tuple[str, ...] = CLASSES) -> SyntheticSet:
    return SyntheticSet(
        num_sequences=20, frames_per_sequence=6, size_hw=(96, 128), classes=classes, seed=seed
    )


@pytest.mark.parametrize("frames_per_sequence", [6, 10])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_modality_sees_what_the_others_miss(seed: int, frames_per_sequence: int) -> None:
    source = SyntheticSet(
        num_sequences=20,
        frames_per_sequence=frames_per_sequence,
        size_hw=(96, 128),
        classes=CLASSES,
        seed=seed,
    )
    shown = Counter(views for index in range(len(source)) for views in source.visible_in(index))
    total = shown.total()
    for modality in MODALITIES:
        assert shown[frozenset({modality})] / total > 0.1, modality
    assert shown[frozenset()] == 0
    assert 0.2 < sum(count for views, count in shown.items() if len(views) > 1) / total < 0.6


def test_the_claims_hold_in_the_pixels() -> None:
    source = demo_set()
    for index in range(0, len(source), 2):
        sample = source.read(index)
        for box, views in zip(sample.boxes_xyxy.int().tolist(), source.visible_in(index), strict=True):
            for modality in MODALITIES:
                contrast = contrast_of(sample.modalities[modality], box, is_event=modality == "event")
                assert contrast > CLEARLY if modality in views else contrast < BARELY, (index, box, modality)


def contrast_of(image: torch.Tensor, box: list[int], *, is_event: bool) -> float:
    """Largest difference, over the channels, between the middle of the lower box and the ground around the box.

    The ground of events is 0; around a moving object lies its trail.
    """
    x1, y1, x2, y2 = box
    side = x2 - x1
    inner = image[:, y1 + side // 2 : y2 - side // 5, x1 + side // 4 : x2 - side // 4].float().mean((1, 2))
    if is_event:
        return float(inner.max())
    window = image[:, max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2].float()
    ground = torch.ones(window.shape[1:], dtype=torch.bool)
    top, left = y1 - max(0, y1 - 2), x1 - max(0, x1 - 2)
    ground[top : top + side, left : left + side] = False
    around = window[:, ground].mean(1)
    return float((inner - around).abs().max())


def test_boxes_are_apart_and_inside() -> None:
    source = demo_set()
    for index in range(0, len(source), 3):
        target, (height, width) = source.targets(index)
        assert 1 <= len(target.labels) <= 4
        covered = np.zeros((height, width), int)
        for x1, y1, x2, y2 in target.boxes_xyxy.int().tolist():
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert 14 <= x2 - x1 <= 40
            covered[y1:y2, x1:x2] += 1
        assert covered.max() == 1


def test_boxes_are_tight() -> None:
    source = demo_set()
    for index in range(len(source)):
        sample = source.read(index)
        for (x1, y1, x2, y2), views in zip(
            sample.boxes_xyxy.int().tolist(), source.visible_in(index), strict=True
        ):
            if "thermal" in views:
                warm = sample.modalities["thermal"][0] > sample.modalities["thermal"].median() + 38
                for edge in (warm[y1, x1:x2], warm[y2 - 1, x1:x2], warm[y1:y2, x1], warm[y1:y2, x2 - 1]):
                    assert edge.any()
                around = warm[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2]
                assert around.sum() == warm[y1:y2, x1:x2].sum()


def test_the_bytes_are_the_same_everywhere() -> None:
    source = demo_set()
    digest = hashlib.sha256()
    for index in (0, 7, 50):
        sample = source.read(index)
        for modality in MODALITIES:
            digest.update(sample.modalities[modality].numpy().tobytes())
        digest.update(sample.boxes_xyxy.numpy().astype("<f4").tobytes())
    assert digest.hexdigest()[:16] == "a194cde46553684a"


def test_seeds_differ_and_repeat() -> None:
    a, b, c = demo_set().read(3), demo_set().read(3), demo_set(seed=1).read(3)
    assert all(torch.equal(a.modalities[name], b.modalities[name]) for name in MODALITIES)
    assert not torch.equal(a.modalities["rgb"], c.modalities["rgb"])


def test_nights_are_dark() -> None:
    source = demo_set()
    nights = [index for index in range(len(source)) if source.is_night(index)]
    assert 0.3 < len(nights) / len(source) < 0.4
    assert source.read(nights[0]).modalities["rgb"].max() < 25


def test_any_number_of_classes_has_shapes_of_its_own() -> None:
    classes = tuple("abcdefgh")
    source = demo_set(classes=classes)
    labels = Counter(int(label) for index in range(len(source)) for label in source.targets(index)[0].labels)
    assert set(labels) == set(range(len(classes)))
    assert set(demo_set(classes=("object",)).targets(0)[0].labels.tolist()) == {0}


def test_larger_images_have_larger_objects() -> None:
    source = SyntheticSet(num_sequences=4, frames_per_sequence=2, size_hw=(240, 320), classes=CLASSES, seed=0)
    boxes = source.targets(0)[0].boxes_xyxy
    assert (boxes[:, 2] - boxes[:, 0]).min() >= 40
    assert source.read(0).modalities["rgb"].shape == (3, 240, 320)


def test_the_smallest_image_works() -> None:
    source = SyntheticSet(num_sequences=2, frames_per_sequence=3, size_hw=(32, 32), classes=CLASSES, seed=0)
    for index in range(len(source)):
        assert source.read(index).modalities["event"].shape == (1, 32, 32)
        assert all(source.visible_in(index))
