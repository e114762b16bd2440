from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydet.config import Augmentation
from raydet.data.geometry import flip_horizontally, resize
from raydet.data.transforms import eval_transform, train_transform
from raydet.structures import Boxes, Sample

SIZES = st.tuples(st.integers(20, 90), st.integers(20, 90))
CANVASES = st.sampled_from([(32, 32), (64, 96), (96, 64)])
FIXED = Augmentation(flip_probability=0.0, scale_jitter=(1.0, 1.0), min_box_px=0.0)


def scene(size_hw: tuple[int, int], boxes: list[list[float]], image_id: str = "a") -> Sample:
    """Bright rectangles on black, the same in all modalities."""
    plane = torch.zeros(1, *size_hw, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        plane[:, int(y1) : int(y2), int(x1) : int(x2)] = 255
    return Sample(
        image_id=image_id,
        group_id="",
        modalities={"rgb": plane.expand(3, -1, -1), "thermal": plane, "event": plane.float() / 255},
        target=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(len(boxes))),
        source_hw=size_hw,
        valid_hw=size_hw,
    )


@st.composite
def scenes(draw: st.DrawFn) -> Sample:
    height, width = draw(SIZES)
    y1, x1 = draw(st.integers(0, height - 9)), draw(st.integers(0, width - 9))
    y2, x2 = draw(st.integers(y1 + 8, height)), draw(st.integers(x1 + 8, width))
    return scene((height, width), [[x1, y1, x2, y2]], image_id=str(draw(st.integers(0, 99))))


def bright_extent(plane: torch.Tensor) -> tuple[float, float, float, float]:
    """Box of what is at least half bright."""
    rows, columns = torch.nonzero(plane.float() / plane.max() >= 0.5, as_tuple=True)
    return (
        float(columns.min()),
        float(rows.min()),
        float(columns.max()) + 1,
        float(rows.max()) + 1,
    )


@settings(max_examples=80)
@given(
    sample=scenes(),
    canvas_hw=CANVASES,
    low=st.floats(0.5, 1.0),
    high=st.floats(1.0, 2.0),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    epoch=st.integers(0, 50),
)
def test_boxes_and_pixels_move_together(
    sample: Sample, canvas_hw: tuple[int, int], low: float, high: float, flip: float, epoch: int
) -> None:
    augmentation = Augmentation(flip_probability=flip, scale_jitter=(low, high), min_box_px=3.0)
    changed = train_transform(
        sample, augmentation=augmentation, canvas_hw=canvas_hw, key=(1, epoch, sample.image_id)
    )
    assert changed.canvas_hw == canvas_hw
    assert changed.source_hw == sample.source_hw
    assert {name: x.dtype for name, x in changed.modalities.items()} == {
        "rgb": torch.uint8,
        "thermal": torch.uint8,
        "event": torch.float32,
    }
    valid_h, valid_w = changed.valid_hw
    assert valid_h <= canvas_hw[0]
    assert valid_w <= canvas_hw[1]
    for x_CHW in changed.modalities.values():
        assert not x_CHW[:, valid_h:].any()
        assert not x_CHW[:, :, valid_w:].any()
    for box in changed.boxes_xyxy:
        assert (box >= 0).all()
        assert box[2] <= valid_w
        assert box[3] <= valid_h
        assert (box[2:] - box[:2]).min() >= 3
        for name in ("thermal", "event"):
            found = bright_extent(changed.modalities[name][0])
            assert found == pytest.approx(box.tolist(), abs=1.01)  # half a pixel each from rounding and blur


@settings(max_examples=40)
@given(sample=scenes(), canvas_hw=CANVASES)
def test_flipping_twice_changes_nothing(sample: Sample, canvas_hw: tuple[int, int]) -> None:
    padded = eval_transform(sample, canvas_hw=canvas_hw)
    twice = flip_horizontally(flip_horizontally(padded))
    for name, x_CHW in padded.modalities.items():
        assert torch.equal(twice.modalities[name], x_CHW)
    torch.testing.assert_close(twice.boxes_xyxy, padded.boxes_xyxy, atol=1e-4, rtol=0)


