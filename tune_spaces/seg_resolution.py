"""Size of the canvas: half, the base's, one and a half times and twice as large."""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.spaces import require_masks
from raydet.tune.study import Claim, Factor, GridPhase, Hypothesis, Study

PHASE = "sizes"
FACTORS = (0.5, 1.0, 1.5, 2.0)
STRIDE = 32
"""Sizes of a canvas are multiples of it."""


def study(base: Experiment) -> Study:
    """One cell per size. Masks are compared at the images' own size whatever the canvas."""
    require_masks(base, "seg_resolution")
    height, width = base.data.canvas_hw
    sizes = {
        (
            max(STRIDE, round(factor * height / STRIDE) * STRIDE),
            max(STRIDE, round(factor * width / STRIDE) * STRIDE),
        )
        for factor in FACTORS
    }
    values = tuple(sorted(sizes))
    size = Factor(path="data.canvas_hw", letter="c", default=(height, width), values=values)
    return Study(
        name="seg_resolution",
        base=base,
        factors=(size,),
        phases=(GridPhase(name=PHASE, vary=(size.path,)),),
        hypotheses=(
            Hypothesis(
                name="H1",
                text="The largest canvas beats the smallest.",
                claims=(
                    Claim(phase=PHASE, better={size.path: (values[-1],)}, worse={size.path: (values[0],)}),
                ),
            ),
        ),
        needs_controls=False,
    )
