"""What a study's numbers say, and what they do not: noise, differences, effects of factors, hypotheses.

All comparisons share one spread over seeds, pooled over every group of runs that differ by chance alone: repeats with
other seeds, and cells that are the same function. Verdicts of one family (one table) are corrected together by Holm's
method; intervals are each comparison's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from raydet.evaluate.compare import LEVEL, Comparison, Spread, Verdict, compare, holm, interval, pooled_spread
from raydet.report.study import CellRuns, Resamples, StudyResults
from raydet.tune.cells import twin_of
from raydet.tune.study import Claim, Factor, Hypothesis, Value

MOST_PAIRWISE = 20
"""Cells of which every pair is compared."""
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
    """Pooled over everything that repeats something."""
    seeds: Spread | None
    """From repeats of the same cell only."""
    twins: tuple[Versus, ...]
    """Cells that are the same function, compared: none of these should come out different."""

    def smallest_difference(self, num_seeds: int) -> float | None:
        """Of two cells with so many runs each: what is below is noise (95 %), other pictures not counted."""
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


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything that a report says."""

    results: StudyResults
    noise: Noise
    estimates: Mapping[str, tuple[Estimate, ...]]
    """By phase, in the order of its table."""
    best_control: CellRuns | None
    baseline: CellRuns | None
    against_control: tuple[Versus, ...]
    """Every arm (A) against the best control (B)."""
    against_baseline: tuple[Versus, ...]
    pairs: tuple[Versus, ...]
    """Every arm and control against every other; empty where there are too many."""
    effects: tuple[Effect, ...]
    interactions: tuple[Interaction, ...]
    hypotheses: tuple[Tested, ...]
    confirmation: Versus | None
    """The winner (A) against the best control (B) on fresh seeds."""
    has_pictures: bool
    """False: match records are missing, and what is said holds for these pictures only."""
    num_groups: int
    num_pictures: int


def analyse(results: StudyResults, *, resamples: int = 200) -> Analysis:
    """Work out everything that can be said of a study.

    Args:
        resamples: sets of pictures for the bootstrap.
    """
    judge = _Judge(results, Resamples(count=resamples))
    estimates = {phase: tuple(map(judge.estimate, cells)) for phase, cells in results.cells.items()}
    best_control = max(results.controls, key=lambda cell: cell.mean, default=None)
    baseline = _baseline(results)
    everybody = (*results.controls, *results.arms)
    effects = tuple(judge.effects())
    return Analysis(
        results=results,
        noise=Noise(judge.spread, _seed_spread(results), judge.twins()),
        estimates=estimates,
        best_control=best_control,
        baseline=baseline,
        against_control=judge.against(results.arms, best_control),
        against_baseline=judge.against(
            [cell for cell in results.arms if baseline is None or cell.name != baseline.name], baseline
        ),
        pairs=judge.family(combinations_of(everybody)) if len(everybody) <= MOST_PAIRWISE else (),
        effects=effects,
        interactions=tuple(judge.interactions()),
        hypotheses=judge.hypotheses(),
        confirmation=judge.confirmation(),
        has_pictures=judge.resamples.of(everybody) is not None,
        num_groups=judge.resamples.num_groups,
        num_pictures=judge.resamples.num_pictures,
    )


def combinations_of(cells: Sequence[CellRuns]) -> list[tuple[Sequence[CellRuns], Sequence[CellRuns]]]:
    """Every pair once."""
    return [((a,), (b,)) for a, b in combinations(cells, 2)]


def _baseline(results: StudyResults) -> CellRuns | None:
    """The control of that name, or the cell of all defaults."""
    named = [cell for cell in results.controls if cell.name == "baseline"]
    defaults = {factor.path: factor.default for factor in results.study.factors}
    return next(iter([*named, *(cell for cell in results.arms if cell.cell.values == defaults)]), None)


def _seed_spread(results: StudyResults) -> Spread | None:
    return pooled_spread(cell.scores for cells in results.cells.values() for cell in cells)


def _spread(results: StudyResults) -> Spread | None:
    """Fresh runs are a group of their own: the winner was chosen for its first ones."""
    groups: dict[tuple[bool, str], dict[str, list[float]]] = {}
    for phase, cells in results.cells.items():
        for cell in cells:
            key = (phase == "confirmation", twin_of(results.study, cell.cell))
            groups.setdefault(key, {})[cell.name] = cell.scores
    return pooled_spread(
        [score for scores in group.values() for score in scores] for group in groups.values()
    )


