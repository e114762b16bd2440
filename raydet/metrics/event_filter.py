"""Which boxes of an event camera's recordings are evaluated, and which detections belong to which labels.

The rules of Prophesee's toolbox for its automotive sets (Perot et al., Learning to Detect Objects with a 1 Megapixel
Event Camera, arXiv 2009.13436), by which RVT and its successors are measured:

- boxes of the first half second of a sequence do not count, since a model with memory has seen too little by then,
  nor do boxes with a short diagonal or a short side. Truth and detections are filtered alike, so a detection that is a
  little too small is neither right nor wrong, and the object that it meets is missed;
- what counts are the frames in which a truth is left. Detections of other frames are not looked at, so false alarms in
  empty frames cost nothing;
- a detection counts for every label whose time differs from its own by the tolerance or less. Labels that are closer
  together than that share their detections.

One departure: regions to ignore, which the toolbox does not know, stay whatever their size is.

Legend: I frames, F frames that are evaluated, M ground-truth boxes, N detections, P pairs of frame and detection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raydet.config import EventCamera, EventProtocol
from raydet.metrics.coco import GroundTruth

MINIMA_PX: dict[EventCamera, tuple[float, float]] = {"gen1": (30.0, 10.0), "gen4": (60.0, 20.0)}
"""Shortest diagonal and shortest side by camera, at the sensor's own resolution."""

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BoxFilter:
    """The boxes that count are later than `skip_us`, and as long as the minima or longer."""

    skip_us: int
    """From the start of the sequence."""
    min_diagonal_px: float
    min_side_px: float

    @classmethod
    def of(cls, config: EventProtocol) -> Self:
        scale = 0.5 if config.is_halved else 1.0
        diagonal, side = (scale * minimum for minimum in MINIMA_PX[config.camera])
        return cls(
            skip_us=round(1000 * config.skip_ms),
            min_diagonal_px=diagonal if config.min_diagonal_px is None else config.min_diagonal_px,
            min_side_px=side if config.min_side_px is None else config.min_side_px,
        )

    def keeps(self, times_us_N: Ints, sizes_wh_N2: NDArray[np.float64]) -> Flags:
        """Whether each box counts: [N].

        >>> times_us = np.array([500_000, 500_001, 500_001, 500_001])
        >>> sizes_wh = np.array([[36.0, 48.0], [36.0, 48.0], [36.0, 47.0], [19.0, 90.0]])
        >>> BoxFilter(500_000, min_diagonal_px=60.0, min_side_px=20.0).keeps(times_us, sizes_wh).tolist()
        [False, True, False, False]
        """
        is_late_N = times_us_N > self.skip_us
        is_long_N = (sizes_wh_N2**2).sum(axis=1) >= self.min_diagonal_px**2
        return is_late_N & is_long_N & (sizes_wh_N2 >= self.min_side_px).all(axis=1)


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """When the frames of an evaluation set were seen."""

    sequences_I: Ints
    """0, 1, ...: the sequence of each frame."""
    times_us_I: Ints
    """From the start of its sequence."""


def evaluated_boxes(
    truth: GroundTruth,
    rows: NDArray[np.float64],
    frames: FrameTimes,
    *,
    box_filter: BoxFilter,
    tolerance_us: int,
) -> tuple[Flags, NDArray[np.float64]]:
    """The truths that count [M], and the detections that count [P, 7], at the frames for which they do.

    Args:
        rows: [N, 7], see `raydet.metrics.coco`.
    """
    is_kept_M = box_filter.keeps(frames.times_us_I[truth.image_index], truth.boxes_xywh[:, 2:])
    is_object_M = is_kept_M if truth.is_crowd is None else is_kept_M & ~truth.is_crowd
    frames_F = np.unique(truth.image_index[is_object_M])

    image_N = rows[:, 0].astype(np.int64)
    rows = rows[box_filter.keeps(frames.times_us_I[image_N], rows[:, 3:5])]
    image_N = rows[:, 0].astype(np.int64)
    label_P, detection_P = pairs_in_time(
        FrameTimes(frames.sequences_I[frames_F], frames.times_us_I[frames_F]),
        FrameTimes(frames.sequences_I[image_N], frames.times_us_I[image_N]),
        tolerance_us=tolerance_us,
    )
    rows = rows[detection_P]
    rows[:, 0] = frames_F[label_P]
    return is_kept_M if truth.is_crowd is None else is_kept_M | truth.is_crowd, rows


def pairs_in_time(labels: FrameTimes, detections: FrameTimes, *, tolerance_us: int) -> tuple[Ints, Ints]:
    """Indices of labelled frames and detections of one sequence whose times differ by the tolerance or less: [P] each.

    By frame; within a frame, the detections are in the order of time, those of one time in their own order.

    >>> zeros = np.zeros(3, np.int64)
    >>> labels = FrameTimes(zeros[:2], np.array([100, 200]))
    >>> detections = FrameTimes(zeros, np.array([149, 151, 249]))
    >>> [x.tolist() for x in pairs_in_time(labels, detections, tolerance_us=50)]
    [[0, 1, 1], [0, 1, 2]]
    """
    times_us = np.concatenate([labels.times_us_I, detections.times_us_I])
    # One line of time with all sequences, further apart than the tolerance.
    span_us = int(np.ptp(times_us)) + tolerance_us + 1 if len(times_us) else 0
    label_F, detection_N = (part.sequences_I * span_us + part.times_us_I for part in (labels, detections))
    by_time_F = np.argsort(label_F, kind="stable")
    start_N = np.searchsorted(label_F, detection_N - tolerance_us, side="left", sorter=by_time_F)
    stop_N = np.searchsorted(label_F, detection_N + tolerance_us, side="right", sorter=by_time_F)
    count_N = stop_N - start_N
    detection_P = np.repeat(np.arange(len(detection_N)), count_N)
    within_P = np.arange(len(detection_P)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
    label_P = by_time_F[start_N[detection_P] + within_P]
    order = np.lexsort((detections.times_us_I[detection_P], label_P))
    return label_P[order], detection_P[order]


def only(truth: GroundTruth, which_M: Flags) -> GroundTruth:
    """The same frames with some of their boxes."""
    return replace(
        truth,
        image_index=truth.image_index[which_M],
        boxes_xywh=truth.boxes_xywh[which_M],
        labels=truth.labels[which_M],
        areas=None if truth.areas is None else truth.areas[which_M],
        is_crowd=None if truth.is_crowd is None else truth.is_crowd[which_M],
    )


def shared_spacing_us(frames: FrameTimes, *, tolerance_us: int) -> int | None:
    """The shortest time between two frames of a sequence if they would share detections, else None."""
    order = np.lexsort((frames.times_us_I, frames.sequences_I))
    is_neighbour = np.diff(frames.sequences_I[order]) == 0
    spacings_us = np.diff(frames.times_us_I[order])[is_neighbour]
    shortest = int(spacings_us.min()) if len(spacings_us) else None
    return shortest if shortest is not None and shortest <= tolerance_us else None
