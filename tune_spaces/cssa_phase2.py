"""CSSA, phase 2: the three best sets of stages, each with three thresholds and three kernel sizes.

27 cells, of which the three defaults have run in phase 1: 24 new trials. Missing trials of phase 1 run first.
"""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.study import ConfirmationPhase, Study
from tune_spaces import cssa_phase1, gaff_phase2

PHASE = gaff_phase2.PHASE.model_copy(
    update={"vary": (cssa_phase1.THRESHOLD.path, cssa_phase1.KERNEL_SIZE.path)}
)


def study(base: Experiment) -> Study:
    """Phase 1, phase 2, and the confirmation of the winner with fresh seeds."""
    first = cssa_phase1.study(base)
    return first.model_copy(update={"phases": (*first.phases, PHASE, ConfirmationPhase())})
