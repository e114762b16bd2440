"""The statistical analysis of a study: noise, differences, effects of factors, hypotheses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from raydet.report.findings import Effect, Estimate, HypothesisResult, Interaction, Noise, PairComparison
from raydet.report.study import CellRuns, Resamples, StudyResults
from raydet.report.study_comparisons import StudyComparisons

MAX_PAIRWISE = 20
"""Cells up to which every pair is compared."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """All findings of a report."""

    results: StudyResults
    noise: Noise
    estimates: Mapping[str, tuple[Estimate, ...]]
    """By phase, in the order of its table."""
    best_control: CellRuns | None
    baseline: CellRuns | None
    """The control called `baseline`, or else the cell of all defaults."""
    against_control: tuple[PairComparison, ...]
    """Every arm (A) against the best control (B)."""
    against_baseline: tuple[PairComparison, ...]
    pairs: tuple[PairComparison, ...]
    """Every pair of arms and controls; empty above `MAX_PAIRWISE` cells."""
    effects: tuple[Effect, ...]
    interactions: tuple[Interaction, ...]
    hypotheses: tuple[HypothesisResult, ...]
    confirmation: PairComparison | None
    """The winner (A) against the best control (B) on fresh seeds, once all of these runs have finished."""
    without_images: tuple[str, ...]
    """Cells without scores on resampled images: their results hold for these images only."""
    num_groups: int
    num_images: int
    constant: float | None
    """The best score of an answer that is the same everywhere; None where the metric has none."""


def analyse(results: StudyResults, *, resamples: int = 200) -> Analysis:
    """Analyse a study.

    Args:
        resamples: number of resampled sets of images for the bootstrap.
    """
    compared = StudyComparisons(results, Resamples(count=resamples, metric=results.study.decider))
    best_control = max(results.controls, key=lambda cell: cell.utility, default=None)
    defaults = {factor.path: factor.default for factor in results.study.factors}
    named = [cell for cell in results.controls if cell.name == "baseline"]
    baseline = next(iter([*named, *(cell for cell in results.arms if cell.cell.values == defaults)]), None)
    everything = (*results.controls, *results.arms)
    pairs = [((a,), (b,)) for a, b in combinations(everything, 2)] if len(everything) <= MAX_PAIRWISE else []
    effects, interactions = compared.factors()
    all_cells = [cell for cells in results.cells.values() for cell in cells]
    without_images = [cell.name for cell in all_cells if compared.resamples.mean([cell]) is None]
    return Analysis(
        results=results,
        noise=Noise(compared.spread, compared.range, compared.equivalent_pairs),
        estimates={phase: tuple(map(compared.estimate, cells)) for phase, cells in results.cells.items()},
        best_control=best_control,
        baseline=baseline,
        against_control=compared.against(results.arms, best_control),
        against_baseline=compared.against(
            [cell for cell in results.arms if baseline is None or cell.name != baseline.name], baseline
        ),
        pairs=compared.family(pairs),
        effects=effects,
        interactions=interactions,
        hypotheses=compared.hypotheses(),
        confirmation=compared.confirmation(),
        without_images=tuple(dict.fromkeys(without_images)),
        num_groups=compared.resamples.num_groups,
        num_images=compared.resamples.num_images,
        constant=compared.resamples.constant,
    )
