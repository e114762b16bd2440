"""The demo: does GAFF's fusion beat each sensor alone, and is a factor that cannot matter found not to?

Six cells and the confirmation of the winner. With three seeds and the recipe `tiny`: three minutes on two CPU cores.
"""

from __future__ import annotations

from raydet.config import Experiment, apply_overrides
from raydet.tune.controls import single_sensors
from raydet.tune.study import (
    Claim,
    ConfirmationPhase,
    ControlPhase,
    Factor,
    GridPhase,
    Hypothesis,
    PromotionPhase,
    Study,
)
from tune_spaces.gaff_phase1 import INTER_SHARED

STAGES = Factor(path="model.fusion_stages", letter="s", default=(3, 4), values=((3, 4), (2, 3, 4)))
FIRST = GridPhase(name="phase1_stage_selection", vary=(STAGES.path,))
SECOND = PromotionPhase(
    name="phase2_gates",
    source=FIRST.name,
    promote=STAGES.path,
    top=1,
    margin=0.0,
    vary=(INTER_SHARED.path,),
)


def study(base: Experiment) -> Study:
    """Each sensor alone, two sets of stages, shared gates for the better one, and the winner with fresh seeds."""
    gaff = apply_overrides(base, {"model.fusion": {"kind": "gaff"}, "model.flow": "fused"})
    sensors = single_sensors(gaff)
    return Study(
        name="gaff_demo",
        base=gaff,
        factors=(STAGES, INTER_SHARED),
        phases=(ControlPhase(arms=sensors), FIRST, SECOND, ConfirmationPhase()),
        hypotheses=(
            Hypothesis(
                name="H1",
                text="Fusion beats each sensor alone.",
                claims=tuple(
                    Claim(phase=FIRST.name, better={STAGES.path: STAGES.values}, worse={"control": (name,)})
                    for name in sensors
                ),
            ),
            Hypothesis(
                name="H0",
                text="Separate gates for the two directions beat shared ones (they are the same functions).",
                claims=(
                    Claim(
                        phase=SECOND.name,
                        better={INTER_SHARED.path: (False,)},
                        worse={INTER_SHARED.path: (True,)},
                    ),
                ),
            ),
        ),
    )
