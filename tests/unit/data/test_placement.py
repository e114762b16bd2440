"""After any chain of changes a box lies where its object is, and each change keeps its promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydet.config import Augmentation, Crop, ModalityDropout, Photometric, RgbPhotometric, ThermalPhotometric
from raydet.data.placement import misaligned, mosaic, partner_positions, random_crop
from raydet.data.transforms import train_transform, without_modalities
from raydet.structures import Boxes, Sample
from tests.unit.data.scenes import CHANNELS, extent_within, scene, scenes

CANVASES = st.sampled_from([(32, 64), (64, 96), (96, 64)])
STILL = Augmentation(flip_probability=0.0, scale_jitter=(1.0, 1.0), min_box_px=0.0)
CROPS = st.builds(Crop, min_fraction=st.floats(0.2, 1.0), keep=st.sampled_from(["one", "all"]))
CHANGES = st.builds(
    Augmentation,
    flip_probability=st.sampled_from([0.0, 0.5, 1.0]),
    scale_jitter=st.tuples(st.floats(0.6, 1.0), st.floats(1.0, 2.0)),
    min_box_px=st.just(4.0),
    min_box_kept=st.sampled_from([0.0, 0.5, 1.0]),
    crop=CROPS,
    photometric=st.just(
        Photometric(
            rgb=RgbPhotometric(brightness=0.2, contrast=0.2, saturation=0.5, hue=0.1),
            thermal=ThermalPhotometric(gain=0.2, offset=0.05, noise=0.02),
        )
    ),
)


def assert_boxes_on_objects(changed: Sample, canvas_hw: tuple[int, int]) -> None:
    """Every box is inside the image and its object fills it, within two pixels for rounding, blur and noise."""
    assert changed.canvas_hw == canvas_hw
    assert {name: len(x) for name, x in changed.modalities.items()} == CHANNELS
    height, width = changed.valid_hw
    for box in changed.boxes_xyxy:
        assert (box >= 0).all()
        assert box[2] <= width
        assert box[3] <= height
        for x_CHW in changed.modalities.values():
            assert extent_within(x_CHW[-1], box) == pytest.approx(box.tolist(), abs=2.0)


@settings(max_examples=40)
@given(sample=scenes(), canvas_hw=CANVASES, change=CHANGES, epoch=st.integers(0, 50))
def test_boxes_stay_on_their_objects(
    sample: Sample, canvas_hw: tuple[int, int], change: Augmentation, epoch: int
) -> None:
    changed = train_transform(
        sample, augmentation=change, canvas_hw=canvas_hw, key=(0, epoch, sample.image_id)
    )
    for name, x_CHW in changed.modalities.items():
        assert x_CHW.dtype == sample.modalities[name].dtype
        assert not x_CHW[:, changed.valid_hw[0] :].any()
        assert not x_CHW[:, :, changed.valid_hw[1] :].any()
    assert_boxes_on_objects(changed, canvas_hw)


@settings(max_examples=25)
@given(
    samples=st.lists(scenes(), min_size=4, max_size=4),
    canvas_hw=CANVASES,
    kept=st.sampled_from([0.0, 0.6]),
    seed=st.integers(0, 99),
)
def test_a_mosaic_keeps_boxes_on_their_objects(
    samples: list[Sample], canvas_hw: tuple[int, int], kept: float, seed: int
) -> None:
    # The objects of the k-th image are bright in the k-th channel only: neighbours do not disturb.
    for k, sample in enumerate(samples):
        event = torch.zeros(4, *sample.canvas_hw)
        event[k] = sample.modalities["thermal"][0].float().clamp(max=1)
        samples[k] = replace(
            sample, modalities={"event": event}, target=Boxes(sample.boxes_xyxy, sample.labels + 2 * k)
        )
    changed = train_transform(
        samples[0],
        augmentation=Augmentation(min_box_kept=kept, min_box_px=4.0),
        canvas_hw=canvas_hw,
        key=(seed, 0, samples[0].image_id),
        partners=samples[1:],
    )
    assert changed.valid_hw == changed.canvas_hw == canvas_hw
    assert (changed.image_id, changed.source_hw) == (samples[0].image_id, samples[0].source_hw)
    for box, label in zip(changed.boxes_xyxy, changed.labels.tolist(), strict=True):
        assert (box >= 0).all()
        assert box[2] <= canvas_hw[1]
        assert box[3] <= canvas_hw[0]
        channel = changed.modalities["event"][label // 2]
        assert extent_within(channel, box) == pytest.approx(box.tolist(), abs=2.0)


def test_a_mosaic_has_no_hole_and_shows_all_four() -> None:
    samples = []
    for number in range(4):
        sample = scene((48, 64), [[10, 10, 30, 30]], str(number))
        plane = {name: torch.full((count, 48, 64), 40.0 * (number + 1)) for name, count in CHANNELS.items()}
        samples.append(
            replace(sample, modalities=plane, target=Boxes(sample.boxes_xyxy, torch.tensor([number])))
        )
    whole = mosaic(samples, Augmentation(scale_jitter=(0.3, 0.4)), (64, 96), (0, 0, "m"))
    assert sorted(whole.modalities["rgb"].round().unique().tolist()) == [40, 80, 120, 160]
    assert whole.labels.tolist() == [0, 1, 2, 3]  # each quarter is shown around its box
    for box, value in zip(whole.boxes_xyxy, (40, 80, 120, 160), strict=True):
        x, y = ((box[:2] + box[2:]) / 2).int().tolist()
        assert whole.modalities["thermal"][0, y, x] == pytest.approx(value)


def test_partners_follow_from_the_key() -> None:
    def of(image_id: str, epoch: int, probability: float = 0.5) -> tuple[int, ...]:
        return partner_positions(image_id, probability=probability, num_samples=7, seed=3, epoch=epoch)

    found = [of(str(number), epoch) for number in range(200) for epoch in (0, 1)]
    assert found == [of(str(number), epoch) for number in range(200) for epoch in (0, 1)]
    share = sum(bool(partners) for partners in found) / 400
    assert 0.4 < share < 0.6
    drawn = [position for partners in found for position in partners]
    assert set(drawn) == set(range(7))
    assert all(len(partners) in (0, 3) for partners in found)
    assert of("a", 0, probability=0.0) == ()


@settings(max_examples=40)
@given(sample=scenes(), least=st.floats(0.1, 1.0), rows=st.sampled_from([[0], [1], [0, 1], []]))
def test_a_crop_keeps_what_it_promises(sample: Sample, least: float, rows: list[int]) -> None:
    part = random_crop(sample, least, torch.tensor(rows, dtype=torch.int64), (1, sample.image_id))
    assert part.canvas_hw[0] >= least * sample.canvas_hw[0]
    assert part.canvas_hw[1] >= least * sample.canvas_hw[1]
    sides = part.boxes_xyxy[:, 2:] - part.boxes_xyxy[:, :2]
    for row in rows:
        assert torch.equal(sides[row], sample.boxes_xyxy[row, 2:] - sample.boxes_xyxy[row, :2])


def slope(line: torch.Tensor, length: int) -> float:
    """Per pixel, between a quarter and three quarters of a line: away from its ends, where resizing repeats pixels."""
    first, last = length // 4, 3 * length // 4
    return float(line[last] - line[first]) / (last - first)


@settings(max_examples=40)
@given(sample=scenes(), crop=CROPS, kept=st.floats(0.05, 1.0), high=st.floats(1.0, 1.5))
def test_boxes_are_whole_enough_and_one_is_left(sample: Sample, crop: Crop, kept: float, high: float) -> None:
    height, width = sample.canvas_hw
    ramps = torch.stack(
        torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    )
    sample = replace(sample, modalities={"event": ramps})  # they tell by how much the image was enlarged
    change = STILL.model_copy(update={"crop": crop, "min_box_kept": kept, "scale_jitter": (1.0, high)})
    canvas_hw = (384, 384)  # every box fits
    changed = train_transform(sample, augmentation=change, canvas_hw=canvas_hw, key=(0, 0, sample.image_id))
    if crop.min_fraction < 1 and high == 1.0:
        assert len(changed.labels) >= (2 if crop.keep == "all" else 1)
    rows, columns = changed.modalities["event"]
    down = slope(rows[:, 0], changed.valid_hw[0]) * (height - 1)
    right = slope(columns[0], changed.valid_hw[1]) * (width - 1)
    areas = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).prod(dim=1) / (down * right)
    left = (changed.boxes_xyxy[:, 2:] - changed.boxes_xyxy[:, :2]).prod(dim=1)
    shares = left / areas[changed.labels]
    assert (shares >= kept - 0.002).all()
    assert (shares <= 1.002).all()  # else the enlargement was measured wrongly


def test_a_box_that_was_cut_too_far_is_dropped() -> None:
    sample = scene((60, 60), [[0, 0, 60, 10], [20, 30, 30, 40]])
    change = STILL.model_copy(update={"scale_jitter": (2.0, 2.0)})
    left = {}
    for kept in (0.0, 0.3, 0.9):
        changed = [
            train_transform(
                sample,
                augmentation=change.model_copy(update={"min_box_kept": kept}),
                canvas_hw=(64, 64),
                key=(0, epoch, sample.image_id),
            )
            for epoch in range(40)
        ]
        left[kept] = sum(0 in found.labels for found in changed)
    # Half the width of the first box fits the canvas at most.
    assert left[0.0] >= left[0.3] > left[0.9] == 0


@settings(max_examples=40)
@given(sample=scenes(), most=st.integers(1, 12), number=st.integers(0, 99))
def test_misalignment_moves_pixels_of_the_other_sensors_only(sample: Sample, most: int, number: int) -> None:
    moved = misaligned(sample, most, (0, number, sample.image_id))
    assert torch.equal(moved.modalities["rgb"], sample.modalities["rgb"])
    assert torch.equal(moved.boxes_xyxy, sample.boxes_xyxy)
    height, width = sample.canvas_hw
    for name in ("thermal", "event"):
        assert moved.modalities[name].shape == sample.modalities[name].shape
        padded = torch.nn.functional.pad(sample.modalities[name][0].float(), [most] * 4)
        inner = moved.modalities[name][0].float()[most : height - most, most : width - most]
        windows = (
            padded[most - down :, most - right :][:height, :width][most : height - most, most : width - most]
            for down in range(-most, most + 1)
            for right in range(-most, most + 1)
        )
        assert any(torch.equal(inner, window) for window in windows)


def test_every_shift_within_the_range_comes_and_each_sensor_has_its_own() -> None:
    sample = scene((40, 40), [[16, 16, 24, 24]])
    found, differ = set(), 0
    for number in range(300):
        moved = misaligned(sample, 2, (0, number))
        where = [
            tuple(torch.nonzero(moved.modalities[name][0])[0].sub(16).tolist())
            for name in ("thermal", "event")
        ]
        found.add(where[0])
        differ += where[0] != where[1]
    assert found == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert differ > 250


def test_without_rgb_the_first_sensor_stays() -> None:
    sample = scene((40, 40), [[16, 16, 24, 24]])
    sample = replace(sample, modalities={name: sample.modalities[name] for name in ("thermal", "event")})
    moved = misaligned(sample, 9, (0, "b"))
    assert torch.equal(moved.modalities["thermal"], sample.modalities["thermal"])
    assert list(moved.modalities) == ["thermal", "event"]


@settings(max_examples=40)
@given(
    chances=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 3),
    reads=st.sampled_from([None, ("rgb",), ("rgb", "thermal"), ("event", "thermal")]),
    number=st.integers(0, 99),
)
def test_dropout_never_takes_all(
    chances: tuple[float, float, float], reads: tuple[str, ...] | None, number: int
) -> None:
    rgb, thermal, event = chances
    sample = scene((32, 32), [[0, 0, 32, 32]])
    left = without_modalities(
        sample, ModalityDropout(rgb=rgb, thermal=thermal, event=event), reads, (number,)
    )
    assert not left.dropped.issuperset(reads or CHANNELS)
    for name, chance in zip(CHANNELS, chances, strict=True):
        assert chance > 0 or name not in left.dropped
        assert left.modalities[name].any() == (name not in left.dropped)
        assert left.modalities[name].shape == sample.modalities[name].shape


def test_dropout_is_as_frequent_as_asked() -> None:
    sample = scene((32, 32), [])
    dropout = ModalityDropout(rgb=0.2, thermal=0.4)
    dropped = [without_modalities(sample, dropout, None, (number,)).dropped for number in range(600)]
    shares = {name: sum(name in names for names in dropped) / 600 for name in CHANNELS}
    # Three deviations of a binomial count: 0.049 and 0.060.
    assert shares["rgb"] == pytest.approx(0.2, abs=0.05)
    assert shares["thermal"] == pytest.approx(0.4, abs=0.06)
    assert shares["event"] == 0


ALL_ON: dict[str, object] = {
    "crop": Crop(min_fraction=0.6),
    "misalignment_px": 3,
    "modality_dropout": ModalityDropout(thermal=0.5),
    "photometric": Photometric(thermal=ThermalPhotometric(gain=0.3, noise=0.1)),
}


@pytest.mark.parametrize("switched", ALL_ON)
def test_each_change_has_draws_of_its_own(switched: str) -> None:
    """Switching one on leaves what the others do as it is, seen in the modality or the boxes that it leaves alone."""
    sample = scene((64, 96), [[8, 8, 40, 40], [56, 20, 90, 60]])
    without = STILL.model_copy(
        update={"flip_probability": 0.5} | {name: on for name, on in ALL_ON.items() if name != switched}
    )
    with_it = without.model_copy(update={switched: ALL_ON[switched]})
    differs = 0
    for epoch in range(12):
        a, b = (
            train_transform(sample, augmentation=change, canvas_hw=(64, 96), key=(0, epoch, sample.image_id))
            for change in (without, with_it)
        )
        if switched == "crop":
            assert a.dropped == b.dropped  # places are other ones by intention
            assert (a.boxes_xyxy[:, 0].argsort() != b.boxes_xyxy[:, 0].argsort()).sum() == 0 or len(
                a.labels
            ) != len(b.labels)
        else:
            assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
            assert torch.equal(a.modalities["rgb"], b.modalities["rgb"])
        if switched not in ("crop", "misalignment_px"):
            assert torch.equal(a.modalities["event"], b.modalities["event"])
        differs += any(not torch.equal(a.modalities[name], b.modalities[name]) for name in CHANNELS)
    assert differs >= 3
