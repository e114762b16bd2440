"""How much a metric would vary on other images of the same kind: the bootstrap over groups of images.

An Introduction to the Bootstrap (Efron and Tibshirani 1993), chapters 8 and 13. Frames of one sequence resemble one
another, so whole groups are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.matches import MatchRecords, mean_average_precisions

SETS_PER_BATCH = 50
"""Bounds the memory: a batch holds this many numbers per detection."""


def resample_weights(group_ids: NDArray[np.str_], *, count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image counts in each of `count` resampled sets: [I], the same for equal groups and seeds.

    Each set draws as many groups, with replacement, as there are.
    """
    names, group_of_I = np.unique(group_ids, return_inverse=True)
    num_groups = len(names)
    generator = np.random.default_rng(seed)
    for _ in range(count):
        times = np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups)
        yield times[group_of_I].astype(float)


def paired_differences(
    a: Sequence[MatchRecords], b: Sequence[MatchRecords], *, count: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Mean mAP of runs `a` minus that of runs `b` on the same resampled sets: [count], without sets that lack objects.

    Raises:
        ValueError: the records are of different images (a bug: callers check first).
    """
    if any(not is_same_images(a[0], other) for other in (*a, *b)):
        raise ValueError("paired differences need records of the same images in the same order")
    mean_a, mean_b = (
        np.mean([resampled_scores(run, count=count, seed=seed) for run in runs], axis=0) for runs in (a, b)
    )
    differences: NDArray[np.float64] = mean_a - mean_b
    return differences[~np.isnan(differences)]


def resampled_scores(
    records: MatchRecords, *, count: int = 1000, seed: int = 0, threshold: int | None = None
) -> NDArray[np.float64]:
    """mAP on resampled sets: [count], NaN where a set has no object. Equal groups and seeds give equal sets.

    Args:
        threshold: index of one IoU threshold, 0 for 0.5; None: the mean over all.
    """
    if threshold is not None:
        one = slice(threshold, threshold + 1)
        right, wrong = records.is_right_NT[:, one], records.is_wrong_NT[:, one]
        records = replace(records, is_right_NT=right, is_wrong_NT=wrong)
    sets = resample_weights(records.group_ids, count=count, seed=seed)
    batches = [np.array(batch) for batch in iter(lambda: list(islice(sets, SETS_PER_BATCH)), [])]
    return np.concatenate([mean_average_precisions(records, weights_BI) for weights_BI in batches])


def is_same_images(a: MatchRecords, b: MatchRecords) -> bool:
    """Whether both are of the same images, groups and numbers of objects, in the same order."""
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("image_ids", "group_ids", "objects_IK")
    )
