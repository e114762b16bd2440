"""AP against silence: how well objects are found that have not fired an event for a while.

An event camera does not see what stands still, and only a memory can keep it. The silent age of a box is the number
of windows since the last event inside of it: 0 if the window of the box itself has one. A box without any event since
its sequence began is as old as if there had been one just before.

Truths are binned by their silent age. In AP50 of one bin those of the other bins are ignored, as those of other sizes
are in COCO: they need not be found, and finding them is no mistake. Detections have no age: one that meets no object is
wrong in every bin.

Legend: F frames of a sequence, C channels, H W height and width, M ground-truth boxes, N detections, I images, K
classes, S bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.coco import LIMITS_L, GroundTruth, best_rows
from raydet.metrics.matching import RIGHT, UNMATCHED, Boxes, match

THRESHOLD = np.array([0.5])
"""IoU."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SilenceMatches:
    """Outcomes by bin; detections in the order of `MatchRecords`."""

    objects_SIK: Ints
    is_right_NS: NDArray[np.bool_]
    is_wrong_NS: NDArray[np.bool_]


def silent_ages(
    histograms_FCHW: Iterable[NDArray[np.generic]], boxes_xyxy_M4: NDArray[np.float64], frames_M: Ints
) -> Ints:
    """Windows since the last event in each box: [M], from 0 on.

    Args:
        histograms_FCHW: event counts of the windows of one sequence, [C, H, W] each, one after the other.
        boxes_xyxy_M4: in pixels of the histograms.
        frames_M: the window of each box.

    >>> histograms = np.zeros((3, 1, 4, 4))
    >>> histograms[1, 0, 2, 2] = 5
    >>> box = np.array([[1.0, 1.0, 3.0, 3.0]] * 3)
    >>> silent_ages(histograms, box, np.arange(3)).tolist()
    [1, 0, 1]
    """
    ages_M = np.zeros(len(frames_M), np.int64)
    last_HW: Ints | None = None
    for frame, histogram_CHW in enumerate(histograms_FCHW):
        if last_HW is None:
            last_HW = np.full(histogram_CHW.shape[1:], -1, np.int64)
        last_HW[histogram_CHW.any(axis=0)] = frame
        for row in np.flatnonzero(frames_M == frame):
            left, top, right, bottom = pixels_of(boxes_xyxy_M4[row], last_HW.shape)
            ages_M[row] = frame - last_HW[top:bottom, left:right].max(initial=-1)
    return ages_M


def pixels_of(box_xyxy: NDArray[np.float64], size_hw: Sequence[int]) -> tuple[int, int, int, int]:
    """The pixels that a box touches, inside of the image: left, top, right, bottom, the last two not included.

    >>> pixels_of(np.array([-3.0, 0.5, 2.1, 9.0]), (8, 8))
    (0, 0, 3, 8)
    """
    height, width = size_hw
    (left, top), (right, bottom) = np.floor(box_xyxy[:2]), np.ceil(box_xyxy[2:])
    left, right = np.clip([left, right], 0, width)
    top, bottom = np.clip([top, bottom], 0, height)
    return int(left), int(top), int(right), int(bottom)


def bins_of(ages_M: Ints, edges: Sequence[int]) -> Ints:
    """The bin of each age: [M].

    Args:
        edges: the smallest age of each bin, ascending from 0.

    >>> bins_of(np.array([0, 1, 2, 3, 100]), (0, 1, 3)).tolist()
    [0, 1, 1, 2, 2]
    """
    return np.searchsorted(edges, ages_M, side="right") - 1


def match_by_silence(
    truth: GroundTruth, rows: NDArray[np.float64], bins_M: Ints, *, num_bins: int, num_classes: int
) -> SilenceMatches:
    """Match detections with the truths of every bin at IoU .5.

    Args:
        rows: [N, 7], see `raydet.metrics.coco`.
        bins_M: the bin of each truth.
    """
    order = np.lexsort((truth.labels, truth.image_index))
    groups_M = (truth.image_index * num_classes + truth.labels)[order]
    is_crowd_M = np.zeros(len(order), bool) if truth.is_crowd is None else truth.is_crowd[order]
    ignored_MS = is_crowd_M[:, None] | (bins_M[order, None] != np.arange(num_bins))
    counts_SG = [
        np.bincount(groups_M[~ignored], minlength=truth.num_images * num_classes) for ignored in ignored_MS.T
    ]
    rows, _ = best_rows(rows, LIMITS_L[-1])
    groups_N = (rows[:, 0] * num_classes + rows[:, 6]).astype(np.int64)
    outcome_NTS = match(
        Boxes(groups_N, rows[:, 1:5]),
        Boxes(groups_M, truth.boxes_xywh[order]),
        ignored_MS,
        is_crowd_M,
        THRESHOLD,
    )
    outcome_NS = outcome_NTS[np.lexsort((-rows[:, 5], rows[:, 6])), 0]
    return SilenceMatches(
        objects_SIK=np.reshape(counts_SG, (num_bins, truth.num_images, num_classes)).astype(np.int64),
        is_right_NS=outcome_NS == RIGHT,
        is_wrong_NS=outcome_NS == UNMATCHED,
    )
