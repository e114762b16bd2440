from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raydet.errors import DataError
from raydet.structures import collate, mask_of
from tests.unit.data.masks import painted, shapes
from tests.unit.data.scenes import scene


def test_types_are_stacked_as_they_are() -> None:
    samples = [scene((8, 16), [[0, 0, 4, 4]], "a"), scene((8, 16), [], "b")]
    types = {name: x.dtype for name, x in collate(samples).modalities.items()}
    assert types == {"rgb": torch.uint8, "thermal": torch.uint8, "event": torch.float32}


def test_mixed_types_are_refused() -> None:
    """Stacking would convert bytes to floats in 0..255, which nobody divides any more."""
    whole, floats = (scene((8, 16), [], name, floats=f) for name, f in (("a", ()), ("b", ("thermal",))))
    with pytest.raises(ValueError, match=r"must have the same types, got .*torch\.uint8.*torch\.float32"):
        collate([whole, floats])


def test_other_modalities_are_refused() -> None:
    sample = scene((8, 16), [])
    only = replace(sample, modalities={"rgb": sample.modalities["rgb"]})
    with pytest.raises(ValueError, match="must have the same modalities and canvas"):
        collate([sample, only])


def test_masks_are_stacked_and_travel() -> None:
    samples = [painted(shapes((24, 32), number), str(number)) for number in range(3)]
    batch = collate(samples)
    ids_BHW = batch.tensors()["ids_BHW"]
    assert ids_BHW.dtype == torch.uint8
    for ids_HW, sample in zip(ids_BHW, samples, strict=True):
        assert torch.equal(ids_HW, mask_of(sample.target, sample.image_id).ids_HW)
    assert {x.device.type for x in batch.to("meta").tensors().values()} == {"meta"}
    assert batch.not_finite() == []


@pytest.mark.parametrize("kind", ["pixel", "box"])
def test_what_is_not_finite_is_named(kind: str) -> None:
    good, bad = scene((24, 32), [[1, 2, 9, 10]], "good"), scene((24, 32), [[1, 2, 9, 10]], "bad")
    (bad.boxes_xyxy if kind == "box" else bad.modalities["event"].select(0, 0))[0, 0] = torch.nan
    assert collate([good, bad]).not_finite() == ["bad"]


def test_a_mask_has_no_boxes() -> None:
    sample = painted(shapes((24, 32), 0), "a")
    for name in ("boxes_xyxy", "labels"):
        with pytest.raises(DataError, match="a: expected boxes, got a mask; choose a set with boxes"):
            getattr(sample, name)
    for name in ("boxes_xyxy", "labels", "counts"):
        with pytest.raises(DataError, match="expected a batch with boxes, got masks"):
            getattr(collate([sample]), name)


def test_boxes_and_masks_are_not_mixed() -> None:
    mask = painted(shapes((24, 32), 0), "a mask")
    boxes = replace(scene((24, 32), [], "boxes", floats=()), modalities=mask.modalities)
    with pytest.raises(DataError, match="a mask: expected boxes, got a mask"):
        collate([boxes, mask])
    with pytest.raises(DataError, match="boxes: expected a mask, got boxes"):
        collate([mask, boxes])
    with pytest.raises(ValueError, match=r"masks of one batch must have the same type, got .*int16"):
        collate([mask, painted(shapes((24, 32), 0, torch.int16))])
