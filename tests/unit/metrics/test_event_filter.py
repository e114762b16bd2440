"""The protocol for event cameras against a plain restatement of Prophesee's toolbox, with pycocotools behind it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raydet.config import DetectionTask, EventProtocol
from raydet.metrics.coco import GroundTruth
from raydet.metrics.event_evaluation import measure_events
from raydet.metrics.event_filter import BoxFilter, FrameTimes, evaluated_boxes, shared_spacing_us
from raydet.metrics.protocol_card import ProtocolCard

CLASSES = ("car", "pedestrian", "tram")
SIX = ("mAP", "mAP_50", "mAP_75", "mAP_small", "mAP_medium", "mAP_large")
CARD = ProtocolCard(500.0, 60.0, 20.0, 50.0, CLASSES, "mean over classes", "any", 0.1, 0.45, None)
BOX = np.dtype(
    [(name, "i8" if name in ("t", "class_id", "row") else "f8") for name in ("t", "x", "y", "w", "h")]
    + [("class_id", "i8"), ("class_confidence", "f8"), ("row", "i8")]
)
"""A box as the toolbox has it; `row` says which one of ours it is."""


@dataclass
class EventSet:
    """Sequences of frames, two of three with labels, detections in all."""

    truth: GroundTruth
    rows: NDArray[np.float64]
    frames: FrameTimes


def event_set(num_frames: int, *, seed: int = 0, spacing_us: int = 33_333, per_frame: int = 50) -> EventSet:
    """Boxes of all sizes, many exactly as long as the minima; detections near truths and anywhere; equal scores."""
    generator = np.random.default_rng(seed)
    sequences = np.arange(num_frames) * max(2, num_frames // 80) // num_frames
    first = np.searchsorted(sequences, sequences)
    times = (np.arange(num_frames) - first + 1) * spacing_us + generator.integers(-2000, 2001, num_frames)
    exact = np.arange(num_frames) - first == 500_000 // spacing_us
    times[exact] = 500_000  # the first half second includes its end
    labelled = np.flatnonzero(np.arange(num_frames) % 3 > 0)
    images = np.repeat(labelled, 8)
    labels = generator.choice(3, len(images), p=[0.6, 0.3, 0.1])
    truth = GroundTruth(num_frames, images, boxes(generator, len(images)), labels)
    row_images = np.repeat(np.arange(num_frames), per_frame)
    found = boxes(generator, len(row_images))
    hit = generator.integers(0, len(images), len(row_images) // 3)
    spot = generator.choice(len(row_images), len(hit), replace=False)
    row_images[spot] = images[hit]
    sizes = np.tile(truth.boxes_xywh[hit, 2:], 2)
    found[spot] = truth.boxes_xywh[hit] + sizes * generator.normal(0, 0.06, (len(hit), 4))
    row_labels = generator.choice(3, len(row_images))
    row_labels[spot] = np.where(generator.random(len(hit)) < 0.8, labels[hit], row_labels[spot])
    scores = generator.integers(1, 200, len(row_images)) / 200
    scores[spot] = np.minimum(1, scores[spot] + 0.3)
    rows = np.column_stack([row_images, found, scores, row_labels])
    return EventSet(truth, rows, FrameTimes(sequences, times))


def boxes(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    sizes = np.exp(generator.uniform(np.log(8), np.log(250), (count, 2)))
    exact = generator.choice([(36.0, 48.0), (20.0, 80.0), (48.0, 36.0), (19.99, 90.0)], count)
    sizes = np.where(generator.random((count, 1)) < 0.2, exact, sizes)
    return np.concatenate([generator.uniform(0, 1000, (count, 2)), sizes], axis=1)


def as_toolbox(events: EventSet) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Truths and detections of each sequence in the order of time."""
    truth, rows, frames = events.truth, events.rows, events.frames
    parts = []
    for images, xywh, labels, scores in (
        (truth.image_index, truth.boxes_xywh, truth.labels, np.ones(len(truth.labels))),
        (rows[:, 0].astype(int), rows[:, 1:5], rows[:, 6], rows[:, 5]),
    ):
        part = np.zeros(len(images), BOX)
        columns = [frames.times_us_I[images], *xywh.T, labels, scores, np.arange(len(images))]
        for name, values in zip(BOX.names or (), columns, strict=True):
            part[name] = values
        parts.append((frames.sequences_I[images], part))
    for sequence in np.unique(frames.sequences_I):
        mine = [part[sequences == sequence] for sequences, part in parts]
        truths, found = (part[np.argsort(part["t"], kind="stable")] for part in mine)
        yield truths, found


