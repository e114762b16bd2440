"""GAFF, phase 2: the three best sets of stages, each with every combination of the block's hyper-parameters.

24 cells, of which the three defaults have run in phase 1: 21 new runs. What is missing of phase 1 runs first.
"""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.study import PromotionPhase, Study
from tune_spaces import gaff_phase1

PHASE = PromotionPhase(
    name="phase2_hyperparameter_tuning",
    source=gaff_phase1.PHASE.name,
    promote=gaff_phase1.STAGES.path,
    top=3,
    # Repeats of the published runs differ by 0.0066 mAP (one standard deviation): less than this is no difference.
    margin=0.0066,
    vary=(
        gaff_phase1.SE_REDUCTION.path,
        gaff_phase1.INTER_SHARED.path,
        gaff_phase1.MERGE_BOTTLENECK.path,
    ),
)


def study(base: Experiment) -> Study:
    """Phase 1 and phase 2."""
    first = gaff_phase1.study(base)
    return first.model_copy(update={"phases": (*first.phases, PHASE)})
