"""The best and worst images of a run, and the scores by which a detector's are ranked, from its match records alone.

An image's score is its F1, 2 right / (2 right + wrong + missed), at IoU 0.5. The score threshold is the one at which
the F1 of all images together is highest. An image without objects and detections scores 1.

Legend: I images, N detections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.matches import MatchRecords

IOU_50 = 0
"""Index of IoU 0.5 among the records' thresholds."""
DEFAULT_THRESHOLD = 0.5
"""Score threshold if no detection is right, which makes all thresholds equally bad."""


@dataclass(frozen=True, slots=True)
class ImageScores:
    """Right, wrong and missed detections of each image, in the order of the records."""

    image_ids: NDArray[np.str_]
    """[I]."""
    score_threshold: float
    """Detections above it count. It is midway between two scores, so that rounding errors do not matter."""
    right_I: NDArray[np.int64]
    wrong_I: NDArray[np.int64]
    missed_I: NDArray[np.int64]

    @property
    def f1(self) -> NDArray[np.float64]:
        """[I], in 0..1."""
        return _f1(self.right_I, self.wrong_I, self.missed_I)

    @property
    def overall_f1(self) -> float:
        """F1 of all images together."""
        return float(_f1(self.right_I.sum(), self.wrong_I.sum(), self.missed_I.sum()))

    def best_first(self) -> list[int]:
        """Indices from the best image to the worst; ties are broken by fewer mistakes, then more right, then id."""
        mistakes_I = self.wrong_I + self.missed_I
        order: list[int] = np.lexsort((self.image_ids, -self.right_I, mistakes_I, -self.f1)).tolist()
        return order


def image_scores(records: MatchRecords) -> ImageScores:
    """Score every image; see the module docstring."""
    right_N, wrong_N = records.is_right_NT[:, IOU_50], records.is_wrong_NT[:, IOU_50]
    threshold = _best_threshold(records.scores_N, right_N, wrong_N, num_objects=int(records.objects_IK.sum()))
    counts_N, num_images = records.scores_N >= threshold, len(records.image_ids)
    right_I, wrong_I = (
        np.bincount(records.image_index_N[counts_N & is_such_N], minlength=num_images)
        for is_such_N in (right_N, wrong_N)
    )
    missed_I = records.objects_IK.sum(axis=1) - right_I
    return ImageScores(records.image_ids, threshold, right_I, wrong_I, missed_I)


def best_and_worst(
    best_first: Sequence[int], group_ids: NDArray[np.str_], count: int
) -> tuple[list[int], list[int]]:
    """Indices of the `count` best images, best first, and of the `count` worst, worst first.

    Images of one group are similar: every group is shown once before one is shown again. No image is in both lists:
    of fewer than 2 `count` images, the better half, rounded up, can be best.
    """
    num_best = (len(best_first) + 1) // 2
    best, worst = best_first[:num_best], best_first[num_best:][::-1]
    return _interleave(best, group_ids)[:count], _interleave(worst, group_ids)[:count]


def _interleave(indices: Sequence[int], group_ids: NDArray[np.str_]) -> list[int]:
    """The first of each group, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    rounds = {}
    for index in indices:
        group = str(group_ids[index])
        rounds[index] = seen[group]
        seen[group] += 1
    return sorted(indices, key=rounds.__getitem__)


def _best_threshold(
    scores_N: NDArray[np.float64],
    is_right_N: NDArray[np.bool_],
    is_wrong_N: NDArray[np.bool_],
    *,
    num_objects: int,
) -> float:
    """The threshold of the highest F1, midway between two scores."""
    if not is_right_N.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-scores_N, kind="stable")
    scores_N = scores_N[order]
    right_N: NDArray[np.int64] = np.cumsum(is_right_N[order])
    wrong_N: NDArray[np.int64] = np.cumsum(is_wrong_N[order])
    next_N = np.append(scores_N[1:], 0.0)
    f1_N = np.where(next_N < scores_N, _f1(right_N, wrong_N, num_objects - right_N), -1.0)
    best = int(f1_N.argmax())
    return float((scores_N[best] + next_N[best]) / 2)


def _f1(right: NDArray[np.int64], wrong: NDArray[np.int64], missed: NDArray[np.int64]) -> NDArray[np.float64]:
    total = 2 * right + wrong + missed
    return np.where(total == 0, 1.0, 2 * right / np.maximum(total, 1))