def filtered(
    part: NDArray[Any], *, skip_us: int = 500_000, diagonal: float = 60, side: float = 20
) -> NDArray[Any]:
    keep = []
    for box in part:
        squared = box["w"] ** 2 + box["h"] ** 2
        is_long = squared >= diagonal**2 and box["w"] >= side and box["h"] >= side
        keep.append(bool(box["t"] > skip_us and is_long))
    return part[np.array(keep, bool)]


def windows(
    truths: NDArray[Any], found: NDArray[Any], *, tolerance_us: int = 50_000
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """One image for each time of a label, with the detections around it."""
    images = []
    for time in np.unique(truths["t"]):
        near = [box for box in found if time - tolerance_us <= box["t"] <= time + tolerance_us]
        images.append((truths[truths["t"] == time], np.array(near, BOX)))
    return images


def coco_figures(images: list[tuple[NDArray[Any], NDArray[Any]]], *, by_class: bool) -> list[float | None]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def entry(number: int, image: int, box: Any) -> dict[str, Any]:
        xywh = [float(box[name]) for name in ("x", "y", "w", "h")]
        entry = {"id": number, "image_id": image, "category_id": int(box["class_id"]), "bbox": xywh}
        return entry | {"area": xywh[2] * xywh[3], "iscrowd": 0, "score": float(box["class_confidence"])}

    truths = [(image, box) for image, (part, _) in enumerate(images) for box in part]
    found = [(image, box) for image, (_, part) in enumerate(images) for box in part]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(images))],
            "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES)],
            "annotations": [entry(number, *pair) for number, pair in enumerate(truths, 1)],
        }
        coco.createIndex()
        results = coco.loadRes([entry(number, *pair) for number, pair in enumerate(found, 1)])
        evaluation = COCOeval(coco, results, iouType="bbox")
        evaluation.params.useCats = int(by_class)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) if value > -1 else None for value in evaluation.stats[:6]]


@pytest.mark.parametrize(("spacing_us", "is_halved"), [(33_333, True), (100_000, False)])
@pytest.mark.parametrize("num_frames", [120, pytest.param(2000, marks=pytest.mark.slow)])
def test_kept_boxes_and_figures_equal_those_of_the_toolbox(
    num_frames: int, spacing_us: int, is_halved: bool
) -> None:
    events = event_set(num_frames, spacing_us=spacing_us)
    diagonal, side = (30, 10) if is_halved else (60, 20)
    images, kept = [], []
    for truths, found in as_toolbox(events):
        truths, found = (filtered(part, diagonal=diagonal, side=side) for part in (truths, found))
        kept.append(truths["row"])
        images += windows(truths, found)
    is_kept_M, rows = evaluated_boxes(
        events.truth,
        events.rows,
        events.frames,
        box_filter=BoxFilter(500_000, diagonal, side),
        tolerance_us=50_000,
    )
    assert np.flatnonzero(is_kept_M).tolist() == sorted(np.concatenate(kept).tolist())
    assert 0.1 < is_kept_M.mean() < 0.9
    expected = np.concatenate([events.rows[part["row"]] for _, part in images])
    np.testing.assert_array_equal(rows[:, 1:], expected[:, 1:])
    assert (len(rows) > len(np.unique(expected, axis=0))) == (spacing_us < 50_000)  # labels share detections

    result, _ = measure_events(
        DetectionTask(),
        EventProtocol(is_halved=is_halved),
        events.truth,
        events.rows,
        CLASSES,
        frames=events.frames,
        card=CARD,
    )
    by_class, agnostic = (coco_figures(images, by_class=flag) for flag in (True, False))
    assert [result.metrics[name] for name in SIX] == by_class
    assert [result.metrics[f"agnostic_{name}"] for name in SIX] == agnostic
    assert (result.metrics["mAP_small"] is not None) == is_halved  # no box of 60 pixels across is small
    pairs = zip(by_class[:3], agnostic[:3], strict=True)
    assert all(a is not None and b is not None and abs(a - b) > 0.01 for a, b in pairs)


