"""What can be found in a study's numbers, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from raydet.report.study import CellRuns
from raydet.stats.comparison import LEVEL, Comparison, Spread, Verdict
from raydet.tune.study import Factor, Hypothesis, Value

Answer = Literal["supported", "refuted", "not distinguishable", "unknown", "not tested"]


@dataclass(frozen=True, slots=True)
class Versus:
    """One comparison of a family."""

    a: str
    b: str
    comparison: Comparison
    p_corrected: float | None

    @property
    def verdict(self) -> Verdict:
        """With the correction."""
        return self.comparison.verdict_at(self.p_corrected)


@dataclass(frozen=True, slots=True)
class Noise:
    """What chance alone does to a score."""

    spread: Spread | None
    """Pooled over everything that repeats something; None where nothing does, or where spreads differ."""
    range: tuple[float, float] | None
    """The smallest and the largest standard deviation of a cell's repeats, where spreads differ."""
    twins: tuple[Versus, ...]
    """Cells that are the same function, compared by the spread of repeats of one cell: none of these should come out
    different. Unknown where no cell was repeated.
    """

    @property
    def twins_apart(self) -> list[Versus]:
        """Those that came out different."""
        return [twin for twin in self.twins if twin.verdict in ("A is better", "B is better")]

    def smallest_difference(self, num_seeds: int) -> float | None:
        """Of two cells with so many runs each: what is below is noise (95 %), other images not counted."""
        if self.spread is None:
            return None
        error = self.spread.sd * math.sqrt(2 / num_seeds)
        return float(stats.t.isf((1 - LEVEL) / 2, self.spread.degrees)) * error


@dataclass(frozen=True, slots=True)
class Estimate:
    """A cell's mean with its interval."""

    cell: CellRuns
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Level:
    """One value of a factor: the mean over the cells of a table that have it."""

    label: str
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Effect:
    """What a factor does, over all cells of a phase's table."""

    phase: str
    factor: Factor
    levels: tuple[Level, ...]
    changes: tuple[Versus, ...]
    """Every value against the first one."""


@dataclass(frozen=True, slots=True)
class Interaction:
    """How far the effect of one factor depends on another."""

    phase: str
    factors: tuple[Factor, Factor]
    versus: Versus
    """Half the difference between the effects."""


@dataclass(frozen=True, slots=True)
class Tested:
    """A hypothesis and what became of it."""

    hypothesis: Hypothesis
    answer: Answer
    claims: tuple[Versus, ...]


def loss_gap(row: Mapping[str, float | None]) -> float | None:
    """How much larger the loss is on images that were not trained on."""
    train, val = row.get("loss"), row.get("val_loss")
    gap = None if train is None or val is None else val - train
    return gap if gap is not None and math.isfinite(gap) else None


def short(factor: Factor) -> str:
    """The last part of its path."""
    return factor.path.split(".")[-1]


def value_label(value: Value) -> str:
    """As in tables: {1,3}, yes, 8."""
    if isinstance(value, tuple):
        return "{" + ",".join(map(str, value)) + "}"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
