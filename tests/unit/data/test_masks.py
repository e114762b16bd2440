"""A mask moves with its image, and as boxes do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydet.config import Augmentation, Crop, DataConfig, SyntheticSource
from raydet.data.geometry import flip_horizontally, resize
from raydet.data.loader import EvalLoader, TrainLoader
from raydet.data.placement import misaligned
from raydet.data.transforms import eval_transform, train_transform
from raydet.structures import IGNORE, Mask, Sample, mask_of
from tests.unit.data.masks import CLASSES, COLOURS, MaskSet, painted, painted_shapes, shapes
from tests.unit.data.scenes import scenes

CANVASES = st.sampled_from([(32, 64), (64, 96), (96, 64)])
JITTER = st.tuples(st.floats(0.4, 1.0), st.floats(1.0, 2.0))


def ids_of(sample: Sample) -> Tensor:
    return mask_of(sample.target, sample.image_id).ids_HW


def rendered(sample: Sample, grow: float = 0.0) -> Tensor:
    """The boxes as ids [H, W] of their label + 1: a pixel is of the box in which its centre lies.

    Args:
        grow: pixels by which each side of a box is moved outwards.
    """
    height, width = sample.canvas_hw
    y_H, x_W = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    ids_HW = torch.zeros(height, width, dtype=torch.uint8)
    for (x1, y1, x2, y2), label in zip(sample.boxes_xyxy.tolist(), sample.labels.tolist(), strict=True):
        rows, columns = (y_H >= y1 - grow) & (y_H < y2 + grow), (x_W >= x1 - grow) & (x_W < x2 + grow)
        ids_HW[rows[:, None] & columns] = label + 1
    return ids_HW


@settings(max_examples=80)
@given(
    boxes=scenes(),
    canvas_hw=CANVASES,
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    jitter=JITTER,
    epoch=st.integers(0, 50),
)
def test_a_rendering_of_boxes_stays_one(
    boxes: Sample, canvas_hw: tuple[int, int], flip: float, jitter: tuple[float, float], epoch: int
) -> None:
    augmentation = Augmentation(
        flip_probability=flip, scale_jitter=jitter, min_box_px=0.0, min_box_kept=0.0, misalignment_px=2
    )
    changed = []
    for sample in (boxes, replace(boxes, target=Mask(rendered(boxes)))):
        key = (0, epoch, sample.image_id)
        changed += [
            train_transform(sample, augmentation=augmentation, canvas_hw=canvas_hw, key=key),
            eval_transform(sample, canvas_hw=canvas_hw),
        ]
    for moved, mask in zip(changed[:2], changed[2:], strict=True):
        height, width = mask.valid_hw
        found, expected = ids_of(mask), rendered(moved)
        assert found.shape == canvas_hw
        assert (found[height:] == IGNORE).all()
        assert (found[:, width:] == IGNORE).all()
        # Float coordinates round, so that a side may lie on either side of a pixel's centre.
        is_sure = rendered(moved, grow=0.01) == rendered(moved, grow=-0.01)
        is_sure[height:], is_sure[:, width:] = False, False
        assert torch.equal(found[is_sure], expected[is_sure])


@settings(max_examples=80)
@given(
    samples=st.lists(painted_shapes(), min_size=4, max_size=4),
    is_mosaic=st.booleans(),
    canvas_hw=CANVASES,
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    jitter=JITTER,
    min_fraction=st.floats(0.3, 1.0),
    epoch=st.integers(0, 50),
)
def test_where_an_image_has_the_colour_of_a_class_the_mask_has_its_id(
    samples: list[Sample],
    is_mosaic: bool,
    canvas_hw: tuple[int, int],
    flip: float,
    jitter: tuple[float, float],
    min_fraction: float,
    epoch: int,
) -> None:
    samples = [replace(s, target=Mask(ids_of(s).to(ids_of(samples[0]).dtype))) for s in samples]
    changed = train_transform(
        samples[0],
        augmentation=Augmentation(
            flip_probability=flip, scale_jitter=jitter, crop=Crop(min_fraction=min_fraction)
        ),
        canvas_hw=canvas_hw,
        key=(0, epoch, samples[0].image_id),
        partners=samples[1:] if is_mosaic else (),
    )
    ids_HW, rgb = ids_of(changed), changed.modalities["rgb"]
    assert (ids_HW.shape, ids_HW.dtype) == (canvas_hw, ids_of(samples[0]).dtype)
    height, width = changed.valid_hw
    assert (ids_HW[height:] == IGNORE).all()
    assert (ids_HW[:, width:] == IGNORE).all()
    assert set(ids_HW[:height, :width].unique().tolist()) <= {0, 1, 2, IGNORE}
    num_pure = 0
    for value in (0, 1, 2, IGNORE):
        is_pure_HW = (rgb == COLOURS[value][:, None, None]).all(dim=0)
        assert (ids_HW[is_pure_HW] == value).all()
        num_pure += int(is_pure_HW.sum())
    if min(height, width) >= 8:  # a narrower image is all blends
        assert num_pure > 0.2 * height * width


@settings(max_examples=40)
@given(sample=painted_shapes(), canvas_hw=CANVASES)
def test_flipping_twice_changes_nothing(sample: Sample, canvas_hw: tuple[int, int]) -> None:
    padded = eval_transform(sample, canvas_hw=canvas_hw)
    once = flip_horizontally(padded)
    assert torch.equal(ids_of(flip_horizontally(once)), ids_of(padded))
    width = padded.valid_hw[1]
    assert torch.equal(ids_of(once)[:, :width], ids_of(padded)[:, :width].flip(1))


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_whole_factors_repeat_pixels(factor: int) -> None:
    sample = painted(shapes((24, 30), 5))
    larger = resize(sample, (24 * factor, 30 * factor))
    assert torch.equal(
        ids_of(larger), ids_of(sample).repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    )
    assert torch.equal(ids_of(resize(larger, (24, 30))), ids_of(sample))


def test_an_image_that_fits_keeps_its_mask() -> None:
    sample = painted(shapes((64, 96), 3))
    assert torch.equal(ids_of(eval_transform(sample, canvas_hw=(64, 96))), ids_of(sample))
    assert misaligned(sample, 5, (0, "a")).target is sample.target


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_loaders_give_batches_of_masks(mosaic: float) -> None:
    source = MaskSet()
    data = DataConfig(
        source=SyntheticSource(),
        classes=CLASSES,
        canvas_hw=(32, 64),
        augmentation=Augmentation(mosaic=mosaic),
        loader_threads=0,
    )
    loader = TrainLoader(
        source,
        range(6),
        data=data,
        seed=0,
        global_batch=3,
        micro_batch=3,
        accumulation=1,
        rank=0,
        world_size=1,
    )
    batches = [batch for step in loader.epoch(0) for batch in step]
    batches += [batch for batch, _ in EvalLoader(source, range(6), data=data, batch_size=4)]
    for batch in batches:
        assert batch.tensors()["ids_BHW"].shape == (batch.size, 32, 64)
    sample = eval_transform(source.read(4), canvas_hw=(32, 64))
    assert torch.equal(batches[-1].tensors()["ids_BHW"][0], ids_of(sample))
