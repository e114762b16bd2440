"""Two sets of stages, both promoted, each with two more settings: four cells, so that tests see every kind of phase."""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.study import Study
from tune_spaces import gaff_phase1, gaff_phase2

STAGES = gaff_phase1.STAGES.model_copy(update={"values": ((3,), (4,))})


def study(base: Experiment) -> Study:
    """Two cells of phase 1, two new ones of phase 2."""
    whole = gaff_phase2.study(base)
    _, first, second, _ = whole.phases
    return whole.model_copy(
        update={
            "factors": (STAGES, *whole.factors[1:]),
            "phases": (
                first,
                second.model_copy(update={"top": 2, "vary": (gaff_phase1.MERGE_BOTTLENECK.path,)}),
            ),
            "hypotheses": (),
            "needs_controls": False,
        }
    )
