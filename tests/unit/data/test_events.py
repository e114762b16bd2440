"""Simulated events fire where and as often as the model says, alike at every reading, and are called simulated."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raydet.config import CocoSource, DataConfig, EventSimulation, NpyYoloSource, SyntheticSource
from raydet.data.build import adopt_source, open_source
from raydet.data.events import (
    SUBPIXELS,
    UNIT,
    EventCounts,
    as_image,
    drawn_motion,
    events_between,
    events_of_motion,
    log_intensity,
    thresholds,
    with_noise,
)
from raydet.data.sources.coco import CocoSet
from raydet.data.sources.simulated import SimulatedEvents
from raydet.data.synthetic import SyntheticSet
from raydet.errors import ConfigError
from raydet.recipes import recipe

QUARTER = np.full((8, 12), UNIT // 4, np.int32)


def camera(**settings: object) -> SimulatedEvents:
    source = SyntheticSet(
        num_sequences=2, frames_per_sequence=3, size_hw=(48, 64), classes=("a",), seed=4, missing=("event",)
    )
    return SimulatedEvents(source, EventSimulation.model_validate(settings))


@settings(max_examples=60)
@given(before=st.integers(21, 255), after=st.integers(21, 255))
def test_events_count_the_thresholds_of_the_logarithm(before: int, after: int) -> None:
    a, b = (log_intensity(torch.full((3, 8, 12), value, dtype=torch.uint8)) for value in (before, after))
    counts = events_between(a, b, QUARTER)
    expected = abs(math.log(after / before)) / 0.25
    found = counts.on_HW + counts.off_HW
    assert len(np.unique(found)) == 1
    assert math.floor(expected - 0.01) <= found[0, 0] <= math.floor(expected + 0.01)
    assert not (counts.off_HW if after >= before else counts.on_HW).any()


def test_what_stands_still_is_silent_and_what_is_flat_may_move() -> None:
    noise = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    still = events_of_motion(log_intensity(noise), (0, 0), QUARTER)
    flat = events_of_motion(log_intensity(torch.full((3, 8, 12), 90, dtype=torch.uint8)), (40, -23), QUARTER)
    for counts in (still, flat):
        assert not counts.on_HW.any()
        assert not counts.off_HW.any()


def test_a_moving_edge_fires_along_its_way_with_the_right_sign() -> None:
    image = torch.full((3, 8, 12), 200, dtype=torch.uint8)
    image[:, :, 6:] = 50  # bright at the left: moving to the right it becomes brighter there
    counts = events_of_motion(log_intensity(image), (0, 2 * SUBPIXELS), QUARTER)
    assert not counts.off_HW.any()
    assert np.unique(np.nonzero(counts.on_HW)[1]).tolist() == [4, 5]
    assert (counts.on_HW[:, 4:6] == math.floor(math.log(4) / 0.25)).all()
    back = events_of_motion(log_intensity(image), (0, -2 * SUBPIXELS), QUARTER)
    assert not back.on_HW.any()
    assert np.unique(np.nonzero(back.off_HW)[1]).tolist() == [6, 7]


def test_a_thin_line_fires_twice_when_it_passes() -> None:
    image = torch.full((3, 8, 12), 50, dtype=torch.uint8)
    image[:, :, 8] = 200
    counts = events_of_motion(log_intensity(image), (0, 4 * SUBPIXELS), QUARTER)
    assert (counts.on_HW[:, 6] == 5).all()  # on its arrival, floor(ln 4 / 0.25)
    assert (counts.off_HW[:, 6] >= 4).all()  # and when it leaves again


@settings(max_examples=60)
@given(longest=st.floats(0.1, 20), number=st.integers(0, 999))
def test_motion_is_as_long_as_asked(longest: float, number: int) -> None:
    length = math.hypot(*drawn_motion(longest, (number,))) / SUBPIXELS
    assert 0.5 * longest - 0.07 <= length <= longest + 0.07


def test_thresholds_differ_from_pixel_to_pixel_as_asked() -> None:
    drawn = thresholds((200, 300), mean=0.25, sigma=0.03, seed=1) / UNIT
    assert drawn.mean() == pytest.approx(0.25, abs=0.001)
    assert drawn.std() == pytest.approx(0.03, abs=0.001)
    assert (thresholds((20, 30), mean=0.02, sigma=1.0, seed=1) > 0).all()
    assert (thresholds((20, 30), mean=0.25, sigma=0.0, seed=1) == UNIT // 4).all()


def test_noise_is_as_frequent_as_asked() -> None:
    silent = EventCounts(np.zeros((200, 300), np.int32), np.zeros((200, 300), np.int32))
    noisy = with_noise(silent, 0.1, ("a",))
    assert (noisy.on_HW + noisy.off_HW).mean() == pytest.approx(0.1, abs=0.005)
    assert noisy.on_HW.mean() == pytest.approx(0.05, abs=0.004)
    assert with_noise(silent, 1.0, ("a",)).on_HW.mean() == pytest.approx(0.5, abs=0.01)


def test_images_are_saturated_counts() -> None:
    counts = EventCounts(np.array([[0, 1, 2, 9]], np.int32), np.array([[0, 0, 1, 9]], np.int32))
    assert as_image(counts, full_scale=4).tolist() == [[[0, 63, 191, 255]]]


@pytest.mark.parametrize("between", ["motion", "frames"])
def test_readings_are_alike_whatever_was_read_before(between: str) -> None:
    source = camera(between=between)
    first = [source.read(index).modalities["event"] for index in range(6)]
    again = [
        pickle.loads(pickle.dumps(source)).read(index).modalities["event"] for index in reversed(range(6))
    ]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    other = [camera(between=between, seed=1).read(index).modalities["event"] for index in range(6)]
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert source.modalities == ("rgb", "thermal", "event")
    assert list(source.read(0).modalities) == ["rgb", "thermal", "event"]
    assert first[0].shape == (1, 48, 64)
    assert first[0].dtype == torch.uint8
    assert all(event.any() for event in first)


def test_frames_of_one_sequence_follow_one_another() -> None:
    moved, followed = camera(noise=0.0), camera(noise=0.0, between="frames")
    alike = [
        torch.equal(moved.read(i).modalities["event"], followed.read(i).modalities["event"]) for i in range(6)
    ]
    assert alike == [True, False, False, True, False, False]  # each third image begins a sequence
    source, fixed = followed.source, thresholds((48, 64), mean=0.25, sigma=0.03, seed=0)
    before, after = (log_intensity(source.read(index).modalities["rgb"]) for index in (3, 4))
    expected = as_image(events_between(before, after, fixed), 4)
    assert torch.equal(followed.read(4).modalities["event"], expected)


# --- by config


def data(**changes: object) -> DataConfig:
    plain = {"canvas_hw": (64, 64), "source": SyntheticSource(num_sequences=2, frames_per_sequence=2)}
    return DataConfig.model_validate(plain | changes)


def test_a_source_with_events_is_refused_unless_they_are_replaced() -> None:
    with pytest.raises(
        ConfigError, match=r"the synthetic source has events already; set data\.simulate_events"
    ):
        open_source(data(simulate_events=EventSimulation()))
    replaced = open_source(data(simulate_events=EventSimulation(replaces_own=True)))
    assert replaced.modalities == ("rgb", "thermal", "event")
    own = open_source(data())
    assert torch.equal(own.read(1).modalities["rgb"], replaced.read(1).modalities["rgb"])
    assert not torch.equal(own.read(1).modalities["event"], replaced.read(1).modalities["event"])


def test_simulation_wants_rgb_and_no_missing_event() -> None:
    with pytest.raises(ConfigError, match="needs rgb, the synthetic source has thermal"):
        open_source(data(simulate_events=EventSimulation(replaces_own=True), missing=("rgb",)))
    with pytest.raises(ValidationError, match="missing names event, which simulate_events makes"):
        data(simulate_events=EventSimulation(), missing=("event",))


def test_what_is_simulated_is_called_so() -> None:
    assert data().simulated == ()
    assert data().simulation_note == ""
    simulated = data(simulate_events=EventSimulation())
    assert simulated.simulated == ("event",)
    assert simulated.shown_name("event") == "event (simulated)"
    assert simulated.simulation_note == "The event modality is simulated from rgb, no camera has recorded it."


def test_npy_yolo_gets_events_in_place_of_its_empty_channel(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    image = np.zeros((48, 64, 5), np.uint8)
    image[10:30, 10:30, :3] = 200
    np.save(tmp_path / "images" / "a.npy", image)
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    source = open_source(
        data(
            source=NpyYoloSource(root=str(tmp_path)),
            classes=("thing",),
            simulate_events=EventSimulation(replaces_own=True),
        )
    )
    assert source.read(0).modalities["event"].any()


def test_real_pairs_get_plausible_events(shared_data: Path) -> None:
    path = shared_data / "roadscene_flir" / "annotations.json"
    base = recipe("demo")
    base = base.model_copy(
        update={"data": base.data.model_copy(update={"simulate_events": EventSimulation()})}
    )
    experiment = adopt_source(base, CocoSource(annotations=str(path)))
    assert experiment.data.missing == ()
    source = open_source(experiment.data)
    assert source.modalities == ("rgb", "thermal", "event")
    # Real windows of 40 ms: between 2 and 28 % of the pixels fire, up and down about equally often.
    real = [
        len(np.unique(events[:, 1:3], axis=0)) / (260 * 346)
        for events in map(np.load, sorted((shared_data / "pedro_events" / "events").glob("*.npy")))
    ]
    images = [source.read(index).modalities["event"] for index in range(0, 77, 8)]
    shares = [float((event > 0).float().mean()) for event in images]
    assert min(real) < float(np.median(shares)) < max(real)
    assert isinstance(source, SimulatedEvents)
    assert isinstance(source.source, CocoSet)
