"""Is A better than B, or is it noise? Two kinds of noise: other images, and other seeds.

The difference of the mean scores has a variance from the images, which the bootstrap tells, and one from training,
which the spread over the seeds tells. Both are added. The spread of few runs is badly known, so that of all arms of a
study, pooled as in an analysis of variance, stands in; but where the two sides' own runs spread significantly more than
the rest (F test), they are believed. Without that, two arms that are three times as noisy as eleven others would be
called different in a third of all studies; with it, and three seeds, in 7 % (14 % if only one of the two is). Where
the arms' spreads differ at large (Bartlett's test), nothing is pooled: each comparison has its own.

Either noise is known from few values only, runs here and groups of images there, so the quantile is that of a t
distribution for each, weighed by its variance (Cochran and Cox 1957, "Experimental Designs", section 4.14). Welch and
Satterthwaite's degrees of freedom are too many with two seeds: they call equal arms different in 6 to 9 % of studies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Verdict = Literal["A is better", "B is better", "not distinguishable", "unknown"]
Cells = Sequence[Sequence[float]]
"""One side of a comparison: the scores of the runs of each of its cells. All cells count alike."""
LEVEL = 0.95
MOST_SEEDS = 100
POWER = 0.8
"""Chance to find a difference of the size seen, for which the number of seeds is told."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How far a score moves from one training to the next."""

    sd: float
    degrees: int
    """Of freedom: runs less groups of repeats that it was estimated from."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What can be said of A against B."""

    mean_a: float
    mean_b: float
    low: float | None
    """Ends of the interval of the difference; None: single runs tell nothing about their noise."""
    high: float | None
    p_value: float | None
    """Two-sided, of no difference."""
    sd_seeds: float | None
    """Standard deviation of a score over seeds."""
    sd_images: float | None
    """Standard deviation of the difference over sets of images; None: unknown, what is said holds for these only."""
    num_groups: int
    """Of images that resemble one another: so many independent ones there are."""
    seeds_needed: int | None
    """On either side, for the difference that was seen to be found; None: unknown, or more than `MOST_SEEDS`."""

    @property
    def difference(self) -> float:
        """A less B."""
        return self.mean_a - self.mean_b

    @property
    def verdict(self) -> Verdict:
        """In words, for this comparison alone."""
        return self.verdict_at(self.p_value)

    def verdict_at(self, p_value: float | None) -> Verdict:
        """In words, at a p value that was corrected for other comparisons made beside this one."""
        if p_value is None:
            return "unknown"
        if p_value > 1 - LEVEL:
            return "not distinguishable"
        return "A is better" if self.difference > 0 else "B is better"


def pooled_spread(repeats: Iterable[Sequence[float]]) -> Spread | None:
    """The spread within groups of runs that differ by chance alone; None where every group is a single run.

    >>> pooled_spread([[0.0, 1.0], [0.5, 0.5], [0.7]])
    Spread(sd=0.5, degrees=2)
    """
    groups = [scores for scores in repeats if len(scores) > 1]
    degrees = sum(len(scores) - 1 for scores in groups)
    if not degrees:
        return None
    squares = sum(float(np.var(scores)) * len(scores) for scores in groups)
    return Spread(math.sqrt(squares / degrees), degrees)


def spreads_differ(repeats: Iterable[Sequence[float]]) -> bool:
    """Whether groups of repeats spread unequally, by more than chance (Bartlett 1937, at 5 %).

    >>> spreads_differ([[0.50, 0.51, 0.49], [0.4, 0.1, 0.9], [0.600, 0.601, 0.599]])
    True
    >>> spreads_differ([[0.50, 0.51], [0.60, 0.62]])
    False
    """
    groups = [scores for scores in repeats if len(scores) > 1 and len(set(scores)) > 1]
    return len(groups) > 1 and bool(stats.bartlett(*groups).pvalue < 1 - LEVEL)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): the chance of one or more wrong verdicts among all stays at the level of one.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def compare(
    a: Cells,
    b: Cells,
    resampled: NDArray[np.float64] | None,
    *,
    num_groups: int,
    spread: Spread | None = None,
    family: int = 1,
) -> Comparison:
    """Compare two sides by the scores of their runs.

    Args:
        a, b: scores on the same images.
        resampled: differences of the sides' mean scores on resampled sets of these images; None: not known.
        num_groups: that were drawn for each of these sets.
        spread: over seeds, pooled over a study of which these scores are a part.
        family: how many comparisons are corrected together: so many more seeds are needed.
    """
    mean_a, mean_b = _mean(a), _mean(b)
    sd_images = None if resampled is None else _sd_images(resampled, num_groups)
    spread = _believed(_own_spread((*a, *b)), spread)
    if spread is None or (resampled is not None and num_groups < 2):
        return Comparison(mean_a, mean_b, None, None, None, None, sd_images, num_groups, None)
    difference = mean_a - mean_b
    noise = _Noise.of(spread, _weight(a) + _weight(b), sd_images=sd_images or 0.0, num_groups=num_groups)
    half = noise.quantile(1 - LEVEL) * noise.error
    needed = seeds_needed(
        difference,
        spread=spread,
        sd_images=sd_images or 0.0,
        num_groups=num_groups,
        num_cells=(len(a), len(b)),
        fewest=min(map(len, (*a, *b))) + 1,
        level=(1 - LEVEL) / family,
    )
    return Comparison(
        mean_a=mean_a,
        mean_b=mean_b,
        low=difference - half,
        high=difference + half,
        p_value=noise.p_value(difference),
        sd_seeds=spread.sd,
        sd_images=sd_images,
        num_groups=num_groups,
        seeds_needed=needed,
    )


