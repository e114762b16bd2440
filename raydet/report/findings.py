"""Findings of an analysis of a study, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from raydet.metrics.names import VAL_LOSS
from raydet.report.study import CellRuns
from raydet.runs.results import RunResults
from raydet.stats.comparison import LEVEL, Comparison, Spread, Verdict
from raydet.tune.study import Factor, Hypothesis, Value

Outcome = Literal["supported", "refuted", "not distinguishable", "unknown", "not tested"]


@dataclass(frozen=True, slots=True)
class PairComparison:
    """A compared with B, as one of a family that is corrected for multiple comparisons."""

    a: str
    b: str
    comparison: Comparison
    p_corrected: float | None

    @property
    def verdict(self) -> Verdict:
        return self.comparison.verdict_at(self.p_corrected)

    @property
    def is_different(self) -> bool:
        return self.verdict in ("A is better", "B is better")


@dataclass(frozen=True, slots=True)
class Noise:
    """How much a score varies by chance alone."""

    spread: Spread | None
    """Pooled over all repeats; None where nothing was repeated, or where spreads differ."""
    range: tuple[float, float] | None
    """Smallest and largest standard deviation of a cell's repeats, where spreads differ."""
    equivalent_pairs: tuple[PairComparison, ...]
    """Equivalent cells (which compute the same function), compared with the spread of repeats of one cell: none should
    come out different. Empty where no cell was repeated.
    """

    def smallest_difference(self, num_seeds: int) -> float | None:
        """Smallest distinguishable difference of two cells with `num_seeds` runs each, without the noise of images."""
        if self.spread is None:
            return None
        error = self.spread.sd * math.sqrt(2 / num_seeds)
        return float(stats.t.isf((1 - LEVEL) / 2, self.spread.degrees)) * error


@dataclass(frozen=True, slots=True)
class Estimate:
    """A cell's mean score with its interval."""

    cell: CellRuns
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Level:
    """One value of a factor: the mean over the cells of a phase that have it."""

    label: str
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of a factor over all cells of a phase."""

    phase: str
    factor: Factor
    levels: tuple[Level, ...]
    changes: tuple[PairComparison, ...]
    """Every other level (A) against the first (B)."""


@dataclass(frozen=True, slots=True)
class Interaction:
    """How much the effect of one factor depends on another: half the difference between the effects."""

    phase: str
    factors: tuple[Factor, Factor]
    pair: PairComparison


@dataclass(frozen=True, slots=True)
class HypothesisResult:
    """A hypothesis with its outcome."""

    hypothesis: Hypothesis
    outcome: Outcome
    claims: tuple[PairComparison, ...]


def loss_gap(results: RunResults | None) -> float | None:
    """Validation loss minus training loss in the last epoch; None where one is missing or not finite."""
    if results is None:
        return None
    train, val = results.final.loss, results.final[VAL_LOSS.name]
    gap = None if train is None or val is None else val - train
    return gap if gap is not None and math.isfinite(gap) else None


def short_name(factor: Factor) -> str:
    """The last part of the factor's config path."""
    return factor.path.split(".")[-1]


def value_label(value: Value) -> str:
    """A value as text for tables: {1,3}, yes, 8."""
    if isinstance(value, tuple):
        return "{" + ",".join(map(str, value)) + "}"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
