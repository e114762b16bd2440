"""Statistical comparisons within a study.

Comparisons of scores share one spread over seeds, pooled over every group of runs that differ by chance alone: repeats
with other seeds, and equivalent cells (unless these came out different); where spreads differ by more than chance,
each comparison uses its own. A hypothesis on another metric has that metric's spread. The gap between the losses has a
spread of its own, and its noise over images is unknown. Verdicts of one family are corrected together by Holm's
method: the arms against one other cell, the pairs, the equivalent cells, the claims of all hypotheses, the effects and
interactions of one phase. Intervals are not corrected. Sides are compared over those values of the other factors that
all of them have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, islice, product

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.names import bounds_of
from raydet.report.findings import (
    Effect,
    Estimate,
    HypothesisResult,
    Interaction,
    Level,
    Outcome,
    PairComparison,
    loss_gap,
    short_name,
    value_label,
)
from raydet.report.study import CellRuns, Resamples, StudyResults
from raydet.stats.comparison import Comparison, compare, holm, interval, pooled_spread, spreads_differ
from raydet.tune.cells import canonical_code
from raydet.tune.study import CONFIRMATION, CONTROLS, Claim, Factor, Hypothesis, Value

CONTROL = "control"
"""The key by which a claim names controls."""


class StudyComparisons:
    """Compares sets of cells with the spread that is pooled over the study; see `Noise` for `spread` and `range`."""

    def __init__(self, results: StudyResults, resamples: Resamples) -> None:
        self.results = results
        self.resamples = resamples
        repeats = _repeats(results, _scores, with_equivalent=False)
        self.is_pooled = not spreads_differ(repeats)
        self.spread = pooled_spread(repeats) if self.is_pooled else None
        self.equivalent_pairs = self._equivalent_pairs()
        if self.is_pooled and not any(pair.is_different for pair in self.equivalent_pairs):
            self.spread = pooled_spread(_repeats(results, _scores, with_equivalent=True))

    @property
    def range(self) -> tuple[float, float] | None:
        if self.is_pooled:
            return None
        groups = [cell.scores for cells in self.results.cells.values() for cell in cells]
        spreads = [found.sd for scores in groups if (found := pooled_spread([scores])) is not None]
        return min(spreads), max(spreads)

    def compare(self, a: Sequence[CellRuns], b: Sequence[CellRuns], *, family: int = 1) -> Comparison:
        """A against B; a positive difference is better, whatever the metric."""
        sign = 1.0 if self.results.study.decider.higher_is_better else -1.0
        resampled = self.resamples.difference(a, b)
        return compare(
            [[sign * score for score in cell.scores] for cell in a],
            [[sign * score for score in cell.scores] for cell in b],
            _without_empty_sets(None if resampled is None else sign * resampled),
            num_groups=self.resamples.num_groups,
            spread=self.spread,
            family=family,
            bounds=bounds_of(self.results.study.decider),
        )

    def family(
        self, sides: Sequence[tuple[Sequence[CellRuns], Sequence[CellRuns]]]
    ) -> tuple[PairComparison, ...]:
        """Comparisons that are corrected together."""
        size = len(sides)
        return _corrected([(_label(a), _label(b), self.compare(a, b, family=size)) for a, b in sides])

    def against(self, cells: Sequence[CellRuns], other: CellRuns | None) -> tuple[PairComparison, ...]:
        return () if other is None else self.family([((cell,), (other,)) for cell in cells])

    def estimate(self, cell: CellRuns) -> Estimate:
        return Estimate(cell, *self._interval([cell]))

    def _interval(self, cells: Sequence[CellRuns]) -> tuple[float, float] | tuple[None, None]:
        found = interval(
            [cell.scores for cell in cells],
            _without_empty_sets(self.resamples.mean(cells)),
            num_groups=self.resamples.num_groups,
            spread=self.spread,
            bounds=bounds_of(self.results.study.decider),
        )
        return found or (None, None)

    def _equivalent_pairs(self) -> tuple[PairComparison, ...]:
        if self.spread is None and self.is_pooled:  # the only spread would be that of the pair itself
            return ()
        cells = {cell.name: cell for cell in self.results.arms}
        sides = []
        for cell in self.results.arms:
            other = canonical_code(self.results.study, cell.cell)
            if other != cell.name and other in cells:
                sides.append(((cell,), (cells[other],)))
        return self.family(sides)

    def confirmation(self) -> PairComparison | None:
        if any(record.status != "finished" for record in self.results.records.get(CONFIRMATION, ())):
            return None
        cells = self.results.cells.get(CONFIRMATION, ())
        winners = [cell for cell in cells if not cell.cell.is_control]
        controls = [cell for cell in cells if cell.cell.is_control]
        return self.family([(winners, controls)])[0] if winners and controls else None

    def factors(self) -> tuple[tuple[Effect, ...], tuple[Interaction, ...]]:
        """Effects and interactions in every phase that varies factors; those of one phase are one family."""
        effects: list[Effect] = []
        interactions: list[Interaction] = []
        for phase in self.results.cells:
            if phase in (CONTROLS, CONFIRMATION):
                continue
            known = [(factor, len(self._values(phase, factor))) for factor in self.results.study.factors]
            varied = [factor for factor, count in known if count > 1]
            binary = [factor for factor, count in known if count == 2]
            tables = [(factor, table) for factor in varied if (table := self._matched(phase, [factor]))]
            crossed = [
                (pair, table) for pair in combinations(binary, 2) if (table := self._matched(phase, pair))
            ]
            sides = [
                (value_label(other[0]), value_label(first[0]), table[other], table[first])
                for _, table in tables
                for first, *others in [list(table)]
                for other in others
            ]
            for (one, other), table in crossed:
                neither, only_one, only_other, both = table.values()
                name = f"{short_name(one)} x {short_name(other)}"
                sides.append((name, "no interaction", [*neither, *both], [*only_one, *only_other]))
            size = len(sides)
            pairs = iter(_corrected([(a, b, self.compare(x, y, family=size)) for a, b, x, y in sides]))
            for factor, table in tables:
                changes = tuple(islice(pairs, len(table) - 1))
                effects.append(Effect(phase, factor, self._levels(table), changes))
            interactions += [Interaction(phase, pair, next(pairs)) for pair, _ in crossed]
        return tuple(effects), tuple(interactions)

    def _levels(self, table: Mapping[tuple[Value, ...], Sequence[CellRuns]]) -> tuple[Level, ...]:
        return tuple(
            Level(value_label(value), sum(cell.mean for cell in cells) / len(cells), *self._interval(cells))
            for (value,), cells in table.items()
        )

    def _matched(self, phase: str, factors: Sequence[Factor]) -> dict[tuple[Value, ...], list[CellRuns]]:
        """A phase's cells by their values of some factors, restricted to those values of the other factors that all
        of them have; empty where there are none.
        """
        paths = [factor.path for factor in factors]
        by_values: dict[tuple[Value, ...], dict[str, CellRuns]] = {
            values: {} for values in product(*(self._values(phase, factor) for factor in factors))
        }
        for cell in self._cells(phase):
            by_values[_values_at(cell, paths)][_other_values(cell, paths)] = cell
        common = set.intersection(*map(set, by_values.values())) if by_values else set()
        return {
            values: [cell for other, cell in mine.items() if other in common]
            for values, mine in by_values.items()
            if common
        }

    def _cells(self, phase: str) -> list[CellRuns]:
        return [cell for cell in self.results.cells.get(phase, ()) if not cell.cell.is_control]

    def hypotheses(self) -> tuple[HypothesisResult, ...]:
        """All hypotheses; their claims are one family."""
        study = self.results.study
        size = sum(len(hypothesis.claims) for hypothesis in study.hypotheses)
        tested: list[tuple[Hypothesis, list[tuple[str, str, Comparison]]]] = []
        by_metric: dict[str | None, StudyComparisons] = {None: self}
        for hypothesis in study.hypotheses:
            metric = hypothesis.metric
            if metric is not None and metric not in by_metric:
                results = self.results.measured_by(metric)
                resamples = Resamples(count=self.resamples.count, metric=results.study.decider)
                by_metric[metric] = StudyComparisons(results, resamples)
            compared = by_metric[metric]
            claims = [compared._test(claim, hypothesis, size) for claim in hypothesis.claims]
            known = [claim for claim in claims if claim is not None]
            tested.append((hypothesis, known if len(known) == len(claims) else []))
        pairs = iter(_corrected([claim for _, claims in tested for claim in claims]))
        return tuple(
            _hypothesis_result(hypothesis, tuple(islice(pairs, len(claims)))) for hypothesis, claims in tested
        )

    def _test(self, claim: Claim, hypothesis: Hypothesis, family: int) -> tuple[str, str, Comparison] | None:
        """The two sides of a claim compared; None where cells of a side have no result."""
        if CONTROL in claim.better or CONTROL in claim.worse:
            sides = self._chosen(claim.phase, claim.better), self._chosen(claim.phase, claim.worse)
        else:
            sides = self._matched_sides(claim)
        better, worse = sides
        if not better or not worse:
            return None
        labels = _side_label(claim.better), _side_label(claim.worse)
        if hypothesis.measure == "score":
            return *labels, self.compare(better, worse, family=family)
        gaps = [_gaps(cell) for cell in (*better, *worse)]
        if not all(gaps):
            return None
        spread = pooled_spread(_repeats(self.results, _gaps, with_equivalent=True))
        negated = [[-gap for gap in cell] for cell in gaps]  # a smaller gap is better
        a, b = negated[: len(better)], negated[len(better) :]
        return *labels, compare(a, b, None, num_groups=0, spread=spread, family=family)

    def _chosen(self, phase: str, side: Mapping[str, Sequence[Value]]) -> list[CellRuns]:
        """The controls with these names, or the cells with these values; empty unless there are some for each."""
        if CONTROL in side:
            found = [cell for cell in self.results.controls if cell.name in side[CONTROL]]
            return found if len(found) == len(side[CONTROL]) else []
        expected = set(product(*side.values()))
        found = [cell for cell in self._cells(phase) if _values_at(cell, side) in expected]
        return found if {_values_at(cell, side) for cell in found} == expected else []

    def _matched_sides(self, claim: Claim) -> tuple[list[CellRuns], list[CellRuns]]:
        """Both sides, restricted to those values of the other factors that all values of both sides have."""
        better, worse = self._chosen(claim.phase, claim.better), self._chosen(claim.phase, claim.worse)
        paths = list({**claim.better, **claim.worse})
        others: dict[tuple[Value, ...], set[str]] = {}
        for cell in (*better, *worse):
            others.setdefault(_values_at(cell, paths), set()).add(_other_values(cell, paths))
        common = set.intersection(*others.values()) if better and worse else set()
        mine, theirs = (
            [cell for cell in cells if _other_values(cell, paths) in common] for cells in (better, worse)
        )
        return mine, theirs

    def _values(self, phase: str, factor: Factor) -> list[Value]:
        """The values of a factor in the phase's cells, in the factor's order."""
        seen = {cell.cell.values.get(factor.path) for cell in self.results.cells[phase]}
        return [value for value in factor.values if value in seen]


def _scores(cell: CellRuns) -> list[float]:
    return cell.scores


def _gaps(cell: CellRuns) -> list[float]:
    """The loss gap at the end of every run; empty where a run does not have it."""
    gaps = [loss_gap(run.results) for run in cell.runs]
    known = [gap for gap in gaps if gap is not None]
    return known if len(known) == len(gaps) else []


def _values_at(cell: CellRuns, paths: Iterable[str]) -> tuple[Value, ...]:
    return tuple(cell.cell.values[path] for path in paths)


def _other_values(cell: CellRuns, paths: Sequence[str]) -> str:
    """A key of the values of all other factors."""
    return repr([(path, value) for path, value in cell.cell.values.items() if path not in paths])


def _without_empty_sets(resampled: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Differences on the sets that have objects; None where there are fewer than two."""
    if resampled is None:
        return None
    kept = resampled[~np.isnan(resampled)]
    return kept if len(kept) > 1 else None