class _Judge:
    """Compares sides with the study's common spread."""

    def __init__(self, results: StudyResults, resamples: Resamples) -> None:
        self.results = results
        self.resamples = resamples
        self.spread = _spread(results)

    def compare(self, a: Sequence[CellRuns], b: Sequence[CellRuns]) -> Comparison:
        return compare(
            [cell.scores for cell in a],
            [cell.scores for cell in b],
            _enough(self.resamples.difference(a, b)),
            num_groups=self.resamples.num_groups,
            spread=self.spread,
        )

    def family(self, sides: Sequence[tuple[Sequence[CellRuns], Sequence[CellRuns]]]) -> tuple[Versus, ...]:
        """Comparisons whose verdicts are corrected together."""
        return _corrected([(_label(a), _label(b), self.compare(a, b)) for a, b in sides])

    def against(self, cells: Sequence[CellRuns], other: CellRuns | None) -> tuple[Versus, ...]:
        return () if other is None else self.family([((cell,), (other,)) for cell in cells])

    def estimate(self, cell: CellRuns) -> Estimate:
        return Estimate(cell, *self._interval([cell]))

    def _interval(self, cells: Sequence[CellRuns]) -> tuple[float, float] | tuple[None, None]:
        found = interval(
            [cell.scores for cell in cells],
            _enough(self.resamples.of(cells)),
            num_groups=self.resamples.num_groups,
            spread=self.spread,
        )
        return found or (None, None)

    def twins(self) -> tuple[Versus, ...]:
        cells = {cell.name: cell for cell in self.results.arms}
        sides = []
        for cell in self.results.arms:
            other = twin_of(self.results.study, cell.cell)
            if other != cell.name and other in cells:
                sides.append(((cell,), (cells[other],)))
        return self.family(sides)

    def confirmation(self) -> Versus | None:
        cells = self.results.cells.get("confirmation", ())
        winners = [cell for cell in cells if not cell.cell.is_control]
        controls = [cell for cell in cells if cell.cell.is_control]
        return self.family([(winners, controls)])[0] if winners and controls else None

    def effects(self) -> list[Effect]:
        return [
            self._effect(phase, factor)
            for phase in self.results.cells
            for factor in self.results.study.factors
            if len(self._values(phase, factor)) > 1
        ]

    def _effect(self, phase: str, factor: Factor) -> Effect:
        cells = {value: self._cells(phase, {factor.path: (value,)}) for value in self._values(phase, factor)}
        levels = []
        for value, mine in cells.items():
            low, high = self._interval(mine)
            mean = sum(cell.mean for cell in mine) / len(mine)
            levels.append(Level(value_label(value), mean, low, high))
        first, *others = cells
        changes = [
            (value_label(value), value_label(first), self.compare(cells[value], cells[first]))
            for value in others
        ]
        return Effect(phase, factor, tuple(levels), _corrected(changes))

    def interactions(self) -> list[Interaction]:
        """Of every two factors with two values each, where all four combinations have run."""
        found = []
        for phase in self.results.cells:
            two = [factor for factor in self.results.study.factors if len(self._values(phase, factor)) == 2]
            for one, other in combinations(two, 2):
                corners = [
                    self._cells(phase, {one.path: (u,), other.path: (v,)})
                    for u in self._values(phase, one)
                    for v in self._values(phase, other)
                ]
                if all(corners):
                    same, crossed = [*corners[0], *corners[3]], [*corners[1], *corners[2]]
                    name = f"{short(one)} x {short(other)}"
                    (versus,) = _corrected([(name, "no interaction", self.compare(same, crossed))])
                    found.append(Interaction(phase, (one, other), versus))
        return found

    def hypotheses(self) -> tuple[Tested, ...]:
        """Their claims are one family."""
        study = self.results.study
        comparisons: list[tuple[str, str, Comparison]] = []
        places: list[list[int] | None] = []
        for hypothesis in study.hypotheses:
            sides = [self._sides(claim, hypothesis) for claim in hypothesis.claims]
            if not sides or any(side is None for side in sides):
                places.append(None)
                continue
            places.append(list(range(len(comparisons), len(comparisons) + len(sides))))
            comparisons += [side for side in sides if side is not None]
        corrected = _corrected(comparisons)
        return tuple(
            Tested(hypothesis, "not tested", ())
            if place is None
            else _tested(hypothesis, tuple(corrected[index] for index in place))
            for hypothesis, place in zip(study.hypotheses, places, strict=True)
        )

    def _sides(self, claim: Claim, hypothesis: Hypothesis) -> tuple[str, str, Comparison] | None:
        better, worse = self._cells(claim.phase, claim.better), self._cells(claim.phase, claim.worse)
        if not better or not worse:
            return None
        labels = _side_label(claim.better), _side_label(claim.worse)
        if hypothesis.measure == "score":
            return *labels, self.compare(better, worse)
        gaps = [_gaps(better), _gaps(worse)]
        if not all(gap for side in gaps for gap in side):
            return None
        # A smaller gap is better.
        negated = [[[-gap for gap in cell] for cell in side] for side in gaps]
        spread = pooled_spread([*negated[0], *negated[1]])
        return *labels, compare(negated[0], negated[1], None, num_groups=0, spread=spread)

    def _cells(self, phase: str, values: Mapping[str, Sequence[Value]]) -> list[CellRuns]:
        """Of a phase's table those that have the values, or the controls of these names."""
        if "control" in values:
            return [cell for cell in self.results.controls if cell.name in values["control"]]
        return [
            cell
            for cell in self.results.cells.get(phase, ())
            if not cell.cell.is_control
            and all(cell.cell.values[path] in wanted for path, wanted in values.items())
        ]

    def _values(self, phase: str, factor: Factor) -> list[Value]:
        """That the phase's cells have, in the factor's order."""
        if phase == "confirmation":
            return []
        seen = {cell.cell.values.get(factor.path) for cell in self.results.cells[phase]}
        return [value for value in factor.values if value in seen]


