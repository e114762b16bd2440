"""Compares the sides of a study.

Comparisons of scores share one spread over seeds, pooled over every group of runs that differ by chance alone: repeats
with other seeds, and cells that are the same function (unless these came out different); where spreads differ by more
than chance, each has its own. The gap between the losses has
a spread of its own, and nothing is known of its noise over images. Verdicts of one family are corrected together by
Holm's method: the arms against one other cell, the pairs, the twins, the claims of all hypotheses, the effects and
interactions of one phase. Intervals are each comparison's own. Sides are compared over the values of the other factors
that all of them have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from raydet.report.findings import (
    Answer,
    Effect,
    Estimate,
    Interaction,
    Level,
    Tested,
    Versus,
    loss_gap,
    short,
    value_label,
)
from raydet.report.study import CellRuns, Resamples, StudyResults
from raydet.stats.comparison import Comparison, compare, holm, interval, pooled_spread, spreads_differ
from raydet.tune.cells import twin_of
from raydet.tune.study import CONFIRMATION, CONTROLS, Claim, Factor, Hypothesis, Value

CONTROL = "control"
"""What a claim calls the names of controls."""
Values = Callable[[CellRuns], Sequence[float]]


class Judge:
    """Compares sides with the study's common spread."""

    def __init__(self, results: StudyResults, resamples: Resamples) -> None:
        self.results = results
        self.resamples = resamples
        repeats = _repeats(results, _scores, with_twins=False)
        self.is_pooled = not spreads_differ(repeats)
        self.spread = pooled_spread(repeats) if self.is_pooled else None
        self.twins = self._twins()
        if self.is_pooled and not any(twin.verdict in ("A is better", "B is better") for twin in self.twins):
            self.spread = pooled_spread(_repeats(results, _scores, with_twins=True))

    @property
    def range(self) -> tuple[float, float] | None:
        """See `Noise.range`."""
        if self.is_pooled:
            return None
        groups = [cell.scores for cells in self.results.cells.values() for cell in cells]
        spreads = [found.sd for scores in groups if (found := pooled_spread([scores])) is not None]
        return min(spreads), max(spreads)

    def compare(self, a: Sequence[CellRuns], b: Sequence[CellRuns], *, family: int = 1) -> Comparison:
        return compare(
            [cell.scores for cell in a],
            [cell.scores for cell in b],
            _enough(self.resamples.difference(a, b)),
            num_groups=self.resamples.num_groups,
            spread=self.spread,
            family=family,
        )

    def family(self, sides: Sequence[tuple[Sequence[CellRuns], Sequence[CellRuns]]]) -> tuple[Versus, ...]:
        """Comparisons whose verdicts are corrected together."""
        size = len(sides)
        return _corrected([(_label(a), _label(b), self.compare(a, b, family=size)) for a, b in sides])

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

    def _twins(self) -> tuple[Versus, ...]:
        if self.spread is None and self.is_pooled:  # a pair would be judged by its own difference
            return ()
        cells = {cell.name: cell for cell in self.results.arms}
        sides = []
        for cell in self.results.arms:
            other = twin_of(self.results.study, cell.cell)
            if other != cell.name and other in cells:
                sides.append(((cell,), (cells[other],)))
        return self.family(sides)

    def confirmation(self) -> Versus | None:
        if any(record.status != "finished" for record in self.results.records.get(CONFIRMATION, ())):
            return None
        cells = self.results.cells.get(CONFIRMATION, ())
        winners = [cell for cell in cells if not cell.cell.is_control]
        controls = [cell for cell in cells if cell.cell.is_control]
        return self.family([(winners, controls)])[0] if winners and controls else None

    def factors(self) -> tuple[tuple[Effect, ...], tuple[Interaction, ...]]:
        """Of every phase that varies factors; those of one phase are one family."""
        effects: list[Effect] = []
        interactions: list[Interaction] = []
        for phase in self.results.cells:
            if phase in (CONTROLS, CONFIRMATION):
                continue
            factors = [
                factor for factor in self.results.study.factors if len(self._values(phase, factor)) > 1
            ]
            tables = {factor.path: self._matched(phase, [factor]) for factor in factors}
            crossed = {
                pair: self._matched(phase, pair)
                for pair in combinations(factors, 2)
                if all(len(self._values(phase, factor)) == 2 for factor in pair)
            }
            changes = [
                (value_label(other[0]), value_label(first[0]), table[other], table[first])
                for table in tables.values()
                for first, *others in [list(table)]
                for other in others
            ]
            pairs = [
                (f"{short(one)} x {short(other)}", *_corners(table))
                for (one, other), table in crossed.items()
                if table
            ]
            sides = [*changes, *((name, "no interaction", same, apart) for name, same, apart in pairs)]
            size = len(sides)
            verdicts = iter(_corrected([(a, b, self.compare(x, y, family=size)) for a, b, x, y in sides]))
            for factor in factors:
                table = tables[factor.path]
                mine = tuple(next(verdicts) for _ in range(max(0, len(table) - 1)))
                if table:
                    effects.append(Effect(phase, factor, self._levels(table), mine))
            interactions += [
                Interaction(phase, pair, next(verdicts)) for pair, table in crossed.items() if table
            ]
        return tuple(effects), tuple(interactions)

    def _levels(self, table: Mapping[tuple[Value, ...], Sequence[CellRuns]]) -> tuple[Level, ...]:
        return tuple(
            Level(value_label(value), sum(cell.mean for cell in cells) / len(cells), *self._interval(cells))
            for (value,), cells in table.items()
        )

    def _matched(self, phase: str, factors: Sequence[Factor]) -> dict[tuple[Value, ...], list[CellRuns]]:
        """A phase's cells by their values of some factors, over those values of the other factors that are there for
        all of them; empty where there are none.
        """
        cells = [cell for cell in self.results.cells.get(phase, ()) if not cell.cell.is_control]
        paths = [factor.path for factor in factors]
        by_values: dict[tuple[Value, ...], dict[str, CellRuns]] = {
            values: {} for values in product(*(self._values(phase, factor) for factor in factors))
        }
        for cell in cells:
            by_values[tuple(cell.cell.values[path] for path in paths)][_rest(cell, paths)] = cell
        common = set.intersection(*(set(mine) for mine in by_values.values())) if by_values else set()
        if not common:
            return {}
        return {
            values: [cell for rest, cell in mine.items() if rest in common]
            for values, mine in by_values.items()
        }

    def hypotheses(self) -> tuple[Tested, ...]:
        """Their claims are one family."""
        study = self.results.study
        size = sum(len(hypothesis.claims) for hypothesis in study.hypotheses)
        comparisons: list[tuple[str, str, Comparison]] = []
        places: list[list[int] | None] = []
        for hypothesis in study.hypotheses:
            sides = [self._sides(claim, hypothesis, size) for claim in hypothesis.claims]
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

    def _sides(self, claim: Claim, hypothesis: Hypothesis, family: int) -> tuple[str, str, Comparison] | None:
        """None where cells of a side have no result."""
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
        spread = pooled_spread(_repeats(self.results, _gaps, with_twins=True))
        # A smaller gap is better.
        mine = [[-gap for gap in cell] for cell in gaps]
        a, b = mine[: len(better)], mine[len(better) :]
        return *labels, compare(a, b, None, num_groups=0, spread=spread, family=family)

    def _chosen(self, phase: str, side: Mapping[str, Sequence[Value]]) -> list[CellRuns]:
        """The controls of these names, or cells with these values; empty unless there is something of each."""
        if CONTROL in side:
            found = [cell for cell in self.results.controls if cell.name in side[CONTROL]]
            return found if len(found) == len(side[CONTROL]) else []
        cells = [cell for cell in self.results.cells.get(phase, ()) if not cell.cell.is_control]
        wanted = set(product(*side.values()))
        found = [cell for cell in cells if _values_at(cell, side) in wanted]
        return found if {_values_at(cell, side) for cell in found} == wanted else []

    def _matched_sides(self, claim: Claim) -> tuple[list[CellRuns], list[CellRuns]]:
        """Over those values of the other factors that are there for all values of both sides."""
        better, worse = self._chosen(claim.phase, claim.better), self._chosen(claim.phase, claim.worse)
        paths = list({**claim.better, **claim.worse})
        there: dict[tuple[Value, ...], set[str]] = {}
        for cell in (*better, *worse):
            there.setdefault(tuple(cell.cell.values[path] for path in paths), set()).add(_rest(cell, paths))
        common = set.intersection(*there.values()) if better and worse else set()
        mine, theirs = ([cell for cell in cells if _rest(cell, paths) in common] for cells in (better, worse))
        return mine, theirs

    def _values(self, phase: str, factor: Factor) -> list[Value]:
        """That the phase's cells have, in the factor's order."""
        seen = {cell.cell.values.get(factor.path) for cell in self.results.cells[phase]}
        return [value for value in factor.values if value in seen]


