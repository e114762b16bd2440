"""Six sets of stages; with two seeds twelve trials."""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.study import Study
from tune_spaces import gaff_phase1

STAGES = gaff_phase1.STAGES.model_copy(update={"values": gaff_phase1.STAGES.values[:6]})


def study(base: Experiment) -> Study:
    """Six cells."""
    whole = gaff_phase1.study(base)
    return whole.model_copy(
        update={
            "factors": (STAGES, *whole.factors[1:]),
            "phases": whole.phases[-1:],
            "hypotheses": (),
            "needs_controls": False,
        }
    )
