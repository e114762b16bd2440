"""GAFF, phase 1: the stages at which it helps. Eight sets of stages at the default hyper-parameters."""

from __future__ import annotations

from raydet.config import Experiment, apply_overrides
from raydet.tune.controls import single_sensors
from raydet.tune.study import Claim, ControlPhase, Factor, GridPhase, Hypothesis, Study

STAGE_SETS = ((1,), (2,), (3,), (4,), (2, 3), (3, 4), (2, 3, 4), (1, 2, 3, 4))
STAGES = Factor(path="model.fusion_stages", letter="s", default=(1, 2, 3, 4), values=STAGE_SETS)
SE_REDUCTION = Factor(path="model.fusion.se_reduction", letter="r", default=4, values=(4, 8))
# Equivalent values, one convolution or two of half the width: pairs of cells are repeats.
INTER_SHARED = Factor(
    path="model.fusion.inter_shared",
    letter="is",
    default=False,
    values=(False, True),
    equivalent_values=((True, False),),
)
MERGE_BOTTLENECK = Factor(
    path="model.fusion.merge_bottleneck", letter="mb", default=False, values=(False, True)
)

PHASE = GridPhase(name="phase1_stage_selection", vary=(STAGES.path,), is_screening=True)


def stages_beat(better: tuple[int, ...], *worse: tuple[int, ...]) -> tuple[Claim, ...]:
    """Claims that one set of stages beats each of some others."""
    return tuple(
        Claim(phase=PHASE.name, better={STAGES.path: (better,)}, worse={STAGES.path: (other,)})
        for other in worse
    )


HYPOTHESES = (
    Hypothesis(
        name="P1", text="Stage 3 is the best single stage.", claims=stages_beat((3,), (1,), (2,), (4,))
    ),
    Hypothesis(
        name="P2",
        text="Late stages together, {3,4} or {2,3,4}, beat the other sets of several stages.",
        claims=tuple(
            Claim(
                phase=PHASE.name,
                better={STAGES.path: ((3, 4), (2, 3, 4))},
                worse={STAGES.path: (other,)},
            )
            for other in ((2, 3), (1, 2, 3, 4))
        ),
    ),
    Hypothesis(
        name="P3",
        text="Stage 1 alone is the worst.",
        claims=tuple(claim for other in STAGE_SETS[1:] for claim in stages_beat(other, (1,))),
    ),
    Hypothesis(
        name="P4",
        text="All four stages give the best accuracy.",
        claims=stages_beat((1, 2, 3, 4), *STAGE_SETS[:-1]),
    ),
)
"""Expectations of phase 1 by the study's guide."""


def controls(base: Experiment) -> ControlPhase:
    """Each sensor alone, and the baseline's fusion at every stage."""
    return ControlPhase(arms={**single_sensors(base), "baseline": {"model.fusion_stages": []}})


def study(base: Experiment) -> Study:
    """Eight cells and the controls.

    As in the published runs, stages without GAFF keep the baseline's FRM + FFM, and the fused map enters both streams
    at every stage of every cell.
    """
    gaff = apply_overrides(base, {"model.fusion": {"kind": "gaff"}, "model.flow": "fused"})
    return Study(
        name="gaff",
        base=gaff,
        factors=(STAGES, SE_REDUCTION, INTER_SHARED, MERGE_BOTTLENECK),
        phases=(controls(gaff), PHASE),
        hypotheses=HYPOTHESES,
    )
