"""`task.event` from the samples of a source to metrics: silent ages from batches in any order, times, the card."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raydet.config import DetectionTask, Experiment, apply_overrides
from raydet.data.transforms import eval_transform
from raydet.errors import DataError
from raydet.metrics.event_evaluation import measure_events
from raydet.metrics.event_filter import BoxFilter
from raydet.metrics.event_records import EventRecords
from raydet.metrics.names import metrics_of
from raydet.metrics.silence import silent_ages
from raydet.recipes import recipe
from raydet.structures import Boxes, Detections, Sample, collate
from raydet.tasks.detection import UNLABELLED, Detection, DetectionScorer

SIZE_HW = (64, 96)
EVERYTHING = {"skip_ms": 0, "min_diagonal_px": 0, "min_side_px": 0, "tolerance_ms": 0}


class Recording:
    """Two sequences of 12 windows, interleaved, with few events and two to four boxes in each window."""

    classes = ("circle", "square", "triangle")
    modalities = ("event",)

    def __init__(self, *, has_events: bool = True) -> None:
        generator = np.random.default_rng(0)
        self.image_ids = [f"frame_{index:02d}" for index in range(24)]
        self.group_ids = [("a", "b")[index % 2] for index in range(24)]
        self.histograms = (generator.random((24, 3, *SIZE_HW)) < 0.00025).astype(np.uint8)
        self.has_events = has_events
        self.boxes = []
        for _ in range(24):
            count = int(generator.integers(2, 5))
            corners = generator.uniform(0, [70, 40], (count, 2))
            boxes = np.concatenate([corners, corners + generator.uniform(6, 24, (count, 2))], axis=1)
            labels = torch.tensor(generator.integers(0, 3, count))
            self.boxes.append(Boxes(torch.tensor(boxes, dtype=torch.float32), labels))

    def __len__(self) -> int:
        return 24

    def targets(self, index: int) -> tuple[Boxes, tuple[int, int]]:
        return self.boxes[index], SIZE_HW

    def read(self, index: int) -> Sample:
        name = "event" if self.has_events else "rgb"
        return Sample(
            self.image_ids[index],
            self.group_ids[index],
            {name: torch.tensor(self.histograms[index])},
            self.boxes[index],
            SIZE_HW,
            SIZE_HW,
        )

    def ages(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """The silent age of every box of these frames."""
        ages = {}
        for group in ("a", "b"):
            mine = [index for index in range(24) if self.group_ids[index] == group]
            frames = np.repeat(np.arange(12), [len(self.boxes[index].labels) for index in mine])
            boxes = np.concatenate([self.boxes[index].boxes_xyxy.double().numpy() for index in mine])
            found = silent_ages(self.histograms[mine], boxes, frames)
            ages |= {index: found[frames == frame] for frame, index in enumerate(mine)}
        return np.concatenate([ages[index] for index in indices])


def experiment_with(protocol: dict[str, Any], **changes: Any) -> Experiment:
    return apply_overrides(recipe("demo"), {"task.event": protocol, **changes})


def scorer_of(source: Recording, experiment: Experiment, indices: Sequence[int]) -> DetectionScorer:
    assert isinstance(experiment.task, DetectionTask)
    return Detection(experiment.task).scorer(experiment, source, indices)  # type: ignore[arg-type]


def detections_of(boxes: Boxes, scale: float, seed: int) -> Detections:
    """The boxes of a canvas with noise, some with a wrong label."""
    generator = torch.Generator().manual_seed(seed)
    noise = 2 * torch.randn(boxes.boxes_xyxy.shape, generator=generator)
    scores = torch.rand(len(boxes.labels), generator=generator)
    labels = torch.where(scores < 0.2, (boxes.labels + 1) % 3, boxes.labels)
    return Detections((boxes.boxes_xyxy + noise) * scale, scores, labels)


def batches(source: Recording, indices: Sequence[int], size: int, canvas_hw: tuple[int, int]) -> Any:
    """Batches with the positions of their images and what is found in them, in the order of `indices`."""
    for start in range(0, len(indices), size):
        positions = list(range(start, min(start + size, len(indices))))
        samples = [eval_transform(source.read(indices[p]), canvas_hw=canvas_hw) for p in positions]
        scale = samples[0].valid_hw[0] / SIZE_HW[0]
        found = [detections_of(source.boxes[indices[p]], scale, seed=indices[p]) for p in positions]
        yield found, collate(samples), positions


@pytest.mark.parametrize("canvas_hw", [SIZE_HW, (96, 96), (128, 224)])
def test_silent_ages_of_batches_are_those_of_whole_sequences(canvas_hw: tuple[int, int]) -> None:
    """Two workers, batches backwards, and a canvas that pads or enlarges, against frame after frame in the source."""
    source, indices = Recording(), list(range(24))
    experiment = experiment_with(EVERYTHING)
    scorer = scorer_of(source, experiment, indices)
    parts = [scorer.rows(*batch) for batch in batches(source, indices, 5, canvas_hw)]
    scores = scorer.finish(np.concatenate(parts[::-2] + parts[-2::-2]))
    assert isinstance(scores.records, EventRecords)

    events = scorer.events
    assert events is not None
    rows = np.concatenate(parts[::-1])
    ages = source.ages(indices)
    np.testing.assert_array_equal(
        np.minimum(events.silent_ages(rows[rows[:, 6] < 0]), 9), np.minimum(ages, 9)
    )
    assert {0, 1, 3, 5} < set(ages.tolist())
    assert ages.max() > 9
    assert isinstance(experiment.task, DetectionTask)
    assert experiment.task.event is not None
    expected, _ = measure_events(
        experiment.task,
        experiment.task.event,
        scorer.truth,
        rows[rows[:, 6] >= 0],
        source.classes,
        frames=events.frames,
        card=events.card,
        ages_M=ages,
    )
    assert scores.metrics == expected.metrics
    silent = [scores.metrics[f"mAP_50_silent_{edge}"] for edge in (0, 1, 3, 5, 9)]
    assert all(value is not None and 0 < value < 1 for value in silent)
    names = [metric.name for metric in metrics_of(experiment.task)]
    assert list(scores.metrics) == names[:-1]  # without the validation loss


def test_windows_count_from_the_start_of_the_sequence_in_the_source() -> None:
    """The evaluation set begins in mid-sequence, and its frames are in another order."""
    source, indices = Recording(), [23, 11, 10, 22]
    events = scorer_of(source, experiment_with(EVERYTHING), indices).events
    assert events is not None
    assert events.frames.times_us_I.tolist() == [600_000, 300_000, 300_000, 600_000]
    assert events.frames.sequences_I.tolist() == [1, 1, 0, 0]


def test_the_filter_is_applied_to_truth_and_detections() -> None:
    source, indices = Recording(), list(range(24))
    protocol = {"min_diagonal_px": 20, "min_side_px": 11, "tolerance_ms": 0}
    scorer = scorer_of(source, experiment_with(protocol), indices)
    rows = np.concatenate([scorer.rows(*batch) for batch in batches(source, indices, 8, SIZE_HW)])
    records = scorer.finish(rows).records
    assert isinstance(records, EventRecords)
    kept = 0
    for index in (20, 21, 22, 23):  # windows 10 and 11 of either sequence end after half a second
        sizes = np.diff(source.boxes[index].boxes_xyxy.double().numpy().reshape(-1, 2, 2), axis=1)[:, 0]
        kept += int(BoxFilter(0, 20, 11).keeps(np.ones(len(sizes), np.int64), sizes).sum())
    assert 0 < kept < sum(len(source.boxes[index].labels) for index in (20, 21, 22, 23))
    assert records.by_class.objects_IK.sum() == records.any_class.objects_IK.sum() == kept
    assert set(records.by_class.image_index_N.tolist()) <= {20, 21, 22, 23}
    assert records.group_ids.tolist() == source.group_ids


def test_the_card_tells_what_the_experiment_measures() -> None:
    experiment = experiment_with(
        {"is_halved": True}, **{"task.metric": "agnostic_mAP", "model.head.score_threshold": 0.1}
    )
    indices = list(range(20, 24))
    source = Recording()
    events = scorer_of(source, experiment, indices).events
    assert events is not None
    card = events.card
    assert (card.min_diagonal_px, card.min_side_px, card.skip_ms, card.tolerance_ms) == (30, 10, 500, 50)
    assert (card.average, card.score, card.classes) == ("class-agnostic", "class probability", source.classes)
    assert (card.confidence_threshold, card.nms_threshold, card.image_hw) == (0.1, 0.5, SIZE_HW)


def test_a_protocol_that_leaves_nothing_says_what_it_filters_away() -> None:
    source = Recording()
    early = sum(len(boxes.labels) for boxes in source.boxes[:20])
    total = sum(len(boxes.labels) for boxes in source.boxes)
    with pytest.raises(DataError) as caught:
        scorer_of(source, experiment_with({}), range(24))
    assert f"got none of {total}: {early} in the first 500 ms" in str(caught.value)
    assert "a diagonal below 60 or a side below 20 pixels" in str(caught.value)


def test_labels_within_the_tolerance_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="raydet"):
        scorer_of(Recording(), experiment_with(EVERYTHING | {"tolerance_ms": 49}), range(24))
        assert not caplog.records
        scorer_of(Recording(), experiment_with(EVERYTHING | {"tolerance_ms": 50}), range(24))
    assert "labels are 50 ms apart, within task.event.tolerance_ms=50" in caplog.text


def test_silence_is_unknown_without_events_and_nothing_found_is_no_error() -> None:
    source = Recording(has_events=False)
    scorer = scorer_of(source, experiment_with(EVERYTHING), range(24))
    rows = np.concatenate([scorer.rows(*batch) for batch in batches(source, range(24), 8, SIZE_HW)])
    for metrics in (scorer.finish(rows).metrics, scorer.finish(rows[:0]).metrics):
        assert metrics["mAP"] is not None
        assert [metrics[f"mAP_50_silent_{edge}"] for edge in (0, 1, 3, 5, 9)] == [None] * 5


@pytest.mark.parametrize("protocol", [None, EVERYTHING])
def test_detections_where_nobody_has_looked_count_for_nothing(protocol: dict[str, Any] | None) -> None:
    source, indices = Recording(), list(range(24))
    unlabelled = range(1, 24, 3)
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    experiment = apply_overrides(recipe("demo"), {"task.event": protocol})
    rows = [*batches(source, indices, 5, SIZE_HW)]
    hidden = Recording()
    hidden.boxes = [nothing if index in unlabelled else boxes for index, boxes in enumerate(source.boxes)]
    scorer, witness = (scorer_of(hidden, experiment, indices) for _ in range(2))
    found, kept = [], []
    for detections, batch, positions in rows:
        is_labelled = torch.tensor([position not in unlabelled for position in positions])
        found.append(scorer.rows(detections, replace(batch, is_labelled=is_labelled), positions))
        none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        chosen = [each if known else none for each, known in zip(detections, is_labelled, strict=True)]
        kept.append(witness.rows(chosen, batch, positions))
        count = sum(len(each.scores) for each in detections)
        assert (found[-1][:, 6] >= 0).sum() == count  # predictions are still told
    scores, expected = scorer.finish(np.concatenate(found)), witness.finish(np.concatenate(kept))
    assert scores.metrics == expected.metrics
    if protocol is None:  # task.event leaves out frames without a truth anyway
        everywhere = witness.finish(np.concatenate([rows[rows[:, 6] != UNLABELLED] for rows in found]))
        assert everywhere.metrics != expected.metrics
