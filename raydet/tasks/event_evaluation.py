"""The evaluation of detections in recordings of an event camera: times of frames, silent ages, protocol card.

Frames of a sequence are its images in the order of the source, one window after the other. Silent ages are read off
the event histograms that the model is fed: for each frame, the truths of the frames that follow ask whether it has
events inside of their boxes. So frames may be evaluated in any order, on any number of workers. Frames outside of the
evaluation set are taken for frames without events.

Legend: B batch, C channels, H W canvas, I images, M ground-truth boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from raydet.config import DetectionTask, EventProtocol, Experiment, FasterRCNNConfig, YOLOXConfig
from raydet.config.model import MaskHead
from raydet.data.clips import sequences_of
from raydet.errors import ConfigError, DataError
from raydet.metrics.coco import ROW_WIDTH, CocoResult, GroundTruth
from raydet.metrics.event_evaluation import measure_events
from raydet.metrics.event_filter import BoxFilter, FrameTimes, shared_spacing_us
from raydet.metrics.event_records import EventRecords
from raydet.metrics.names import AGNOSTIC
from raydet.metrics.protocol_card import ProtocolCard
from raydet.metrics.silence import pixels_of
from raydet.structures import Batch

EVENT = "event"
"""The modality of histograms."""
NO_DETECTION = -1
"""Label of the rows that are no detections but what a frame's events say of truths: position of the frame, number of
the truth, windows from the frame to the truth. Truth -1: the frame has histograms."""

logger = logging.getLogger("raydet")


class EventEvaluation:
    """What a scorer of detections does for recordings of an event camera."""

    def __init__(
        self,
        config: DetectionTask,
        protocol: EventProtocol,
        experiment: Experiment,
        truth: GroundTruth,
        *,
        group_ids: Sequence[str],
        indices: Sequence[int],
    ) -> None:
        """
        Args:
            truth: of the evaluation set.
            group_ids: the source's sequences.
            indices: of the evaluation set's images in the source.

        Raises:
            DataError: the protocol leaves no truth.
        """
        self.config, self.protocol, self.truth = config, protocol, truth
        self.frames, self.windows_I = frame_times(group_ids, indices, window_ms=protocol.window_ms)
        self.classes = experiment.data.classes
        self.card = card_of(config, protocol, experiment, truth)
        logger.info("measuring by protocol %s: %s", self.card.hash, self.card.to_json())
        self.position_of = {
            (int(sequence), int(window)): position
            for position, (sequence, window) in enumerate(
                zip(self.frames.sequences_I, self.windows_I, strict=True)
            )
        }
        by_image_M = np.argsort(truth.image_index, kind="stable")
        ends_I = np.searchsorted(truth.image_index[by_image_M], np.arange(truth.num_images + 1))
        self.truths_of = [by_image_M[start:end] for start, end in pairwise(ends_I)]
        self._check_what_is_left()

    def _check_what_is_left(self) -> None:
        box_filter, truth = BoxFilter.of(self.protocol), self.truth
        is_object_M = np.ones(len(truth.labels), bool) if truth.is_crowd is None else ~truth.is_crowd
        times_us_M = self.frames.times_us_I[truth.image_index]
        is_kept_M = box_filter.keeps(times_us_M, truth.boxes_xywh[:, 2:])
        if is_object_M.any() and not (is_kept_M & is_object_M).any():
            early = int((is_object_M & (times_us_M <= box_filter.skip_us)).sum())
            raise DataError(
                f"expected boxes that task.event leaves in the evaluation images, got none of {is_object_M.sum()}: "
                f"{early} in the first {self.protocol.skip_ms:g} ms of a sequence, the others with a diagonal below "
                f"{box_filter.min_diagonal_px:g} or a side below {box_filter.min_side_px:g} pixels; lower "
                "task.event.skip_ms, min_diagonal_px and min_side_px, or set is_halved"
            )
        is_labelled_I = np.bincount(truth.image_index[is_object_M], minlength=truth.num_images) > 0
        labelled = FrameTimes(self.frames.sequences_I[is_labelled_I], self.frames.times_us_I[is_labelled_I])
        spacing_us = shared_spacing_us(labelled, tolerance_us=round(1000 * self.protocol.tolerance_ms))
        if spacing_us is not None:
            logger.warning(
                "labels are %g ms apart, within task.event.tolerance_ms=%g: detections count for their neighbours, "
                "too, as in Prophesee's toolbox; with a smaller tolerance, each counts once",
                spacing_us / 1000,
                self.protocol.tolerance_ms,
            )

    def rows(self, batch: Batch, positions: Sequence[int]) -> NDArray[np.float64]:
        """What the events of a batch say of truths, see `NO_DETECTION`: [rows, ROW_WIDTH]."""
        found = [np.zeros((0, ROW_WIDTH))]
        if EVENT not in batch.modalities or not self.protocol.silence_bins:
            return found[0]
        has_events_BHW = (batch.modalities[EVENT] > 0).any(dim=1).cpu().numpy()
        for row, position in enumerate(positions):
            found.append(_row(position, -1, 0))
            height, width = batch.valid_hw[row].tolist()
            source_h, source_w = batch.source_hw[row].tolist()
            scale_xyxy = np.array([width / source_w, height / source_h] * 2)
            has_events_HW = has_events_BHW[row, :height, :width]
            for age, truth in self._truths_after(position):
                x, y, box_width, box_height = self.truth.boxes_xywh[truth]
                box_xyxy = np.array([x, y, x + box_width, y + box_height]) * scale_xyxy
                left, top, right, bottom = pixels_of(box_xyxy, (height, width))
                if has_events_HW[top:bottom, left:right].any():
                    found.append(_row(position, truth, age))
        return np.concatenate(found)

    def _truths_after(self, position: int) -> list[tuple[int, int]]:
        """Windows since this frame, and number, of the truths for whose bin its events matter."""
        sequence, window = int(self.frames.sequences_I[position]), int(self.windows_I[position])
        return [
            (age, int(truth))
            for age in range(max(1, self.protocol.silence_bins[-1]))
            if (later := self.position_of.get((sequence, window + age))) is not None
            for truth in self.truths_of[later]
        ]

    def finish(
        self, rows: NDArray[np.float64], *, image_ids: Sequence[str], group_ids: Sequence[str]
    ) -> tuple[CocoResult, EventRecords]:
        """Metrics and records of the rows of detections and of `rows`."""
        is_detection_N = rows[:, 6] != NO_DETECTION
        return measure_events(
            self.config,
            self.protocol,
            self.truth,
            rows[is_detection_N],
            self.classes,
            frames=self.frames,
            card=self.card,
            ages_M=self.silent_ages(rows[~is_detection_N]),
            image_ids=image_ids,
            group_ids=group_ids,
        )

    def silent_ages(self, rows: NDArray[np.float64]) -> NDArray[np.int64] | None:
        """Silent ages from the rows of `rows`, exact below the last bin: [M]; None: no frame had histograms."""
        if not len(rows):
            return None
        ages_M = self.windows_I[self.truth.image_index] + 1  # as if there had been one before the sequence
        truths, ages = rows[rows[:, 1] >= 0, 1:3].astype(np.int64).T
        np.minimum.at(ages_M, truths, ages)
        return ages_M


def frame_times(
    group_ids: Sequence[str], indices: Sequence[int], *, window_ms: float
) -> tuple[FrameTimes, NDArray[np.int64]]:
    """When the frames of an evaluation set end, and the number of each one's window in its sequence: [I].

    >>> times, windows = frame_times(["a", "a", "b", "a"], [3, 2], window_ms=50.0)
    >>> times.sequences_I.tolist(), times.times_us_I.tolist(), windows.tolist()
    ([0, 1], [150000, 50000], [2, 0])
    """
    sequence, window = np.zeros(len(group_ids), np.int64), np.zeros(len(group_ids), np.int64)
    for number, members in enumerate(sequences_of(group_ids)):
        sequence[members], window[members] = number, np.arange(len(members))
    chosen = np.array(indices, np.int64)
    ends_us = np.rint((window[chosen] + 1) * (1000 * window_ms)).astype(np.int64)
    return FrameTimes(sequence[chosen], ends_us), window[chosen]


def card_of(
    config: DetectionTask, protocol: EventProtocol, experiment: Experiment, truth: GroundTruth
) -> ProtocolCard:
    """The protocol card of an experiment's evaluations."""
    head = experiment.model.head
    match head:
        case FasterRCNNConfig() | YOLOXConfig(score="class"):
            score = "class probability"
        case YOLOXConfig():
            score = "objectness x class probability"
        case MaskHead():
            raise ConfigError(f"task.event needs a head for boxes, got model.head.kind={head.kind}")
        case unreachable:
            assert_never(unreachable)
    sizes_hw = set() if truth.sizes_hw is None else {(int(h), int(w)) for h, w in truth.sizes_hw}
    box_filter = BoxFilter.of(protocol)
    is_agnostic = (config.metric or "").startswith(AGNOSTIC)
    return ProtocolCard(
        skip_ms=protocol.skip_ms,
        min_diagonal_px=box_filter.min_diagonal_px,
        min_side_px=box_filter.min_side_px,
        tolerance_ms=protocol.tolerance_ms,
        classes=experiment.data.classes,
        average="class-agnostic" if is_agnostic else "mean over classes",
        score=score,
        confidence_threshold=head.score_threshold,
        nms_threshold=head.nms_threshold,
        image_hw=sizes_hw.pop() if len(sizes_hw) == 1 else None,
    )


def _row(position: int, truth: int, age: int) -> NDArray[np.float64]:
    return np.array([[position, truth, age, 0, 0, 0, NO_DETECTION]], float)