def interval(
    cells: Cells, resampled: NDArray[np.float64] | None, *, num_groups: int, spread: Spread | None
) -> tuple[float, float] | None:
    """Where the mean of one side may lie; arguments as for `compare`. None: its noise is not known."""
    spread = _believed(_own_spread(cells), spread)
    if spread is None or (resampled is not None and num_groups < 2):
        return None
    sd_images = 0.0 if resampled is None else _sd_images(resampled, num_groups)
    noise = _Noise.of(spread, _weight(cells), sd_images=sd_images, num_groups=num_groups)
    mean, half = _mean(cells), noise.quantile(1 - LEVEL) * noise.error
    return mean - half, mean + half


def _own_spread(cells: Cells) -> Spread | None:
    """None where a cell has run once: of its noise nothing is known."""
    return pooled_spread(cells) if all(len(scores) > 1 for scores in cells) else None


def _believed(own: Spread | None, pooled: Spread | None) -> Spread | None:
    """The pooled one, unless the own is significantly larger than that of the rest."""
    if own is None or pooled is None:
        return own or pooled
    degrees = pooled.degrees - own.degrees
    rest = pooled.sd**2 * pooled.degrees - own.sd**2 * own.degrees
    if degrees <= 0 or rest <= 0:  # there is no rest
        return max(own, pooled, key=lambda spread: spread.sd)
    ratio = own.sd**2 / (rest / degrees)
    return own if ratio > stats.f.isf(1 - LEVEL, own.degrees, degrees) else pooled


def _sd_images(resampled: NDArray[np.float64], num_groups: int) -> float:
    """Resampled groups spread a little less than new ones would."""
    return float(np.std(resampled, ddof=1)) * math.sqrt(num_groups / max(1, num_groups - 1))


def _mean(cells: Cells) -> float:
    return float(np.mean([np.mean(scores) for scores in cells]))


def _weight(cells: Cells) -> float:
    """The variance of their mean, in units of that of a run."""
    return sum(1 / len(scores) for scores in cells) / len(cells) ** 2


@dataclass(frozen=True, slots=True)
class _Noise:
    """Of a difference of means."""

    error: float
    """Standard error."""
    share_seeds: float
    """The seeds' part of its square; the rest is the images'."""
    degrees_seeds: int
    degrees_images: int

    @classmethod
    def of(cls, spread: Spread, weight: float, *, sd_images: float, num_groups: int) -> Self:
        var_seeds = spread.sd**2 * weight
        variance = var_seeds + sd_images**2
        share = var_seeds / variance if variance else 0.0
        return cls(math.sqrt(variance), share, spread.degrees, max(1, num_groups - 1))

    def quantile(self, tails: float) -> float:
        """In standard errors: beyond it, on both sides, lies the probability `tails`."""
        of_seeds, of_images = (
            _t_quantile(tails, degrees) for degrees in (self.degrees_seeds, self.degrees_images)
        )
        return self.share_seeds * of_seeds + (1 - self.share_seeds) * of_images

    def p_value(self, difference: float) -> float:
        """The probability of the tails that begin at a difference."""
        if self.error == 0.0:  # the same bits in every run
            return 1.0 if difference == 0.0 else 0.0
        smallest, distance = 1e-12, abs(difference) / self.error
        if distance >= self.quantile(smallest):
            return smallest
        return float(optimize.brentq(lambda tails: self.quantile(tails) - distance, smallest, 1.0))


@lru_cache(maxsize=4096)
def _t_quantile(tails: float, degrees: int) -> float:
    """Kept: a study asks for the same ones in every comparison, and scipy takes half a millisecond."""
    return float(stats.t.isf(tails / 2, degrees))


def seeds_needed(
    difference: float,
    *,
    spread: Spread,
    sd_images: float,
    num_groups: int,
    num_cells: tuple[int, int] = (1, 1),
    fewest: int = 2,
    level: float = 1 - LEVEL,
) -> int | None:
    """Runs of each cell with which such a difference is found with the chance `POWER`; None: more than `MOST_SEEDS`.

    Args:
        num_cells: of either side.
        fewest: more than have run already: they were not enough.
        level: of a verdict, the correction for others included.

    >>> seeds_needed(0.03, spread=Spread(0.0066, 2), sd_images=0.005, num_groups=100)
    3
    >>> seeds_needed(0.01, spread=Spread(0.0066, 2), sd_images=0.005, num_groups=100) is None
    True
    """
    weight = sum(1 / count for count in num_cells)
    for count in range(max(2, fewest), MOST_SEEDS + 1):
        known = Spread(spread.sd, max(spread.degrees, sum(num_cells) * (count - 1)))
        noise = _Noise.of(known, weight / count, sd_images=sd_images, num_groups=num_groups)
        if abs(difference) >= (noise.quantile(level) + stats.norm.isf(1 - POWER)) * noise.error:
            return count
    return None
