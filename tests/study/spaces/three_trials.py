"""The first three cells of GAFF's phase 1."""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.study import Study
from tune_spaces import gaff_phase1

STAGES = gaff_phase1.STAGES.model_copy(update={"values": gaff_phase1.STAGES.values[:3]})


def study(base: Experiment) -> Study:
    """Three cells."""
    whole = gaff_phase1.study(base)
    return whole.model_copy(
        update={
            "factors": (STAGES, *whole.factors[1:]),
            "phases": whole.phases[-1:],
            "hypotheses": (),
            "needs_controls": False,
        }
    )