@pytest.mark.parametrize(
    ("config", "diagonal", "side", "skip_us"),
    [
        (EventProtocol(), 60, 20, 500_000),
        (EventProtocol(camera="gen1"), 30, 10, 500_000),
        (EventProtocol(is_halved=True, skip_ms=0.25), 30, 10, 250),
        (EventProtocol(camera="gen1", is_halved=True, min_side_px=0), 15, 0, 500_000),
        (EventProtocol(camera="gen1", min_diagonal_px=7.5), 7.5, 10, 500_000),
    ],
)
def test_minima_are_those_of_the_camera(
    config: EventProtocol, diagonal: float, side: float, skip_us: int
) -> None:
    assert BoxFilter.of(config) == BoxFilter(skip_us, diagonal, side)
    for truths, found in as_toolbox(event_set(120, seed=3)):
        for part in (truths, found):
            kept = filtered(part, skip_us=skip_us, diagonal=diagonal, side=side)["row"].tolist()
            flags = BoxFilter.of(config).keeps(part["t"], np.column_stack([part["w"], part["h"]]))
            assert part["row"][flags].tolist() == kept
            assert 0 < len(kept) < len(part)


def test_a_detection_too_small_is_neither_right_nor_wrong_but_its_object_is_missed() -> None:
    frames = FrameTimes(np.zeros(1, np.int64), np.array([600_000]))
    truth = GroundTruth(
        1, np.zeros(2, np.int64), np.array([[0.0, 0, 60, 20], [200.0, 0, 60, 60]]), np.zeros(2, int)
    )
    rows = np.array([[0, 0, 0, 60, 19.9, 0.9, 0], [0, 200, 0, 60, 60, 0.8, 0]])
    result, records = measure_events(
        DetectionTask(), EventProtocol(), truth, rows, ("car",), frames=frames, card=CARD
    )
    assert len(records.by_class.scores_N) == 1
    assert result.metrics["mAP_50"] == pytest.approx(51 / 101)  # recall .5 with precision 1


def test_false_alarms_count_only_in_frames_with_a_truth_that_is_left() -> None:
    frames = FrameTimes(np.zeros(4, np.int64), np.array([400_000, 600_000, 700_000, 800_000]))
    xywh = np.array([[0.0, 0, 90, 90], [0.0, 0, 90, 90], [0.0, 0, 9, 9]])
    truth = GroundTruth(4, np.array([0, 1, 2]), xywh, np.zeros(3, np.int64))
    rows = np.array([[image, 300, 300, 90, 90, 0.9, 0] for image in range(4)])
    is_kept_M, kept = evaluated_boxes(
        truth, rows, frames, box_filter=BoxFilter(500_000, 60, 20), tolerance_us=0
    )
    assert is_kept_M.tolist() == [False, True, False]
    assert kept[:, 0].tolist() == [1]


def test_regions_to_ignore_stay() -> None:
    frames = FrameTimes(np.zeros(1, np.int64), np.array([600_000]))
    xywh = np.array([[0.0, 0, 90, 90], [200.0, 200, 19, 400]])
    truth = GroundTruth(
        1, np.zeros(2, np.int64), xywh, np.zeros(2, np.int64), is_crowd=np.array([False, True])
    )
    rows = np.zeros((0, 7))
    is_kept_M, _ = evaluated_boxes(truth, rows, frames, box_filter=BoxFilter(500_000, 60, 20), tolerance_us=0)
    assert is_kept_M.tolist() == [True, True]


def test_sequences_share_no_detections_however_close_their_times_are() -> None:
    frames = FrameTimes(np.array([0, 1, 1]), np.array([600_000, 600_000, 650_001]))
    truth = GroundTruth(3, np.arange(3), np.tile([0.0, 0, 90, 90], (3, 1)), np.zeros(3, np.int64))
    rows = np.array([[image, 0, 0, 90, 90, 0.9, 0] for image in (0, 1, 2)], float)
    for tolerance_us, expected in ((50_000, [0, 1, 2]), (50_001, [0, 1, 1, 2, 2])):
        _, kept = evaluated_boxes(
            truth, rows, frames, box_filter=BoxFilter(0, 60, 20), tolerance_us=tolerance_us
        )
        assert kept[:, 0].tolist() == expected
        spacing_us = shared_spacing_us(frames, tolerance_us=tolerance_us)
        assert spacing_us == (50_001 if tolerance_us == 50_001 else None)