def _scores(cell: CellRuns) -> list[float]:
    return cell.scores


def _gaps(cell: CellRuns) -> list[float]:
    """Validation loss less training loss at the end of every run; none where a run does not have it."""
    gaps = [loss_gap((run.results or {}).get("final", {})) for run in cell.runs]
    known = [gap for gap in gaps if gap is not None]
    return known if len(known) == len(gaps) else []


def _values_at(cell: CellRuns, side: Mapping[str, object]) -> tuple[Value, ...]:
    return tuple(cell.cell.values[path] for path in side)


def _rest(cell: CellRuns, paths: Sequence[str]) -> str:
    """What a cell has of the other factors, as a key."""
    return repr([(path, value) for path, value in cell.cell.values.items() if path not in paths])


def _corners(
    table: Mapping[tuple[Value, ...], Sequence[CellRuns]],
) -> tuple[list[CellRuns], list[CellRuns]]:
    """Of two factors with two values each: where both or neither change, and where one does."""
    neither, one, other, both = table.values()
    return [*neither, *both], [*one, *other]


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


def _repeats(results: StudyResults, values: Values, *, with_twins: bool) -> list[list[float]]:
    """Groups of values that differ by chance alone.

    Fresh runs are a group of their own: the winner was chosen for its first ones.
    """
    groups: dict[tuple[bool, str], dict[str, Sequence[float]]] = {}
    for phase, cells in results.cells.items():
        for cell in cells:
            name = twin_of(results.study, cell.cell) if with_twins else cell.name
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
