"""Is A better than B, or is it noise? Noise has two sources: the choice of images, and the training seed.

The variance of a difference of mean scores is the sum of a variance over images, estimated by the bootstrap, and one
over seeds, estimated from repeated runs. Few repeats estimate it badly, so a study passes the spread pooled over all of
its arms, as in an analysis of variance; but where the runs of the two sides spread significantly more than the rest
(F test), their own spread is used. Without that, two arms that are three times as noisy as eleven others would be
called different in a third of all studies; with it, and three seeds, in 7 % (14 % if only one of the two is). Where
the spreads of the arms differ overall (Bartlett's test), nothing is pooled: each comparison uses its own.

Each variance is estimated from few values, runs or groups of images, so the quantile is the mean of two t quantiles,
weighted by the variances (Cochran and Cox 1957, "Experimental Designs", section 4.14). Welch and Satterthwaite's
degrees of freedom are too many with two seeds: they call equal arms different in 6 to 9 % of studies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Verdict = Literal["A is better", "B is better", "not distinguishable", "unknown"]
Cells = Sequence[Sequence[float]]
"""One side of a comparison: the scores of the runs of each of its cells. All cells have equal weight."""
Bounds = tuple[float, float]
"""The smallest and the largest value that a score can have."""
UNBOUNDED: Bounds = (-math.inf, math.inf)
LEVEL = 0.95
MAX_SEEDS = 100
POWER = 0.8
"""Probability with which `seeds_needed` runs find a difference of the size seen."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviation of a score over repeated trainings, with its degrees of freedom: runs minus groups."""

    sd: float
    degrees: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A compared with B; differences are A minus B."""

    mean_a: float
    mean_b: float
    low: float | None
    """Lower end of the interval of the difference; None: the noise is unknown."""
    high: float | None
    p_value: float | None
    """Two-sided, of no difference."""
    sd_seeds: float | None
    """Standard deviation of a score over seeds."""
    sd_images: float | None
    """Standard deviation of the difference over sets of images; None: unknown, all is said of these images only."""
    num_groups: int
    """Independent groups of images."""
    seeds_needed: int | None
    """Runs per cell to find a difference of the size seen; None: unknown, or more than `MAX_SEEDS`."""

    @property
    def difference(self) -> float:
        return self.mean_a - self.mean_b

    @property
    def verdict(self) -> Verdict:
        return self.verdict_at(self.p_value)

    def verdict_at(self, p_value: float | None) -> Verdict:
        """The verdict at a p value that was corrected for multiple comparisons."""
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
    squares = sum(float(np.var(scores)) * len(scores) for scores in groups)
    return Spread(math.sqrt(squares / degrees), degrees) if degrees else None


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
    """Holm's correction (1979): bounds the probability of one or more false positives in a family by the level.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda index: p_values[index])
    scaled = (min(1.0, (count - rank) * p_values[index]) for rank, index in enumerate(order))
    corrected = dict(zip(order, accumulate(scaled, max), strict=True))
    return [corrected[index] for index in range(count)]


def compare(
    a: Cells,
    b: Cells,
    resampled: NDArray[np.float64] | None,
    *,
    num_groups: int,
    spread: Spread | None = None,
    family: int = 1,
    bounds: Bounds = UNBOUNDED,
) -> Comparison:
    """Compare two sides by the scores of their runs.

    Args:
        a, b: scores on the same images. Where both sides are of the same runs, `a` has the differences run by run, and
            `b` is empty.
        resampled: differences of the sides' mean scores on resampled sets of these images; None: unknown.
        num_groups: groups of images drawn for each of these sets.
        spread: over seeds, pooled over the study that these scores are part of.
        family: number of comparisons that are corrected together; `seeds_needed` grows with it.
        bounds: of a score; the interval of the difference ends where no difference can be larger.
    """
    mean_a, mean_b = _mean(a), _mean(b) if b else 0.0
    sd_images = None if resampled is None else _sd_images(resampled, num_groups)
    sides = (a, b) if b else (a,)
    noise = _Noise.of(*sides, pooled=spread, sd_images=sd_images, num_groups=num_groups)
    if noise is None:
        return Comparison(mean_a, mean_b, None, None, None, None, sd_images, num_groups, None)
    difference, half = mean_a - mean_b, noise.quantile(1 - LEVEL) * noise.error
    largest = bounds[1] - bounds[0]
    return Comparison(
        mean_a=mean_a,
        mean_b=mean_b,
        low=max(difference - half, -largest),
        high=min(difference + half, largest),
        p_value=noise.p_value(difference),
        sd_seeds=noise.spread.sd,
        sd_images=sd_images,
        num_groups=num_groups,
        seeds_needed=seeds_needed(
            difference,
            spread=noise.spread,
            sd_images=sd_images or 0.0,
            num_groups=num_groups,
            num_cells=tuple(map(len, sides)),
            at_least=min(map(len, (*a, *b))) + 1,
            level=(1 - LEVEL) / family,
        ),
    )


