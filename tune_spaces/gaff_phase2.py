"""GAFF, phase 2: the three best sets of stages, each with every combination of the block's hyper-parameters.

24 cells, of which the three defaults have run in phase 1: 21 new trials. Missing trials of phase 1 run first; at the
end the winner runs against the best control with fresh seeds.
"""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.study import Claim, ConfirmationPhase, Factor, Hypothesis, PromotionPhase, Study, Value
from tune_spaces import gaff_phase1

PHASE = PromotionPhase(
    name="phase2_hyperparameter_tuning",
    source=gaff_phase1.PHASE.name,
    promote=gaff_phase1.STAGES.path,
    top=3,
    # One standard deviation of repeats of the published runs; smaller differences are noise.
    margin=0.0066,
    vary=(
        gaff_phase1.SE_REDUCTION.path,
        gaff_phase1.INTER_SHARED.path,
        gaff_phase1.MERGE_BOTTLENECK.path,
    ),
)


def one_beats(factor: Factor, better: Value, worse: Value) -> Claim:
    """The claim that one value beats another, over all cells of this phase."""
    return Claim(phase=PHASE.name, better={factor.path: (better,)}, worse={factor.path: (worse,)})


HYPOTHESES = (
    Hypothesis(
        name="H1",
        text="A lower SE reduction improves accuracy: 4 beats 8.",
        claims=(one_beats(gaff_phase1.SE_REDUCTION, 4, 8),),
    ),
    Hypothesis(
        name="H2",
        text="Separate gates for the two directions help: not shared beats shared (they are the same functions).",
        claims=(one_beats(gaff_phase1.INTER_SHARED, False, True),),
    ),
    Hypothesis(
        name="H3",
        text="A bottleneck in the merge adds expressiveness: with it beats without.",
        claims=(one_beats(gaff_phase1.MERGE_BOTTLENECK, True, False),),
    ),
    Hypothesis(
        name="H4",
        text="A higher SE reduction reduces overfitting: 8 has the smaller gap between validation and training loss.",
        claims=(one_beats(gaff_phase1.SE_REDUCTION, 8, 4),),
        measure="gap",
    ),
)
"""Expectations of phase 2 by the study's guide."""


def study(base: Experiment) -> Study:
    """Phase 1, phase 2, and the confirmation of the winner with fresh seeds."""
    first = gaff_phase1.study(base)
    return first.model_copy(
        update={
            "phases": (*first.phases, PHASE, ConfirmationPhase()),
            "hypotheses": (*first.hypotheses, *HYPOTHESES),
        }
    )