def _hypothesis_result(hypothesis: Hypothesis, claims: tuple[PairComparison, ...]) -> HypothesisResult:
    verdicts = {claim.verdict for claim in claims}
    outcome: Outcome = "not distinguishable"
    if not claims:
        outcome = "not tested"
    elif "B is better" in verdicts:
        outcome = "refuted"
    elif "unknown" in verdicts:
        outcome = "unknown"
    elif verdicts == {"A is better"}:
        outcome = "supported"
    return HypothesisResult(hypothesis, outcome, claims)


def _corrected(comparisons: Sequence[tuple[str, str, Comparison]]) -> tuple[PairComparison, ...]:
    known = [comparison.p_value for _, _, comparison in comparisons if comparison.p_value is not None]
    corrected = iter(holm(known))
    return tuple(
        PairComparison(a, b, comparison, None if comparison.p_value is None else next(corrected))
        for a, b, comparison in comparisons
    )


def _repeats(
    results: StudyResults, values: Callable[[CellRuns], Sequence[float]], *, with_equivalent: bool
) -> list[list[float]]:
    """Groups of values that differ by chance alone.

    Confirmation runs are groups of their own: the earlier runs of the winner are those by which it was selected.
    """
    groups: dict[tuple[bool, str], dict[str, Sequence[float]]] = {}
    for phase, cells in results.cells.items():
        for cell in cells:
            name = canonical_code(results.study, cell.cell) if with_equivalent else cell.name
            groups.setdefault((phase == CONFIRMATION, name), {})[cell.name] = values(cell)
    return [[value for mine in group.values() for value in mine] for group in groups.values()]


def _label(cells: Sequence[CellRuns]) -> str:
    return " + ".join(cell.name for cell in cells)


def _side_label(side: Mapping[str, Sequence[Value]]) -> str:
    return ", ".join(
        (f"{path.split('.')[-1]} " if path not in (CONTROL, "method") else "")
        + " or ".join(map(value_label, values))
        for path, values in side.items()
    )
