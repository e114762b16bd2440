"""GAFF, phase 1: at which encoder stages does it help? Eight sets of stages at the default hyper-parameters."""

from __future__ import annotations

from raydet.config import Experiment, apply_overrides
from raydet.tune.study import Factor, GridPhase, Study

STAGES = Factor(
    path="model.fusion_stages",
    letter="s",
    default=(1, 2, 3, 4),
    values=((1,), (2,), (3,), (4,), (2, 3), (3, 4), (2, 3, 4), (1, 2, 3, 4)),
)
SE_REDUCTION = Factor(path="model.fusion.se_reduction", letter="r", default=4, values=(4, 8))
INTER_SHARED = Factor(path="model.fusion.inter_shared", letter="is", default=False, values=(False, True))
MERGE_BOTTLENECK = Factor(
    path="model.fusion.merge_bottleneck", letter="mb", default=False, values=(False, True)
)

PHASE = GridPhase(name="phase1_stage_selection", vary=(STAGES.path,), is_screening=True)


def study(base: Experiment) -> Study:
    """Eight cells.

    Stages without GAFF keep the baseline's FRM + FFM, and the fused map enters both streams at every stage, in every
    arm alike: as in the published runs.
    """
    gaff = apply_overrides(base, {"model.fusion": {"kind": "gaff"}, "model.flow": "fused"})
    return Study(
        name="gaff",
        base=gaff,
        factors=(STAGES, SE_REDUCTION, INTER_SHARED, MERGE_BOTTLENECK),
        phases=(PHASE,),
    )