def _enough(resampled: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Without sets that hold no object; None where fewer than two are left."""
    if resampled is None:
        return None
    kept = resampled[~np.isnan(resampled)]
    return kept if len(kept) > 1 else None


def _tested(hypothesis: Hypothesis, claims: tuple[Versus, ...]) -> Tested:
    verdicts = {claim.verdict for claim in claims}
    answer: Answer = "not distinguishable"
    if "B is better" in verdicts:
        answer = "refuted"
    elif "unknown" in verdicts:
        answer = "unknown"
    elif verdicts == {"A is better"}:
        answer = "supported"
    return Tested(hypothesis, answer, claims)


def _corrected(comparisons: Sequence[tuple[str, str, Comparison]]) -> tuple[Versus, ...]:
    known = [comparison.p_value for _, _, comparison in comparisons if comparison.p_value is not None]
    corrected = iter(holm(known))
    return tuple(
        Versus(a, b, comparison, None if comparison.p_value is None else next(corrected))
        for a, b, comparison in comparisons
    )


def _gaps(cells: Sequence[CellRuns]) -> list[list[float]]:
    """Validation loss less training loss at the end of every run, by cell; nothing where a run has none."""
    return [
        [gap for run in cell.runs if (gap := loss_gap((run.results or {}).get("final", {}))) is not None]
        for cell in cells
    ]


def loss_gap(row: Mapping[str, float | None]) -> float | None:
    """How much larger the loss is on pictures that were not trained on."""
    train, val = row.get("loss"), row.get("val_loss")
    return None if train is None or val is None else val - train


def short(factor: Factor) -> str:
    """The last part of its path."""
    return factor.path.split(".")[-1]


def _label(cells: Sequence[CellRuns]) -> str:
    return " + ".join(cell.name for cell in cells)


def value_label(value: Value) -> str:
    """As in tables: {1,3}, yes, 8."""
    if isinstance(value, tuple):
        return "{" + ",".join(map(str, value)) + "}"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _side_label(side: Mapping[str, Sequence[Value]]) -> str:
    return ", ".join(
        (f"{path.split('.')[-1]} " if path not in ("control", "method") else "")
        + " or ".join(map(value_label, values))
        for path, values in side.items()
    )
