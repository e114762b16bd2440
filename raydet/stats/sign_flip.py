"""Is A better than B on these sequences? The sign-flip test over sequences, exact where they are few.

If A and B were equal, each sequence's difference could as well have had the other sign (Fisher 1935, The Design of
Experiments, section 21). The p value is the share of all 2^n assignments of signs whose mean difference is as far from
0 as the one seen. It is never 0: the signs that were seen, and their opposites, are among them, so n sequences cannot
give less than 2^(1-n), whatever the differences are.

It needs no normal distribution and no large number of sequences, unlike the bootstrap, but says nothing of seeds.

Legend: G groups of images, i.e. sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.records import Records

MAX_EXACT = 20
"""Sequences up to which all assignments are counted: half a million of them."""
RANDOM_FLIPS = 100_000
"""Assignments that are drawn beyond."""
ROUNDING = 1e-12
"""Means closer to one another than this share of the largest one possible are equal."""


@dataclass(frozen=True, slots=True)
class SignFlip:
    """The outcome of a sign-flip test; differences are A minus B."""

    num_sequences: int
    num_better: int
    """Sequences on which A has the higher score."""
    mean: float
    p_value: float
    """Two-sided."""
    smallest_p: float
    """What no differences of so many sequences can fall below."""

    def __str__(self) -> str:
        return (
            f"{_count(self.num_sequences)}: A higher in {self.num_better}, mean difference {self.mean:+.4f}, sign-flip "
            f"p {self.p_value:.2g} (with {_count(self.num_sequences)} p cannot fall below "
            f"{_without_zero(self.smallest_p)})"
        )


def sign_flip(differences: Sequence[float] | NDArray[np.float64], *, seed: int = 0) -> SignFlip:
    """Test whether differences have a mean of 0.

    Args:
        differences: one per sequence, at least one.
        seed: of the assignments that are drawn where there are too many to count.

    >>> sign_flip([0.1, 0.2, 0.3]).p_value
    0.25
    >>> print(sign_flip([0.01] * 8))
    8 sequences: A higher in 8, mean difference +0.0100, sign-flip p 0.0078 (with 8 sequences p cannot fall below .0078)
    """
    values_G = np.asarray(differences, float)
    num_sequences = len(values_G)
    seen = abs(values_G.sum()) - ROUNDING * np.abs(values_G).sum()
    if num_sequences <= MAX_EXACT:
        sums = values_G[:1]  # its sign stays: the opposites of all assignments are as far from 0
        for value in values_G[1:]:
            sums = np.concatenate([sums + value, sums - value])
        p_value, smallest_p = float(np.mean(np.abs(sums) >= seen)), 2.0 ** (1 - num_sequences)
    else:
        # Sequences beyond the first hundreds cost no memory: their signs are drawn one after the other.
        generator, sums = np.random.default_rng(seed), np.zeros(RANDOM_FLIPS)
        for value in values_G:
            sums += value * (2.0 * generator.integers(0, 2, RANDOM_FLIPS) - 1.0)
        smallest_p = 1 / (RANDOM_FLIPS + 1)  # the assignment seen counts as drawn, so that p is valid
        p_value = float((np.sum(np.abs(sums) >= seen) + 1) * smallest_p)
    return SignFlip(
        num_sequences=num_sequences,
        num_better=int((values_G > 0).sum()),
        mean=float(values_G.mean()),
        p_value=p_value,
        smallest_p=smallest_p,
    )


def sequence_differences(a: Sequence[Records], b: Sequence[Records], metric: str) -> NDArray[np.float64]:
    """A metric of runs `a` minus that of runs `b` on each sequence alone: [G], without sequences where it is undefined.

    Raises:
        ValueError: the records do not contain the metric.
    """
    groups_I = np.unique(a[0].group_ids, return_inverse=True)[1]
    members_GI = np.equal.outer(np.arange(groups_I.max() + 1), groups_I).astype(float)
    mean_a, mean_b = (
        np.mean([records.scores(metric, members_GI) for records in runs], axis=0) for runs in (a, b)
    )
    differences: NDArray[np.float64] = mean_a - mean_b
    return differences[~np.isnan(differences)]


def _count(number: int) -> str:
    return f"{number} sequence{'s' if number != 1 else ''}"


def _without_zero(p_value: float) -> str:
    return f"{p_value:.2g}".removeprefix("0")
