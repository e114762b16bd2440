"""COCO's greedy matching of detections with objects, vectorized over all images.

Rule and results are those of pycocotools (`COCOeval.evaluateImg`), to the last bit: within one image and class,
detections choose in the order of their scores. Each takes, of the unmatched objects that overlap it by the threshold,
the one with the largest overlap, the last among equals, and an ignored object only if there is no other. Regions, e.g.
crowds, can be matched any number of times, and their overlap is the intersection over the detection's area.

Instead of pycocotools' loops there are rounds: the first detection of every image and class that overlaps anything
chooses in round one, the second in round two, for all thresholds and settings together.

Legend: N detections, M objects, P pairs of them, T IoU thresholds, A settings of which objects are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNMATCHED, RIGHT, IGNORED = 0, 1, 2
"""Outcomes of a detection: matched with nothing, with an object, or with an ignored object."""
BLOCK_PAIRS = 1 << 18
"""Pairs whose overlaps are computed at a time: about 50 MB, independent of the size of the set."""

Flags = NDArray[np.bool_]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Indices of detections and objects, and their overlaps."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes in ascending order of their groups; a group is one class in one image."""

    groups: NDArray[np.int64]
    xywh: NDArray[np.float64]


def match(
    detections: Boxes,
    objects: Boxes,
    ignored_MA: Flags,
    is_region_M: Flags,
    thresholds_T: NDArray[np.float64],
) -> NDArray[np.int8]:
    """The outcome of each detection: [N, T, A], `UNMATCHED`, `RIGHT` or `IGNORED`.

    Args:
        detections: by descending score within a group.
        objects: in the order of the set within a group.
        ignored_MA: objects that need not be found; must include all regions.
        thresholds_T: ascending, above 0.
    """
    num_thresholds, num_settings = len(thresholds_T), ignored_MA.shape[1]
    outcome_NTA = np.full((len(detections.groups), num_thresholds, num_settings), UNMATCHED, dtype=np.int8)
    is_taken_MTA = np.zeros((len(objects.groups), num_thresholds, num_settings), dtype=bool)
    for detection_P, object_P, overlap_P in _rounds(detections, objects, is_region_M, thresholds_T[0]):
        num_pairs = len(detection_P)
        is_free = ~is_taken_MTA[object_P] | is_region_M[object_P, None, None]
        is_near = overlap_P[:, None, None] >= thresholds_T[None, :, None]
        # Pairs of one detection are in ascending order: the last is the best, and those not ignored beat the rest.
        rank = np.arange(num_pairs, dtype=np.int32)[:, None, None] + np.where(
            ignored_MA[object_P, None], np.int32(0), np.int32(num_pairs)
        )
        first = np.flatnonzero(np.diff(detection_P, prepend=-1))
        best = np.maximum.reduceat(np.where(is_free & is_near, rank, np.int32(-1)), first, axis=0)
        outcome_NTA[detection_P[first]] = np.where(
            best >= num_pairs, RIGHT, np.where(best >= 0, IGNORED, UNMATCHED)
        )
        _, threshold, setting = chosen = np.nonzero(best >= 0)
        is_taken_MTA[object_P[best[chosen] % num_pairs], threshold, setting] = True
    return outcome_NTA


def _rounds(detections: Boxes, objects: Boxes, is_region_M: Flags, threshold: float) -> Iterator[Pairs]:
    """The pairs of each round, grouped by detection, in ascending order of overlap."""
    parts = zip(*_near_pairs(detections, objects, is_region_M, threshold), strict=True)
    detection_P, object_P, overlap_P = (np.concatenate(part) for part in parts)
    choosing, inverse_P = np.unique(detection_P, return_inverse=True)
    groups = detections.groups[choosing]
    round_P = (np.arange(len(choosing)) - np.searchsorted(groups, groups))[inverse_P]
    order = np.lexsort((object_P, overlap_P, detection_P, round_P))
    ends = np.cumsum(np.bincount(round_P))
    for mine in np.split(order, ends[:-1]) if len(order) else ():
        yield detection_P[mine], object_P[mine], overlap_P[mine]


def _near_pairs(detections: Boxes, objects: Boxes, is_region_M: Flags, threshold: float) -> Iterator[Pairs]:
    """Pairs within a group that overlap by the threshold, block by block; at least one block, maybe an empty one."""
    start_N, stop_N = (
        np.searchsorted(objects.groups, detections.groups, side=side) for side in ("left", "right")
    )
    count_N = stop_N - start_N
    ends_N = np.cumsum(count_N)
    num_pairs = int(ends_N[-1]) if len(ends_N) else 0
    cuts = np.searchsorted(ends_N, np.arange(BLOCK_PAIRS, num_pairs, BLOCK_PAIRS))
    for block in np.split(np.arange(len(count_N)), cuts):
        detection_P = np.repeat(block, count_N[block])
        first_P = np.repeat(np.cumsum(count_N[block]) - count_N[block], count_N[block])
        object_P = start_N[detection_P] + np.arange(len(detection_P)) - first_P
        overlap_P = overlaps(detections.xywh[detection_P], objects.xywh[object_P], is_region_M[object_P])
        near = np.flatnonzero(overlap_P >= threshold)
        yield detection_P[near], object_P[near], overlap_P[near]


def overlaps(
    detections_xywh: NDArray[np.float64], objects_xywh: NDArray[np.float64], is_region: Flags
) -> NDArray[np.float64]:
    """IoU, row by row; with a region, the intersection over the detection's area.

    >>> box, other = np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[1.0, 0.0, 2.0, 2.0]])
    >>> overlaps(box, other, np.array([False])).round(3).tolist(), overlaps(box, other, np.array([True])).tolist()
    ([0.333], [0.5])
    """
    x, y, width, height = detections_xywh.T
    other_x, other_y, other_width, other_height = objects_xywh.T
    shared_width = np.minimum(x + width, other_x + other_width) - np.maximum(x, other_x)
    shared_height = np.minimum(y + height, other_y + other_height) - np.maximum(y, other_y)
    shared, area = shared_width * shared_height, width * height
    union = np.where(is_region, area, area + other_width * other_height - shared)
    is_shared = (shared_width > 0) & (shared_height > 0)
    return np.divide(shared, union, out=np.zeros(len(shared)), where=is_shared)
