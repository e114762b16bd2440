"""How much a metric would vary on other images of the same kind: the bootstrap over groups of images.

An Introduction to the Bootstrap (Efron and Tibshirani 1993), chapters 8 and 13. Frames of one sequence resemble one
another, so whole groups are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.records import Records

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
    a: Sequence[Records], b: Sequence[Records], metric: str, *, count: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Mean of a metric of runs `a` minus that of runs `b` on the same resampled sets: [count], without undefined ones.

    Raises:
        ValueError: the records are of different images, or do not contain the metric (a bug: callers check first).
    """
    if any(not a[0].is_comparable(other) for other in (*a, *b)):
        raise ValueError("paired differences need records of the same images in the same order")
    mean_a, mean_b = (
        np.mean([resampled_scores(run, metric, count=count, seed=seed) for run in runs], axis=0)
        for runs in (a, b)
    )
    differences: NDArray[np.float64] = mean_a - mean_b
    return differences[~np.isnan(differences)]


def resampled_scores(
    records: Records, metric: str, *, count: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """A metric on resampled sets: [count], NaN where it is undefined. Equal groups and seeds give equal sets."""
    sets = resample_weights(records.group_ids, count=count, seed=seed)
    batches = [np.array(batch) for batch in iter(lambda: list(islice(sets, SETS_PER_BATCH)), [])]
    return np.concatenate([records.scores(metric, weights_BI) for weights_BI in batches])