def interval(
    cells: Cells,
    resampled: NDArray[np.float64] | None,
    *,
    num_groups: int,
    spread: Spread | None,
    bounds: Bounds = UNBOUNDED,
) -> tuple[float, float] | None:
    """The interval of the mean of one side, within `bounds`; arguments as for `compare`. None: its noise is unknown."""
    sd_images = None if resampled is None else _sd_images(resampled, num_groups)
    noise = _Noise.of(cells, pooled=spread, sd_images=sd_images, num_groups=num_groups)
    if noise is None:
        return None
    mean, half = _mean(cells), noise.quantile(1 - LEVEL) * noise.error
    return max(mean - half, bounds[0]), min(mean + half, bounds[1])


def _choose_spread(own: Spread | None, pooled: Spread | None) -> Spread | None:
    """The pooled spread, unless a comparison's own is significantly larger than that of the rest."""
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


@dataclass(frozen=True, slots=True)
class _Noise:
    """The noise of a mean, or of a difference of means."""

    var_seeds: float
    var_images: float
    spread: Spread
    num_groups: int

    @classmethod
    def of(
        cls, *sides: Cells, pooled: Spread | None, sd_images: float | None, num_groups: int
    ) -> Self | None:
        """None where nothing was repeated, or where all images are of one group."""
        cells = [scores for side in sides for scores in side]
        own = pooled_spread(cells) if all(len(scores) > 1 for scores in cells) else None
        spread = _choose_spread(own, pooled)
        if spread is None or (sd_images is not None and num_groups < 2):
            return None
        weight = sum(sum(1 / len(scores) for scores in side) / len(side) ** 2 for side in sides)
        return cls(spread.sd**2 * weight, (sd_images or 0.0) ** 2, spread, num_groups)

    @property
    def error(self) -> float:
        return math.sqrt(self.var_seeds + self.var_images)

    def quantile(self, tails: float) -> float:
        """In standard errors: the probability of a larger deviation, on either side, is `tails`."""
        variance = self.var_seeds + self.var_images
        share = self.var_seeds / variance if variance else 0.0
        of_images = _t_quantile(tails, max(1, self.num_groups - 1))
        return share * _t_quantile(tails, self.spread.degrees) + (1 - share) * of_images

    def p_value(self, difference: float) -> float:
        if self.error == 0.0:  # the same bits in every run
            return 1.0 if difference == 0.0 else 0.0
        smallest, distance = 1e-12, abs(difference) / self.error
        if distance >= self.quantile(smallest):
            return smallest
        return float(optimize.brentq(lambda tails: self.quantile(tails) - distance, smallest, 1.0))


@lru_cache(
    maxsize=4096
)  # every comparison of a study needs the same ones, and scipy takes half a millisecond
def _t_quantile(tails: float, degrees: int) -> float:
    return float(stats.t.isf(tails / 2, degrees))


def seeds_needed(
    difference: float,
    *,
    spread: Spread,
    sd_images: float,
    num_groups: int,
    num_cells: tuple[int, ...] = (1, 1),
    at_least: int = 2,
    level: float = 1 - LEVEL,
) -> int | None:
    """Runs per cell that find such a difference with probability `POWER`; None: more than `MAX_SEEDS`.

    Args:
        num_cells: cells of either side.
        at_least: one more than have run already, which were not enough.
        level: of a verdict, corrected for multiple comparisons.

    >>> seeds_needed(0.03, spread=Spread(0.0066, 2), sd_images=0.005, num_groups=100)
    3
    >>> seeds_needed(0.01, spread=Spread(0.0066, 2), sd_images=0.005, num_groups=100) is None
    True
    """
    weight = sum(1 / count for count in num_cells)
    for count in range(max(2, at_least), MAX_SEEDS + 1):
        known = Spread(spread.sd, max(spread.degrees, sum(num_cells) * (count - 1)))
        noise = _Noise(known.sd**2 * (weight / count), sd_images**2, known, num_groups)
        if abs(difference) >= (noise.quantile(level) + stats.norm.isf(1 - POWER)) * noise.error:
            return count
    return None