@settings(max_examples=40)
@given(sample=scenes(), canvas_hw=CANVASES)
def test_evaluation_finds_its_way_back(sample: Sample, canvas_hw: tuple[int, int]) -> None:
    padded = eval_transform(sample, canvas_hw=canvas_hw)
    (valid_h, valid_w), (height, width) = padded.valid_hw, sample.source_hw
    assert valid_h == canvas_hw[0] or valid_w == canvas_hw[1]
    assert len(padded.labels) == len(sample.labels)
    back = padded.boxes_xyxy * torch.tensor([width / valid_w, height / valid_h] * 2)
    torch.testing.assert_close(back, sample.boxes_xyxy, atol=1e-3, rtol=1e-5)


def test_an_image_that_fits_is_not_resampled() -> None:
    sample = scene((64, 96), [[3, 4, 20, 30]])
    noise = torch.randint(0, 256, (1, 64, 96), dtype=torch.uint8)
    sample = replace(sample, modalities={"thermal": noise})
    for changed in (
        eval_transform(sample, canvas_hw=(64, 96)),
        train_transform(sample, augmentation=FIXED, canvas_hw=(64, 96), key=(0, 0, sample.image_id)),
    ):
        assert torch.equal(changed.modalities["thermal"], noise)
        assert torch.equal(changed.boxes_xyxy, sample.boxes_xyxy)
    padded = eval_transform(sample, canvas_hw=(96, 96))
    assert torch.equal(padded.modalities["thermal"][:, :64], noise)
    assert padded.valid_hw == (64, 96)


def test_a_flip_mirrors() -> None:
    sample = flip_horizontally(scene((32, 40), [[0, 5, 10, 20]]))
    assert sample.boxes_xyxy.tolist() == [[30, 5, 40, 20]]
    assert bright_extent(sample.modalities["rgb"][0]) == (30, 5, 40, 20)


def test_small_boxes_are_dropped_with_their_labels() -> None:
    sample = scene((32, 32), [[0, 0, 16, 16], [0, 0, 1.5, 16]])
    kept = train_transform(
        sample,
        augmentation=Augmentation(flip_probability=0.0, scale_jitter=(1.0, 1.0), min_box_px=2.0),
        canvas_hw=(32, 32),
        key=(0, 0, sample.image_id),
    )
    assert kept.labels.tolist() == [0]


def test_an_image_without_boxes_stays_one() -> None:
    empty = scene((30, 40), [])
    augmentation = Augmentation(flip_probability=1.0, scale_jitter=(1.5, 2.0))
    changed = train_transform(
        empty, augmentation=augmentation, canvas_hw=(32, 32), key=(0, 0, empty.image_id)
    )
    assert changed.boxes_xyxy.shape == (0, 4)
    assert changed.labels.shape == (0,)


def test_what_is_random_depends_on_seed_epoch_and_image() -> None:
    augmentation = Augmentation(flip_probability=0.5, scale_jitter=(0.5, 2.0))

    def box(image_id: str, seed: int, epoch: int) -> list[float]:
        torch.rand(1)  # the global stream is elsewhere each time
        sample = scene((64, 64), [[20, 24, 40, 44]], image_id)
        found = train_transform(
            sample, augmentation=augmentation, canvas_hw=(64, 64), key=(seed, epoch, sample.image_id)
        )
        return found.boxes_xyxy.flatten().tolist()

    assert box("a", 0, 0) == box("a", 0, 0)
    assert len({tuple(box(*key)) for key in (("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1))}) == 4


def test_resizing_keeps_flat_areas_flat() -> None:
    sample = scene((40, 40), [[0, 0, 40, 40]])
    assert resize(sample, (25, 31)).modalities["rgb"].unique().tolist() == [255]
