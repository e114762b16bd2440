"""What a study's numbers say, and what they do not: noise, differences, effects of factors, hypotheses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from raydet.report.findings import Effect, Estimate, Interaction, Noise, Tested, Versus
from raydet.report.judge import Judge
from raydet.report.study import CellRuns, Resamples, StudyResults

MOST_PAIRWISE = 20
"""Cells of which every pair is compared."""


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
    """The winner (A) against the best control (B) on fresh seeds, when all of these runs have finished."""
    without_images: tuple[str, ...]
    """Cells with runs of whose scores on resampled images nothing is known: what is said of them holds for these
    images only.
    """
    num_groups: int
    num_images: int


def analyse(results: StudyResults, *, resamples: int = 200) -> Analysis:
    """Work out everything that can be said of a study.

    Args:
        resamples: sets of images for the bootstrap.
    """
    judge = Judge(results, Resamples(count=resamples, metric=results.study.metric))
    estimates = {phase: tuple(map(judge.estimate, cells)) for phase, cells in results.cells.items()}
    best_control = max(results.controls, key=lambda cell: cell.mean, default=None)
    baseline = _baseline(results)
    everybody = (*results.controls, *results.arms)
    effects, interactions = judge.factors()
    return Analysis(
        results=results,
        noise=Noise(judge.spread, judge.range, judge.twins),
        estimates=estimates,
        best_control=best_control,
        baseline=baseline,
        against_control=judge.against(results.arms, best_control),
        against_baseline=judge.against(
            [cell for cell in results.arms if baseline is None or cell.name != baseline.name], baseline
        ),
        pairs=judge.family(_pairs_of(everybody)) if len(everybody) <= MOST_PAIRWISE else (),
        effects=effects,
        interactions=interactions,
        hypotheses=judge.hypotheses(),
        confirmation=judge.confirmation(),
        without_images=tuple(
            dict.fromkeys(
                cell.name
                for cells in results.cells.values()
                for cell in cells
                if judge.resamples.of([cell]) is None
            )
        ),
        num_groups=judge.resamples.num_groups,
        num_images=judge.resamples.num_images,
    )


def _pairs_of(cells: Sequence[CellRuns]) -> list[tuple[Sequence[CellRuns], Sequence[CellRuns]]]:
    """Every pair once."""
    return [((a,), (b,)) for a, b in combinations(cells, 2)]


def _baseline(results: StudyResults) -> CellRuns | None:
    """The control of that name, or the cell of all defaults."""
    named = [cell for cell in results.controls if cell.name == "baseline"]
    defaults = {factor.path: factor.default for factor in results.study.factors}
    return next(iter([*named, *(cell for cell in results.arms if cell.cell.values == defaults)]), None)
