"""Is A better than B, or is it noise? Two kinds of noise: other pictures, and other seeds.

The difference of the mean scores has a variance from the pictures, which the bootstrap tells, and one from training,
which the spread over the seeds tells. Both are added. The second is known from few runs only, so the quantile is that
of a t distribution for its part and of the normal one for the other, each weighed by its variance (Cochran and Cox
1957, "Experimental Designs", section 4.14). Welch and Satterthwaite's degrees of freedom are too many with two seeds:
they call equal arms different in 6 to 9 % of studies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Verdict = Literal["A is better", "B is better", "not distinguishable", "unknown"]
LEVEL = 0.95
POWER = 0.8
"""Chance to find a difference of the size seen, for which the number of seeds is told."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What can be said of A against B."""

    mean_a: float
    mean_b: float
    low: float | None
    """Ends of the interval of the difference; None: one run on either side tells nothing about its noise."""
    high: float | None
    p_value: float | None
    """Two-sided, of no difference."""
    sd_seeds: float | None
    """Pooled standard deviation of a score over seeds."""
    sd_pictures: float
    """Standard deviation of the difference over resampled sets of pictures."""
    seeds_needed: int | None
    """On either side, for the difference that was seen to be found; None: unknown, or no number of seeds would do."""

    @property
    def difference(self) -> float:
        """A less B."""
        return self.mean_a - self.mean_b

    @property
    def verdict(self) -> Verdict:
        """In words."""
        if self.low is None or self.high is None:
            return "unknown"
        if self.low > 0:
            return "A is better"
        return "B is better" if self.high < 0 else "not distinguishable"


def compare(
    scores_a: Sequence[float], scores_b: Sequence[float], resampled: NDArray[np.float64]
) -> Comparison:
    """Compare two arms by the scores of their runs.

    Args:
        scores_a, scores_b: one per seed, on the same pictures.
        resampled: differences of the arms' mean scores on resampled sets of these pictures.
    """
    mean_a, mean_b = float(np.mean(scores_a)), float(np.mean(scores_b))
    sd_pictures = float(np.std(resampled, ddof=1))
    degrees = len(scores_a) + len(scores_b) - 2
    if min(len(scores_a), len(scores_b)) < 2:
        return Comparison(mean_a, mean_b, None, None, None, None, sd_pictures, None)
    spread = sum(np.var(scores, ddof=1) * (len(scores) - 1) for scores in (scores_a, scores_b)) / degrees
    var_seeds = float(spread * (1 / len(scores_a) + 1 / len(scores_b)))
    variance = var_seeds + sd_pictures**2
    difference, sd_seeds = mean_a - mean_b, math.sqrt(spread)
    if variance == 0.0:  # the same bits in every run
        p_value = 1.0 if difference == 0 else 0.0
        return Comparison(mean_a, mean_b, difference, difference, p_value, sd_seeds, sd_pictures, None)
    share, error = var_seeds / variance, math.sqrt(variance)
    half = _quantile(1 - LEVEL, share, degrees) * error
    return Comparison(
        mean_a=mean_a,
        mean_b=mean_b,
        low=difference - half,
        high=difference + half,
        p_value=_p_value(abs(difference) / error, share, degrees),
        sd_seeds=sd_seeds,
        sd_pictures=sd_pictures,
        seeds_needed=seeds_needed(difference, sd_seeds=sd_seeds, sd_pictures=sd_pictures),
    )


def _quantile(tails: float, share: float, degrees: int) -> float:
    """Beyond it, on both sides, lies the probability `tails`; `share` of the variance is known from few values."""
    return float(share * stats.t.isf(tails / 2, degrees) + (1 - share) * stats.norm.isf(tails / 2))


def _p_value(distance: float, share: float, degrees: int) -> float:
    """The probability of the tails that begin so many standard errors away."""
    smallest = 1e-12
    if distance >= _quantile(smallest, share, degrees):
        return smallest
    return float(optimize.brentq(lambda tails: _quantile(tails, share, degrees) - distance, smallest, 1.0))


def seeds_needed(difference: float, *, sd_seeds: float, sd_pictures: float) -> int | None:
    """Runs on either side with which such a difference is found with the chance `POWER`; None: no number will do.

    >>> seeds_needed(0.03, sd_seeds=0.0066, sd_pictures=0.005)
    2
    >>> seeds_needed(0.01, sd_seeds=0.0066, sd_pictures=0.002)
    10
    >>> seeds_needed(0.01, sd_seeds=0.0066, sd_pictures=0.005) is None
    True
    """
    factor = float(stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER))
    room = (difference / factor) ** 2 - sd_pictures**2
    if room <= 0:
        return None
    return max(2, math.ceil(2 * sd_seeds**2 / room))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons that may be held against one level together (Holm 1979), in their order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
