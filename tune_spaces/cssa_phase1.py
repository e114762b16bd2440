"""CSSA, phase 1: the stages at which it helps. Eight sets of stages at threshold 0.5 and kernel size 3."""

from __future__ import annotations

from raydet.config import Experiment, apply_overrides
from raydet.tune.study import Factor, Study
from tune_spaces import gaff_phase1

THRESHOLD = Factor(path="model.fusion.threshold", letter="t", default=0.5, values=(0.3, 0.5, 0.7))
KERNEL_SIZE = Factor(path="model.fusion.kernel_size", letter="k", default=3, values=(3, 5, 7))

PHASE = gaff_phase1.PHASE


def study(base: Experiment) -> Study:
    """Eight cells and the controls; stages without CSSA keep the baseline's FRM + FFM, as in the GAFF study."""
    cssa = apply_overrides(base, {"model.fusion": {"kind": "cssa"}, "model.flow": "fused"})
    return Study(
        name="cssa",
        base=cssa,
        factors=(gaff_phase1.STAGES, THRESHOLD, KERNEL_SIZE),
        phases=(gaff_phase1.controls(cssa), PHASE),
        hypotheses=gaff_phase1.HYPOTHESES,
    )
