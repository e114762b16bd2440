"""A clean set yields nothing; each planted fault yields its finding, at its image, and no other."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from raydet.check.examine import Settings
from raydet.check.findings import KINDS, Finding
from raydet.check.gather import Gathered, cause_of
from raydet.check.image_record import as_json
from raydet.check.images import worst_cases
from raydet.check.page import render
from raydet.check.run import check_source
from raydet.config import EventSimulation, FirstSplit
from raydet.data.sources.simulated import SimulatedEvents
from raydet.errors import RaydetError
from raydet.structures import Boxes, Sample
from tests.unit.check.planted import (
    FAULTS,
    NUM_IMAGES,
    NUM_TRAIN,
    MemorySet,
    as_float,
    checked,
    clean_samples,
    kinds_of,
    with_pixels,
)


@examples(max_examples=5, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_clean_set_yields_nothing(seed: int) -> None:
    found = checked(MemorySet(clean_samples(seed)))
    assert found.findings == []
    assert found.num_images == NUM_IMAGES


@examples(max_examples=2, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), index=st.integers(0, NUM_IMAGES - 1))
@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found(kind: str, seed: int, index: int) -> None:
    source = MemorySet(clean_samples(seed))
    plant, companions = FAULTS[kind]
    plant(source, index)
    kinds = kinds_of(checked(source))
    assert kinds.pop(kind) == 1
    assert kinds.keys() <= companions


@pytest.mark.parametrize("kind", ["box_empty", "misaligned", "unreadable", "constant"])
def test_a_finding_names_its_image(kind: str) -> None:
    source = MemorySet(clean_samples(1))
    FAULTS[kind][0](source, 2)
    (finding,) = checked(source).by_kind()[kind]
    assert (finding.name, finding.index) == ("image 2", 2)


def test_every_kind_is_planted_somewhere() -> None:
    elsewhere = {
        "no_boxes", "dead_channel", "bad_split", "class_unused", "class_one_sided", "offset", "cannot_tell",
        "odd_shape", "no_events", "grey_rgb", "left_out_annotation", "ignored", "understood",
        "no_labels", "mask_empty", "mask_speckled", "anomaly_outside_test",  # in test_check_masks.py
    }  # fmt: skip
    assert set(KINDS) == set(FAULTS) | elsewhere


def test_channels_that_are_dead_in_all_images() -> None:
    samples = clean_samples(0)
    for number, sample in enumerate(samples):
        pixels = sample.modalities["rgb"].clone()
        pixels[1] = 9
        samples[number] = with_pixels(sample, rgb=pixels)
    found = checked(MemorySet(samples))
    assert kinds_of(found) == {"dead_channel": 1}
    assert found.findings[0].name == "rgb 1"


def test_grey_that_is_stored_as_colour() -> None:
    samples = [with_pixels(s, rgb=s.modalities["rgb"][:1].expand(3, -1, -1)) for s in clean_samples(0)]
    assert kinds_of(checked(MemorySet(samples))) == {"grey_rgb": 1}


def test_an_event_camera_that_saw_nothing_is_a_note() -> None:
    samples = [
        with_pixels(s, event=s.modalities["thermal"] if number else torch.zeros_like(s.modalities["thermal"]))
        for number, s in enumerate(clean_samples(0))
    ]
    assert kinds_of(checked(MemorySet(samples))) == {"no_events": 1}


def test_two_scenes_in_one_image_cannot_be_told() -> None:
    samples = clean_samples(0)
    samples[0] = with_pixels(samples[0], thermal=clean_samples(99)[0].modalities["thermal"])
    assert kinds_of(checked(MemorySet(samples))) == {"cannot_tell": 1}


def test_an_image_on_its_side() -> None:
    samples = clean_samples(0, count=24)
    turned = {name: x.transpose(1, 2) for name, x in samples[5].modalities.items()}
    height, width = samples[5].source_hw
    target = Boxes(samples[5].boxes_xyxy[:, [1, 0, 3, 2]], samples[5].labels)
    samples[5] = type(samples[5])(samples[5].image_id, "", turned, target, (width, height), (width, height))
    found = checked(MemorySet(samples))
    assert [(f.kind, f.index) for f in found.findings] == [("odd_shape", 5)]


def test_classes_without_boxes_or_on_one_side() -> None:
    samples = clean_samples(0)
    samples = [
        replace(s, target=Boxes(s.boxes_xyxy, torch.tensor([0, 1 if i < 2 else 0])))
        for i, s in enumerate(samples)
    ]
    found = checked(MemorySet(samples, classes=("person", "car", "dog")))
    assert {(f.kind, f.name) for f in found.findings} == {("class_one_sided", "car"), ("class_unused", "dog")}
    assert found.class_rows()[1] | {"small": 0, "medium": 0} == {
        "class": "car", "small": 0, "medium": 0, "large": 0, "train": 2, "val": 0, "all": 2,
    }  # fmt: skip


def test_a_set_without_boxes_and_a_split_without_a_side() -> None:
    empty = [
        replace(s, target=Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
        for s in clean_samples(0)
    ]
    found = checked(MemorySet(empty), num_train=NUM_IMAGES)
    assert kinds_of(found) == {"bad_split": 1, "no_boxes": 1, "empty": NUM_IMAGES}
    assert "data.split" in next(f.detail for f in found.findings if f.kind == "bad_split")


def test_a_shift_that_most_pairs_share_is_told_once_more() -> None:
    samples = [
        with_pixels(s, thermal=s.modalities["thermal"].roll((0, 3), (1, 2)))
        for s in clean_samples(0, count=21)
    ]
    found = checked(MemorySet(samples))
    (offset,) = [f for f in found.findings if f.kind == "offset"]
    assert offset.name == "rgb-thermal"
    assert offset.detail.startswith("x +3.")
    assert kinds_of(found) == {"offset": 1}


@pytest.mark.parametrize("pixels", ["one", "all", "noise"])
def test_values_beyond_all_measure_are_told_and_nothing_breaks(pixels: str) -> None:
    source = MemorySet(clean_samples(0))
    for name in ("rgb", "thermal"):
        x = as_float(source.samples[0].modalities[name])
        if pixels == "one":
            x[0, 3, 4] = 1e30
        else:
            x = x * 1e38 if pixels == "noise" else torch.full_like(x, 1e30)
        source.samples[0] = with_pixels(source.samples[0], **{name: x})
    found = checked(source)
    assert [f.index for f in found.by_kind()["out_of_range"]] == [0, 0]
    tree = as_json(found, Settings(classes=source.classes), {"kind": "memory"})
    json.dumps(tree, allow_nan=False)
    render(found, Settings(classes=source.classes), list(worst_cases(found, source)), title="large")


def test_a_leak_is_found_where_events_are_simulated() -> None:
    source = MemorySet(clean_samples(0))
    FAULTS["leak"][0](source, 3)
    simulated = SimulatedEvents(source, EventSimulation())
    settings = Settings(classes=source.classes, align=False, simulated=("event",))
    (leak,) = check_source(simulated, FirstSplit(num_train=NUM_TRAIN), settings).by_kind()["leak"]
    assert (leak.index, leak.other_index) == (3, 0)


class FatalSet(MemorySet):
    """Its sixth image kills the process that reads it, as the kernel does when memory runs out."""

    def read(self, index: int) -> Sample:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


def test_a_killed_process_ends_the_check() -> None:
    source = FatalSet(clean_samples(3, count=20))
    with pytest.raises(RaydetError, match=r"one of 1 worker processes was killed; .*fewer --workers"):
        checked(source, workers=1)


def test_processes_change_nothing() -> None:
    source = MemorySet(clean_samples(3, count=20))
    for number, kind in enumerate(("box_empty", "misaligned", "duplicate", "unreadable")):
        FAULTS[kind][0](source, 4 * number + 1)
    alone, shared = (checked(source, num_train=12, workers=workers) for workers in (0, 2))
    assert alone.findings == shared.findings
    assert alone.alignments == shared.alignments
    assert {n: c.rows() for n, c in alone.channels.items()} == {
        n: c.rows() for n, c in shared.channels.items()
    }


def test_reasons_are_grouped_by_their_cause() -> None:
    reasons = [
        f"/data/{i}.txt, row {i}: a box must have a width above 0, got {i} x 4; delete it" for i in range(9)
    ]
    assert {cause_of(reason) for reason in reasons} == {"a box must have a width above 0"}


def test_errors_come_first() -> None:
    found = Gathered(findings=[Finding(kind, "a", "") for kind in ("empty", "duplicate", "leak")])
    assert list(found.by_kind()) == ["leak", "duplicate", "empty"]
